"""`gateway send` in a pseudo-terminal: both bars, beside what the destination has counted, and Ctrl-C."""

from __future__ import annotations

import asyncio
import io
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

import gateway
from gateway.client.bars import Bars, screen
from gateway.client.outcomes import Code
from gateway.client.watching import Legs
from tests.conftest import StartDestination, StartGateway
from tests.support.clients import eventually
from tests.support.slow_destination import SOCKETS_BYTES, SlowDestination
from tests.support.terminals import Terminal

MIB = 1 << 20
ROUTES = [{"path": "/both", "parts": [{"sinks": ["disk", "api"]}]}]


def bars(output: str) -> list[tuple[str, int]]:
    """(sent or safe, percent), in the order in which they were drawn."""
    return [(verb, int(percent)) for verb, percent in re.findall(r"\b(sent|safe) [^\r\n]*?(\d+)%", output)]


async def test_the_second_bar_is_what_the_destination_has_and_is_full_after_the_commit(
    start_gateway: StartGateway, start_destination: StartDestination, tmp_path: Path
) -> None:
    size = 48 * MIB
    counting = SlowDestination(20_000_000)
    counting.answers.clear()
    destination = await start_destination(counting.app)
    relay = await start_gateway(api=f"{destination.url}/upload", routes=ROUTES)
    (tmp_path / "big.bin").write_bytes(os.urandom(size))
    ahead = 0
    async with Terminal("send", "big.bin", "--to", f"{relay.url}/both", cwd=tmp_path) as terminal:
        while not (drawn := bars(terminal.output)) or drawn[-1] not in (("safe", 99), ("safe", 100)):
            before = counting.read_bytes  # what is drawn now was known before
            safe = max([percent for verb, percent in bars(terminal.output) if verb == "safe"], default=0)
            ahead = max(ahead, safe * size // 100 - max(before, counting.read_bytes))
            await asyncio.sleep(0.02)
        await eventually(lambda: counting.completed == 1)
        await asyncio.sleep(0.3)
        assert ("safe", 100) not in bars(terminal.output)  # it was not committed yet
        counting.answers.set()
        assert await terminal.ended() == 0
        drawn = bars(terminal.output)
    assert ahead <= SOCKETS_BYTES
    for verb in ("sent", "safe"):
        percents = [percent for one, percent in drawn if one == verb]
        assert percents == sorted(percents)
        assert percents[-1] == 100
        assert len(set(percents)) > 3
    first_full = drawn.index(("sent", 100))
    assert first_full < drawn.index(("safe", 100))
    assert f"big.bin: kept: {relay.url}/uploads/" in terminal.output
    assert "disk: kept · api: kept" in terminal.output


async def test_ctrl_c_leaves_nothing(
    start_gateway: StartGateway, start_destination: StartDestination, tmp_path: Path
) -> None:
    counting = SlowDestination(10_000_000)
    counting.answers.clear()
    destination = await start_destination(counting.app)
    relay = await start_gateway(api=f"{destination.url}/upload", routes=ROUTES)
    (tmp_path / "big.bin").write_bytes(os.urandom(60 * MIB))
    async with Terminal("send", "big.bin", "--to", f"{relay.url}/both", "--json", cwd=tmp_path) as terminal:
        await eventually(lambda: any(verb == "safe" and percent >= 5 for verb, percent in bars(terminal.output)))
        terminal.press(b"\x03")
        assert await terminal.ended(10) == 130
    assert '"state": "interrupted"' in terminal.output
    assert "Traceback" not in terminal.output
    await eventually(lambda: not relay.stored())
    assert counting.completed == 0


async def test_a_terminal_that_is_closed_leaves_nothing_either(
    start_gateway: StartGateway, start_destination: StartDestination, tmp_path: Path
) -> None:
    counting = SlowDestination(100_000_000)
    counting.answers.clear()
    destination = await start_destination(counting.app)
    relay = await start_gateway(api=f"{destination.url}/upload", routes=ROUTES)
    (tmp_path / "a.bin").write_bytes(os.urandom(MIB))
    async with Terminal("send", "a.bin", "--to", f"{relay.url}/both", "--json", cwd=tmp_path) as terminal:
        await eventually(lambda: counting.completed == 1)  # all was sent: it is kept in a moment
        terminal.close()
        await asyncio.sleep(0.3)
        counting.answers.set()
        assert await terminal.ended(10) == 129
    await eventually(lambda: not relay.stored())


@pytest.mark.parametrize("name", ["a", "missing"])
async def test_lines_that_cannot_be_written_are_told_and_are_no_traceback(
    start_gateway: StartGateway, tmp_path: Path, name: str
) -> None:
    relay = await start_gateway()
    (tmp_path / "a").write_bytes(b"x")
    command = [sys.executable, "-m", "gateway", "send", name, "--json", "--to", relay.url]
    with open("/dev/full", "w") as full:
        run = partial(subprocess.run, command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        done = await asyncio.to_thread(run)
    *_, told = done.stderr.splitlines()
    assert (done.returncode, told) == (int(Code.LOCAL), "gateway: standard output: No space left on device")
    assert "Traceback" not in done.stderr
    assert bool(relay.stored()) == (name == "a")


class FakeTerminal(io.StringIO):
    """It says that it is one."""

    def isatty(self) -> bool:
        return True


async def test_without_anybody_who_tells_there_is_one_bar_and_names_command_nothing() -> None:
    terminal, legs = FakeTerminal(), Legs("a\x1b[2J[bold].bin", size=1000)
    async with Bars(terminal) as shown:
        shown.add(legs)
        for hundredth in range(0, 100, 20):
            legs.arrived = partial(float, hundredth / 100)
            await asyncio.sleep(0.12)
        legs.is_kept = True
        shown.end(legs, "kept")
    drawn = bars(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()))
    assert drawn[-1] == ("sent", 100)
    assert {verb for verb, _ in drawn} == {"sent"}
    assert "a\ufffd[2J[bold].bin" in terminal.getvalue()


def test_a_terminal_is_drawn_on_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    monkeypatch.setattr("sys.stdout", FakeTerminal())
    assert screen(prints=False).is_terminal
    assert not screen(prints=True).is_terminal  # JSON goes there
    monkeypatch.setattr("sys.stderr", FakeTerminal())
    assert screen(prints=True).is_terminal


def test_what_draws_is_imported_when_it_draws_and_nowhere_else() -> None:
    package = Path(gateway.__file__).parent
    lines = [(path.name, line) for path in package.rglob("*.py") for line in path.read_text("utf-8").splitlines()]
    found = [(name, line) for name, line in lines if re.match(r"\s*(from|import) rich\b", line)]
    assert {name for name, _ in found} == {"bars.py"}
    assert all(line.startswith("    ") for _, line in found)
