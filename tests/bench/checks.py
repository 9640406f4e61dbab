"""Whether what was answered, stored and delivered is what was sent. Each check raises Failure where it is not."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tests.bench.bodies import Body, part_name
from tests.bench.client import Answer, Failure

__all__ = ["check_files", "check_form", "check_manifest", "check_status"]


def check_status(answer: Answer) -> None:
    if not 200 <= answer.status < 300:
        raise Failure(f"status {answer.status}: {answer.body[:300].decode(errors='replace')}")


def check_manifest(answer: Answer, body: Body, *, digests: bool) -> None:
    """An entry per part, in order; with `digests` the right ones."""
    check_status(answer)
    try:
        parts: list[dict[str, Any]] = json.loads(answer.body)["parts"]
    except (ValueError, KeyError) as error:
        raise Failure(f"no manifest: {answer.body[:300]!r}") from error
    if len(parts) != body.shape.count:
        raise Failure(f"a manifest of {len(parts)} parts instead of {body.shape.count}")
    for index, part in enumerate(parts):
        if (part["name"], part["filename"], part["size"]) != ("file", part_name(index), body.shape.size):
            raise Failure(f"a wrong entry in the manifest: {part}")
        if digests and part["sha256"] != body.digests[index]:
            raise Failure(f"a wrong digest in the manifest: {part}")


def check_files(root: Path, body: Body, *, uploads: int, digests: bool) -> None:
    """So many uploads are below `root`, whole, and nothing else is; with `digests` the bytes are the right ones."""
    directories = list(root.iterdir())
    if len(directories) != uploads:
        raise Failure(f"{len(directories)} uploads on disk instead of {uploads}")
    for directory in directories:
        for index, digest in enumerate(body.digests):
            path = directory / str(index)
            if not path.is_file() or path.stat().st_size != body.shape.size:
                raise Failure(f"{path.name} was not stored, or not whole")
            if digests and _digest(path) != digest:
                raise Failure(f"{path.name} was stored with other bytes")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_form(path: Path, content_type: str, body: Body) -> None:
    """The form that a destination wrote there has the right parts, in order, with the right bytes, and its end."""
    match = re.search(r'boundary="?([^";]+)', content_type)
    if match is None:
        raise Failure(f"a form without a boundary was delivered: {content_type}")
    delimiter = b"--" + match[1].encode()
    with path.open("rb") as file:
        for index, digest in enumerate(body.digests):
            if file.readline().rstrip(b"\r\n") != delimiter:
                raise Failure(f"part {index} was not delivered where it should be")
            disposition = next(
                (line for line in list(_head(file)) if line.lower().startswith(b"content-disposition:")), b""
            )
            if b'name="file"' not in disposition or f'filename="{part_name(index)}"'.encode() not in disposition:
                raise Failure(f"part {index} was delivered under a wrong name: {disposition!r}")
            if hashlib.sha256(file.read(body.shape.size)).hexdigest() != digest or file.read(2) != b"\r\n":
                raise Failure(f"part {index} was delivered with other bytes")
        if file.read().rstrip(b"\r\n") != delimiter + b"--":
            raise Failure("the form that was delivered does not end as it should")


def _head(file: IO[bytes]) -> Iterator[bytes]:
    while line := file.readline().rstrip(b"\r\n"):
        yield line
