"""What each signal does to a gateway with uploads under way, one process or several."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM, Signals

import pytest

from gateway.server.signals import Ending
from tests.support.clients import Client, eventually, file, form, head
from tests.support.processes import Process, gateway_on_terminal, gateway_process

BODY = form(file(b"abc" * 1000))
HALF = len(BODY) // 2


@contextlib.contextmanager
def ignored(number: Signals) -> Iterator[None]:
    """As for what `nohup` starts."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextlib.asynccontextmanager
async def half_sent(process: Process, root: Path) -> AsyncIterator[Client]:
    """An upload in progress, of which the first half was sent."""
    async with Client(process.port) as client:
        await client.send(head(content_length=len(BODY)) + BODY[:HALF])
        await eventually(lambda: any(root.iterdir()))
        yield client


def config(workers: int) -> str:
    return f"server.workers = {workers}\nsinks.disk.fsync = false\n"


def processes(process: Process) -> list[int]:
    """The gateway's, and its workers'."""
    lines = [json.loads(line) for line in process.log.read_text().splitlines() if line.startswith("{")]
    return [process.pid, *(line["pid"] for line in lines if "pid" in line)]


async def draining(process: Process) -> None:
    """Until the first signal has been understood."""
    await eventually(lambda: "another SIGTERM or SIGINT breaks" in process.log.read_text())


async def exit_code(process: Process) -> int:
    return await asyncio.to_thread(process.wait, 20)


@pytest.mark.sockets
@pytest.mark.parametrize("workers", [1, 2])
async def test_a_terminal_that_closes_lets_uploads_end_however_often_it_says_so(tmp_path: Path, workers: int) -> None:
    root = tmp_path / "uploads"
    window, terminal = pty.openpty()
    with gateway_on_terminal(tmp_path, terminal, config(workers)) as process:
        os.close(terminal)
        async with half_sent(process, root) as client:
            os.close(window)
            await draining(process)
            for pid in processes(process):
                with contextlib.suppress(ProcessLookupError):  # a worker that had nothing to do is gone
                    os.kill(pid, SIGHUP)
            await asyncio.sleep(0.1)
            await client.send(BODY[HALF:])
            answer = await client.answer()
            assert answer.status == 201
        assert await exit_code(process) == 0
    assert [path.name for path in root.iterdir()] == [answer.json()["upload"]]


@pytest.mark.sockets
@pytest.mark.parametrize(
    ("first", "second", "workers"), [(SIGINT, SIGINT, 1), (SIGTERM, SIGTERM, 1), (SIGTERM, SIGINT, 2)]
)
async def test_the_second_one_breaks_them_off_at_once(
    tmp_path: Path, first: Signals, second: Signals, workers: int
) -> None:
    root = tmp_path / "uploads"
    with gateway_process(tmp_path, config(workers)) as process:
        async with half_sent(process, root) as client:
            os.kill(process.pid, first)
            await draining(process)
            began = time.monotonic()
            os.kill(process.pid, second)
            assert not (await client.ended()).startswith(b"HTTP/1.1 2")
            assert await exit_code(process) == 0
            assert time.monotonic() - began < 15  # and not drain_seconds, 60
    assert list(root.iterdir()) == []


@pytest.mark.sockets
async def test_one_that_all_processes_get_is_one(tmp_path: Path) -> None:
    """As a terminal does with Ctrl-C, and systemd when it stops a service; the parent passes it on as well."""
    root = tmp_path / "uploads"
    with gateway_process(tmp_path, config(2)) as process:
        async with half_sent(process, root) as client:
            for pid in processes(process):
                os.kill(pid, SIGTERM)
            await draining(process)
            for pid in processes(process)[1:]:
                os.kill(pid, SIGTERM)
            await client.send(BODY[HALF:])
            assert (await client.answer()).status == 201
        assert await exit_code(process) == 0


@pytest.mark.sockets
async def test_under_nohup_a_terminal_that_closes_changes_nothing(tmp_path: Path) -> None:
    with ignored(SIGHUP), gateway_process(tmp_path, config(2)) as process:
        for pid in processes(process):
            os.kill(pid, SIGHUP)
        async with half_sent(process, tmp_path / "uploads") as client:
            await client.send(BODY[HALF:])
            assert (await client.answer()).status == 201
        assert "draining" not in process.log.read_text()


async def test_patience_ends_at_its_time_or_when_it_is_hurried_and_before_what_it_waits_for() -> None:
    loop, ending = asyncio.get_running_loop(), Ending()
    async with ending.patience(loop.time() + 30):
        pass
    began = loop.time()
    async with ending.patience(began + 0.05):
        await asyncio.sleep(30)
    assert 0.04 < loop.time() - began < 5
    loop.call_later(0.05, ending.hurry)
    async with ending.patience(loop.time() + 30):
        await asyncio.sleep(30)
    assert ending.begun
    assert ending.hurried
    assert loop.time() - began < 10
    for left in (ending, Ending()):  # where nothing is waited for any more
        async with left.patience(loop.time() + 30):
            pass
        left.hurry()


@pytest.mark.sockets
@pytest.mark.parametrize("workers", [1, 2])
async def test_sighup_on_a_terminal_that_is_there_drains_nothing(tmp_path: Path, workers: int) -> None:
    window, terminal = pty.openpty()
    with gateway_on_terminal(tmp_path, terminal, config(workers)) as process:
        os.close(terminal)
        async with half_sent(process, tmp_path / "uploads") as client:
            for pid in processes(process):
                os.kill(pid, SIGHUP)
            await eventually(lambda: "keys and secrets were read anew" in process.log.read_text())
            async with half_sent(process, tmp_path / "uploads") as another:
                for one in (client, another):
                    await one.send(BODY[HALF:])
                    assert (await one.answer()).status == 201
        assert "draining" not in process.log.read_text()
        process.terminate()
        assert await exit_code(process) == 0
    os.close(window)


def test_signals_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    ending = Ending()
    ending.signalled(SIGHUP)
    assert not ending.begun, "it had no terminal, or has it still"
    monkeypatch.setattr(Ending, "terminal_closed", True)
    ending.signalled(SIGHUP)
    ending.signalled(SIGHUP)
    assert (ending.begun, ending.hurried) == (True, False)
    ending.signalled(SIGINT)
    ending.signalled(SIGINT)
    assert ending.hurried
