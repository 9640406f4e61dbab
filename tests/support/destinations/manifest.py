"""What every destination answers of a part: the members that the matrix compares."""

from __future__ import annotations

import hashlib
from typing import IO, Any

__all__ = ["field_entry", "file_entry"]

_CHUNK_BYTES = 1 << 20


def field_entry(name: str, value: str) -> dict[str, Any]:
    data = value.encode()
    return {"name": name, "filename": None, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def file_entry(name: str, filename: str | None, stream: IO[bytes]) -> dict[str, Any]:
    """Reads the stream to its end."""
    digest, size = hashlib.sha256(), 0
    while chunk := stream.read(_CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
    return {"name": name, "filename": filename, "size": size, "sha256": digest.hexdigest()}
