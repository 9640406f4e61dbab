"""Does something in front of us hold bodies back? Asked by a client that sends slowly, and told by when its bytes came.

A proxy that buffers requests takes streaming away: the upload arrives late and at once, the proxy's disk is the
limit, and a client waits for the whole of it twice. From here it cannot be seen, unless the client says how slowly
it sends: `seconds` between its first byte and its last.
"""

from __future__ import annotations

import json
import math
import time

from aiohttp import web

from gateway.errors import Malformed, TooLarge
from gateway.intake.admission import accept_body
from gateway.intake.body import Intake
from gateway.model import Limits

__all__ = ["answer_buffering"]

_MOST_BYTES = 1 << 20
_MOST_SECONDS = 60


async def answer_buffering(request: web.Request, limits: Limits) -> web.Response:
    """`{"bytes": …, "seconds": …, "buffered": …}`: how many came, over how long, and whether that is too short.

    Raises Malformed without a usable `seconds`, or for less than two bytes.
    """
    wanted = _seconds(request.query.get("seconds", "2"))
    first = last = 0.0
    with Intake(request, limits) as intake:
        await accept_body(request)
        while await intake.readany():
            last = time.monotonic()
            first = first or last
            if intake.received_bytes > _MOST_BYTES:
                raise TooLarge(f"a test has no more than {_MOST_BYTES} bytes", limit=_MOST_BYTES)
    if intake.received_bytes < 2:
        raise Malformed("a test has two bytes at least, the last one some seconds after the first")
    took = last - first
    found = {"bytes": intake.received_bytes, "seconds": round(took, 3), "buffered": took < wanted / 2}
    return web.json_response(text=json.dumps(found) + "\n")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _MOST_SECONDS:
        raise Malformed(f"seconds is a number, more than 0 and at most {_MOST_SECONDS}")
    return seconds
