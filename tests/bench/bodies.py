"""What is sent: forms of seeded random bytes, laid down in files in memory, so that a client need only sendfile() them.

The same bytes on every run. What a body holds stands beside it: names, sizes and digests, for whoever checks answers.
"""

from __future__ import annotations

import hashlib
import random
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["BOUNDARY", "CONTENT_TYPE", "SHAPES", "SMALL", "SMOKE_SHAPES", "Body", "Shape", "make_body", "part_name"]

BOUNDARY = b"------------------------d74496d66958873e41b8a7"
"""As long and as dashed as curl's: the commonest client."""
CONTENT_TYPE = "multipart/form-data; boundary=" + BOUNDARY.decode()


@dataclass(frozen=True, slots=True)
class Shape:
    """`count` files of `size` bytes; of random ones, or all of them the byte that is the worst against the boundary."""

    name: str
    count: int
    size: int
    worst_fill: bool = False
    connections: int = 0
    """Of small uploads: so many are kept, each of which sends one after the other. 0: one upload at a time."""


SMALL = {
    "small": Shape("3 x 3 KiB, 64 connections", 3, 3 << 10, connections=64),
    "small16": Shape("3 x 3 KiB, 16 connections", 3, 3 << 10, connections=16),
}
LARGE = Shape("8 x 64 MiB", 8, 64 << 20)
SHAPES = {
    "large": LARGE,
    "medium": Shape("8192 x 64 KiB", 8192, 64 << 10),
    "tiny": Shape("32768 x 1 KiB", 32768, 1 << 10),
    "worst": Shape("1 x 64 MiB, worst fill", 1, 64 << 20, worst_fill=True),
    **SMALL,
    "memory": Shape("8 x 8 MiB", 8, 8 << 20),
}
SMOKE_SHAPES = {
    "large": Shape("8 x 4 MiB", 8, 4 << 20),
    "medium": Shape("256 x 64 KiB", 256, 64 << 10),
    "tiny": Shape("2048 x 1 KiB", 2048, 1 << 10),
    "worst": Shape("1 x 4 MiB, worst fill", 1, 4 << 20, worst_fill=True),
    **SMALL,
    "memory": Shape("4 x 1 MiB", 4, 1 << 20),
}


@dataclass(frozen=True, slots=True)
class Body:
    shape: Shape
    path: Path
    size: int
    digests: tuple[str, ...]
    fill: int | None

    @property
    def name(self) -> str:
        return self.shape.name if self.fill is None else f"{self.shape.name} {bytes([self.fill])!r}"


def part_name(index: int) -> str:
    return f"{index}.bin"


def make_body(shape: Shape, directory: Path) -> Body:
    fill = _worst_fill() if shape.worst_fill else None
    source = random.Random(shape.name)
    digests = []
    kind = "-worst" if shape.worst_fill else f"-{shape.connections}" if shape.connections else ""
    path = directory / f"{shape.count}x{shape.size}{kind}.body"
    with path.open("wb") as file:
        for index in range(shape.count):
            content = source.randbytes(shape.size) if fill is None else bytes([fill]) * shape.size
            digests.append(hashlib.sha256(content).hexdigest())
            file.write(
                b'--%s\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n'
                b"Content-Type: application/octet-stream\r\n\r\n" % (BOUNDARY, part_name(index).encode())
            )
            file.write(content)
            file.write(b"\r\n")
        file.write(b"--%s--\r\n" % BOUNDARY)
    return Body(shape, path, path.stat().st_size, tuple(digests), fill)


def _worst_fill() -> int:
    """The byte of the delimiter that `bytes.find` is slowest over."""
    delimiter = b"\r\n--" + BOUNDARY

    def seconds(fill: int) -> float:
        data = bytes([fill]) * (1 << 20)
        began = time.perf_counter()
        for _ in range(3):
            data.find(delimiter)
        return time.perf_counter() - began

    return max(sorted(set(delimiter)), key=seconds)
