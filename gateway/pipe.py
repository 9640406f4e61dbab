"""The bytes of one part on their way to one sink; a window in bytes.

A `Window` is one sink's share of the memory of one upload: all parts that are open towards that sink
draw on it, so many small parts weigh as much as one large one. A `Pipe` carries one part: the pump
sends, the sink iterates. Chunks go by reference: fan-out copies nothing.

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
from collections.abc import AsyncIterator

__all__ = ["Pipe", "Window"]


class Window:
    """`limit` bytes that may be on their way to one sink at a time; and when that sink last moved."""

    __slots__ = ("_loop", "_room", "finishing", "limit", "moved_at", "total", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.total = 0
        """All bytes that ever went in."""
        self.finishing = 0
        """How many parts the sink has to the last byte, but has not said to be safe."""
        self._loop = asyncio.get_running_loop()
        self._room: asyncio.Future[None] | None = None
        self.moved_at = self._loop.time()

    @property
    def owed(self) -> bool:
        """Whether the next move is the sink's, not the client's."""
        return self.used > 0 or self.finishing > 0

    async def reserve(self, size: int) -> None:
        while self.used and self.limit and self.used + size > self.limit:
            self._room = self._loop.create_future()
            await self._room
        self._touch()
        self.used += size
        self.total += size

    def release(self, size: int) -> None:
        self.used -= size
        self.moved_at = self._loop.time()
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def begin_finishing(self) -> None:
        self._touch()
        self.finishing += 1

    def end_finishing(self) -> None:
        self.finishing -= 1
        self.moved_at = self._loop.time()

    def _touch(self) -> None:
        if not self.owed:
            self.moved_at = self._loop.time()


class Pipe(AsyncIterator[bytes]):
    """One part towards one sink."""

    __slots__ = ("_arrival", "_chunks", "_closed", "_finished", "_window")

    def __init__(self, window: Window) -> None:
        self._window = window
        self._chunks: deque[bytes] = deque()
        self._arrival: asyncio.Future[None] | None = None
        self._finished = False
        self._closed = False

    # -- the pump's side

    async def send(self, chunk: bytes) -> None:
        """Hand a chunk over; waits for room in the window."""
        if self._closed:
            return
        await self._window.reserve(len(chunk))
        if self._closed:  # the consumer stopped while we waited
            self._window.release(len(chunk))
            return
        self._chunks.append(chunk)
        self._wake()

    def finish(self) -> None:
        """Every byte was sent, and the part is whole."""
        self._finished = True
        if not self._closed:
            self._window.begin_finishing()
        self._wake()

    # -- the sink's side

    async def __anext__(self) -> bytes:
        while not self._chunks:
            if self._finished:
                raise StopAsyncIteration
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival
        chunk = self._chunks.popleft()
        self._window.release(len(chunk))
        return chunk

    def close(self) -> None:
        """The sink is done with this part, whether it took all of it or not."""
        if self._closed:
            return
        self._closed = True
        if self._finished:
            self._window.end_finishing()
        self._window.release(sum(map(len, self._chunks)))
        self._chunks.clear()

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)
