"""What a stored manifest says of its parts, read piece by piece: it may be long, and be asked for one part only.

ManifestText puts BETWEEN before each part. A manifest that has none, an older one, is read as a whole, in a thread.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from gateway.manifest import BETWEEN, HEAD_BYTES, owner_in
from gateway.sinks.store import StoredFile

__all__ = ["StoredPart", "owner_of", "part_of", "parts_of"]

StoredPart = Mapping[str, Any]
_READ_BYTES = 256 << 10


async def owner_of(manifest: StoredFile) -> str:
    """Whose the upload is; empty: nobody's. Raises ValueError for a name that does not end."""
    owner, _ = owner_in(await manifest.read(HEAD_BYTES, 0))
    return owner


async def part_of(manifest: StoredFile, index: int) -> StoredPart | None:
    """The part of that index; None if there is none. Raises EOFError for a file that is cut off, ValueError for what
    is no manifest.
    """
    number = 0
    async for part in _parts(manifest):
        if not isinstance(part, bytes):
            if part["index"] == index:
                return part
        elif number == index:
            return _decoded(part)
        number += 1
    return None


async def parts_of(manifest: StoredFile) -> AsyncIterator[StoredPart]:
    """All of them, in order. Raises as `part_of` does."""
    async for part in _parts(manifest):
        yield _decoded(part) if isinstance(part, bytes) else part


async def _parts(manifest: StoredFile) -> AsyncIterator[bytes | StoredPart]:
    """Each as it stands there, up to the next one, or as it is."""
    position, rest, number = 0, b"", 0
    while position < manifest.size:
        data = await manifest.read(_READ_BYTES, position)
        if not data:
            raise EOFError("a stored manifest is shorter than it was")
        position += len(data)
        *whole, rest = (rest + data).split(BETWEEN) if BETWEEN in data else (rest + data,)
        for piece in whole:
            if number:
                yield piece
            number += 1
    if number:
        yield rest.rstrip().removesuffix(b"]}")
        return
    for part in (await asyncio.to_thread(json.loads, rest))["parts"]:
        yield part


def _decoded(piece: bytes) -> StoredPart:
    part: StoredPart = json.loads(piece.removesuffix(b","))
    return part
