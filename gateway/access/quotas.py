"""How much one may have: uploads at a time, requests in a minute, bytes in a day.

An identity has the quotas that are configured. Who has none shares with all behind his address, or in his network of
IPv6, where one customer has 2^64 addresses: so many uploads at a time, and no more.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Protocol

from gateway.access.asked import Identity
from gateway.access.counts import Counts
from gateway.errors import TooManyRequests

__all__ = ["Holders", "Meter", "Quotas", "SharedHolders", "neighbourhood"]

_MINUTE, _DAY = 60, 86400
_STEP_BYTES = 1 << 20
"""Each costs a job where counts are in a file."""
_RETRY_SECONDS = 2
"""As for slots: uploads end at any time."""


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
    uploads: int = 0
    """At a time, of one identity."""
    requests_per_minute: int = 0
    bytes_per_day: int = 0
    counts: Counts
    holders: SharedHolders

    async def count_request(self, identity: Identity) -> None:
        """One more of this identity. Raises TooManyRequests."""
        if self.requests_per_minute and identity.name:
            await self._count("requests", identity, 1, self.requests_per_minute, _MINUTE)

    def meter(self, identity: Identity) -> Meter | None:
        """Of the bytes of one upload; None where they are not counted."""
        return Meter(self, identity) if self.bytes_per_day and identity.name else None

    def share(self, identity: Identity, address: str) -> AbstractContextManager[None]:
        """One upload of theirs, which is taken now, and given back on leaving it. Raises TooManyRequests."""
        name, most = identity.name, self.uploads
        if not name:
            name, most = neighbourhood(address), self.uploads_per_address
        if most and not self.holders.take(name, most):
            whose = "of yours" if identity.name else "from your address"
            raise TooManyRequests(f"{most} uploads {whose} are in progress", limit=most, retry_after=_RETRY_SECONDS)
        return self._held(name if most else "")

    @contextmanager
    def _held(self, name: str) -> Iterator[None]:
        try:
            yield
        finally:
            if name:
                self.holders.give_back(name)

    async def count_bytes(self, identity: Identity, size: int) -> None:
        """For its meter. Raises TooManyRequests."""
        await self._count("bytes", identity, size, self.bytes_per_day, _DAY)

    async def take_bytes_back(self, identity: Identity, size: int) -> None:
        """Likewise: so many did not come after all."""
        await self.counts.take_back(f"bytes {identity.name}", size)

    async def _count(self, what: str, identity: Identity, amount: int, most: int, seconds: int) -> None:
        now = time.time()
        until = (now // seconds + 1) * seconds
        if not await self.counts.add(f"{what} {identity.name}", amount, most=most, until=until):
            per = "minute" if seconds == _MINUTE else "day"
            raise TooManyRequests(
                f"more than {most} {what} of yours in a {per}",
                limit=most,
                retry_after=max(1, int(until - now) + 1),
                quota=what,
                window_seconds=seconds,
            )


class Meter:
    """Counts the bytes of one upload: those that are declared before they come, others as they come."""

    def __init__(self, quotas: Quotas, identity: Identity) -> None:
        self._quotas = quotas
        self._identity = identity
        self._counted = 0

    async def expect(self, size: int) -> None:
        """So many in all. Raises TooManyRequests."""
        if size > self._counted:
            await self._quotas.count_bytes(self._identity, size - self._counted)
            self._counted = size

    async def came(self, size: int) -> None:
        """So many until now: counted some at a time, and so a little before they come. Raises TooManyRequests."""
        if size > self._counted:
            await self.expect(size + _STEP_BYTES)

    async def end(self, size: int) -> None:
        """So many it were."""
        if size < self._counted:
            await self._quotas.take_bytes_back(self._identity, self._counted - size)


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
