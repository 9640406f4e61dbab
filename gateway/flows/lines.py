"""Line ends of text files, made uniform: a small flow that really changes bytes."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator

from gateway.flows import FlowFile

__all__ = ["lines"]

_ENDS = {"lf": b"\n", "crlf": b"\r\n"}


async def lines(file: FlowFile, chunks: AsyncIterable[bytes], *, ending: str = "lf") -> AsyncIterator[bytes]:
    """CRLF, CR and LF become one and the same: `lf` or `crlf`. Finds the number of line ends."""
    end = _ENDS[ending]
    count = 0
    held = b""  # a CR at the end of a chunk: its LF may be in the next
    async for chunk in chunks:
        chunk = held + chunk if held else chunk
        held = chunk[-1:] if chunk.endswith(b"\r") else b""
        # a call for each kind of end, not for each end: megabytes of CR would take seconds
        changed = chunk[: len(chunk) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        count += changed.count(b"\n")
        yield changed if end == b"\n" else changed.replace(b"\n", end)
    if held:
        count += 1
        yield end
    file.findings["line_ends"] = count


def _check(*, ending: str = "lf") -> None:
    if ending not in _ENDS:
        raise ValueError(f"ending is one of {', '.join(_ENDS)}")


lines.check = _check  # type: ignore[attr-defined]
