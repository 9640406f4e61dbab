"""The contract of sinks: the places that parts go to.

A sink is opened once per upload and gives a delivery: its share of that upload. Three verbs, and what
holds after each:

- `accept` takes one part to its end and holds it safely, where nobody can see it. It may be called for
  several parts at once; calls begin in the order of the wire (but where flows delay one: only relays are
  then kept in order). `chunks` ends only if the part is whole.
  A source that breaks raises out of it (asyncio.CancelledError, mostly): do not catch that and carry on.
  Returning without having read everything is allowed; the rest is dropped.
- `commit` makes all that was accepted visible. It is called at most once, after every `accept` of every
  sink has returned and the body was read to its end.
- Leaving the context without a `commit` that returned keeps nothing: no file, no object, no request that
  a destination could take for a complete one. An abort waits for its own running thread jobs.

Errors: raise the leaves of `gateway.errors` that are a sink's (SinkUnavailable, SinkTimeout, SinkFull,
SinkRefused); an OSError is told apart by its number; anything else is logged and answered as
SinkUnavailable.

A sink that is itself an async context manager is entered when the gateway starts and left when it stops.

Deliveries may have more verbs; the dispatcher uses them where they are there:

- `accept_all(parts)`: many small parts that are already whole in memory, in the order of the wire, in
  one go, with the same promise as `accept` for each of them.
- `watch()`: runs beside the whole upload; raising ends the upload with that error, returning does not.
  For sinks that may learn of their failure while nobody gives them anything.
- `receipts()` and `keep_manifest(manifest)`: called right before `commit` on the one delivery that keeps
  the upload's manifest (the first disk sink of the route). `replace_manifest(manifest)`: after its commit,
  where best-effort sinks have come to another end than the manifest said; it raises, and keeps the one
  that there was, or has replaced it as durably as `commit` kept that.
- `drop(part)`: forget one part of those that were given, and keep the others; after it returned nothing of
  the part is kept, whatever is committed. It is called where `keep = "each"`, before `commit`: when the
  part's `accept` has returned, raised or was cancelled, or never began; other accepts may be running. A
  sink says at start-up that its deliveries have this verb: `drops_parts = True`. Where it has `accept_all`
  as well, an error of that is one of all the parts in it.
- `completes_parts`, an attribute (default False): whether an `accept` makes its part visible when it is whole, which
  is for uploads with `parts_alone` only. Such a delivery gets its files one by one, whatever their size, and
  `accept_all` has fields and empty file inputs only; no part waits for its turn there.
- `inform(entries)`: called right before `commit`, with the entries of the manifest: sizes and digests are known.
- `committed()`: the receipts of what is visible, of a delivery that can commit in part. Asked for where a commit, this
  one's or another's, failed.
- `began`, an attribute: whether anything of what was given went anywhere. Without it, all did.
- `answer()`: an HTTP destination's response, for routes that pass it through. `read_seconds`, an attribute, is
  how long its bytes may be waited for (None: as long as any sink).
- `let_see(see)`: called once, before all else, on a delivery that handles bytes in threads. It calls
  `see(index, data)` there with all bytes of each part that it is given, in their order (a part of `accept_all` in
  one piece), before the accept of that part returns: what is to be hashed need not be taken to a thread twice.
- `keep_time(progress)`: called once, before all else, on a delivery that has clocks of its own; within
  `progress.excused()` it is not watched for stalls.
- `accept_wire(chunks)` in place of all `accept`s, where `takes_wire()` and the delivery is the only one of its
  upload: the bytes of the body as they came, each only after it was parsed and checked, up to the closing
  delimiter. That and what came after it are given by `hold_wire(files, tail)` right before `commit`, with the
  indices of the files; of a body that is not multipart there is no tail.

A sink may have `admit(upload)`, too: it raises what the upload is refused with on its headers alone, before its
body is asked for. And `leaves_out(part)`: whether it takes nothing of this part, fields included, which then gets no
receipt; None where it takes all.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import cache
from typing import Protocol, TypeGuard, TypeVar, runtime_checkable

from aiohttp import ClientResponse

from gateway.concurrency.pipe import Progress
from gateway.errors import SinkFault, SinkFull, SinkRefused, SinkUnavailable
from gateway.model import Entry, Part, Receipt, Upload

__all__ = [
    "Admitting",
    "Answered",
    "Answering",
    "Bulk",
    "Delivery",
    "Dropping",
    "Informed",
    "Keeper",
    "PartlyCommitting",
    "Seen",
    "Sink",
    "TimeKeeping",
    "Watched",
    "Wired",
    "offers",
    "refused",
    "sink_fault",
]

T = TypeVar("T")


class Sink(Protocol):
    """A place that parts go to. `commit_stage` (default 1) orders commits: 0 relays, 1 others, 2 disks.

    `drops_parts` (default False): whether its deliveries have the verb `drop`.
    """

    def open(self, upload: Upload) -> AbstractAsyncContextManager[Delivery]: ...


class Delivery(Protocol):
    """One sink's share of one upload."""

    async def accept(self, part: Part, chunks: AsyncIterable[bytes]) -> None: ...

    async def commit(self) -> list[Receipt]: ...


@runtime_checkable
class Bulk(Protocol):
    async def accept_all(self, parts: list[tuple[Part, bytes]]) -> None: ...


@runtime_checkable
class Seen(Protocol):
    def let_see(self, see: Callable[[int, bytes], None]) -> None: ...


@runtime_checkable
class Watched(Protocol):
    async def watch(self) -> None: ...


@runtime_checkable
class Keeper(Protocol):
    def receipts(self) -> list[Receipt]: ...

    def keep_manifest(self, manifest: bytes) -> None: ...

    async def replace_manifest(self, manifest: bytes) -> None: ...


@runtime_checkable
class Dropping(Protocol):
    async def drop(self, part: Part) -> None: ...


@runtime_checkable
class Informed(Protocol):
    def inform(self, entries: Sequence[Entry]) -> None: ...


@runtime_checkable
class PartlyCommitting(Protocol):
    def committed(self) -> list[Receipt]: ...


@runtime_checkable
class Answering(Protocol):
    def answer(self) -> ClientResponse | None: ...


@runtime_checkable
class TimeKeeping(Protocol):
    def keep_time(self, progress: Progress) -> None: ...


@runtime_checkable
class Wired(Protocol):
    def takes_wire(self) -> bool: ...

    async def accept_wire(self, chunks: AsyncIterable[bytes]) -> None: ...

    def hold_wire(self, files: Sequence[int], tail: bytes) -> None: ...


@runtime_checkable
class Admitting(Protocol):
    def admit(self, upload: Upload) -> None: ...


@cache
def _has(delivery: type, contract: type) -> bool:
    return issubclass(delivery, contract)


def offers(delivery: object, contract: type[T]) -> TypeGuard[T]:
    """`isinstance`, remembered by class: to ask a Protocol takes longer than to read a small upload."""
    return _has(type(delivery), contract)  # type: ignore[arg-type]  # a class is hashable, whatever its objects are


class Answered(Exception):
    """A destination gave an answer that ends the upload and is the client's to read, whatever its status.

    Not an error of the table: only a route of kind relay or opaque lets it through; elsewhere it is a SinkRefused.
    """

    def __init__(self, sink: str, response: ClientResponse) -> None:
        super().__init__(f"{sink} answered {response.status}")
        self.sink = sink
        self.response = response


def refused(answered: Answered) -> SinkRefused:
    """An answer that is not the client's to read, as an error."""
    status = answered.response.status
    return SinkRefused(f"sink {answered.sink} answered {status}", sink=answered.sink, sink_status=status)


def sink_fault(name: str, error: OSError) -> SinkFault:
    """The system's error as ours: full is 507, anything else is a store that cannot be used."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return SinkFull(f"the store of sink {name} is full", sink=name)
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    return SinkUnavailable(f"sink {name} failed: {reason}", sink=name)
