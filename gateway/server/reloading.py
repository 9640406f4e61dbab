"""What SIGHUP has read anew: the log level, certificates, keys. What else of the configuration has changed is named.

In one process all that is done here; of several the parent reads the configuration, and each worker the files.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Self

from gateway.concurrency.tasks import OwnTasks
from gateway.config.messages import ConfigError
from gateway.config.settings import Settings
from gateway.config.sinks import RelaySettings
from gateway.http.tls import ServerTls
from gateway.server.services import Services

__all__ = ["Reloading", "Repeated", "reread_files"]

log = logging.getLogger("gateway.server")


class Repeated:
    """Work that is done once more after it was asked for, however often that was while it went on: never twice at a
    time, and no queue of it. `async with` it: behind that nothing is done any more.
    """

    def __init__(self, work: Callable[[], Awaitable[None]]) -> None:
        self._work = work
        self._is_wanted = self._goes_on = self._has_ended = False
        self._tasks = OwnTasks()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._has_ended = True
        self._tasks.cancel()

    def ask(self) -> None:
        """In the event loop."""
        self._is_wanted = True
        if not self._goes_on and not self._has_ended:
            self._goes_on = True
            self._tasks.start(self._go_on())

    async def _go_on(self) -> None:
        try:
            while self._is_wanted:
                self._is_wanted = False
                await self._work()
        finally:
            self._goes_on = False


class Reloading:
    """The configuration that the process began with, and how it is read: that raises ConfigError."""

    def __init__(self, began_with: Settings, read: Callable[[], Settings]) -> None:
        self._began_with = began_with
        self._read = read

    async def reread(self) -> None:
        """Take over what can be, and name the rest in the log; of a configuration that is none everything stays."""
        try:
            settings = await asyncio.to_thread(self._read)
        except (ConfigError, OSError) as error:
            for problem in error.problems if isinstance(error, ConfigError) else [error]:
                log.error("the configuration stays as it was: %s", problem)
            return
        root, level = logging.getLogger(), settings.server.log_level
        if logging.getLevelName(root.level) != level:
            root.setLevel(level)
            log.log(max(root.level, logging.INFO), "the log level is %s from here on", level)
        if waiting := [*_waiting(self._began_with, settings)]:
            log.warning("these need a restart, and stay as they were: %s", ", ".join(waiting))


def _waiting(before: Settings, after: Settings) -> Iterator[str]:
    """The keys that were changed, and cannot be changed now; and files that are read at the start only."""
    changed = sorted(_changed(before.model_dump(), after.model_dump(), ""))
    yield from (key for key in changed if key != "server.log_level")
    for name, sink in before.sinks.items():
        if isinstance(sink, RelaySettings) and sink.tls is not None:
            yield f"the files of sinks.{name}.tls"


def _changed(before: Mapping[str, Any], after: Mapping[str, Any], where: str) -> Iterator[str]:
    for key in {**before, **after}:
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _changed(old, new, f"{where}{key}.")
        elif old != new:
            yield f"{where}{key}"


async def reread_files(services: Services, tls: ServerTls | None) -> None:
    """The certificate of the listener, and keys. Those that cannot be used change nothing, and the log says so.

    In a thread: thousands of keys take a second to read, and a disk that is slow any time.
    """
    if tls is not None:
        await asyncio.to_thread(tls.reload)
    try:
        services.policies = await asyncio.to_thread(services.read_policies, services.policies)
    except ConfigError as error:
        log.error("keys and secrets stay as they were: %s", "; ".join(error.problems))
    else:
        log.info("keys and secrets were read anew")
