"""Flows as a user writes them, well-behaved and not; named in configurations by their dotted paths."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterable, AsyncIterator, Sequence

from gateway.flows import FlowFile, Reject

__all__ = [
    "babbling",
    "cancelling_itself",
    "failing",
    "finding_nan",
    "labelling",
    "late_renaming",
    "leaving",
    "napping",
    "napping_first",
    "no_generator",
    "peeking",
    "redact",
    "rejecting",
    "renaming",
    "silent",
    "slow_taking",
    "stalling",
    "stalling_at_end",
    "swallowing",
    "uncountable",
    "yielding",
]


async def redact(file: FlowFile, chunks: AsyncIterable[bytes], *, words: Sequence[str] = ()) -> AsyncIterator[bytes]:
    """The example of docs/flows.md: by whole lines, so that a word is not missed where two chunks meet."""
    file.filename = f"redacted-{file.filename or 'file'}"
    hits = 0
    async for lines in whole_lines(chunks):
        for word in words:
            hits += lines.count(word.encode())
            lines = lines.replace(word.encode(), b"*" * len(word))
        yield lines
    file.findings["hits"] = hits


async def whole_lines(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in chunks:
        lines, newline, rest = (rest + chunk).rpartition(b"\n")
        if len(rest) > 1_000_000:
            raise Reject("a line has more than 1 MB")
        yield lines + newline
    yield rest


async def failing(file: FlowFile, chunks: AsyncIterable[bytes], *, after_bytes: int = 0) -> AsyncIterator[bytes]:
    seen = 0
    async for chunk in chunks:
        seen += len(chunk)
        if seen >= after_bytes:
            raise ZeroDivisionError("a flow's own mistake")
        yield chunk


async def rejecting(file: FlowFile, chunks: AsyncIterable[bytes], *, at_end: bool = False) -> AsyncIterator[bytes]:
    if at_end:
        async for chunk in chunks:
            yield chunk
    raise Reject("not today")
    yield b""


async def stalling(file: FlowFile, chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    await asyncio.sleep(3600)
    yield b""


async def stalling_at_end(file: FlowFile, chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield chunk
    await asyncio.sleep(3600)


async def silent(file: FlowFile, chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    return
    yield b""


async def peeking(file: FlowFile, chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Reads one chunk and leaves the rest."""
    async for chunk in chunks:
        yield chunk[:1]
        return


async def napping(file: FlowFile, chunks: AsyncIterable[bytes], *, seconds: float = 1) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield chunk
    await asyncio.sleep(seconds)


async def napping_first(file: FlowFile, chunks: AsyncIterable[bytes], *, seconds: float = 1) -> AsyncIterator[bytes]:
    await asyncio.sleep(seconds)
    async for chunk in chunks:
        yield chunk


async def renaming(
    file: FlowFile, chunks: AsyncIterable[bytes], *, filename: str = "new", content_type: str = "text/x-new"
) -> AsyncIterator[bytes]:
    file.filename, file.content_type = filename, content_type
    async for chunk in chunks:
        yield chunk


async def late_renaming(file: FlowFile, chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield chunk
        file.filename = "too-late"


async def babbling(file: FlowFile, chunks: AsyncIterable[bytes], *, times: int = 1000) -> AsyncIterator[bytes]:
    """Makes much out of little."""
    async for chunk in chunks:
        for _ in range(times):
            yield chunk


async def uncountable(file: FlowFile, chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Leaves findings that are no JSON."""
    async for chunk in chunks:
        yield chunk
    file.findings["bytes"] = b"\xff"


async def cancelling_itself(
    file: FlowFile, chunks: AsyncIterable[bytes], *, first: bool = False
) -> AsyncIterator[bytes]:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    if first:
        await future
    async for chunk in chunks:
        yield chunk
    await future


async def swallowing(file: FlowFile, chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Catches whatever comes, a cancellation and another flow's verdict among that."""
    try:
        async for chunk in chunks:
            yield chunk
    except BaseException as error:
        file.findings["swallowed"] = repr(error)


async def leaving(file: FlowFile, chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield chunk
        sys.exit(3)


async def yielding(file: FlowFile, chunks: AsyncIterable[bytes], *, what: object = 5) -> AsyncIterator[bytes]:
    async for _ in chunks:
        pass
    yield what  # type: ignore[misc]


async def finding_nan(file: FlowFile, chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield chunk
    file.findings["ratio"] = float("nan")


async def slow_taking(file: FlowFile, chunks: AsyncIterable[bytes], *, seconds: float = 0.2) -> AsyncIterator[bytes]:
    """Takes one chunk at a time and yields at its end."""
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        await asyncio.sleep(seconds)
    yield b"%d" % size


async def no_generator(file: FlowFile, chunks: AsyncIterable[bytes]) -> None:
    """A mistake that is easily made: nothing is yielded, so it is no generator."""


async def labelling(file: FlowFile, chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Gives the file another name, and leaves its bytes alone, which it promises."""
    file.filename = "labelled"
    async for chunk in chunks:
        yield chunk


labelling.keeps_bytes = True  # type: ignore[attr-defined]
