"""A timer for clocks that are read rather than set: it looks when something could first be due, and again after that.

What a clock measures moves all the time (bytes come, a write waits). To set a timer anew with each of them costs more
than the bytes; to look when the first clock could be over, and to ask then when the next one could, costs nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["RearmingTimer"]

_LEAST_SECONDS = 0.01
"""Between two looks: the event loop's clock is no finer, and a look that is late by so little hurts nobody."""


class RearmingTimer:
    """Calls `look`, which says in how many seconds to look again; None or infinity is never."""

    __slots__ = ("_look", "_timer")

    def __init__(self, look: Callable[[], float | None]) -> None:
        self._look: Callable[[], float | None] | None = look
        self._timer: asyncio.TimerHandle | None = None

    def look(self) -> None:
        """Look now. Without effect after `stop`, which `look` may call itself."""
        after = None if self._look is None else self._look()
        self.look_in(float("inf") if after is None else after)

    def look_in(self, seconds: float) -> None:
        """Look so many seconds from now, or before: a look that was to come sooner stays, rather than be set anew."""
        loop = asyncio.get_running_loop()
        when = loop.time() + max(seconds, _LEAST_SECONDS)
        if self._timer is not None:
            if self._timer.when() <= when != float("inf"):
                return
            self._timer.cancel()
            self._timer = None
        if self._look is not None and when != float("inf"):
            self._timer = loop.call_at(when, self._came)

    def _came(self) -> None:
        self._timer = None
        self.look()

    def stop(self) -> None:
        """For good. Whoever is asked is forgotten, so that what it holds goes with it at once, not with a collection
        of cycles some day.
        """
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._look = None
