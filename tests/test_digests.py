"""Digests against hashlib and zlib: whole, in chunks, around the sizes where hashing moves to a thread."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import random
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from gateway.digests import ALGORITHMS, PartDigest, digest_of

SIZES = [0, 1, 65535, 65536, 65537, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (3 << 20) + 7]
AVAILABLE = tuple(name for name in ALGORITHMS if name != "blake3" or importlib.util.find_spec("blake3"))


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def _expected(data: bytes, algorithm: str) -> str:
    if algorithm == "crc32":
        return f"{zlib.crc32(data):08x}"
    if algorithm == "blake3":
        return str(pytest.importorskip("blake3").blake3(data).hexdigest())
    return hashlib.new(algorithm, data).hexdigest()


def _chunks(data: bytes, rng: random.Random, largest: int) -> Iterator[bytes]:
    start = 0
    while start < len(data):
        end = start + rng.randint(1, largest)
        yield data[start:end]
        start = end


async def _streamed(chunks: Iterator[bytes], executor: ThreadPoolExecutor, *algorithms: str) -> dict[str, str]:
    digest = PartDigest(algorithms, executor)
    for chunk in chunks:
        await digest.update(chunk)
    return await digest.finish()


def test_all_algorithms_of_the_configuration_are_known() -> None:
    assert set(ALGORITHMS) == {"sha256", "md5", "sha1", "sha512", "crc32", "blake3"}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_every_algorithm_agrees_with_the_library(algorithm: str, size: int, executor: ThreadPoolExecutor) -> None:
    data = random.Random(size).randbytes(size)
    expected = {algorithm: _expected(data, algorithm)}
    assert digest_of(data, (algorithm,)) == expected
    assert await _streamed(iter([data]), executor, algorithm) == expected


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("largest", [999, 65536, 300_000, 2 << 20])
async def test_a_digest_does_not_depend_on_how_the_bytes_are_cut(
    size: int, largest: int, executor: ThreadPoolExecutor
) -> None:
    rng = random.Random(size * largest)
    data = rng.randbytes(size)
    digests = await _streamed(_chunks(data, rng, largest), executor, *AVAILABLE)
    assert digests == digest_of(data, AVAILABLE)


async def test_empty_chunks_change_nothing(executor: ThreadPoolExecutor) -> None:
    chunks = [b"", b"a", b"", b"bc", b""]
    assert await _streamed(iter(chunks), executor, "sha256") == digest_of(b"abc", ("sha256",))


async def test_digests_come_in_the_order_in_which_they_are_named(executor: ThreadPoolExecutor) -> None:
    named = ("md5", "sha256", "crc32")
    assert tuple(digest_of(b"abc", named)) == named
    assert tuple(await _streamed(iter([b"abc"]), executor, *named)) == named


async def test_no_algorithms_make_no_digests(executor: ThreadPoolExecutor) -> None:
    assert digest_of(b"abc", ()) == {}
    assert await _streamed(iter([bytes(2 << 20)]), executor) == {}


def test_a_crc32_has_eight_digits_even_where_it_is_small() -> None:
    assert digest_of(b"", ("crc32",)) == {"crc32": "00000000"}
    assert digest_of(b"123456789", ("crc32",)) == {"crc32": "cbf43926"}


async def test_hashing_that_is_slower_than_receiving_holds_two_batches_and_no_more(
    executor: ThreadPoolExecutor,
) -> None:
    gate, mebibyte = threading.Event(), bytes(1 << 20)
    busy = [executor.submit(gate.wait) for _ in range(2)]
    digest = PartDigest(("sha256",), executor)
    try:
        async with asyncio.TaskGroup() as group:
            first = group.create_task(digest.update(mebibyte))
            await _settle()
            assert first.done()
            second = group.create_task(digest.update(mebibyte))
            await _settle()
            assert not second.done()
            gate.set()
    finally:
        gate.set()
    assert await digest.finish() == digest_of(mebibyte * 2, ("sha256",))
    assert all(job.result() for job in busy)


async def test_many_parts_are_hashed_beside_each_other(executor: ThreadPoolExecutor) -> None:
    parts = [random.Random(seed).randbytes((1 << 20) + seed) for seed in range(8)]
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(_streamed(_chunks(part, random.Random(1), 100_000), executor, "sha256", "crc32"))
            for part in parts
        ]
    assert [task.result() for task in tasks] == [digest_of(part, ("sha256", "crc32")) for part in parts]


async def _settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)
