from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from gateway.access.counts import Counts, FileCounts, MemoryCounts
from gateway.access.postgres import PostgresCounts
from tests.access.conftest import needs_postgres


@pytest.fixture(params=["memory", "file", pytest.param("postgres", marks=[needs_postgres, pytest.mark.sockets])])
async def counts(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Counts]:
    made: Counts
    if request.param == "postgres":
        made = PostgresCounts(request.getfixturevalue("database"))
        await made._run("TRUNCATE gateway_counts")
    else:
        made = MemoryCounts() if request.param == "memory" else FileCounts(tmp_path / "counts")
    with closing(made):
        yield made


def soon() -> float:
    return time.time() + 60


async def test_no_more_than_most_by_each_name(counts: Counts) -> None:
    assert [await counts.add("a", 2, most=5, until=soon()) for _ in range(3)] == [True, True, False]
    assert await counts.add("a", 1, most=5, until=soon())
    assert not await counts.add("a", 1, most=5, until=soon())
    assert await counts.add("b", 5, most=5, until=soon())
    assert not await counts.add("c", 6, most=5, until=soon())


async def test_what_is_taken_back_may_be_had_again_and_never_more(counts: Counts) -> None:
    await counts.take_back("a", 3)
    assert await counts.add("a", 5, most=5, until=soon())
    await counts.take_back("a", 2)
    assert not await counts.add("a", 3, most=5, until=soon())
    assert await counts.add("a", 2, most=5, until=soon())
    await counts.take_back("a", 100)
    assert not await counts.add("a", 6, most=5, until=soon())
    assert await counts.add("a", 5, most=5, until=soon())


async def test_it_begins_anew_when_its_time_is_over(counts: Counts) -> None:
    assert await counts.add("a", 5, most=5, until=time.time() + 0.2)
    assert not await counts.add("a", 1, most=5, until=soon())
    await asyncio.sleep(0.25)
    assert await counts.add("a", 5, most=5, until=soon())
    assert not await counts.add("a", 1, most=5, until=soon())


async def test_what_is_over_is_forgotten(counts: Counts) -> None:
    for number in range(2100):
        await counts.add(str(number), 1, most=1, until=0)
    if isinstance(counts, MemoryCounts):
        assert len(counts._counts) < 1100
    elif isinstance(counts, PostgresCounts):
        ((left,),) = await counts._run("SELECT COUNT(*) FROM gateway_counts")
        assert left < 1100
    else:
        assert isinstance(counts, FileCounts)
        ((left,),) = counts._database.execute("SELECT COUNT(*) FROM counts").fetchall()
        assert left < 1100


async def test_many_at_a_time_are_counted_exactly(counts: Counts) -> None:
    added = await asyncio.gather(*(counts.add("a", 1, most=50, until=soon()) for _ in range(100)))
    assert sum(added) == 50


async def test_those_of_several_processes_are_together_and_outlive_them(tmp_path: Path) -> None:
    path = tmp_path / "counts"
    with closing(FileCounts(path)) as one, closing(FileCounts(path)) as other:
        both = [*(one.add("a", 1, most=50, until=soon()) for _ in range(50))]
        both += [other.add("a", 1, most=50, until=soon()) for _ in range(50)]
        assert sum(await asyncio.gather(*both)) == 50
    with closing(FileCounts(path)) as later:
        assert not await later.add("a", 1, most=50, until=soon())


def test_a_file_that_cannot_be_had_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="unable to open"):
        FileCounts(tmp_path / "no" / "counts")
    (tmp_path / "text").write_text("this is no database, and has some bytes more than a hundred" * 3)
    with pytest.raises(OSError, match="not a database"):
        FileCounts(tmp_path / "text")
