"""What can become of an upload or a fetch, as exit codes; and what may be tried again, since nothing was kept."""

from __future__ import annotations

import asyncio
import errno
import json
import random
from collections.abc import Awaitable, Callable, Mapping
from email.utils import parsedate_to_datetime
from enum import IntEnum
from http import HTTPStatus
from time import time
from typing import Any, TypeVar

import aiohttp
from aiohttp import hdrs

__all__ = ["Code", "Failed", "parsed", "patiently", "refused", "translated"]

T = TypeVar("T")

MOST_TRIES = 6
MOST_SECONDS = 120.0
"""From the first failure on; what asks for more patience than that is given up at once."""
_FIRST_PAUSE_SECONDS = 0.5


class Code(IntEnum):
    """Exit codes (docs/send.md has them for users)."""

    DONE = 0
    LOCAL = 1
    """A file of ours cannot be read or written, or changed while it was sent."""
    USAGE = 2
    REFUSED = 3
    ACCESS = 4
    FAILED = 5
    LATER = 6
    """Busy, not reached at all, or lost in the middle: nothing was kept, and trying later may help."""
    UNKNOWN = 7
    """Everything had been sent, or a destination had everything, and nobody says what became of it."""
    DIFFERS = 8
    PARTLY = 9


class Failed(Exception):
    """What did not work. `problem` is as in RFC 9457; `pause` is how many seconds to wait at least before it is tried
    again, None where that is not to be: it would not help, or nobody knows what was kept. `state` is what the upload
    has come to: `failed` (nothing is kept), `partly`, `differs` (it is kept, and wrong) or `unknown`.
    """

    def __init__(
        self,
        code: Code,
        detail: str,
        *,
        problem: Mapping[str, Any] | None = None,
        pause: float | None = None,
        state: str = "failed",
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.state = state
        self.problem = dict(problem or {"title": detail})
        self.pause = pause


async def patiently(attempt: Callable[[], Awaitable[T]], say: Callable[[str], None]) -> T:
    """What the attempt gives, after several if need be: bounded in number and in time. Raises its last Failed."""
    loop = asyncio.get_running_loop()
    until: float | None = None
    for number in range(MOST_TRIES):
        try:
            return await attempt()
        except Failed as failed:
            if failed.pause is None or number == MOST_TRIES - 1:
                raise
            until = until or loop.time() + MOST_SECONDS
            # not all at the same time: those who were sent away together would be together again
            pause = max(failed.pause, _FIRST_PAUSE_SECONDS * 2**number) * random.uniform(1, 1.2)
            if loop.time() + pause > until:
                raise
            say(f"{failed}; trying again in {pause:.1f} s")
        await asyncio.sleep(pause)
    raise AssertionError("the last one has returned or raised")


def refused(status: int, headers: Mapping[str, str], body: bytes) -> Failed:
    """What an answer of 3xx, 4xx or 5xx means."""
    problem = _problem(status, body)
    detail = ": ".join(dict.fromkeys(str(problem[key]) for key in ("title", "detail") if problem.get(key)))
    kind = str(problem.get("type", "")).rpartition("/")[2]
    retry_after = _seconds(headers.get(hdrs.RETRY_AFTER))
    pause = None
    is_in_part, is_unknown = bool(problem.get("kept")), bool(problem.get("may_have_acted"))
    if is_in_part or is_unknown:
        pass  # it would be there twice
    elif status == HTTPStatus.SERVICE_UNAVAILABLE and hdrs.VIA not in headers:
        pause = retry_after or 0.0
    elif status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
        pause = retry_after  # a destination's own answer, by a relay, proves nothing unless it says when to come again
    if is_in_part:
        code = Code.PARTLY
    elif is_unknown:
        code = Code.UNKNOWN
    elif status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        code = Code.ACCESS
    elif status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
        code = Code.LATER
    elif kind == "digest-mismatch":
        code = Code.DIFFERS
    else:
        code = Code.FAILED if status >= 500 else Code.REFUSED
    state = "partly" if is_in_part else "unknown" if is_unknown else "failed"
    return Failed(code, f"{status} {detail}", problem=problem, pause=pause, state=state)


def parsed(body: bytes | bytearray) -> Any:
    """What the JSON says; None for what is none, or is nested without end."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _problem(status: int, body: bytes) -> dict[str, Any]:
    found = parsed(body)
    if isinstance(found, dict) and isinstance(found.get("title"), str):
        return {**found, "status": status}
    phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else "an unknown status"
    return {"title": phrase, "status": status}


def _seconds(retry_after: str | None) -> float | None:
    """RFC 9110 10.2.3: a number of seconds, or a date."""
    if retry_after is None:
        return None
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time())
    except (ValueError, OverflowError):
        return None


def translated(error: Exception) -> Failed:
    """What an error of the connection means. One that was refused has carried nothing."""
    said = str(error) or type(error).__name__
    if isinstance(error, aiohttp.InvalidURL):
        return Failed(Code.USAGE, f"this is no URL: {said}")
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
        return Failed(Code.LATER, f"the other end cannot be trusted: {said}")
    if isinstance(error, aiohttp.ClientConnectorError):
        is_refused = error.os_error.errno == errno.ECONNREFUSED
        return Failed(Code.LATER, said, pause=0.0 if is_refused else None)
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return Failed(Code.LATER, "it cannot be reached: no connection within the time")
    return Failed(Code.UNKNOWN, f"the connection was lost: {said}", state="unknown")
