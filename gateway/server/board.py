"""Which uploads can be watched: those in progress, and for a minute those that have ended. One text of each for all who
watch it, made anew as often as it may be.

1. A text is made when somebody asks, and at most every 100 ms; less often the longer it takes to make, and the more
   there are who are sent it, so that watching costs some percent of a processor at most.
2. What has ended is remembered within bounds: for `REMEMBERED_SECONDS`, so many uploads, and so many parts of them all;
   fewer of those that nobody was known to want when they ended. The oldest ones are forgotten first.
3. Of several processes one has the upload: who is asked and does not know it asks the others (neighbours.py).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from gateway.errors import Busy, Conflict, NoDescriptors
from gateway.sinks.store import Store
from gateway.upload.progress import UploadProgress

__all__ = ["REMEMBERED_SECONDS", "Board", "Others", "Told", "Watch"]

REMEMBERED_SECONDS = 60.0
_MOST_ENDED, _MOST_UNASKED, _MOST_PARTS = 4096, 256, 16384
_INTERVAL_SECONDS = 0.1
_SHARE = 20
"""Of a processor, to make texts: one in so many seconds of a second."""
_WATCHER_SECONDS = 0.001
"""To send a text to one more, about, and that with a share of it."""


@dataclass(frozen=True, slots=True)
class Told:
    """What is told of an upload at a time."""

    owner: str
    """Whose it is; empty: nobody's."""
    is_last: bool
    """Whether it has ended, so that nothing changes any more."""
    text: bytes
    """JSON, without a prefix."""
    seconds: float = 0.0
    """How long it took to make, where that was."""


class Others:
    """The other processes; none, unless this is one of several."""

    async def find(self, upload_id: str) -> Told | None:
        """What the one that has it tells of an upload. Raises Busy, NoDescriptors where that cannot be found out."""
        return None

    async def has_taken(self, upload_id: str) -> bool:
        """Whether one of them has an upload of that id, or may have it. Raises NoDescriptors."""
        return False


class _Ended:
    """Uploads that have ended: the last ones, up to so many."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._in_order: deque[UploadProgress] = deque()
        self._by_id: dict[str, UploadProgress] = {}
        self._parts = 0

    def __len__(self) -> int:
        return len(self._in_order)

    def add(self, progress: UploadProgress) -> None:
        """One that has ended just now."""
        self._in_order.append(progress)
        self._by_id[progress.id] = progress
        self._parts += progress.part_count
        self._forget(progress.ended_at)

    def get(self, upload_id: str) -> UploadProgress | None:
        """The last of that id."""
        self._forget(time.monotonic())
        return self._by_id.get(upload_id)

    def _forget(self, now: float) -> None:
        ended = self._in_order
        while ended and (
            len(ended) > self._most or self._parts > _MOST_PARTS or now - ended[0].ended_at > REMEMBERED_SECONDS
        ):
            oldest = ended.popleft()
            self._parts -= oldest.part_count
            if self._by_id.get(oldest.id) is oldest:
                del self._by_id[oldest.id]


class Board:
    """Of this process."""

    def __init__(self, others: Others | None = None) -> None:
        self._others = others or Others()
        self._claimed: set[str] = set()
        """Ids that clients have chosen, of uploads that begin or go on."""
        self._running: dict[str, UploadProgress] = {}
        self._asked = _Ended(_MOST_ENDED)
        self._unasked = _Ended(_MOST_UNASKED)
        self._watches: dict[str, Watch] = {}

    def begin(self, progress: UploadProgress) -> None:
        """An upload begins, whose id is nobody else's."""
        self._running[progress.id] = progress

    def end(self, progress: UploadProgress, problem: Mapping[str, object] | None) -> None:
        """It has ended, well or with that problem."""
        progress.end(problem)
        self._running.pop(progress.id, None)
        (self._asked if progress.is_asked else self._unasked).add(progress)

    def known(self, upload_id: str) -> Told | None:
        """What is known here of an upload, now. Whoever asks is going to ask again."""
        progress = self._running.get(upload_id) or self._ended(upload_id)
        if progress is None:
            return None
        progress.is_asked = True
        began = time.monotonic()
        text = json.dumps(progress.snapshot(), ensure_ascii=False).encode()
        return Told(progress.identity, progress.ended_at > 0, text, time.monotonic() - began)

    async def find(self, upload_id: str) -> Told | None:
        """The same, of any of the processes."""
        return self.known(upload_id) or await self._others.find(upload_id)

    def has_taken(self, upload_id: str) -> bool:
        """Whether an upload here has that id: in progress, or kept a moment ago. One that failed gives it back."""
        ended = self._ended(upload_id)
        return upload_id in self._claimed or upload_id in self._running or (ended is not None and ended.is_taken)

    @asynccontextmanager
    async def claimed(self, upload_id: str, stores: Iterable[Store]) -> AsyncIterator[None]:
        """An id that a client has chosen, for as long as its upload goes on. Raises Conflict where it is taken.

        Of two processes that claim it at once neither may get it, never both.
        """
        taken = Conflict(f"the upload id {upload_id} is taken")
        if self.has_taken(upload_id):
            raise taken
        self._claimed.add(upload_id)
        try:
            if await self._others.has_taken(upload_id):
                raise taken
            for store in stores:
                async with store.opened(upload_id) as share:
                    if share is not None:
                        raise taken
            yield
        finally:
            self._claimed.discard(upload_id)

    def watch(self, upload_id: str) -> Watch:
        """What all have in common who watch that upload: to be left when one of them has seen enough."""
        watch = self._watches.get(upload_id)
        if watch is None:
            watch = self._watches[upload_id] = Watch(lambda: self.find(upload_id), lambda: self._watches.pop(upload_id))
        watch.watchers += 1
        return watch

    def _ended(self, upload_id: str) -> UploadProgress | None:
        return self._asked.get(upload_id) or self._unasked.get(upload_id)


class Watch:
    """The newest text of one upload, for all who watch it here. `left` is called when nobody does any more."""

    def __init__(self, find: Callable[[], Awaitable[Told | None]], left: Callable[[], object]) -> None:
        self.watchers = 0
        self._find = find
        self._left = left
        self._told: Told | None = None
        self._next_at = 0.0
        self._asking = asyncio.Lock()

    async def newest(self) -> Told | None:
        """None where nobody knows the upload any more. Raises Busy, NoDescriptors where that cannot be found out."""
        async with self._asking:
            if time.monotonic() >= self._next_at:  # also of what has ended: an upload that failed gives its id back
                try:
                    self._told = await self._find()
                except (Busy, NoDescriptors):
                    if self._told is None:
                        raise  # else what was known last is what is known now
                making = 0.0 if self._told is None else _SHARE * self._told.seconds  # not what the answer took to come
                pause = max(_INTERVAL_SECONDS, making, self.watchers * _WATCHER_SECONDS)
                self._next_at = time.monotonic() + pause
            return self._told

    async def pause(self) -> None:
        """Until there may be something newer."""
        await asyncio.sleep(self._next_at - time.monotonic())

    def leave(self) -> None:
        """One has seen enough."""
        self.watchers -= 1
        if not self.watchers:
            self._left()
