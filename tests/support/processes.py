"""The gateway and its receiver as processes of their own, for tests of signals and of memory."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

__all__ = [
    "Process",
    "activated_gateway",
    "gateway_begun_by",
    "gateway_on_terminal",
    "gateway_process",
    "gateway_short_of_descriptors",
    "imported_by_default",
    "receiver_process",
]

_START_SECONDS = 60
_LISTENS = re.compile(r"listen\w* on (https?://(?:[\d.]+|\[[\da-f:]+\]):\d+|unix:[^\s\",]+)")
_ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-m", "gateway", *sys.argv[2:]])
"""
"""What systemd does for a service that has a socket unit (sd_listen_fds(3))."""
_ON_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(int(sys.argv[1]), termios.TIOCSCTTY, 0)
os.close(int(sys.argv[1]))
os.execv(sys.executable, [sys.executable, "-m", "gateway", *sys.argv[2:]])
"""
"""In a session of its own, which that terminal controls."""


class Process:
    """A command that says where it listens. Ends with the `with` block, killed if need be.

    `descriptors` are what it may have at most. `through` is a program that begins it, and the descriptor that it is
    told, which both may have.
    """

    def __init__(
        self,
        *arguments: str,
        log: Path,
        env: dict[str, str] | None = None,
        descriptors: int | None = None,
        through: tuple[str, int] | None = None,
    ) -> None:
        self.log = log
        begun_by = ["-m", "gateway"] if through is None else ["-c", through[0], str(through[1])]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, *begun_by, *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
                pass_fds=() if through is None else (through[1],),
                preexec_fn=None if descriptors is None else partial(_limit_descriptors, descriptors),
            )
        self.url = self._wait_for_url()
        port = self.url.rpartition(":")[2]
        self.port = int(port) if port.isdigit() else 0

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def _wait_for_url(self) -> str:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if match := _LISTENS.search(self.log.read_text()):
                return match[1]
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        self.kill()
        raise RuntimeError(f"it did not start: {self.log.read_text()}")

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
        if exc_info[0] is None:
            assert "raceback" not in self.log.read_text(), "only a mistake in our code is logged with a traceback"

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def wait(self, seconds: float) -> int:
        """Its exit code. Raises subprocess.TimeoutExpired."""
        return self._process.wait(seconds)

    def peak_rss_bytes(self) -> int:
        """The most memory that it ever had resident (Linux: VmHWM)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        match = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert match is not None
        return int(match[1]) * 1024


def _limit_descriptors(count: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))


def gateway_process(directory: Path, config: str = "", **env: str) -> Process:
    """A gateway on a free port; `config` is TOML, its disk root is `directory/uploads` unless it says otherwise.

    A variable that is empty is not set.
    """
    return _gateway(directory, config, env)


def gateway_begun_by(program: str, directory: Path, config: str = "") -> Process:
    """One whose process runs this program first."""
    return _gateway(directory, config, {}, through=(program, 0))


def gateway_short_of_descriptors(directory: Path, config: str = "", *, descriptors: int) -> Process:
    """One that may have so many, and no more."""
    return _gateway(directory, config, {}, descriptors)


def activated_gateway(directory: Path, listener: socket.socket, config: str = "") -> Process:
    """One that is started for what connects to this listener, which stays ours."""
    routes = '[[routes]]\npath = "/upload"\naccess = ["none"]\nparts = [{sinks = ["disk"]}]\n'
    config = f'server.listen = ["fd://"]\n{config}{routes}'
    return _gateway(directory, config, {"GATEWAY_SERVER__PORT": ""}, through=(_ACTIVATE, listener.fileno()))


def gateway_on_terminal(directory: Path, terminal: int, config: str = "") -> Process:
    """One in the foreground of a terminal."""
    return _gateway(directory, config, {}, through=(_ON_TERMINAL, terminal))


def _gateway(
    directory: Path,
    config: str,
    env: dict[str, str],
    descriptors: int | None = None,
    through: tuple[str, int] | None = None,
) -> Process:
    number = len(list(directory.glob("gateway-*.toml")))
    path = directory / f"gateway-{number}.toml"
    path.write_text(config)
    defaults = {
        "GATEWAY_SERVER__PORT": "0",
        "GATEWAY_SERVER__MAX_UPLOADS_PER_ADDRESS": "0",  # all clients have one here
        "GATEWAY_SINKS__DISK__ROOT": str(directory / "uploads"),
    }
    return Process(
        *("serve", "--config", str(path)),
        log=path.with_suffix(".log"),
        env={name: value for name, value in {**defaults, **env}.items() if value},
        descriptors=descriptors,
        through=through,
    )


def receiver_process(directory: Path) -> Process:
    number = len(list(directory.glob("receiver-*.log")))
    return Process("receiver", "--port", "0", log=directory / f"receiver-{number}.log")


def imported_by_default(*prefixes: str) -> list[str]:
    """Modules with such names that an application of the default configuration has imported."""
    code = (
        "import asyncio, sys; from gateway.config.load import load; from gateway.server.app import build_app\n"
        "async def main(): build_app(load())\n"
        f"asyncio.run(main()); print(*[name for name in sys.modules if name.startswith({prefixes!r})])"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
