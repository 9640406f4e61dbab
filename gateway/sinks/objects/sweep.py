"""What is to go from a bucket: uploads whose time is over, and what was left of those that never ended.

1. An upload expires so long after its manifest was written. A prefix without a manifest is one that was left, by a
   process that was killed, say, when nothing was written there for a day: an upload that runs for longer shows life.
2. Identifiers begin with a time, and buckets list in their order: nothing is looked at that began too late to be due.
   What was left is looked for four times a day, since that looks at everything before.
3. Of several replicas one sweeps at a time. Time is cut into turns, and a turn is whose object for it is there first,
   until he has swept: then another one may, who finds little. One that dies with it has wasted its turn only. Whoever
   sweeps removes the objects of turns that are over.

Open multipart uploads that a kill leaves are nothing that can be listed here: they are for a rule of the bucket's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass

from gateway.concurrency.tasks import OwnTasks
from gateway.concurrency.timer import RearmingTimer
from gateway.errors import GatewayError
from gateway.http.ulids import ULID, began_at
from gateway.sinks.objects.bucket import Bucket
from gateway.sinks.objects.claim import LEFT_SECONDS, claimed
from gateway.sinks.objects.delivery import ObjectDelivery
from gateway.sinks.objects.layout import MANIFEST, SWEEPS
from gateway.sinks.objects.upload_prefix import published, remove_prefix

__all__ = ["Sweeper", "Turn", "sweep"]

log = logging.getLogger("gateway.objects")

_BEFORE_IDS = "0"
"""What begins with a dot comes before: it may be an object for each upload, and none is one's."""
_RETRY_SECONDS = 2
"""Between attempts to remove what could not be removed."""


class Sweeper:
    """The sweeps of one process. `running` are its deliveries."""

    def __init__(self, bucket: Bucket, running: Collection[ObjectDelivery], *, keep_seconds: float) -> None:
        self._bucket = bucket
        self._running = running
        self._keep_seconds = keep_seconds
        self._left: dict[str, ObjectDelivery] = {}
        """Uploads that could not be removed, by identifier."""
        self._tasks = OwnTasks()
        self._timer = RearmingTimer(self._tick)
        self._due_at = self._looks_at = float("inf")
        """Until it is started: what could not be removed is tried again all the same."""

    def start(self) -> None:
        """At once for the first time, then every `sweep_seconds`, until it is stopped."""
        self._due_at = self._looks_at = 0.0
        self._timer.look()

    async def stop(self) -> None:
        """For good; what could not be removed is left."""
        self._timer.stop()
        self._tasks.cancel()
        await self._tasks.ended()
        for upload_id in self._left:
            log.warning("sink %s: what is left of upload %s is for a sweep to remove", self._bucket.name, upload_id)

    @property
    def sweep_seconds(self) -> float:
        """An upload outlives its time by a quarter of it, and by a minute at most."""
        return max(1, min(self._keep_seconds / 4, 60)) if self._keep_seconds else LEFT_SECONDS / 4

    @property
    def left(self) -> int:
        """Of how many uploads something could not be removed."""
        return len(self._left)

    def leave(self, delivery: ObjectDelivery, error: GatewayError) -> None:
        """It could not be removed: say so, and try again."""
        text = "sink %s: what there is of upload %s cannot be removed now, and will be tried again: %s"
        log.warning(text, self._bucket.name, delivery.upload_id, error)
        self._left[delivery.upload_id] = delivery
        self._timer.look_in(_RETRY_SECONDS)

    def _tick(self) -> float:
        if not self._tasks:
            self._tasks.start(self._work())
        return _RETRY_SECONDS if self._left else self.sweep_seconds

    async def _work(self) -> None:
        for upload_id, delivery in list(self._left.items()):
            with contextlib.suppress(GatewayError):
                await delivery.end()
                del self._left[upload_id]
        loop_time = asyncio.get_running_loop().time()
        try:
            if loop_time >= self._due_at:
                self._due_at = loop_time + self.sweep_seconds
                if self._keep_seconds:
                    await self._expire()
            if loop_time >= self._looks_at:
                self._looks_at = loop_time + LEFT_SECONDS / 4
                await self._look_for_left()
        except GatewayError as error:
            log.warning("sink %s cannot be swept: %s", self._bucket.name, error)

    async def _expire(self) -> None:
        now = time.time()
        async with Turn(self._bucket, "expired", self.sweep_seconds, now) as is_ours:
            if is_ours:
                removed = await sweep(self._bucket, published_before=now - self._keep_seconds)
                log.debug("sink %s: %d uploads have expired", self._bucket.name, removed)

    async def _look_for_left(self) -> None:
        now, loop_time = time.time(), asyncio.get_running_loop().time()
        for delivery in list(self._running):
            if loop_time - delivery.began_at > LEFT_SECONDS / 4:
                await delivery.show_life()
        async with Turn(self._bucket, "left", LEFT_SECONDS / 4, now) as is_ours:
            if is_ours and (removed := await sweep(self._bucket, touched_before=now - LEFT_SECONDS)):
                log.info("sink %s: %d uploads that were left are removed", self._bucket.name, removed)


@dataclass(slots=True)
class Turn:
    """A turn of so many seconds, of those that there are of one kind; `now` is in seconds since the epoch."""

    bucket: Bucket
    kind: str
    seconds: float
    now: float
    is_ours: bool = False

    async def __aenter__(self) -> bool:
        """Whether it is ours. Raises the errors of a sink."""
        self.is_ours = await self.bucket.put(self._key, b"", create=True) is not False
        if not self.is_ours:
            return False
        try:
            over = [one.key async for one in self.bucket.listed(f"{SWEEPS}/") if one.key.startswith(self._kind)]
            await self.bucket.delete([key for key in over if key != self._key])
        except asyncio.CancelledError:
            await self._give_back()
            raise
        return True

    async def __aexit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        if kind is None and self.is_ours:
            await self.bucket.delete([self._key])
        elif kind is asyncio.CancelledError and self.is_ours:
            await self._give_back()

    async def _give_back(self) -> None:
        """A gateway that ends while it sweeps leaves the turn to others, unless that takes long."""
        with contextlib.suppress(GatewayError, TimeoutError):
            async with asyncio.timeout(_RETRY_SECONDS):
                await self.bucket.delete([self._key])

    @property
    def _kind(self) -> str:
        return f"{SWEEPS}/{self.kind}-"

    @property
    def _key(self) -> str:
        return f"{self._kind}{int(self.now // self.seconds)}"


@dataclass(slots=True)
class _Prefix:
    """An upload, as its objects show it."""

    upload_id: str
    published: float | None = None
    touched: float = 0


async def sweep(bucket: Bucket, *, published_before: float = 0, touched_before: float = 0) -> int:
    """Remove what was published, or was left without a manifest and not touched, before these times. How many.

    Seconds since the epoch. Raises the errors of a sink where nothing can be listed.
    """
    removed = 0
    async for one in _prefixes(bucket, began_before=max(published_before, touched_before)):
        due = one.touched < touched_before if one.published is None else one.published < published_before
        if due:
            try:
                removed += await _removed(bucket, one, touched_before=touched_before or None)
            except GatewayError as error:
                log.warning("upload %s cannot be removed: %s", one.upload_id, error)
    return removed


async def _removed(bucket: Bucket, one: _Prefix, *, touched_before: float | None) -> bool:
    """False for one that is somebody's, or another one than was listed: who chooses its id may have come again."""
    async with claimed(bucket, one.upload_id, older_than=touched_before) as calls:
        if calls is None:
            return False
        manifest, counted = await published(bucket, one.upload_id) or (None, [])
        if not _is_same(None if manifest is None else manifest.modified, one.published):
            return False
        await calls.finish(_remove(bucket, one.upload_id, counted))
        return True


async def _remove(bucket: Bucket, upload_id: str, counted: Collection[str]) -> None:
    await bucket.delete(counted)
    await remove_prefix(bucket, upload_id)


def _is_same(found: float | None, listed: float | None) -> bool:
    """Whether it was published when a listing had it so. Stores round times, each in its own way."""
    if found is None or listed is None:
        return found is listed
    return abs(found - listed) < 1


async def _prefixes(bucket: Bucket, *, began_before: float) -> AsyncIterator[_Prefix]:
    one: _Prefix | None = None
    async for found in bucket.listed(after=_BEFORE_IDS):
        upload_id, _, name = found.key.partition("/")
        if not ULID.fullmatch(upload_id):
            continue
        if one is None or one.upload_id != upload_id:
            if one is not None:
                yield one
            one = None
            if began_at(upload_id) >= began_before:
                break
            one = _Prefix(upload_id)
        one.touched = max(one.touched, found.modified)
        if name == MANIFEST:
            one.published = found.modified
    if one is not None:
        yield one
