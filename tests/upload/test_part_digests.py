"""Who computes the digests of an upload's parts: here, in our threads, or the sink that writes them."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from gateway.digests import digest_of
from gateway.errors import DigestMismatch, InternalError
from gateway.model import Entry, Part, Receipt
from gateway.sinks import Delivery
from gateway.upload.part_digests import PartDigests

BOTH = ("sha256", "md5")


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def entry(index: int, size: int) -> Entry:
    return Entry(Part(index, b"f", b"f", None, is_file=True), size)


class Telling(Delivery):
    """Says that it has hashed these bytes of its parts."""

    hashes = True

    def __init__(self, **hashed: bytes) -> None:
        self._hashed = {int(name[1:]): data for name, data in hashed.items()}
        self.asked: dict[int, Sequence[str]] = {}

    async def accept(self, part: Part, chunks: AsyncIterable[bytes]) -> None:
        raise AssertionError

    async def commit(self) -> list[Receipt]:
        raise AssertionError

    def hash_part(self, part: Part, algorithms: Sequence[str]) -> None:
        self.asked[part.index] = algorithms

    def digests(self) -> Mapping[int, tuple[int, Mapping[str, str]]]:
        return {index: (len(data), digest_of(data, self.asked[index])) for index, data in self._hashed.items()}


@pytest.mark.parametrize("size", [0, 1, 2048, 2049, 70_000, 3 << 20])
async def test_a_part_has_the_digests_of_its_bytes_however_it_comes(executor: ThreadPoolExecutor, size: int) -> None:
    data, digests = bytes(size), PartDigests(BOTH, executor)
    whole, streamed = entry(0, size), entry(1, size)
    digests.take_whole(whole, data)
    hasher = digests.begin(streamed, ())
    assert hasher is not None
    for start in range(0, size, 65536):
        await digests.hashing.give(hasher.update, data[start : start + 65536])
    await digests.hashing.finish()
    digests.settle()
    assert whole.digests == streamed.digests == digest_of(data, BOTH)


async def test_parts_that_come_by_turns_have_each_their_own(executor: ThreadPoolExecutor) -> None:
    digests = PartDigests(("sha256",), executor)
    entries = [entry(index, 10_000) for index in range(200)]
    for one in entries:
        digests.take_whole(one, bytes([one.part.index]) * 10_000)
        hasher = digests.begin(one, ()) if one.part.index % 2 else None
        if hasher is not None:
            await digests.hashing.give(hasher.update, b"of the wire")
    await digests.hashing.finish()
    digests.settle()
    for one in entries:
        expected = b"of the wire" if one.part.index % 2 else bytes([one.part.index]) * 10_000
        assert one.digests == digest_of(expected, ("sha256",))


async def test_what_a_sink_hashes_where_it_writes_it_is_told_and_not_hashed_again(
    executor: ThreadPoolExecutor,
) -> None:
    digests, sink = PartDigests(BOTH, executor), Telling(_0=b"abc" * 1000, _1=b"hello")
    whole, streamed = entry(0, 3000), entry(1, 5)
    digests.take_whole(whole, b"abc" * 1000, (), sink)
    assert digests.begin(streamed, (), sink) is None
    assert digests.hashing.waiting_bytes == 0
    digests.settle()
    assert whole.digests == digest_of(b"abc" * 1000, BOTH)
    assert streamed.digests == digest_of(b"hello", BOTH)


async def test_what_is_tiny_or_declared_is_not_left_to_the_sink(executor: ThreadPoolExecutor) -> None:
    digests, sink = PartDigests(("sha256",), executor), Telling()
    tiny, declared, streamed = entry(0, 3), entry(1, 5000), entry(2, 5)
    digests.take_whole(tiny, b"abc", (), sink)
    digests.take_whole(declared, bytes(5000), [("md5", digest_of(bytes(5000), ("md5",))["md5"])], sink)
    hasher = digests.begin(streamed, [("md5", digest_of(b"hello", ("md5",))["md5"])], sink)
    assert hasher is not None
    await digests.hashing.give(hasher.update, b"hello")
    await digests.verify(streamed, hasher, [("md5", digest_of(b"hello", ("md5",))["md5"])])
    digests.settle()
    assert sink.asked == {}
    assert tiny.digests == digest_of(b"abc", ("sha256",))
    assert (declared.digests, declared.verified) == (digest_of(bytes(5000), BOTH), ["md5"])
    assert (streamed.digests, streamed.verified) == (digest_of(b"hello", BOTH), ["md5"])


async def test_what_is_not_what_was_declared_is_a_mismatch_and_its_digests_are_told(
    executor: ThreadPoolExecutor,
) -> None:
    digests, wrong = PartDigests(("sha256",), executor), [("sha256", "00" * 32)]
    whole, streamed = entry(0, 3), entry(1, 3)
    with pytest.raises(DigestMismatch):
        digests.take_whole(whole, b"abc", wrong)
    hasher = digests.begin(streamed, wrong)
    assert hasher is not None
    await digests.hashing.give(hasher.update, b"abc")
    with pytest.raises(DigestMismatch):
        await digests.verify(streamed, hasher, wrong)
    digests.settle()
    assert whole.digests == streamed.digests == digest_of(b"abc", ("sha256",))


@pytest.mark.parametrize("hashed", [None, b"", b"ab", b"abcd"])
@pytest.mark.parametrize("whole", [True, False])
async def test_a_sink_that_does_not_hash_all_is_a_mistake_and_no_digest(
    executor: ThreadPoolExecutor, hashed: bytes | None, whole: bool
) -> None:
    digests = PartDigests(("sha256",), executor)
    sink = Telling() if hashed is None else Telling(_0=hashed * 1000)
    if whole:
        digests.take_whole(entry(0, 3000), b"abc" * 1000, (), sink)
    else:
        digests.begin(entry(0, 3000), (), sink)
    with pytest.raises(InternalError):
        digests.settle()


async def test_without_algorithms_nothing_is_hashed(executor: ThreadPoolExecutor) -> None:
    digests, one = PartDigests((), executor), entry(0, 5000)
    digests.take_whole(one, bytes(5000), (), Telling())
    assert digests.begin(one, ()) is None
    digests.settle()
    assert one.digests == {}
