"""Digests of parts, on the bytes that came in on the wire.

Small data is hashed where it is; streams are hashed in a thread, about 1 MiB at a time, while the loop
goes on reading: hashlib gives the interpreter lock up for anything over 2 KiB.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

from gateway.concurrency.pipe import add_chunk
from gateway.errors import DigestMismatch, InternalError, Malformed
from gateway.model import Entry

__all__ = [
    "ALGORITHMS",
    "TINY_BYTES",
    "DigestsBeside",
    "PartDigest",
    "SmallDigests",
    "declared_digests",
    "digest_of",
    "hashing_bytes",
    "verify",
]

_BATCH_BYTES = 1 << 20
_INLINE_BYTES = 1 << 16
"""Up to here a hop to a thread costs more than the hashing."""
TINY_BYTES = 2048
"""Up to here hashlib keeps the interpreter's lock: a thread would only be in the way."""


def hashing_bytes(received: int) -> int:
    """What hashing holds at most of one file at a time: a batch that gathers and one in a thread.

    Each may be over its size by what is `received` at a time, in bytes.
    """
    return 2 * (_BATCH_BYTES + received)


class _Hash(Protocol):
    def update(self, data: bytes, /) -> object: ...
    def hexdigest(self) -> str: ...


class _Crc32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


def _blake3() -> _Hash:
    from blake3 import blake3  # type: ignore[import-not-found, unused-ignore]  # an extra

    return blake3()  # type: ignore[no-any-return, unused-ignore]


ALGORITHMS: dict[str, Callable[[], _Hash]] = {
    "sha256": hashlib.sha256,
    "sha512": hashlib.sha512,
    "sha1": lambda: hashlib.sha1(usedforsecurity=False),
    "md5": lambda: hashlib.md5(usedforsecurity=False),
    "crc32": _Crc32,
    "blake3": _blake3,
}


class _Sha256(Mapping[str, str]):
    """{"sha256": …} in a quarter of the room: a manifest may have a hundred thousand of them."""

    __slots__ = ("_hex",)

    def __init__(self, digest: str) -> None:
        self._hex = digest

    def __getitem__(self, algorithm: str) -> str:
        if algorithm != "sha256":
            raise KeyError(algorithm)
        return self._hex

    def __iter__(self) -> Iterator[str]:
        return iter(("sha256",))

    def __len__(self) -> int:
        return 1


def digest_of(data: bytes, algorithms: Sequence[str]) -> Mapping[str, str]:
    """Algorithm -> hex of data that is all there."""
    if algorithms == ("sha256",):
        return _Sha256(hashlib.sha256(data).hexdigest())
    digests = {}
    for algorithm in algorithms:
        hasher = ALGORITHMS[algorithm]()
        hasher.update(data)
        digests[algorithm] = hasher.hexdigest()
    return digests


class PartDigest:
    """The digests of a part that comes in chunks. Chunks are kept by reference until they are hashed;
    at most two batches are held, so that hashing slower than receiving slows the client down.
    """

    def __init__(self, algorithms: Sequence[str], executor: Executor) -> None:
        self._hashers = {algorithm: ALGORITHMS[algorithm]() for algorithm in algorithms}
        self._executor = executor
        self._batch: list[bytes] = []
        self._batch_bytes = 0
        self._job: asyncio.Future[None] | None = None

    def add(self, chunk: bytes) -> None:
        """A little more; `update` sees to it that it is not too much."""
        add_chunk(self._batch, chunk)
        self._batch_bytes += len(chunk)

    async def update(self, chunk: bytes) -> None:
        self.add(chunk)
        if self._batch_bytes >= _BATCH_BYTES:
            await self._submit()

    async def finish(self) -> dict[str, str]:
        """Algorithm -> hex of all that was given."""
        if self._job is None and self._batch_bytes <= _INLINE_BYTES:
            self._hash(self._batch)
        else:
            await self._submit()
            await self._last_job()
        return {algorithm: hasher.hexdigest() for algorithm, hasher in self._hashers.items()}

    async def _submit(self) -> None:
        await self._last_job()
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        self._job = asyncio.get_running_loop().run_in_executor(self._executor, self._hash, batch)

    async def _last_job(self) -> None:
        if self._job is not None:
            await self._job

    def _hash(self, batch: list[bytes]) -> None:
        for chunk in batch:
            for hasher in self._hashers.values():
                hasher.update(chunk)


class SmallDigests:
    """The digests of parts that lie whole in memory: of many in one job, and at most two jobs' worth is held."""

    def __init__(self, algorithms: Sequence[str], executor: Executor) -> None:
        self._algorithms = algorithms
        self._executor = executor
        self._batch: list[tuple[Entry, bytes]] = []
        self._batch_bytes = 0
        self._job: asyncio.Future[None] | None = None

    @property
    def full(self) -> bool:
        return self._batch_bytes >= _BATCH_BYTES

    def add(self, entry: Entry, data: bytes) -> None:
        """The entry has its digests when `finish` has returned."""
        if len(data) <= TINY_BYTES:
            entry.digests = digest_of(data, self._algorithms)
        else:
            self._batch.append((entry, data))
            self._batch_bytes += len(data)

    async def submit(self) -> None:
        if self._job is not None:
            await self._job
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        self._job = asyncio.get_running_loop().run_in_executor(self._executor, self._hash, batch)

    async def finish(self) -> None:
        if self._job is None and self._batch_bytes <= _INLINE_BYTES:
            self._hash(self._batch)
            return
        await self.submit()
        assert self._job is not None
        await self._job

    def _hash(self, batch: Sequence[tuple[Entry, bytes]]) -> None:
        for entry, data in batch:
            entry.digests = digest_of(data, self._algorithms)


class DigestsBeside:
    """The digests of parts whose bytes a sink has in a thread anyway, because it writes them there.

    Taking them to another thread as well costs half as much as hashing them.
    """

    def __init__(self, algorithms: Sequence[str]) -> None:
        self._algorithms = algorithms
        self._whole: dict[int, Entry] = {}
        self._growing: dict[int, _Growing] = {}

    def expect_whole(self, entry: Entry) -> None:
        """A part that is seen in one piece."""
        self._whole[entry.part.index] = entry

    def expect(self, entry: Entry) -> None:
        """A part that is seen piece by piece."""
        hashers = {algorithm: ALGORITHMS[algorithm]() for algorithm in self._algorithms}
        self._growing[entry.part.index] = _Growing(entry, hashers)

    def see(self, index: int, data: bytes) -> None:
        """The next bytes of a part, or all of them. From any thread, of each part from one at a time."""
        if (growing := self._growing.get(index)) is not None:
            growing.size += len(data)
            for hasher in growing.hashers.values():
                hasher.update(data)
        elif (entry := self._whole.pop(index, None)) is not None:
            if len(data) != entry.size:
                raise InternalError(f"part {index} was not shown whole")
            entry.digests = digest_of(data, self._algorithms)

    def settle(self) -> None:
        """Nobody shows any more. Raises InternalError if somebody did not show all: its digest would be a lie."""
        for index, growing in self._growing.items():
            if growing.size != growing.entry.size:
                raise InternalError(f"of part {index} {growing.size} bytes were shown")
            growing.entry.digests = {algorithm: hasher.hexdigest() for algorithm, hasher in growing.hashers.items()}
        if self._whole:
            raise InternalError(f"parts were not shown: {sorted(self._whole)[:10]}")


@dataclass(slots=True)
class _Growing:
    entry: Entry
    hashers: dict[str, _Hash]
    size: int = 0


_DECLARING = frozenset((b"content-digest", b"repr-digest", b"content-md5"))
# RFC 9530's own names of what we compute; of its other algorithms it says that they are to be ignored.
_RFC_9530 = {"sha-256": "sha256", "sha-512": "sha512"}
_KEY, _PARAMETERS = r"[ \t]*([a-z*][a-z0-9_.*-]*)", r'[ \t]*(?:;(?:[^,"]|"(?:[^"\\]|\\.)*")*)?(?:,|$)'
_MEMBER = re.compile(_KEY + r"=:([A-Za-z0-9+/=]*):" + _PARAMETERS)
_OTHER_MEMBER = re.compile(_KEY + r'(?:=(?:[^,;"]|"(?:[^"\\]|\\.)*")*)?' + _PARAMETERS)


def declared_digests(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    """(algorithm, hex) for each digest that a client declares in Content-Digest, Repr-Digest (RFC 9530) or
    Content-MD5 (RFC 1864). Raises Malformed for one that cannot be read: to ignore it would be to confirm it.
    """
    declared: list[tuple[str, str]] = []
    for name, value in headers:
        if name not in _DECLARING:
            continue
        if name == b"content-md5":
            declared.append(("md5", _hex(value.decode("latin-1").strip())))
        else:
            text, position = value.decode("latin-1").strip(), 0
            while position < len(text):
                match = _MEMBER.match(text, position)
                if match is None:
                    other = _OTHER_MEMBER.match(text, position)
                    if other is None or other[1] in _RFC_9530:
                        raise Malformed(f"a {name.decode()} cannot be read")
                    position = other.end()
                    continue
                position = match.end()
                if match[1] in _RFC_9530:
                    declared.append((_RFC_9530[match[1]], _hex(match[2])))
    return declared


def _hex(encoded: str) -> str:
    try:
        return base64.b64decode(encoded, validate=True).hex()
    except binascii.Error as error:
        raise Malformed("a declared digest is no base64") from error


def verify(declared: Sequence[tuple[str, str]], digests: Mapping[str, str], *, part: int) -> list[str]:
    """The algorithms that were declared, all of them found right. Raises DigestMismatch."""
    for algorithm, digest in declared:
        if digests[algorithm] != digest:
            raise DigestMismatch(
                f"the {algorithm} of part {part} is not the declared one", part=part, algorithm=algorithm
            )
    return list(dict.fromkeys(algorithm for algorithm, _ in declared))
