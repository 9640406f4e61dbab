"""That an upload's prefix is somebody's for a while: of whoever uploads under an id that he chose, or removes what is
there. One object says so, `running`, which is made only where there is none, at whichever replica.

It has a nonce in it. A store that made it may not have said so, or the client may have asked twice and been told that
it is there: so where that is not known, what is there is read back.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator

from gateway.concurrency.tasks import OwnTasks
from gateway.errors import SinkFault, SinkRefused
from gateway.sinks.objects.bucket import Bucket
from gateway.sinks.objects.layout import RUNNING

__all__ = ["LEFT_SECONDS", "Claim", "claimed"]

log = logging.getLogger("gateway.objects")

LEFT_SECONDS = 86400
"""After which nothing more is expected to come of an upload: whose claim was not renewed since was killed."""
_NONCE_BYTES = 16


class Claim:
    """One claim on one upload's prefix. Its verbs raise the errors of a sink, and may be called again then.

    They write, so whoever calls them lets them end: see bucket.py.
    """

    def __init__(self, bucket: Bucket, upload_id: str) -> None:
        self._key = f"{upload_id}/{RUNNING}"
        self._bucket = bucket
        self._nonce = secrets.token_hex(_NONCE_BYTES).encode()
        self._may_be_there = False
        """An object of ours."""

    async def take(self) -> bool:
        """Whether it is ours now. Raises SinkRefused for a store that cannot tell: of two that come with one id it
        would refuse neither.
        """
        made = await self._made()
        if made is None:
            name = self._bucket.name
            raise SinkRefused(f"the store of sink {name} cannot tell whose an id is that clients choose", sink=name)
        return made

    async def take_over(self, *, older_than: float) -> bool:
        """The same for who removes: what was not touched since then, in seconds since the epoch, is of somebody who was
        killed. A store that cannot tell keeps nobody from it.
        """
        made = await self._made()
        if made is False:
            found = await self._bucket.head(self._key)
            if found is not None and found.modified < older_than:
                await self.renew()
                made = self._may_be_there = await self._is_ours()
        return made is not False

    async def renew(self) -> None:
        """Write it anew, so that it is not old; also where it was not taken before."""
        self._may_be_there = True
        await self._bucket.put(self._key, self._nonce)

    async def let_go(self) -> None:
        """It is nobody's, if it was ours."""
        if self._may_be_there and await self._is_ours():
            await self._bucket.delete([self._key])
        self._may_be_there = False

    async def _made(self) -> bool | None:
        """None: a store that does not know that condition, or overlooks it, as is tried once."""
        self._may_be_there = True
        made = await self._bucket.put(self._key, self._nonce, create=True)
        if made is False:
            made = await self._is_ours()
        elif made and not self._bucket.makes_once:
            if await self._bucket.put(self._key, self._nonce, create=True):
                return None
            self._bucket.makes_once = True
        self._may_be_there = made is True
        return made

    async def _is_ours(self) -> bool:
        found = await self._bucket.fetch(self._key, at_most=len(self._nonce))
        return found is not None and found[1] == self._nonce


@contextlib.asynccontextmanager
async def claimed(bucket: Bucket, upload_id: str, *, older_than: float | None = None) -> AsyncIterator[OwnTasks | None]:
    """A prefix that is to be removed, until this is left; None where it is somebody else's. What is removed there is
    removed by these tasks, to its end, though nobody waits for it any more: only then others may come.

    `older_than`: as for `take_over`; None: what was not touched for a day. Raises the errors of a sink.
    """
    if older_than is None:
        older_than = time.time() - LEFT_SECONDS
    claim, calls = Claim(bucket, upload_id), OwnTasks()
    try:
        yield calls if await calls.finish(claim.take_over(older_than=older_than)) else None
    finally:
        await calls.ended()
        try:
            await calls.finish(claim.let_go())
        except SinkFault as error:
            log.warning("upload %s stays claimed, until a sweep finds it a day later: %s", upload_id, error)
