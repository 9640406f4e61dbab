"""The digests of the parts of one upload, on the bytes that came in on the wire: who computes them, and where.

Tiny parts are hashed where they are. What a sink writes in a thread of its own, and nothing has to be verified of, is
hashed there: to take the bytes to another thread as well costs half as much as hashing them. All else is hashed in
threads of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial

from gateway.digests import Hasher, Hashing, digest_of, verify
from gateway.errors import InternalError
from gateway.model import Entry
from gateway.sinks import Delivery

__all__ = ["Declared", "PartDigests"]

Declared = Sequence[tuple[str, str]]
"""(algorithm, hex) of what the client says that they are."""

_TINY_BYTES = 2048
"""Up to here hashlib keeps the interpreter's lock: a thread would only be in the way."""


class PartDigests:
    """Entries have their digests when `settle` has returned, and what was declared is verified before that."""

    def __init__(self, algorithms: tuple[str, ...], executor: Executor) -> None:
        self.algorithms = algorithms
        self.executor = executor
        self.hashing = Hashing(executor)
        self._streamed: list[tuple[Entry, Hasher]] = []
        self._told: list[tuple[Entry, Delivery]] = []
        """Those whose digests a sink will tell."""

    def take_whole(self, entry: Entry, data: bytes, declared: Declared = (), sink: Delivery | None = None) -> None:
        """All bytes of a part, before anybody is given them; `sink` hashes what it writes. Raises DigestMismatch."""
        if declared:
            entry.digests = digest_of(data, self._with(declared))
            entry.verified = verify(declared, entry.digests, part=entry.part.index)
        elif not self.algorithms:
            return
        elif len(data) <= _TINY_BYTES:
            entry.digests = digest_of(data, self.algorithms)
        elif sink is not None:
            self._tell(entry, sink)
        else:
            self.hashing.add(partial(self._digest, entry), data)

    def begin(self, entry: Entry, declared: Declared, sink: Delivery | None = None) -> Hasher | None:
        """Of a part that comes in chunks: what to give `hashing` with each of them, if anything."""
        algorithms = self._with(declared)
        if not algorithms:
            return None
        if sink is not None and not declared:
            self._tell(entry, sink)
            return None
        hasher = Hasher(algorithms)
        self._streamed.append((entry, hasher))
        return hasher

    async def verify(self, entry: Entry, hasher: Hasher, declared: Declared) -> None:
        """All chunks were given: see that what was declared is right. Raises DigestMismatch."""
        await self.hashing.finish()
        entry.verified = verify(declared, hasher.digests(), part=entry.part.index)

    def settle(self) -> None:
        """`hashing` and all accepts have ended. Raises InternalError where a sink did not hash all of a part."""
        for entry, hasher in self._streamed:
            entry.digests = hasher.digests()
        for entry, sink in self._told:
            size, entry.digests = sink.digests().get(entry.part.index, (None, {}))
            if size != entry.size:
                raise InternalError(f"of the {entry.size} bytes of part {entry.part.index} {size} were hashed")

    def _digest(self, entry: Entry, data: bytes) -> None:
        entry.digests = digest_of(data, self.algorithms)

    def _tell(self, entry: Entry, sink: Delivery) -> None:
        sink.hash_part(entry.part, self.algorithms)
        self._told.append((entry, sink))

    def _with(self, declared: Declared) -> tuple[str, ...]:
        if not declared:
            return self.algorithms
        return tuple(dict.fromkeys([*self.algorithms, *(algorithm for algorithm, _ in declared)]))
