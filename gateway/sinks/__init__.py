"""The contract of sinks: the places that parts go to.

A `Sink` is opened once per upload and gives a `Delivery`: its share of that upload. Whoever writes one derives from
the two classes below, and must write three verbs: `open`, `accept` and `commit`. Everything else has a default that
does no harm, or is a verb that is called only where a trait, an attribute of the class or of the object, says that it
is there. Each verb says what holds after it, after an error and after a cancellation.

Errors: raise the leaves of `gateway.errors` that are a sink's (SinkUnavailable, SinkTimeout, SinkFull, SinkRefused); an
OSError is told apart by its number; anything else is logged and answered as SinkUnavailable.
"""

# ruff: noqa: B027 - verbs that do nothing by default, so that a sink need not have them, are what the classes are for
from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from enum import IntEnum
from typing import Any

from aiohttp import ClientResponse

from gateway.concurrency.pipe import Progress
from gateway.errors import NoDescriptors, SinkFault, SinkFull, SinkRefused, SinkUnavailable
from gateway.model import Entry, Part, Receipt, Upload

__all__ = ["LATEST", "Answered", "Delivery", "Observer", "Sink", "Stage", "no_descriptors", "refused", "sink_fault"]


LATEST = -1
"""In place of a part's index: of the parts that came last, in the order of the wire."""


class Stage(IntEnum):
    """When a sink commits, in this order: what cannot be taken back must say no while all else still can."""

    RELAY = 0
    """What it said yes to stays. Its deliveries get the fields, too, and all parts in the order of the wire."""
    OTHER = 1
    STORE = 2
    """It can take everything back until its own commit, so it is last."""


class Observer:
    """Who counts what happens in sinks. This one does nothing with it; the gateway's own makes metrics of it.

    Any thread may call it. Nothing is raised.
    """

    def failed(self, sink: str, fault: SinkFault) -> None:
        """A store did not do what it was asked for."""

    def retried(self, sink: str, reason: str) -> None:
        """A relay makes another request for a body; `reason` is one of few words."""

    def answered(self, sink: str, seconds: float) -> None:
        """A relay's destination began to answer, so long after the last byte of the body was sent."""

    def destination_is(self, sink: str, number: int, is_up: bool, is_open: bool) -> None:
        """What is known of a relay's destination now: whether it is up, and whether its circuit is open. `number` is
        its place among the sink's urls, from 0.
        """


class Sink(ABC):
    """A place that parts go to. Entered when the gateway starts, left when it stops."""

    name: str = ""
    """Under which it is configured; it is what its receipts and errors say."""
    stage = Stage.OTHER
    can_drop = False
    """Whether its deliveries have the verb `drop`: needed where `keep = "each"`."""
    opens_at_once = False
    """Whether to open it waits for nothing, so that no clock is needed."""
    takes_wire = False
    """Whether deliveries of it may have the trait of that name, so that the bytes have to be kept as they came."""
    observer = Observer()
    """Who is told of what is worth counting; set before the sink is entered."""

    async def __aenter__(self) -> Any:
        """Start: what all uploads share. An error keeps the gateway from starting."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Stop. No delivery is open any more."""

    @abstractmethod
    def open(self, upload: Upload) -> AbstractAsyncContextManager[Delivery]:
        """A context with the delivery of one upload.

        Leaving it without a `commit` that returned, after an error and after a cancellation as well, keeps nothing:
        no file, no object, no request that a destination could take for a complete one. It waits for its own running
        jobs. What was committed stays.
        """

    async def cleaned_up(self) -> None:
        """Wait for what goes on behind uploads that were answered, as removals on a disk that hangs do.

        The drain asks this last, and cancels it when its time is over.
        """

    async def check(self) -> None:
        """Raise, as a SinkFault, why no upload can come in here now, as far as this machine is to blame: a full disk.

        `/readyz` asks it of sinks that a route requires, as often as it is asked: it is answered within a second.
        """

    def admit(self, upload: Upload) -> None:
        """Raise what the upload is refused with on its headers alone, before its body is asked for."""

    def leaves_out(self, part: Part) -> bool:
        """Whether it takes nothing of this part, which then gets no receipt."""
        return False


class Delivery(ABC):
    """One sink's share of one upload."""

    takes_batches = False
    """Whether it has `accept_all`."""
    holds_batch = False
    """Whether it has `hold_batch`: what is the work of one go need not be that of two."""
    takes_wire = False
    """Whether it gets the bytes of the body, by `accept_wire`, in place of parts: as the only one of its upload."""
    hashes = False
    """Whether it has `hash_part` and `digests`: what it writes in a thread need not be taken to another as well."""
    is_watched = False
    """Whether it has `watch`, which costs a task."""
    completes_parts = False
    """Whether an `accept` makes its part visible when it is whole, which is for uploads with `parts_alone` only. Such
    a delivery gets its files one by one, whatever their size, and `accept_all` has fields and empty file inputs only;
    no part waits for its turn there.
    """
    read_seconds: float | None = None
    """How long the bytes of its `answer` may be waited for; None: as long as any sink may stall."""

    @property
    def began(self) -> bool:
        """Whether anything of what was given went anywhere, so that a commit makes something visible."""
        return True

    # -- one part after the other

    @abstractmethod
    async def accept(self, part: Part, chunks: AsyncIterable[bytes]) -> None:
        """Take one part to its end and hold it safely, where nobody can see it.

        It may be called for several parts at once; calls begin in the order of the wire (but where flows delay one:
        only relays are then kept in order). `chunks` ends only if the part is whole. A source that breaks raises out
        of it (asyncio.CancelledError, mostly): do not catch that and carry on. Returning without having read
        everything is allowed; the rest is dropped. After an error, or a cancellation, the part is not kept: the
        upload ends without a commit, or `drop` is called.
        """

    async def accept_all(self, parts: Sequence[tuple[Part, bytes]]) -> None:
        """Many small parts that are already whole in memory, in the order of the wire, in one go.

        The same promise as `accept`, for each of them; an error of it is one of all the parts in it.
        """
        raise NotImplementedError

    def hold_batch(self, parts: Sequence[tuple[Part, bytes]]) -> None:
        """In place of `accept_all`, where these are all parts of the upload and no other sink commits before this one:
        `commit` takes them, and may fail on them. Receipts are known at once.
        """
        raise NotImplementedError

    async def drop(self, part: Part) -> None:
        """Forget one part of those that were given, and keep the others.

        Called where `keep = "each"`, before `commit`: when the part's `accept` has returned, raised or was cancelled,
        or never began; other accepts may be running. After it returned nothing of the part is kept, whatever is
        committed; an error of it ends the upload.
        """
        raise NotImplementedError

    # -- the end

    def inform(self, entries: Sequence[Entry]) -> None:
        """The entries of the manifest, right before `commit`: sizes and digests are known."""

    @abstractmethod
    async def commit(self) -> Sequence[Receipt]:
        """Make all that was accepted visible, and say where: files that no receipt is of get a plain one.

        Called at most once, after every `accept` of every sink has returned and the body was read to its end. After
        an error or a cancellation leaving the context takes back what can be taken back; `committed` says what
        stays.
        """

    def committed(self) -> Sequence[Receipt]:
        """The receipts of what is visible although a commit, this one's or another's, failed."""
        return ()

    def answer(self) -> ClientResponse | None:
        """An HTTP destination's response, after the commit, for routes that pass it through."""
        return None

    # -- of a store, where it is the one that keeps the manifest: see store.py

    def receipts(self) -> Sequence[Receipt]:
        """What `commit` is going to return; asked right before it, since the manifest says so."""
        raise NotImplementedError

    def keep_manifest(self, manifest: bytes) -> None:
        """Commit this with the rest."""
        raise NotImplementedError

    async def replace_manifest(self, manifest: bytes) -> None:
        """After the commit, where best-effort sinks have come to another end than the manifest said.

        It has replaced the manifest as durably as `commit` kept it, or raises and keeps the one that there was.
        """
        raise NotImplementedError

    # -- the body as it came

    async def accept_wire(self, chunks: AsyncIterable[bytes]) -> None:
        """In place of all `accept`s: the bytes of the body as they came, each only after it was parsed and checked,
        up to the closing delimiter. Its promise is that of `accept`.
        """
        raise NotImplementedError

    def hold_wire(self, files: Sequence[int], tail: bytes) -> None:
        """Right before `commit`: the closing delimiter and what came after it, which a body that is not multipart
        does not have, and the indices of the files.
        """
        raise NotImplementedError

    # -- clocks

    async def watch(self) -> None:
        """Runs beside the whole upload, for sinks that may learn of their failure while nobody gives them anything.

        Raising ends the upload with that error, returning does not. It is cancelled after the last commit.
        """
        raise NotImplementedError

    def keep_time(self, progress: Progress) -> None:
        """Called once, before all else: what tells whether the delivery stalls.

        One that has clocks of its own is not watched within `progress.excused()`; one that works long without taking
        anything says that it does with `progress.moved()`, in whichever thread.
        """

    def backlog(self) -> Mapping[int, int]:
        """Part (or LATEST) -> bytes of it that were taken here, and are not yet where they go: for whoever watches the
        upload, some times per second. What tells how far it is may be asked for then, and is not to be kept before.
        """
        return {}

    # -- digests

    def hash_part(self, part: Part, algorithms: Sequence[str]) -> None:
        """Called before the part is given: hash its bytes where they are written, in a thread."""
        raise NotImplementedError

    def digests(self) -> Mapping[int, tuple[int, Mapping[str, str]]]:
        """Part -> (how many bytes of it were hashed, algorithm -> hex), of all that `hash_part` was called for.

        Asked for when all accepts have returned.
        """
        raise NotImplementedError


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


def no_descriptors(name: str) -> NoDescriptors:
    """That there is none for this sink."""
    detail = f"there is no descriptor left for sink {name}: too many files and connections are open"
    return NoDescriptors(detail, sink=name, reason="proxy_internal_error")


def sink_fault(name: str, error: OSError) -> SinkFault:
    """The system's error as ours: full is 507, no descriptor is ours, anything else is a store that cannot be used."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return no_descriptors(name)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return SinkFull(f"the store of sink {name} is full", sink=name)
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    return SinkUnavailable(f"sink {name} failed: {reason}", sink=name)
