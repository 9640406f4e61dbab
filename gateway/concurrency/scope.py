"""A block of work that somebody else may end, at any time, without that being an error."""

from __future__ import annotations

import asyncio
from types import TracebackType

__all__ = ["Scope"]


class Scope:
    """`async with scope: ...`; after `end` the block is cancelled, and left as if it had come to its end.

    It may be ended before it is entered: then its first wait is where it ends. Whoever wants to know why it
    was left says so elsewhere. A cancellation of the whole task, and errors, go through.
    """

    def __init__(self) -> None:
        self._when: float | None = None
        self._clock: asyncio.Timeout | None = None

    async def __aenter__(self) -> Scope:
        self._clock = await asyncio.timeout_at(self._when).__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        clock, self._clock = self._clock, None
        assert clock is not None
        try:
            await clock.__aexit__(kind, error, traceback)
        except TimeoutError:
            return True
        return False

    def end(self, after_seconds: float = 0) -> None:
        """End it so many seconds from now, whatever was said before."""
        self._set(asyncio.get_running_loop().time() + after_seconds)

    def stay(self) -> None:
        """Do not end it after all."""
        self._set(None)

    def _set(self, when: float | None) -> None:
        self._when = when
        if self._clock is not None and not self._clock.expired():
            self._clock.reschedule(when)
