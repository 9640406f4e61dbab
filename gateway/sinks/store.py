"""The contract of stores: sinks that give back what they keep.

The first store among the sinks of a route, which has to be a required one, keeps the upload's manifest. The answer's
Location is that manifest, and what the route's stores keep is read at `/files/…` and removed with it: see downloads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, TypeVar

from gateway.sinks import Sink, Stage

__all__ = [
    "PIECE_BYTES",
    "Closable",
    "Removal",
    "Store",
    "StoredFile",
    "StoredPieces",
    "StoredUpload",
    "manifest_keeper",
]

PIECE_BYTES = 256 << 10
"""Of a stored file, read in one go."""

T = TypeVar("T")


class Closable(Protocol):
    """What holds something open."""

    def close(self) -> None:
        """Let go of it."""


class Store(Sink):
    """A sink that gives back. Its deliveries have `receipts`, `keep_manifest` and `replace_manifest`.

    A receipt of it needs no location: it gets the one at which the file can be read here.
    """

    stage = Stage.STORE
    keep_seconds: float = 0
    """After so many seconds an upload expires, and is gone; 0: never. The store itself sees to that."""
    sweeps: bool = True
    """Whether uploads expire by it while it is entered. Who looks whether it can be used sets it before: to False."""
    remark: str = ""
    """What its operator has to see to elsewhere; told by `gateway check --probe`."""

    @abstractmethod
    def opened(self, upload_id: str) -> AbstractAsyncContextManager[StoredUpload | None, bool | None]:
        """A context in which an upload can be read; it gives None where there is no such upload.

        It keeps nobody from removing the upload: what was opened before can be read to its end all the same, and what
        is asked for after that is not there.
        """

    @abstractmethod
    def removal(self, upload_id: str) -> AbstractAsyncContextManager[Removal | None, bool | None]:
        """A context in which nobody else removes an upload; it gives None where there is no such upload.

        Raises Conflict while somebody else does, or the upload itself has not ended. Leaving it without `remove` leaves
        everything as it is.
        """

    async def stored_bytes(self, owner: str) -> int:
        """The bytes of files in the uploads of this identity whose manifest is kept here now; 0 where a store does not
        count them, and then there is no quota of what it keeps. Raises the errors of a sink.
        """
        return 0


class Removal(ABC):
    """One store's share of an upload that is about to be removed."""

    @abstractmethod
    async def remove(self) -> None:
        """Remove all of it, which cannot be undone. Raises the errors of a sink, and then it is there as before."""


class StoredUpload(ABC):
    """One store's share of an upload, to be read. Raises the errors of a sink. Leaving closes what was opened."""

    sink: str
    """The name of the store."""

    @abstractmethod
    async def manifest(self) -> StoredFile | None:
        """As it was kept; None if this store does not keep it."""

    @abstractmethod
    async def indexes(self) -> Collection[int]:
        """The parts that have a file here."""

    @abstractmethod
    async def open(self, index: int) -> StoredFile | None:
        """A part's file; None if this store does not have it."""

    # -- for an archive, which is made in a thread

    async def pieces(self, index: int) -> Path | StoredPieces | None:
        """One of those files, to be read in a thread; None: it cannot be, and there is no archive of the upload."""
        return None

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Call what reads such files and blocks, in a thread. Nothing is closed before it has ended."""
        raise NotImplementedError

    def close_later(self, thing: Closable) -> None:
        """Close what reads such files when the upload is left."""
        raise NotImplementedError


@dataclass(slots=True)
class StoredPieces:
    """A file that does not lie on this machine, to be read once, by whoever may block."""

    size: int
    """In bytes."""
    pieces: Iterator[bytes]
    """Raises EOFError for a file that is gone, and the errors of a sink."""


class StoredFile(ABC):
    """A part's file, or a manifest, open for reading."""

    size: int
    """In bytes."""
    modified: float
    """In seconds since the epoch."""
    file: BinaryIO | None = None
    """An open file that the system can send by itself; None: it is read in pieces."""

    @abstractmethod
    async def read(self, size: int, offset: int) -> bytes:
        """So many bytes from there; fewer only at the end of the file."""

    async def pieces(self, start: int, stop: int) -> AsyncIterator[bytes]:
        """The bytes from `start` up to `stop`, as they come. Raises EOFError where there are fewer."""
        while start < stop:
            piece = await self.read(min(stop - start, PIECE_BYTES), start)
            if not piece:
                raise EOFError("a stored file is shorter than it was")
            yield piece
            start += len(piece)

    async def elsewhere(self, method: Literal["GET", "HEAD"]) -> str | None:
        """A URL at which the client may read it by itself for a while; None: it is read here."""
        return None


def manifest_keeper(names: Iterable[str], sinks: Mapping[str, Sink]) -> str | None:
    """Which of the sinks of a route, given in their order, keeps its manifest; None: there is none to keep it."""
    return next((name for name in names if isinstance(sinks[name], Store)), None)
