"""A disk is tried seldom, never twice at once, and one that hangs holds up nobody who asks."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections.abc import Iterator

import pytest

from gateway.concurrency import probe as probe_module
from gateway.concurrency.probe import Probe


class Disk:
    """One that can be told to refuse, or to hang."""

    def __init__(self) -> None:
        self.calls = 0
        self.error: OSError | None = None
        self.works = threading.Event()
        self.works.set()

    def write(self) -> None:
        self.calls += 1
        self.works.wait(20)
        if self.error is not None:
            raise self.error


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def probe(disk: Disk) -> Iterator[Probe]:
    probe = Probe(disk.write, name="test")
    yield probe
    disk.works.set()
    probe.stop()


async def test_all_who_ask_within_a_second_are_told_the_same(disk: Disk, probe: Probe) -> None:
    disk.error = OSError(errno.ENOSPC, "full")
    for _ in range(3):
        with pytest.raises(OSError, match="full") as raised:
            await probe.ask()
        assert raised.value is not disk.error
    assert disk.calls == 1


async def test_later_it_is_tried_again(disk: Disk, probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module, "_FRESH_SECONDS", 0)
    disk.error = OSError(errno.EROFS, "read-only")
    with pytest.raises(OSError, match="read-only"):
        await probe.ask()
    disk.error = None
    assert await probe.ask()
    assert disk.calls == 2


async def test_one_that_is_slow_is_what_it_was_and_one_that_hangs_answers_not_until_it_does(
    disk: Disk, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe_module, "_FRESH_SECONDS", 0)
    monkeypatch.setattr(probe_module, "_PATIENCE_SECONDS", 1)
    assert await probe.ask()
    disk.works.clear()
    started = time.monotonic()
    assert await probe.ask()
    assert time.monotonic() - started < 1
    await asyncio.sleep(0.6)
    assert await asyncio.gather(*(probe.ask() for _ in range(5))) == [False] * 5
    assert disk.calls == 2
    disk.works.set()
    assert await probe.ask()
