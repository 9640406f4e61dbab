"""When the process stops, and how long what is in progress may take.

SIGTERM and SIGINT begin the drain; another one ends it: what is left is broken off at once. Later ones mean nothing.

SIGHUP has what can be read anew read anew; and where the process had a terminal, and has none any more, it says that
this was closed, and begins the drain. Where it is ignored when the process starts, as `nohup` has it, it stays so.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable

__all__ = ["SIGNALS", "Ending", "catch_signals", "ignore_signals", "until_signalled"]

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Ending:
    """What was said about it so far."""

    def __init__(self) -> None:
        self.hurried = False
        """Whether nothing is waited for any more."""
        self._begun = asyncio.Event()
        self._had_terminal = _has_terminal()
        self._patience: asyncio.Timeout | None = None

    @property
    def begun(self) -> bool:
        """Whether the process is to stop."""
        return self._begun.is_set()

    @property
    def terminal_closed(self) -> bool:
        """Whether the terminal of the process, if it had one, is gone."""
        return self._had_terminal and not _has_terminal()

    def is_for_files(self, number: int) -> bool:
        """Whether the signal is no end, but has what can be read anew read anew."""
        return number == signal.SIGHUP and not self.terminal_closed

    def begin(self) -> None:
        """The process is to stop."""
        self._begun.set()

    def hurry(self) -> None:
        """And that at once."""
        self.hurried = True
        self.begin()
        if self._patience is not None and not self._patience.expired():
            self._patience.reschedule(asyncio.get_running_loop().time())

    def signalled(self, number: int) -> None:
        """The first signal begins it, the second one hurries it. SIGHUP says, if at all, that a terminal closed, which
        says nothing twice.
        """
        if self.is_for_files(number):
            return
        if not self.begun:
            self.begin()
        elif number != signal.SIGHUP and not self.hurried:
            self.hurry()

    async def wait(self) -> None:
        """Until it begins."""
        await self._begun.wait()

    @contextlib.asynccontextmanager
    async def patience(self, deadline: float) -> AsyncIterator[None]:
        """The block is left at that time of the loop, or as soon as it is hurried."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline) as self._patience:
                try:
                    yield
                finally:
                    self._patience = None


def _has_terminal() -> bool:
    """Whether one controls the process: it can be opened for as long as it is there (tty(4))."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def catch_signals(tell: Callable[[int], None]) -> None:
    """Have `tell` called with the number of each signal, in the event loop.

    These are no handlers of the loop's, which puts the default back when it closes: a second signal would then end a
    process that has drained, and whoever waits for it would be told of a death.
    """
    loop = asyncio.get_running_loop()

    def caught(number: int, _: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: it has drained, or it has failed
            loop.call_soon_threadsafe(tell, number)

    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, caught)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])  # it has waited since the command began


def ignore_signals() -> None:
    """From here on. Blocked first: Python complains of a handler that goes between a signal's arrival and its turn."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


async def until_signalled() -> None:
    """Wait for the first signal."""
    ending = Ending()
    catch_signals(ending.signalled)
    await ending.wait()
