"""The bytes of one part on their way to one sink; a window in bytes.

A `Pipe` carries one part: the pump sends, the sink iterates. Chunks go by reference: fan-out copies
nothing. Its `Window` bounds what lies in it. Windows are per open part and sink, not shared by a sink's
parts, so that a sink that starts slowly on each of several small parts still gets `parallel_parts` of
them at once; batches of tiny parts draw on one more window of their sink. A `Progress` is what all the
windows towards one sink have in common: when it last moved, and whether the next move is its.

What holds:
1. `send` waits until the window has room (one chunk always fits into an empty window), so a slow sink
   slows the client. Bytes leave the window when the sink takes them.
2. A consumer that stopped closes its pipe: what lies in it is given back, and later sends are dropped.
   The pump never waits for somebody who is gone.
3. An iteration ends cleanly only after `finish()`. A source that broke off cancels the consumer; the
   end of the bytes alone never looks like the end of a part.
4. One producer per window, one consumer per pipe.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterator, MutableSequence
from contextlib import contextmanager

__all__ = ["Pipe", "Progress", "Window", "add_chunk", "batches", "gathered"]


_TINY_BYTES = 4096


def add_chunk(chunks: MutableSequence[bytes], chunk: bytes) -> None:
    """Append; tiny ones are joined: an object weighs some fifty bytes, and a client may send two at a time."""
    if chunks and len(chunks[-1]) + len(chunk) <= _TINY_BYTES:
        chunks[-1] += chunk
    else:
        chunks.append(chunk)


class Progress:
    """Whether somebody who is given bytes moves."""

    __slots__ = ("_excuses", "_finishing", "_held", "_loop", "moved_at", "total")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._held = 0
        self._finishing = 0
        self._excuses = 0
        self.total = 0
        """All bytes that were ever given."""
        self.moved_at = self._loop.time()

    @property
    def owed(self) -> bool:
        """Whether the next move is theirs: bytes were not taken, or a whole part is not said to be safe."""
        return (self._held > 0 or self._finishing > 0) and not self._excuses

    @property
    def waiting_bytes(self) -> int:
        """Those that are theirs to take."""
        return self._held

    def give(self, size: int) -> None:
        """So many bytes more are theirs to take."""
        if not self.owed:
            self.moved_at = self._loop.time()
        self._held += size
        self.total += size

    def take(self, size: int) -> None:
        """They took so many."""
        self._held -= size
        self.moved_at = self._loop.time()

    def begin_finishing(self) -> None:
        """They have a part to its last byte; from now on it is theirs to finish."""
        if not self.owed:
            self.moved_at = self._loop.time()
        self._finishing += 1

    def end_finishing(self) -> None:
        """They are done with one, whatever became of it."""
        self._finishing -= 1
        self.moved()

    @contextmanager
    def excused(self) -> Iterator[None]:
        """They wait for somebody else themselves."""
        self._excuses += 1
        try:
            yield
        finally:
            self._excuses -= 1
            self.moved()

    def moved(self) -> None:
        """They did something: their clock begins anew."""
        self.moved_at = self._loop.time()


class Window:
    """`limit` bytes (0 = unlimited) that may be under way at a time."""

    __slots__ = ("_room", "limit", "progress", "used")

    def __init__(self, limit: int, progress: Progress) -> None:
        self.limit = limit
        self.progress = progress
        self.used = 0
        self._room: asyncio.Future[None] | None = None

    def has_room(self, size: int) -> bool:
        """An empty window takes anything: a chunk cannot be cut."""
        return not (self.used and self.limit and self.used + size > self.limit)

    async def reserve(self, size: int) -> None:
        """Wait until there is room, and take it."""
        while not self.has_room(size):
            self._room = asyncio.get_running_loop().create_future()
            await self._room
        self.used += size
        self.progress.give(size)

    def take(self, size: int) -> None:
        """Reserve what there is room for."""
        self.used += size
        self.progress.give(size)

    def release(self, size: int) -> None:
        """So many bytes were taken: there is room for others."""
        self.used -= size
        self.progress.take(size)
        if self._room is not None and not self._room.done():
            self._room.set_result(None)


class Pipe(AsyncIterator[bytes]):
    """One part towards one sink."""

    __slots__ = ("_abandoned", "_arrival", "_chunks", "_closed", "_finished", "_window")

    def __init__(self, window: Window) -> None:
        self._window = window
        self._chunks: deque[bytes] = deque()
        self._arrival: asyncio.Future[None] | None = None
        self._finished = False
        self._closed = False
        self._abandoned = False

    @property
    def waiting_bytes(self) -> int:
        """What lies in it."""
        return sum(map(len, self._chunks))

    # -- the pump's side

    async def send(self, chunk: bytes) -> None:
        """Hand a chunk over; waits for room in the window."""
        if self._closed:
            return
        await self._window.reserve(len(chunk))
        if self._closed:  # the consumer stopped while we waited
            self._window.release(len(chunk))
            return
        add_chunk(self._chunks, chunk)
        self._wake()

    def finish(self) -> None:
        """Every byte was sent, and the part is whole."""
        self._finished = True
        if not self._closed:
            self._window.progress.begin_finishing()
        self._wake()

    # -- the sink's side

    async def __anext__(self) -> bytes:
        while not self._chunks:
            if self._finished and not self._abandoned:
                raise StopAsyncIteration
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival
        chunk = self._chunks.popleft()
        self._window.release(len(chunk))
        return chunk

    def take_ready(self, size: int) -> tuple[list[bytes], int]:
        """(chunks, their bytes): what is there without waiting, until it is `size` bytes or more."""
        chunks: list[bytes] = []
        taken = 0
        if not self._chunks:
            return chunks, taken
        while self._chunks and taken < size:
            chunks.append(self._chunks.popleft())
            taken += len(chunks[-1])
        self._window.release(taken)
        return chunks, taken

    def close(self) -> None:
        """The sink is done with this part, whether it took all of it or not."""
        if self._closed:
            return
        self._closed = True
        if self._finished:
            self._window.progress.end_finishing()
        self._window.release(sum(map(len, self._chunks)))
        self._chunks.clear()

    def abandon(self) -> None:
        """Drop what lies in it, while its consumer still reads: who waits for more until it is cancelled."""
        self._abandoned = True
        self.close()

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)


async def batches(chunks: AsyncIterable[bytes], size: int) -> AsyncIterator[tuple[list[bytes], int]]:
    """(chunks, their bytes), at least `size` bytes at a time but for the last."""
    batch: list[bytes] = []
    batch_bytes = 0
    async for chunk in chunks:
        add_chunk(batch, chunk)
        batch_bytes += len(chunk)
        if batch_bytes >= size:
            yield batch, batch_bytes
            batch, batch_bytes = [], 0
    if batch:
        yield batch, batch_bytes


async def gathered(chunks: AsyncIterable[bytes], size: int) -> AsyncIterator[tuple[list[bytes], int]]:
    """(chunks, their bytes): as many as are there, up to about `size` bytes; waits only for the first of them."""
    async for chunk in chunks:
        batch, taken = [chunk], len(chunk)
        if isinstance(chunks, Pipe) and taken < size:
            more, more_bytes = chunks.take_ready(size - taken)
            batch += more
            taken += more_bytes
        yield batch, taken
