"""One prefix in an object store: the calls that are made there, each with a clock, and errors that are ours.

1. What is made here is for one process: the client's threads do not live through a fork, and a call in the child would
   hang for ever. So the sink makes it when it is entered.
2. The client tries again by itself what may pass (5xx, a broken connection), for half of `stall_seconds` at most. A
   request, and with it a part of a file, has `stall_seconds`; a read has them for each piece.
3. A call that writes is never cancelled: what the store makes of it could not be known, nor, where it opens a multipart
   upload, be found again. See delivery.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from datetime import timedelta
from typing import Any, Literal, NamedTuple, TypeVar

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotSupportedError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import ObjectStore, from_url

from gateway.errors import SinkFault, SinkFull, SinkRefused, SinkTimeout, SinkUnavailable
from gateway.sinks.objects.layout import PARTS_IN_FLIGHT

__all__ = ["Bucket", "Stored"]

log = logging.getLogger("gateway.objects")

_RETRIES = 5
"""With the waits between them some three seconds: for a store that restarts, or asks to slow down."""
_FOR_EVER = timedelta(days=10_000)
_BATCH = 1000
"""Objects listed, or removed, in one request."""
_STATUS = re.compile(r"status(?: code)?:? (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,64})</Code>")
_LATE = re.compile(r"timed ?out", re.IGNORECASE)
_TOOK = re.compile(r" in ([\d.]+)s\b")
_ADDRESS = re.compile(r"\w+://\S+")
"""What an error has of the client's: a bucket or a file may be called anything."""
_FULL = re.compile(r"no space left|quota ?exceeded|exceed\w*(?: \w+){,3} quota|XMinioStorageFull", re.IGNORECASE)

T = TypeVar("T")


class Stored(NamedTuple):
    """An object, as a listing has it."""

    key: str
    size: int
    modified: float
    """In seconds since the epoch, by the store's clock."""
    e_tag: str | None = None
    """That of these bytes, where it was asked for them alone: a listing may spell it in another way."""


class Bucket:
    """Raises ValueError for a url, or an environment, of which the client can make no store.

    Its calls raise SinkUnavailable, SinkTimeout, SinkRefused and SinkFull. Keys are relative to `prefix`. `on_fault` is
    called with each of these errors, in any thread.
    """

    def __init__(
        self,
        name: str,
        url: str,
        prefix: str,
        *,
        stall_seconds: float,
        on_fault: Callable[[SinkFault], None] = lambda fault: None,
    ) -> None:
        self.name = name
        """That of the sink, for errors and the log."""
        self._on_fault = on_fault
        self.is_local = url.startswith("file:")
        """A directory: it lists in no order, and has no attributes."""
        self.makes_once = False
        """Whether it was seen to make no object where there is one."""
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._seconds = stall_seconds
        clock = timedelta(seconds=stall_seconds) if stall_seconds else _FOR_EVER
        self._writing = _store(url, clock, timeout=clock)
        self._reading = self._writing
        if not url.startswith(("file:", "memory:")):  # whoever reads may be slow, for as long as he likes
            self._reading = _store(url, clock, timeout=_FOR_EVER, read_timeout=clock)

    # -- writing

    async def put(
        self, key: str, data: bytes, attributes: Mapping[str, str] | None = None, *, create: bool = False
    ) -> bool | None:
        """Write an object with one request. `create`: only if there is none; whether it was written, and None for a
        store that does not know that condition, and has written nothing.
        """
        given = None if self.is_local or not attributes else dict(attributes)
        mode: Literal["create", "overwrite"] = "create" if create else "overwrite"
        try:
            await obstore.put_async(
                self._writing, self._prefix + key, data, attributes=given, mode=mode, use_multipart=False
            )
        except AlreadyExistsError:
            return False
        except (BaseError, OSError, NotImplementedError) as error:
            if create and isinstance(error, NotSupportedError | NotImplementedError):
                return None
            raise self.fault(error) from error
        return True

    def writer(self, key: str, attributes: Mapping[str, str], *, part_bytes: int) -> Any:
        """What writes an object piece by piece: by one request if it has less than a part. See ObjectWriter."""
        return obstore.open_writer_async(
            self._writing,
            self._prefix + key,
            attributes=None if self.is_local else dict(attributes),
            buffer_size=part_bytes,
            max_concurrency=PARTS_IN_FLIGHT,
        )

    async def delete(self, keys: Collection[str]) -> None:
        """Remove objects; those that are not there are none of those that fail."""
        paths = [self._prefix + key for key in keys]
        for start in range(0, len(paths), _BATCH):
            batch = paths[start : start + _BATCH]
            try:
                await self._timed(obstore.delete_async(self._writing, batch))
            except FileNotFoundError:  # a directory's, which ends with the first
                for path in batch:
                    with contextlib.suppress(FileNotFoundError):
                        await self._timed(obstore.delete_async(self._writing, path))

    # -- reading

    async def head(self, key: str) -> Stored | None:
        """What there is of that key."""
        try:
            meta = await self._timed(obstore.head_async(self._reading, self._prefix + key))
        except FileNotFoundError:
            return None
        return self._stored(meta, meta["e_tag"])

    async def fetch(self, key: str, *, at_most: int) -> tuple[Stored, bytes | None] | None:
        """An object with its bytes, or without them where they are more than `at_most`."""
        try:
            result = await self._timed(obstore.get_async(self._reading, self._prefix + key))
            found = self._stored(result.meta, result.meta["e_tag"])
            return found, None if found.size > at_most else bytes(await self._timed(result.bytes_async()))
        except FileNotFoundError:
            return None

    async def stream(self, found: Stored, start: int, stop: int, *, piece_bytes: int) -> AsyncIterator[bytes]:
        """Its bytes from `start` up to `stop`, with one request. Raises EOFError where they are fewer, or another's."""
        left = stop - start
        try:
            result = await self._timed(
                obstore.get_async(self._reading, self._prefix + found.key, options={"range": (start, stop)})
            )
            self._check_same(found, result.meta)
            pieces = result.stream(min_chunk_size=piece_bytes)
            while left > 0:
                try:
                    piece = await self._timed(anext(pieces))
                except StopAsyncIteration:
                    break
                left -= len(piece)
                yield piece
        except FileNotFoundError as error:
            raise EOFError("a stored object is gone") from error
        if left:
            raise EOFError("a stored object is shorter than it was")

    def blocking(self, found: Stored, *, piece_bytes: int) -> Iterator[bytes]:
        """All its bytes, for a thread. Raises EOFError for an object that is gone, or is another one."""
        try:
            result = obstore.get(self._reading, self._prefix + found.key)
            self._check_same(found, result.meta)
            yield from result.stream(min_chunk_size=piece_bytes)
        except FileNotFoundError as error:
            raise EOFError("a stored object is gone") from error
        except (BaseError, OSError) as error:
            raise self.fault(error) from error

    async def listed(self, prefix: str = "", *, after: str = "") -> AsyncIterator[Stored]:
        """All objects whose key has that many segments in front, in the order of their keys; those behind `after`.

        A directory lists in none, and is sorted here: in memory, as all that is in it.
        """
        offset = self._prefix + after if after else None
        pages = obstore.list(self._reading, self._prefix + prefix or None, offset=offset, chunk_size=_BATCH)
        found: list[Stored] = []
        while True:
            try:
                page = await self._timed(anext(pages))
            except StopAsyncIteration:
                break
            if not self.is_local:
                for meta in page:
                    yield self._stored(meta)
            else:
                found += map(self._stored, page)
        for one in sorted(found):
            yield one

    async def sign(self, method: Literal["GET", "HEAD"], key: str, seconds: float) -> str:
        """A url at which whoever has it may read the object for so long."""
        expires_in = timedelta(seconds=seconds)
        signed = obstore.sign_async(self._reading, method, self._prefix + key, expires_in)  # type: ignore[arg-type]
        return str(await self._timed(signed))

    def _stored(self, meta: Any, e_tag: str | None = None) -> Stored:
        return Stored(meta["path"].removeprefix(self._prefix), meta["size"], meta["last_modified"].timestamp(), e_tag)

    def _check_same(self, found: Stored, meta: Any) -> None:
        """Raises EOFError for one that came under the same key meanwhile. Stores round times, each in its own way."""
        now = self._stored(meta, meta["e_tag"])
        is_same = found.e_tag == now.e_tag if found.e_tag else abs(found.modified - now.modified) < 1
        if found.size != now.size or not is_same:
            raise EOFError("a stored object is another one now")

    async def _timed(self, call: Awaitable[T]) -> T:
        """A call that reads, or removes: it may be cancelled. Raises FileNotFoundError for what is not there."""
        try:
            async with asyncio.timeout(self._seconds or None):
                return await call
        except FileNotFoundError:
            raise
        except TimeoutError as error:
            raise self.late() from error
        except (BaseError, OSError) as error:
            raise self.fault(error) from error

    # -- errors

    def late(self) -> SinkTimeout:
        """The error of a store that does not answer."""
        fault = self._timeout()
        self._on_fault(fault)
        return fault

    def fault(self, error: Exception) -> SinkFault:
        """What the client raised, as ours. In words it says no more than a status and S3's code: the rest is long, has
        addresses in it, and goes to the log.
        """
        fault = self._told_apart(error)
        self._on_fault(fault)
        return fault

    def _timeout(self) -> SinkTimeout:
        return SinkTimeout(f"sink {self.name} did not answer in time", sink=self.name)

    def _told_apart(self, error: Exception) -> SinkFault:
        name, text = self.name, str(error)
        log.warning("sink %s: %s", name, text.partition("\n")[0])
        status = next((int(found) for found in _STATUS.findall(text)), None)
        code = next(iter(_CODE.findall(text)), None)
        said = f" with {status}{f' {code}' if code else ''}" if status else ""
        if status == 507 or _FULL.search(_ADDRESS.sub("", text)):  # which some say with a 403
            return SinkFull(f"the store of sink {name} is full", sink=name)
        if isinstance(error, PermissionDeniedError | UnauthenticatedError) or status in (401, 403):
            return SinkRefused(f"sink {name} may not do that: the store refused{said}", sink=name, sink_status=status)
        took = next((float(found) for found in _TOOK.findall(text)), 0)
        if status is None and (_LATE.search(text) or 0 < self._seconds <= took):  # a writer's error says no more
            return self._timeout()
        return SinkUnavailable(f"sink {name} failed{': the store answered' if said else ''}{said}", sink=name)


def _store(url: str, clock: timedelta, *, timeout: timedelta, read_timeout: timedelta | None = None) -> ObjectStore:
    try:
        if url.startswith("file:"):
            return from_url(url, mkdir=True, automatic_cleanup=True)
        if url.startswith("memory:"):
            return from_url(url)
        client: dict[str, Any] = {"timeout": timeout, "connect_timeout": min(clock, timedelta(seconds=5))}
        if read_timeout is not None:
            client["read_timeout"] = read_timeout
        endpoints = [os.environ.get(name, "") for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3")]
        if any(endpoint.startswith("http:") for endpoint in endpoints):
            client["allow_http"] = True  # said in so many words; the client wants to hear it twice
        retry: dict[str, Any] = {"max_retries": _RETRIES, "retry_timeout": clock / 2}
        return from_url(url, client_options=client, retry_config=retry)  # type: ignore[call-overload, no-any-return]
    except (BaseError, OSError) as error:
        raise ValueError(str(error).partition("\n")[0]) from error
