"""How much one may have: uploads at a time, requests in a minute, bytes in a day, bytes that are kept.

An identity has the quotas that are configured. Who has none shares with all behind his address, or in his network of
IPv6, where one customer has 2^64 addresses: so many uploads at a time, and no more.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Protocol

from gateway.access.asked import Identity
from gateway.access.counts import Counts
from gateway.errors import TooManyRequests

__all__ = ["QUOTAS", "Holders", "Meter", "Quotas", "SharedHolders", "neighbourhood"]

QUOTAS = ("uploads", "reads", "requests", "bytes", "stored-bytes")
"""What a TooManyRequests says that there is too much of, as its member `quota`."""
_MINUTE, _DAY = 60, 86400
_STEP_BYTES = 1 << 20
"""Each costs a job where counts are in a file."""
_REMEMBERED = 1024
"""Addresses: to take one apart costs as much as to look at a request's head."""
_RETRY_SECONDS = 2
"""As for slots: uploads end at any time."""


async def _nothing(name: str) -> int:
    return 0


class SharedHolders(Protocol):
    """Who holds something now, in several processes."""

    def take(self, name: str, most: int) -> bool:
        """Hold one more, unless there are so many."""

    def give_back(self, name: str) -> None:
        """One less."""


class Holders:
    """The same in one process."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()

    def take(self, name: str, most: int) -> bool:
        """As `SharedHolders` says."""
        if self._held[name] >= most:
            return False
        self._held[name] += 1
        return True

    def give_back(self, name: str) -> None:
        """As `SharedHolders` says."""
        self._held[name] -= 1
        if not self._held[name]:
            del self._held[name]


@dataclass(slots=True, kw_only=True)
class Quotas:
    """What each may have; 0 is unlimited."""

    uploads_per_address: int = 0
    """At a time, of who has no identity."""
    reads_per_address: int = 0
    """Likewise."""
    uploads: int = 0
    """At a time, of one identity."""
    requests_per_minute: int = 0
    bytes_per_day: int = 0
    stored_bytes: int = 0
    counts: Counts
    holders: SharedHolders
    stored: Callable[[str], Awaitable[int]] = _nothing
    """How many bytes are kept of this name now. Raises the errors of a sink."""

    async def count_request(self, identity: Identity) -> None:
        """One more of this identity. Raises TooManyRequests."""
        if self.requests_per_minute and identity.name:
            await self._count("requests", identity, 1, self.requests_per_minute, _MINUTE)

    def meter(self, identity: Identity, *, is_stored: bool) -> Meter | None:
        """Of the bytes of one upload, which are to be kept or not; None where they are not counted."""
        if not identity.name:
            return None
        accounts: list[_Account] = []
        if self.bytes_per_day:
            accounts.append(_Daily(self, identity))
        if self.stored_bytes and is_stored:
            accounts.append(_Stored(self, identity))
        return Meter(accounts) if accounts else None

    def share_of_reads(self, identity: Identity, address: str) -> AbstractContextManager[None]:
        """One read, likewise; of who has an identity any number. Raises TooManyRequests."""
        name, most = f"reads {neighbourhood(address)}", 0 if identity.name else self.reads_per_address
        if most and not self.holders.take(name, most):
            detail = f"{most} reads from your address are in progress"
            raise TooManyRequests(detail, limit=most, retry_after=_RETRY_SECONDS, quota="reads")
        return self._held(name if most else "")

    def share(self, identity: Identity, address: str) -> AbstractContextManager[None]:
        """One upload of theirs, which is taken now, and given back on leaving it. Raises TooManyRequests."""
        name, most = identity.name, self.uploads
        if not name:
            name, most = neighbourhood(address), self.uploads_per_address
        if most and not self.holders.take(name, most):
            whose = "of yours" if identity.name else "from your address"
            detail = f"{most} uploads {whose} are in progress"
            raise TooManyRequests(detail, limit=most, retry_after=_RETRY_SECONDS, quota="uploads")
        return self._held(name if most else "")

    @contextmanager
    def _held(self, name: str) -> Iterator[None]:
        try:
            yield
        finally:
            if name:
                self.holders.give_back(name)

    async def _count(self, what: str, identity: Identity, amount: int, most: int, seconds: int) -> str:
        """The name that it is counted under."""
        now = time.time()
        until = (now // seconds + 1) * seconds
        name = f"{what} {until:.0f} {identity.name}"
        if not await self.counts.add(name, amount, most=most, until=until):
            per = "minute" if seconds == _MINUTE else "day"
            raise TooManyRequests(
                f"more than {most} {what} of yours in a {per}",
                limit=most,
                retry_after=max(1, int(until - now) + 1),
                quota=what,
                window_seconds=seconds,
            )
        return name


class _Account(Protocol):
    """What the bytes of an upload count for."""

    async def add(self, size: int) -> None:
        """So many more. Raises TooManyRequests."""

    async def settle(self, counted: int, size: int) -> None:
        """The upload has ended: so many were counted, and so many came."""


class _Daily:
    """The bytes that come in a day, whatever becomes of them."""

    def __init__(self, quotas: Quotas, identity: Identity) -> None:
        self._quotas = quotas
        self._identity = identity
        self._counted_as = ""
        """Each day has a count of its own: yesterday's is not given back of today's."""

    async def add(self, size: int) -> None:
        most = self._quotas.bytes_per_day
        self._counted_as = await self._quotas._count("bytes", self._identity, size, most, _DAY)

    async def settle(self, counted: int, size: int) -> None:
        if size < counted:
            await self._quotas.counts.take_back(self._counted_as, counted - size)


class _Stored:
    """What is kept, and what uploads in progress are about to add to it.

    Stores know what they keep, so that what expires or is removed, by whomever, counts no more. Only what is in
    progress is counted here; what a process that was killed had in progress counts for a day.
    """

    def __init__(self, quotas: Quotas, identity: Identity) -> None:
        self._quotas = quotas
        self._owner = identity.name
        self._name = f"in progress {identity.name}"

    async def add(self, size: int) -> None:
        counts, most = self._quotas.counts, self._quotas.stored_bytes
        until = time.time() + _DAY
        if await counts.add(self._name, size, most=most, until=until):
            has_room = False
            try:
                # Asked only now: what another upload has just kept is seen here, or still counts as in progress.
                room = most - await self._quotas.stored(self._owner)
                has_room = await counts.add(self._name, 0, most=room, until=until)
            finally:
                if not has_room:
                    await counts.take_back(self._name, size)
            if has_room:
                return
        detail = f"more than {most} bytes of yours would be kept"
        raise TooManyRequests(detail, limit=most, retry_after=_MINUTE, quota="stored-bytes")

    async def settle(self, counted: int, size: int) -> None:
        await self._quotas.counts.take_back(self._name, counted)


class Meter:
    """Counts the bytes of one upload: those that are declared before they come, others as they come."""

    def __init__(self, accounts: Sequence[_Account]) -> None:
        self._counted = dict.fromkeys(accounts, 0)

    async def expect(self, size: int) -> None:
        """So many in all. Raises TooManyRequests."""
        for account, counted in self._counted.items():
            if size > counted:
                await account.add(size - counted)
                self._counted[account] = size

    async def came(self, size: int) -> None:
        """So many until now: counted some at a time, and so a little before they come. Raises TooManyRequests."""
        if size > min(self._counted.values()):
            await self.expect(size + _STEP_BYTES)

    async def end(self, size: int) -> None:
        """So many it were."""
        for account, counted in self._counted.items():
            await account.settle(counted, size)


@lru_cache(maxsize=_REMEMBERED)
def neighbourhood(address: str) -> str:
    """What counts as one: an address of IPv4, a /64 of IPv6."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ip_network((parsed, 64), strict=False))
    return str(parsed)
