"""The services as processes: each is started when those before it are well, and ends with this program."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.stack.services import ROOT, Service

__all__ = ["Stack", "StackError"]

_START_SECONDS = 60.0
_POLL_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None)


class StackError(Exception):
    """What is printed in place of a traceback: one line."""


class Stack:
    """`async with Stack(services, directory) as stack:` all of them are well; afterwards all have ended."""

    def __init__(self, services: dict[str, Service], directory: Path) -> None:
        self.services = services
        self.directory = directory
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._ended: set[str] = set()
        """Those that somebody wanted to end."""

    async def __aenter__(self) -> Self:
        well = {name: asyncio.Event() for name in self.services}

        async def one(service: Service) -> None:
            for other in service.after:
                await well[other].wait()
            await self.start(service.name)
            well[service.name].set()

        try:
            async with asyncio.TaskGroup() as group:
                for service in self.services.values():
                    group.create_task(one(service))
        except BaseException:
            await self._end_all()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._end_all()

    async def start(self, name: str) -> None:
        """It is well when this returns. Raises StackError."""
        service = self.services[name]
        self._ended.discard(name)
        Path(service.environment["TMPDIR"]).mkdir(parents=True, exist_ok=True)
        with self.log(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                service.command,
                cwd=ROOT,
                env=self._environment(service),
                stdin=subprocess.PIPE,  # Swift ends with it
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for whoever ends them, in order
                preexec_fn=_die_with_parent,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not await self._is_well(service):
            ended = self._running[name].poll()
            if (ended is not None and service.health) or time.monotonic() > deadline:
                raise StackError(f"{name} does not start: {self.log(name)}")
            await asyncio.sleep(_POLL_SECONDS)

    async def _is_well(self, service: Service) -> bool:
        match service.health:
            case ():
                return self._running[service.name].poll() == 0
            case (url,):
                return await asyncio.to_thread(_answers, url)
            case command:
                environment = self._environment(service)
                check = await asyncio.create_subprocess_exec(
                    *command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
                return await check.wait() == 0

    def _environment(self, service: Service) -> dict[str, str]:
        """That of a container: nothing of whoever runs this gets in."""
        path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
        return {"PATH": path, "PYTHONUNBUFFERED": "1", "HOME": service.environment["TMPDIR"], **service.environment}

    def log(self, name: str) -> Path:
        """Where it writes."""
        return self.directory / f"{name}.log"

    def tell_to_end(self, name: str) -> None:
        """By its signal."""
        self._ended.add(name)
        with suppress(ProcessLookupError):
            self._running[name].send_signal(signal.Signals[self.services[name].stop_signal])

    async def ended(self, name: str) -> int:
        """Its exit code, when it has ended. It has the time that the compose file gives it; then it is killed."""
        process = self._running[name]
        deadline = time.monotonic() + self.services[name].stop_seconds
        while process.poll() is None:
            if time.monotonic() > deadline:
                process.kill()
            await asyncio.sleep(_POLL_SECONDS / 4)
        assert process.stdin is not None
        process.stdin.close()
        return process.returncode

    async def _end_all(self) -> None:
        """Who was started last ends first. What is under way then is broken off: nobody is left to wait for it."""
        for name in reversed(list(self._running)):
            if self._running[name].poll() is None:
                self.tell_to_end(name)
                await self.ended(name)

    def died(self) -> list[str]:
        """Those that have ended, and nobody wanted them to."""
        lasting = (name for name in self._running if self.services[name].health)
        return [name for name in lasting if name not in self._ended and self._running[name].poll() is not None]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _die_with_parent() -> None:
    """Of a child before it becomes a service: whatever happens to this program, nothing of it stays."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
