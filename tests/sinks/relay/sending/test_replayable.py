"""What another attempt can be given again: out of memory, out of a file, and no more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.concurrency.threads import DaemonThreads
from gateway.sinks.relay.sending.replayable import Replayable
from gateway.sinks.relay.sending.spool import BATCH_BYTES, Spool


@pytest.fixture
def executor() -> Iterator[DaemonThreads]:
    with DaemonThreads(1, name="spool") as pool:
        yield pool


def in_memory(limit: int) -> Replayable:
    return Replayable(limit, lambda: pytest.fail("nothing is to be spooled"), is_spooled=False)


async def replayed(kept: Replayable) -> bytes:
    handed, pieces = 0, list[bytes]()
    while True:
        piece, handed = await kept.after(handed)
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)


async def test_up_to_its_limit_it_can_be_read_again_and_again() -> None:
    kept = in_memory(10)
    assert kept.keep(b"abcde")
    assert await replayed(kept) == b"abcde"
    assert kept.keep(b"fghij")
    assert await replayed(kept) == await replayed(kept) == b"abcdefghij"
    assert not kept.keep(b"k")
    assert await replayed(kept) == b"abcdefghij"


async def test_who_has_been_handed_some_gets_what_comes_after() -> None:
    kept = in_memory(10)
    kept.keep(b"abc")
    piece, handed = await kept.after(0)
    assert await kept.after(handed) == (b"", handed)
    kept.keep(b"def")
    assert (piece, (await kept.after(handed))[0]) == (b"abc", b"def")


async def test_pinned_it_holds_nothing_more() -> None:
    kept = in_memory(10)
    kept.keep(b"abc")
    kept.pin()
    assert kept.is_pinned
    assert await replayed(kept) == b""


async def test_of_nothing_at_all_nothing_is_kept() -> None:
    assert not in_memory(0).keep(b"a")


async def test_what_was_in_memory_goes_ahead_in_the_file(tmp_path: Path, executor: DaemonThreads) -> None:
    kept = Replayable(100, lambda: Spool(str(tmp_path), executor), is_spooled=False)
    kept.keep(b"abc")
    kept.is_spooled = True
    assert not kept.keep(b"x")
    await kept.spool(b"def" * BATCH_BYTES)
    assert not kept.spooled.is_set()
    await kept.finish_spool()
    assert kept.spooled.is_set()
    assert kept.size == 3 + 3 * BATCH_BYTES
    assert await replayed(kept) == await replayed(kept) == b"abc" + b"def" * BATCH_BYTES
    await kept.close()


async def test_an_empty_body_can_be_spooled(tmp_path: Path, executor: DaemonThreads) -> None:
    kept = Replayable(0, lambda: Spool(str(tmp_path), executor), is_spooled=True)
    assert await replayed(kept) == b""
    await kept.finish_spool()
    assert (kept.size, await replayed(kept)) == (0, b"")
    await kept.close()
