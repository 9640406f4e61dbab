"""`python -m tests.stack`: starts all, sends, checks, and ends all. `make stack ARGS='--seconds 20'`."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

import aiohttp

from tests.stack import network
from tests.stack.picture import can_draw, draw
from tests.stack.processes import Stack, StackError
from tests.stack.run import Report, Run
from tests.stack.services import DIFFERENCES, ROOT, SWIFT, Service, names, published, services

__all__ = ["main"]

_TO_TRY = """
It stays until Ctrl-C. From this machine:

    curl -H "X-API-Key: $(cat {key})" -F file=@README.md http://localhost:8000/both

Prometheus is at http://localhost:9090, logs are in {directory}.
"""
_TOLD = 20
"""Of what was wrong: the rest is much the same."""


def main() -> int:
    """The exit code: 0, or 1 where anything was not as it ought to be."""
    options = _options()
    try:
        return _inside(options) if network.inside() else _outside(options)
    except (StackError, network.PortTaken) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make stack", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long clients send (60); 0: not at all")
    parser.add_argument("--stay", action="store_true", help="afterwards all stays, until Ctrl-C, reachable from here")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="draw the panels of the dashboard")
    parser.add_argument("--directory", type=Path, default=ROOT / "var" / "stack", help="logs and data (var/stack)")
    options = parser.parse_args()
    options.directory = options.directory.resolve()
    return options


# -- outside


def _outside(options: argparse.Namespace) -> int:
    """What can be known before anything is started; then in there."""
    if options.picture and not can_draw():
        raise StackError("matplotlib is not installed: make .venv/.stacking")
    if (reason := network.missing()) or (reason := _absent()):
        raise StackError(reason)
    addresses = {name: f"127.0.0.{11 + number}" for number, name in enumerate(names())}
    reached = [(host, port) for name, host, port in published() if options.stay and name in _those()]
    network.enter(sys.argv[1:], {**addresses, "store": "127.0.0.1"}, reached)  # where Swift is by itself


def _absent() -> str | None:
    """What is not installed, and has to be."""
    if shutil.which("nginx", path=_path()) is None:
        return "nginx is not installed: make system-packages"
    return None if SWIFT.exists() else "Swift is not installed: make .venv/.swift"


def _those() -> list[str]:
    """The services, without Prometheus where there is none."""
    has_prometheus = shutil.which("prometheus", path=_path()) is not None
    return [name for name in names() if name != "prometheus" or has_prometheus]


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


# -- inside


def _inside(options: argparse.Namespace) -> int:
    lock = _emptied(options.directory)
    key = _secrets(options.directory)
    chosen = {name: one for name, one in services(options.directory).items() if name in _those()}
    with lock:
        return asyncio.run(_interruptible(options, chosen, key))


def _emptied(directory: Path) -> IO[str]:
    """The directory, with nothing in it of the time before. Whoever has what is returned is alone there."""
    directory.mkdir(parents=True, exist_ok=True)
    lock = (directory / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise StackError(f"another one is running in {directory}") from error
    for name in ("tmp", "volumes", "secrets"):
        shutil.rmtree(directory / name, ignore_errors=True)
    for log in directory.glob("*.log"):
        log.unlink()
    (directory / "volumes" / "prometheus").mkdir(parents=True)
    return lock


def _secrets(directory: Path) -> str:
    """What `make secrets` makes; a key for clients of it. Swift wants its user's account in front of it."""
    place = directory / "secrets"
    subprocess.run([sys.executable, str(ROOT / "config" / "make_secrets.py"), str(place)], check=True)
    access = place / "store_access_key"
    access.write_text(f"stack:{access.read_text()}")
    return (place / "gateway_key").read_text().strip()


async def _interruptible(options: argparse.Namespace, chosen: dict[str, Service], key: str) -> int:
    """SIGTERM ends it as Ctrl-C does."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return await _run(options, chosen, key)
    except asyncio.CancelledError:
        return 130
    except BaseExceptionGroup as errors:
        told, others = errors.split((StackError, aiohttp.ClientError, TimeoutError))
        if told is None or others is not None:
            raise
        raise StackError("; ".join(repr(one) if str(one) == "" else str(one) for one in _leaves(told))) from errors
    except (aiohttp.ClientError, TimeoutError) as error:
        raise StackError(f"a service does not answer: {error!r}") from error


def _leaves(errors: BaseExceptionGroup[Exception]) -> list[Exception]:
    """Those in groups in groups."""
    found: list[Exception] = []
    for one in errors.exceptions:
        found += _leaves(one) if isinstance(one, BaseExceptionGroup) else [one]
    return found


async def _run(options: argparse.Namespace, chosen: dict[str, Service], key: str) -> int:
    report = Report()
    async with Stack(chosen, options.directory) as stack, aiohttp.ClientSession() as session:
        print(f"{', '.join(chosen)}: well. Logs are in {options.directory}", flush=True)
        if options.seconds:
            report = await Run(stack, session, key).all(options.seconds)
            _print(report)
        if options.picture and report.curves:
            draw(report.curves, report.started, options.picture)
        if options.stay:
            await _stay(options, chosen)
    return 1 if report.wrong else 0


def _print(report: Report) -> None:
    width = max(len(what) for what, _ in report.lines)
    for what, text in report.lines:
        print(f"{what:{width}}  {text}")
    for line in report.wrong[:_TOLD]:
        print(f"WRONG: {line}")
    if len(report.wrong) > _TOLD:
        print(f"WRONG: {len(report.wrong) - _TOLD} more")
    sys.stdout.flush()


async def _stay(options: argparse.Namespace, chosen: dict[str, Service]) -> None:
    """Until it is cancelled."""
    print(_TO_TRY.format(key=options.directory / "secrets" / "gateway_key", directory=options.directory))
    print("Otherwise than in docker-compose.yml:", *map(str, DIFFERENCES), sep="\n  ", flush=True)
    listeners = network.publish()
    async with asyncio.TaskGroup() as group:
        for name, _, port in published():
            if name in chosen:
                group.create_task(network.forward(listeners[port], name, port))


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        sys.exit(main())
