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
from typing import Protocol

from gateway.concurrency.pipe import add_chunk
from gateway.errors import DigestMismatch, Malformed

__all__ = [
    "ALGORITHMS",
    "BATCH_BYTES",
    "Hasher",
    "Hashing",
    "PartDigest",
    "declared_digests",
    "digest_of",
    "hashing_bytes",
    "verify",
]

BATCH_BYTES = 1 << 20
_INLINE_BYTES = 1 << 16
"""Up to here a hop to a thread costs more than the hashing."""


def hashing_bytes(received: int) -> int:
    """What hashing holds at most of one file at a time: a batch that gathers and one in a thread.

    Each may be over its size by what is `received` at a time, in bytes.
    """
    return 2 * (BATCH_BYTES + received)


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


Update = Callable[[bytes], None]
"""Takes the bytes of one part, in a thread, in their order; of one part it is the same each time."""


class Hasher:
    """The digests of bytes that come in pieces. It blocks: see Hashing. `size` is how many bytes it was given."""

    __slots__ = ("_hashes", "size")

    def __init__(self, algorithms: Sequence[str]) -> None:
        self._hashes = {algorithm: ALGORITHMS[algorithm]() for algorithm in algorithms}
        self.size = 0

    def update(self, data: bytes) -> None:
        """The next bytes."""
        self.size += len(data)
        for one in self._hashes.values():
            one.update(data)

    def digests(self) -> dict[str, str]:
        """Algorithm -> hex of all that was given."""
        return {algorithm: one.hexdigest() for algorithm, one in self._hashes.items()}


class Hashing:
    """Gives bytes to who hashes them, in threads, many pieces in one job. Chunks are kept by reference until then; at
    most two batches are held, so that hashing slower than receiving slows the client down. For one giver.
    """

    def __init__(self, executor: Executor) -> None:
        self.waiting_bytes = 0
        """Not in a job yet; from BATCH_BYTES on somebody has to `submit`."""
        self._executor = executor
        self._batch: list[tuple[Update, list[bytes]]] = []
        self._job: asyncio.Future[None] | None = None

    def add(self, update: Update, data: bytes) -> None:
        """A little more for whom `update` tells it; who gives much uses `give`."""
        if self._batch and self._batch[-1][0] == update:
            add_chunk(self._batch[-1][1], data)
        else:
            self._batch.append((update, [data]))
        self.waiting_bytes += len(data)

    async def give(self, update: Update, data: bytes) -> None:
        """The next bytes for it; waits while two batches are held."""
        self.add(update, data)
        if self.waiting_bytes >= BATCH_BYTES:
            await self.submit()

    async def submit(self) -> None:
        """What waits goes to a thread, when the job before has ended."""
        if self._job is not None:
            await self._job
        batch, self._batch, self.waiting_bytes = self._batch, [], 0
        self._job = asyncio.get_running_loop().run_in_executor(self._executor, _hash, batch)

    async def finish(self) -> None:
        """Wait until all that was given is hashed."""
        if self._job is None and self.waiting_bytes <= _INLINE_BYTES:
            batch, self._batch, self.waiting_bytes = self._batch, [], 0
            _hash(batch)
            return
        if self._batch:
            await self.submit()
        if self._job is not None:
            await self._job


def _hash(batch: Sequence[tuple[Update, Sequence[bytes]]]) -> None:
    for update, chunks in batch:
        for chunk in chunks:
            update(chunk)


class PartDigest:
    """The digests of one part that comes in chunks, in threads."""

    def __init__(self, algorithms: Sequence[str], executor: Executor) -> None:
        self._hasher = Hasher(algorithms)
        self._hashing = Hashing(executor)

    async def update(self, chunk: bytes) -> None:
        """The next bytes; waits where hashing is slower than that they come."""
        await self._hashing.give(self._hasher.update, chunk)

    async def finish(self) -> dict[str, str]:
        """Algorithm -> hex of all that was given."""
        await self._hashing.finish()
        return self._hasher.digests()


_DECLARING = frozenset((b"content-digest", b"repr-digest", b"content-md5"))
# RFC 9530's own names of what we compute; of its other algorithms it says that they are to be ignored.
_RFC_9530 = {"sha-256": "sha256", "sha-512": "sha512"}
# Possessive: what was taken is not given back, or blanks could be shared out in so many ways that it takes seconds.
_QUOTED = r'"(?:[^"\\]|\\.)*+"'
_KEY, _PARAMETERS = r"[ \t]*+([a-z*][a-z0-9_.*-]*+)", rf'[ \t]*+(?:;(?:[^,"]|{_QUOTED})*+)?+(?:,|$)'
_MEMBER = re.compile(_KEY + r"=:([A-Za-z0-9+/=]*+):" + _PARAMETERS)
_OTHER_MEMBER = re.compile(_KEY + rf'(?:=(?:[^,;"]|{_QUOTED})*+)?+' + _PARAMETERS)


def declared_digests(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    """(algorithm, hex) for each digest that a client declares in Content-Digest, Repr-Digest (RFC 9530) or
    Content-MD5 (RFC 1864). Raises Malformed for one that cannot be read: to ignore it would be to confirm it. An empty
    one declares nothing.
    """
    declared: list[tuple[str, str]] = []
    for name, value in headers:
        if name not in _DECLARING:
            continue
        if name == b"content-md5":
            if encoded := value.decode("latin-1").strip():
                declared.append(("md5", _hex(encoded)))
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
