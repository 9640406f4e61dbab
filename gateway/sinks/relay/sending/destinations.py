"""The choice among the urls of a relay, and what is known of their health. Pure but for the checks at the end.

1. Who has the fewest uploads under way is chosen, in turn among equals.
2. *Passive health.* `failures_to_open` failures in a row (no connection, one that broke before an answer, a clock)
   open the circuit of a destination for `open_seconds`. After that it is half open: one upload may probe it, and
   an answer, whatever its status, closes the circuit, another failure opens it again.
3. *Active checks* only say yes or no: a destination that failed its last one is not chosen while others will do.
4. Health is a guess, a refusal would be certain: where none that is left is healthy, they are tried all the same,
   first the one whose circuit is due first. So nothing is refused unseen, a single url in particular, and an outage
   of all of them is over as soon as one is back. It costs a connection attempt each.
5. An upload tries no destination twice.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Collection, Sequence

import aiohttp
from yarl import URL

from gateway.http.urls import without_secrets
from gateway.sinks.relay.sending.exchange import Exchange
from gateway.sinks.relay.sending.request import Taught

__all__ = ["Attempt", "Destination", "Destinations", "check_health"]

log = logging.getLogger("gateway.destinations")


class Destination:
    """One url; what is known of it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.shown = without_secrets(url)
        """For the log."""
        self.changed: Callable[[], None] = lambda: None
        """Called when its circuit opens or closes, and when what its active checks say turns."""
        self.busy = 0
        """Uploads under way."""
        self.failures = 0
        """In a row."""
        self.open_until = 0.0
        """When its circuit is half open again; 0 while it is closed."""
        self.probe: Attempt | None = None
        self.down = False
        """Whether the last active check failed."""
        self.wants_length = False
        """Whether it answered 411 or 501 to a chunked body: it gets no other one."""
        self.taught = Taught()
        """Of `Expect: 100-continue`."""

    @property
    def is_up(self) -> bool:
        """Whether it is chosen before others, as far as is known: nothing has come from it since it was not."""
        return not self.open_until and not self.down


class Attempt:
    """One try of an upload at one destination; to be left, once."""

    def __init__(self, destination: Destination, of: Destinations) -> None:
        self.destination = destination
        self.exchange: Exchange | None = None
        """The request, once there is one."""
        self.handed = 0
        """How much of what was kept it has been handed: `Replayable.after` says of what."""
        self._of = of
        self._left = False
        destination.busy += 1
        if destination.open_until:
            destination.probe = self

    def answered(self) -> None:
        """Whatever the answer: the destination is well."""
        self._of.answered(self.destination)

    def failed(self) -> None:
        """No connection, one that broke before an answer, or a clock."""
        self._of.failed(self.destination)

    def leave(self) -> None:
        """Give up its place, and its connection; a request that was not finished is broken off."""
        if self._left:
            return
        self._left = True
        if self.exchange is not None:
            self.exchange.abort()
        self.destination.busy -= 1
        if self.destination.probe is self:
            self.destination.probe = None


class Destinations:
    """`failures_to_open` = 0 opens no circuit. `clock` gives seconds, from anywhere on."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        failures_to_open: int = 3,
        open_seconds: float = 10,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.all = [Destination(url) for url in urls]
        self._failures_to_open = failures_to_open
        self._open_seconds = open_seconds
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._turn = -1

    def choose(self, tried: Collection[Destination] = ()) -> Attempt | None:
        """Where to go with an upload that has `tried` those; None if there is nowhere left."""
        now = self._clock()
        if not tried:  # the turns are those of uploads, not of their attempts
            self._turn = (self._turn + 1) % len(self.all)
        in_turn = [one for one in (*self.all[self._turn :], *self.all[: self._turn]) if one not in tried]
        healthy = [one for one in in_turn if one.open_until <= now and one.probe is None and not one.down]
        if healthy:
            return Attempt(min(healthy, key=lambda one: one.busy), self)
        if in_turn:
            return Attempt(min(in_turn, key=lambda one: (one.open_until, one.busy)), self)
        return None

    def answered(self, one: Destination) -> None:
        """Close its circuit."""
        was_open = bool(one.open_until)
        one.failures, one.open_until, one.probe = 0, 0.0, None
        if was_open:
            log.info("destination %s answers again", one.shown)
            one.changed()

    def failed(self, one: Destination) -> None:
        """Count it, and open its circuit if that is too many in a row."""
        one.failures += 1
        if self._failures_to_open and one.failures >= self._failures_to_open:
            was_closed = not one.open_until
            one.open_until = self._clock() + self._open_seconds
            if was_closed:
                log.warning("destination %s failed %d times in a row", one.shown, one.failures)
                one.changed()


async def check_health(
    destinations: Destinations,
    session: aiohttp.ClientSession,
    *,
    path: str,
    every_seconds: float,
    patience: float,
    server_name: str | None = None,
) -> None:
    """For ever: GET `path` of each destination every so often; 2xx and 3xx within `patience` seconds is healthy."""
    async with asyncio.TaskGroup() as checks:
        for one in destinations.all:  # each at its own pace: one that hangs holds up no other's
            checks.create_task(_check_often(one, session, path, every_seconds, patience, server_name))


async def _check_often(
    one: Destination,
    session: aiohttp.ClientSession,
    path: str,
    every_seconds: float,
    patience: float,
    server_name: str | None,
) -> None:
    while True:
        await _check(one, session, path, patience, server_name)
        await asyncio.sleep(every_seconds)


async def _check(
    one: Destination, session: aiohttp.ClientSession, path: str, patience: float, server_name: str | None
) -> None:
    reason = await _why_unhealthy(session, _at(one.url, path), patience, server_name)
    has_turned = bool(reason) != one.down
    one.down = bool(reason)
    if has_turned:
        one.changed()
        log.log(
            logging.WARNING if reason else logging.INFO,
            "destination %s: %s",
            one.shown,
            reason or "it is healthy again",
        )


def _at(url: str, path: str) -> URL:
    """`path`, and its query, of the same server; both as they are written."""
    server = re.match(r"[a-z]+://[^/?]*", url)
    assert server is not None  # a url is checked where it is configured
    return URL(server[0] + path, encoded=True)


async def _why_unhealthy(session: aiohttp.ClientSession, url: URL, patience: float, server_name: str | None) -> str:
    try:
        timeout = aiohttp.ClientTimeout(total=patience)
        async with session.get(url, allow_redirects=False, timeout=timeout, server_hostname=server_name) as response:
            return "" if response.status < 400 else f"its health check answers {response.status}"
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return f"its health check failed: {type(error).__name__}"
