"""Sinks and destinations that misbehave, each named for what it does wrong.

The sinks serve as objects, and by dotted path in a configuration (`type = "tests.support.doubles:StuckSink"`, the
other keys are the constructor's keyword arguments). The destinations are servers on real sockets:

    async with DyingUpstream(after=1000) as upstream:
        ...  # upstream.url
    assert not upstream.saw_a_whole_body

They speak HTTP by hand, in protocols without tasks, so that a test can count the tasks that the gateway leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import re
import socket
import struct
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, cast

from gateway.model import Part, Receipt, Upload
from gateway.sinks import Delivery, Sink, Stage
from gateway.sinks.store import Removal, Store, StoredFile, StoredUpload
from tests.support import ports

# -- sinks


class MemorySink(Sink):
    """Behaves well: what was committed is in `kept`. The others spoil one of its verbs."""

    can_drop = True

    def __init__(self, *, name: str = "memory", stage: int = 1) -> None:
        self.name = name
        self.stage = Stage(stage)
        self.kept: dict[str, dict[int, bytes]] = {}
        """Upload -> part -> bytes."""
        self.began: list[int] = []
        """The parts, in the order in which their accepts began."""
        self.committed = 0
        self.dropped: list[int] = []
        """Parts that it was told to forget, in that order."""
        self.open_deliveries = 0
        self.open_parts = 0
        self.most_open_parts = 0

    @asynccontextmanager
    async def open(self, upload: Upload) -> AsyncIterator[MemoryDelivery]:
        self.open_deliveries += 1
        try:
            yield MemoryDelivery(self, upload)
        finally:
            self.open_deliveries -= 1

    async def take(self, part: Part, chunks: AsyncIterable[bytes]) -> bytes:
        return b"".join([chunk async for chunk in chunks])

    async def commit(self, upload: Upload, parts: dict[int, bytes]) -> list[Receipt]:
        self.kept[upload.id] = parts
        return [Receipt(index, self.name, f"memory:{index}") for index in parts]


class UnleavableSink(MemorySink):
    """Raises when it is left, whatever became of the upload."""

    @asynccontextmanager
    async def open(self, upload: Upload) -> AsyncIterator[MemoryDelivery]:
        async with super().open(upload) as delivery:
            try:
                yield delivery
            finally:
                raise RuntimeError("it cannot be left")


class SwallowingSink(MemorySink):
    """Takes every error for its own when it is left."""

    @asynccontextmanager
    async def open(self, upload: Upload) -> AsyncIterator[MemoryDelivery]:
        async with super().open(upload) as delivery:
            with contextlib.suppress(Exception):
                yield delivery


class MemoryDelivery(Delivery):
    def __init__(self, sink: MemorySink, upload: Upload) -> None:
        self._sink = sink
        self._upload = upload
        self._parts: dict[int, bytes] = {}

    async def accept(self, part: Part, chunks: AsyncIterable[bytes]) -> None:
        sink = self._sink
        sink.began.append(part.index)
        sink.open_parts += 1
        sink.most_open_parts = max(sink.most_open_parts, sink.open_parts)
        try:
            self._parts[part.index] = await sink.take(part, chunks)
        finally:
            sink.open_parts -= 1

    async def drop(self, part: Part) -> None:
        self._sink.dropped.append(part.index)
        self._parts.pop(part.index, None)

    async def commit(self) -> list[Receipt]:
        self._sink.committed += 1
        return await self._sink.commit(self._upload, self._parts)


class MinimalSink(Sink):
    """Nothing but what has to be written. What was committed is in `kept`: upload -> part -> bytes."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[int, bytes]] = {}

    @asynccontextmanager
    async def open(self, upload: Upload) -> AsyncIterator[Delivery]:
        yield MinimalDelivery(self.kept, upload)


class MinimalDelivery(Delivery):
    def __init__(self, kept: dict[str, dict[int, bytes]], upload: Upload) -> None:
        self._kept = kept
        self._upload = upload
        self.parts: dict[int, bytes] = {}

    async def accept(self, part: Part, chunks: AsyncIterable[bytes]) -> None:
        self.parts[part.index] = b"".join([chunk async for chunk in chunks])

    async def commit(self) -> list[Receipt]:
        self._kept[self._upload.id] = self.parts
        return []


class MinimalDroppingSink(MinimalSink):
    """The same, and it can drop a part."""

    can_drop = True

    @asynccontextmanager
    async def open(self, upload: Upload) -> AsyncIterator[Delivery]:
        yield MinimalDroppingDelivery(self.kept, upload)


class MinimalDroppingDelivery(MinimalDelivery):
    async def drop(self, part: Part) -> None:
        self.parts.pop(part.index, None)


class StuckSink(MemorySink):
    """Never takes a chunk, and never returns."""

    async def take(self, part: Part, chunks: AsyncIterable[bytes]) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError


class StuckOpenSink(MemorySink):
    """Never gets as far as a delivery."""

    @asynccontextmanager
    async def open(self, upload: Upload) -> AsyncIterator[MemoryDelivery]:
        await asyncio.Event().wait()
        yield MemoryDelivery(self, upload)


class StuckCommitSink(MemorySink):
    """Takes everything, and never commits."""

    async def commit(self, upload: Upload, parts: dict[int, bytes]) -> list[Receipt]:
        await asyncio.Event().wait()
        raise AssertionError


class FailingSink(MemorySink):
    """Fails when it has `at` bytes of a part, with what nobody expects or, with `errno`, as the system does."""

    def __init__(self, *, at: int = 0, errno: int = 0, name: str = "failing", stage: int = 1) -> None:
        super().__init__(name=name, stage=stage)
        self._at = at
        self._errno = errno

    async def take(self, part: Part, chunks: AsyncIterable[bytes]) -> bytes:
        taken = b""
        async for chunk in chunks:
            taken += chunk
            if len(taken) >= self._at:
                raise OSError(self._errno, "a failing sink") if self._errno else RuntimeError("a failing sink")
        return taken


class PickySink(MemorySink):
    """Takes many parts in one go, and fails on all of them where one is named `bad…`."""

    @asynccontextmanager
    async def open(self, upload: Upload) -> AsyncIterator[MemoryDelivery]:
        self.open_deliveries += 1
        try:
            yield PickyDelivery(self, upload)
        finally:
            self.open_deliveries -= 1


class PickyDelivery(MemoryDelivery):
    takes_batches = True

    async def accept_all(self, parts: Sequence[tuple[Part, bytes]]) -> None:
        for part, data in parts:
            if (part.filename or "").startswith("bad"):
                raise RuntimeError("a picky sink")
            self._parts[part.index] = data


class StuckExitSink(MemorySink):
    """Is never left."""

    @asynccontextmanager
    async def open(self, upload: Upload) -> AsyncIterator[MemoryDelivery]:
        try:
            yield MemoryDelivery(self, upload)
        finally:
            await asyncio.Event().wait()


class RaisingExitSink(MemorySink):
    """Fails when it is left."""

    @asynccontextmanager
    async def open(self, upload: Upload) -> AsyncIterator[MemoryDelivery]:
        yield MemoryDelivery(self, upload)
        raise RuntimeError("a failing exit")


class StuckDropSink(MemorySink):
    """Never forgets."""

    @asynccontextmanager
    async def open(self, upload: Upload) -> AsyncIterator[MemoryDelivery]:
        yield StuckDropDelivery(self, upload)


class StuckDropDelivery(MemoryDelivery):
    async def drop(self, part: Part) -> None:
        await asyncio.Event().wait()


class SelfCancellingSink(MemorySink):
    """Something that it waits for is cancelled, though nobody cancelled it."""

    async def take(self, part: Part, chunks: AsyncIterable[bytes]) -> bytes:
        await super().take(part, chunks)
        inner = asyncio.get_running_loop().create_future()
        inner.cancel()
        await inner
        raise AssertionError


class SlowSink(MemorySink):
    """Takes every part at once, and thinks about it for some seconds."""

    def __init__(self, *, seconds: float = 1, name: str = "slow", stage: int = 1) -> None:
        super().__init__(name=name, stage=stage)
        self._seconds = seconds

    async def take(self, part: Part, chunks: AsyncIterable[bytes]) -> bytes:
        taken = await super().take(part, chunks)
        await asyncio.sleep(self._seconds)
        return taken


class GatedSink(MemorySink):
    """Takes a chunk only while its `gate` is open."""

    def __init__(self, *, name: str = "gated", stage: int = 1) -> None:
        super().__init__(name=name, stage=stage)
        self.gate = asyncio.Event()

    async def take(self, part: Part, chunks: AsyncIterable[bytes]) -> bytes:
        taken = []
        await self.gate.wait()
        async for chunk in chunks:
            taken.append(chunk)
            await self.gate.wait()
        return b"".join(taken)


class EarlyReturnSink(MemorySink):
    """Returns when it has `after` bytes of a part."""

    def __init__(self, *, after: int = 0, name: str = "early", stage: int = 1) -> None:
        super().__init__(name=name, stage=stage)
        self._after = after

    async def take(self, part: Part, chunks: AsyncIterable[bytes]) -> bytes:
        taken = b""
        if self._after:
            async for chunk in chunks:
                taken += chunk
                if len(taken) >= self._after:
                    break
        return taken


class ForgetfulSink(MemorySink):
    """Commits, and forgets to say what."""

    async def commit(self, upload: Upload, parts: dict[int, bytes]) -> list[Receipt]:
        await super().commit(upload, parts)
        return cast("list[Receipt]", None)


class FailingCommitSink(MemorySink):
    """Takes everything, and keeps nothing."""

    async def commit(self, upload: Upload, parts: dict[int, bytes]) -> list[Receipt]:
        raise RuntimeError("a failing commit")


class RaisingOpenSink(MemorySink):
    """Cannot be opened."""

    @asynccontextmanager
    async def open(self, upload: Upload) -> AsyncIterator[MemoryDelivery]:
        raise RuntimeError("a failing open")
        yield MemoryDelivery(self, upload)


class MemoryStore(MemorySink, Store):
    """A store of a user's: what was committed can be read again, for as long as the process lives."""

    def __init__(self, *, name: str = "memory", keep_seconds: float = 0) -> None:
        super().__init__(name=name, stage=Stage.STORE)
        self.keep_seconds = keep_seconds
        self.manifests: dict[str, bytes] = {}

    @asynccontextmanager
    async def open(self, upload: Upload) -> AsyncIterator[MemoryDelivery]:
        yield KeepingDelivery(self, upload, self.manifests)

    @asynccontextmanager
    async def opened(self, upload_id: str) -> AsyncIterator[StoredUpload | None]:
        yield MemoryUpload(self, upload_id) if upload_id in self.kept else None

    @asynccontextmanager
    async def removal(self, upload_id: str) -> AsyncIterator[Removal | None]:
        yield MemoryRemoval(self, upload_id) if upload_id in self.kept else None


class KeepingDelivery(MemoryDelivery):
    """Keeps the manifest in `manifests`, if it is asked to."""

    def __init__(self, sink: MemorySink, upload: Upload, manifests: dict[str, bytes]) -> None:
        super().__init__(sink, upload)
        self._manifests = manifests
        self._manifest: bytes | None = None

    def receipts(self) -> list[Receipt]:
        return [Receipt(index, self._sink.name) for index in sorted(self._parts)]

    def keep_manifest(self, manifest: bytes) -> None:
        self._manifest = manifest

    async def replace_manifest(self, manifest: bytes) -> None:
        self._manifests[self._upload.id] = manifest

    async def commit(self) -> list[Receipt]:
        await super().commit()
        if self._manifest is not None:
            self._manifests[self._upload.id] = self._manifest
        return self.receipts()


class MemoryUpload(StoredUpload):
    def __init__(self, store: MemoryStore, upload_id: str) -> None:
        self.sink = store.name
        self._files = store.kept[upload_id]
        self._manifest = store.manifests.get(upload_id)

    async def manifest(self) -> StoredFile | None:
        return None if self._manifest is None else MemoryFile(self._manifest)

    async def indexes(self) -> set[int]:
        return set(self._files)

    async def open(self, index: int) -> StoredFile | None:
        data = self._files.get(index)
        return None if data is None else MemoryFile(data)


class MemoryRemoval(Removal):
    def __init__(self, store: MemoryStore, upload_id: str) -> None:
        self._store = store
        self._id = upload_id

    async def remove(self) -> None:
        del self._store.kept[self._id]
        self._store.manifests.pop(self._id, None)


class MemoryFile(StoredFile):
    def __init__(self, data: bytes) -> None:
        self.size, self.modified = len(data), 1_700_000_000.0
        self._data = data

    async def read(self, size: int, offset: int) -> bytes:
        return self._data[offset : offset + size]


class HoardingSink(MemorySink):
    """Would keep the manifest, and gives nothing back: it is no store."""

    def __init__(self, *, name: str = "hoarding") -> None:
        super().__init__(name=name)
        self.manifests: dict[str, bytes] = {}

    @asynccontextmanager
    async def open(self, upload: Upload) -> AsyncIterator[MemoryDelivery]:
        yield KeepingDelivery(self, upload, self.manifests)


# -- destinations


class Exchange(asyncio.Protocol):
    """One connection to an upstream, and what came over it."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._unread = b""
        self.transport: asyncio.Transport
        self.head = b""
        self.body = bytearray()
        """Chunked coding undone."""
        self.length: int | None = None
        """The Content-Length; None of a chunked body."""
        self.complete = False
        """Whether the last chunk, or byte, was seen: what a destination takes for the end of a whole request."""
        self.answered = False
        self.lost = False

    @property
    def headers(self) -> list[tuple[str, str]]:
        """In order, names in lower case."""
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        return [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]

    @property
    def target(self) -> str:
        return self.head.split(b" ")[1].decode()

    @property
    def closing_delimiter_seen(self) -> bool:
        boundary = re.search(rb'boundary="?([^"\r\n;]+)', self.head)
        return boundary is not None and b"--" + boundary[1] + b"--" in self.body

    def answer(self, status: int, body: bytes = b"", *headers: tuple[str, str], length: int | None = None) -> None:
        """A response; with a `length` of more than there is, its body stays open."""
        self.answered = True
        lines = [f"HTTP/1.1 {status} Answered", f"Content-Length: {len(body) if length is None else length}"]
        lines += [f"{name}: {value}" for name, value in headers]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)

    def reset(self) -> None:
        """RST, not FIN."""
        if self.lost:
            return
        connection = self.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    # -- what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._upstream.exchanges.append(self)
        # Not at once: up to Python 3.11.2 reading begins after this method, even if it was paused within.
        asyncio.get_running_loop().call_soon(self._upstream.connected, self)

    def data_received(self, data: bytes) -> None:
        self._unread += data
        if not self.head:
            head, blank, rest = self._unread.partition(b"\r\n\r\n")
            if not blank:
                return
            self.head, self._unread = head, rest
            length, chunked = (dict(self.headers).get(name) for name in ("content-length", "transfer-encoding"))
            length = "0" if head.startswith(b"GET ") else length
            assert (length is None) == (chunked == "chunked"), "a request has either a length or chunks"
            self.length = None if length is None else int(length)
        if self.length is None:
            self._undo_chunks()
        else:
            self.body += self._unread
            self._unread = b""
            assert len(self.body) <= self.length, "there are more bytes than the request had declared"
            self.complete = len(self.body) == self.length
        self._upstream.received(self)

    def _undo_chunks(self) -> None:
        while not self.complete:
            line, end, rest = self._unread.partition(b"\r\n")
            size = int(line, 16) if end else 0
            if not end or len(rest) < size + 2:
                return
            self.body += rest[:size]
            self._unread = rest[size + 2 :]
            self.complete = size == 0

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self._upstream.gone.set()


class Upstream:
    """Reads everything and answers nothing. The others override what happens when."""

    receive_buffer_bytes = 0

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []
        self.gone = asyncio.Event()

    async def __aenter__(self) -> Any:  # Self, for tests that set an attribute of a subclass
        listener = socket.create_server(("127.0.0.1", 0))
        if self.receive_buffer_bytes:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer_bytes)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Exchange(self), sock=listener)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        for exchange in self.exchanges:
            exchange.transport.abort()
        await self._server.wait_closed()
        await asyncio.sleep(0)  # connection_lost

    @property
    def whole_bodies(self) -> list[bytes]:
        return [bytes(exchange.body) for exchange in self.exchanges if exchange.complete]

    @property
    def saw_a_whole_body(self) -> bool:
        return any(exchange.complete or exchange.closing_delimiter_seen for exchange in self.exchanges)

    def connected(self, exchange: Exchange) -> None:
        """A connection was made, and nothing was read from it yet."""

    def received(self, exchange: Exchange) -> None:
        """More of the body came, perhaps the last of it."""


class MuteUpstream(Upstream):
    """Reads everything, never answers."""


class DeafUpstream(Upstream):
    """Never reads."""

    receive_buffer_bytes = 65536

    def connected(self, exchange: Exchange) -> None:
        exchange.transport.pause_reading()


class SteadyUpstream(Upstream):
    """Reads so many bytes per second, without a pause worth the name, and answers at the end."""

    receive_buffer_bytes = 65536

    def __init__(self, bytes_per_second: int) -> None:
        super().__init__()
        self._rate = bytes_per_second
        self._began = 0.0

    def connected(self, exchange: Exchange) -> None:
        self._began = asyncio.get_running_loop().time()

    def received(self, exchange: Exchange) -> None:
        if exchange.complete:
            exchange.answer(200, b"{}")
            return
        loop = asyncio.get_running_loop()
        exchange.transport.pause_reading()
        loop.call_at(self._began + len(exchange.body) / self._rate, self._go_on, exchange)

    def _go_on(self, exchange: Exchange) -> None:
        if not exchange.lost:
            exchange.transport.resume_reading()


class HonestUpstream(Upstream):
    """Answers when it has the whole request, and not before."""

    def __init__(self, status: int = 200, body: bytes = b"thanks", *headers: tuple[str, str]) -> None:
        super().__init__()
        self._status = status
        self._body = body
        self._headers = headers

    def received(self, exchange: Exchange) -> None:
        if exchange.complete and not exchange.answered:
            exchange.answer(self._status, self._body, *self._headers)


class RefusingUpstream(Upstream):
    """Answers after `after` bytes of the body; half of its own body comes `open_seconds` later.

    `then` it keeps the connection, or ends it with a FIN or a RST.
    """

    def __init__(
        self,
        status: int = 413,
        body: bytes = b"too much",
        *,
        after: int = 0,
        open_seconds: float = 0,
        then: Literal["stay", "fin", "rst"] = "stay",
    ) -> None:
        super().__init__()
        self._status = status
        self._body = body
        self._after = after
        self._open_seconds = open_seconds
        self._then = then

    def received(self, exchange: Exchange) -> None:
        if exchange.answered or len(exchange.body) < self._after:
            return
        loop = asyncio.get_running_loop()
        half = len(self._body) // 2 if self._open_seconds else len(self._body)
        exchange.answer(self._status, self._body[:half], length=len(self._body))
        if 0 < self._open_seconds < math.inf:
            loop.call_later(self._open_seconds, exchange.transport.write, self._body[half:])
        if self._then != "stay":
            # a moment for the bytes: a reset overtakes what the peer has not read
            loop.call_later(0.1, exchange.reset if self._then == "rst" else exchange.transport.close)


class EarlyOkUpstream(Upstream):
    """Says yes after `after` bytes; its own body is then complete, or stays open up to the end of ours."""

    def __init__(self, status: int = 200, *, after: int = 0, complete: bool) -> None:
        super().__init__()
        self._status = status
        self._after = after
        self._complete = complete
        self._ended = False

    def received(self, exchange: Exchange) -> None:
        if not exchange.answered and len(exchange.body) >= self._after:
            exchange.answer(self._status, b"first,", length=6 if self._complete else 10)
        if exchange.complete and not self._complete and not self._ended:
            self._ended = True
            exchange.transport.write(b"last")


class ExpectRefusingUpstream(HonestUpstream):
    """Will not be asked first: 417 for whoever expects 100-continue, and honest to the others."""

    def received(self, exchange: Exchange) -> None:
        if not exchange.answered and any(name == "expect" for name, _ in exchange.headers):
            exchange.answer(417)
        else:
            super().received(exchange)


class DyingUpstream(Upstream):
    """Resets the connection after `after` bytes of the body."""

    def __init__(self, *, after: int = 0) -> None:
        super().__init__()
        self._after = after

    def received(self, exchange: Exchange) -> None:
        if len(exchange.body) >= self._after and not exchange.transport.is_closing():
            exchange.reset()


class ChoosyUpstream(HonestUpstream):
    """Refuses a request that has `marker` in it when it is whole, or dies of it, or never answers it."""

    def __init__(self, marker: bytes, then: Literal["refuse", "die", "say nothing"] = "refuse") -> None:
        super().__init__(200, b"{}")
        self._marker = marker
        self._then = then

    def received(self, exchange: Exchange) -> None:
        if self._marker not in exchange.body:
            super().received(exchange)
        elif self._then == "die":
            exchange.reset()
        elif self._then == "refuse" and exchange.complete and not exchange.answered:
            exchange.answer(422, b"not that one")


class SlowUpstream(HonestUpstream):
    """Answers so many seconds after the end of a request, with the end of its body as many later as `body_seconds`, and
    counts how many are under way at a time.
    """

    def __init__(self, seconds: float = 0, *, body_seconds: float = 0) -> None:
        super().__init__(200, b"{}")
        self._seconds = seconds
        self._body_seconds = body_seconds
        self._open: set[Exchange] = set()
        self.most_at_once = 0

    def connected(self, exchange: Exchange) -> None:
        self._open.add(exchange)
        self.most_at_once = max(self.most_at_once, len(self._open))

    def received(self, exchange: Exchange) -> None:
        if exchange.complete and not exchange.answered:
            exchange.answered = True
            asyncio.get_running_loop().call_later(self._seconds, self._answer_late, exchange)

    def _answer_late(self, exchange: Exchange) -> None:
        self._open.discard(exchange)
        if exchange.lost:
            return
        exchange.answer(200, b"{" if self._body_seconds else b"{}", length=2)
        if self._body_seconds:
            asyncio.get_running_loop().call_later(self._body_seconds, exchange.transport.write, b"}")


class LengthDemandingUpstream(HonestUpstream):
    """Answers a chunked request with 411, at its head or at its end, and any other when it is whole."""

    def __init__(self, refusal: int = 411, *, at_the_end: bool = False) -> None:
        super().__init__(200, b"{}")
        self._refusal = refusal
        self._at_the_end = at_the_end

    def received(self, exchange: Exchange) -> None:
        if exchange.length is not None:
            super().received(exchange)
        elif not exchange.answered and (exchange.complete or not self._at_the_end):
            exchange.answer(self._refusal, b'"a length, please"')


class ContinuingUpstream(HonestUpstream):
    """Says `100 Continue` some seconds after the head, twice if need be, and answers when it has the whole request."""

    def __init__(self, *, after_seconds: float = 0, times: int = 1) -> None:
        super().__init__(200, b"{}")
        self._after_seconds = after_seconds
        self._times = times
        self.body_bytes_before: list[int] = []
        """What had come of each body when it was told to go on."""

    def received(self, exchange: Exchange) -> None:
        if len(self.body_bytes_before) < len(self.exchanges) and ("expect", "100-continue") in exchange.headers:
            self.body_bytes_before.append(len(exchange.body))
            words = b"HTTP/1.1 100 Continue\r\n\r\n" * self._times
            asyncio.get_running_loop().call_later(self._after_seconds, exchange.transport.write, words)
        super().received(exchange)


class MoodyUpstream(Upstream):
    """Each connection finds it in another mood: well, dying somewhere, refusing, lying or wanting a length."""

    MOODS = ("well", "well", "well", "dying", "closing", "dying at the end", "refusing", "lying", "wanting a length")

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._chance = chance
        self._moods: dict[Exchange, tuple[str, int]] = {}

    def connected(self, exchange: Exchange) -> None:
        place = self._chance.choice([0, 1, 1000, 70_000, 300_000, 900_000, 2_000_000])
        self._moods[exchange] = (self._chance.choice(self.MOODS), place)

    def refused_unread(self, exchange: Exchange) -> bool:
        return exchange.answered and exchange.length is None and self._moods[exchange][0] == "wanting a length"

    def received(self, exchange: Exchange) -> None:
        if exchange.answered or exchange.transport.is_closing():
            return
        mood, place = self._moods[exchange]
        reached = len(exchange.body) >= place
        if ("expect", "100-continue") in exchange.headers and not exchange.body and self._chance.random() < 0.5:
            exchange.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if (mood == "dying" and reached) or (mood == "dying at the end" and exchange.complete):
            exchange.reset()
        elif mood == "closing" and reached:
            exchange.transport.close()
        elif mood == "refusing" and reached:
            exchange.answer(413, b"{}")
        elif mood == "wanting a length" and exchange.length is None:
            exchange.answer(411, b"{}")
        elif exchange.complete or (mood == "lying" and reached):
            exchange.answer(200, b"{}")


class HalfAnswerUpstream(Upstream):
    """Answers a whole request with these bytes, and resets the connection, or ends it as if all were well."""

    def __init__(self, answer: bytes, *, reset: bool = True) -> None:
        super().__init__()
        self._answer = answer
        self._reset = reset

    def received(self, exchange: Exchange) -> None:
        if not exchange.complete or exchange.answered:
            return
        exchange.answered = True
        exchange.transport.write(self._answer)
        # a moment for the bytes: a reset overtakes what the peer has not read
        end = exchange.reset if self._reset else exchange.transport.close
        asyncio.get_running_loop().call_later(0.1, end)


class LyingUpstream(HalfAnswerUpstream):
    """Promises more bytes than it has, and ends the connection as if they had been all."""

    def __init__(self) -> None:
        super().__init__(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf", reset=False)


class FullUpstream(Upstream):
    """Its queue of connections is full, and nobody takes any out of it: a SYN is not answered."""

    async def __aenter__(self) -> Any:
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(0)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        self._waiting: list[socket.socket] = []
        for _ in range(4):
            waiting = socket.socket()
            waiting.setblocking(False)
            waiting.connect_ex(self._listener.getsockname())
            self._waiting.append(waiting)
        await asyncio.sleep(0.1)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for waiting in [*self._waiting, self._listener]:
            waiting.close()


class ChattyUpstream(HonestUpstream):
    """Says these bytes as soon as it has the head of a request, and answers at the end of it."""

    def __init__(self, words: bytes, status: int = 200, body: bytes = b"{}") -> None:
        super().__init__(status, body)
        self._words = words
        self._said = False

    def received(self, exchange: Exchange) -> None:
        if not self._said:
            self._said = True
            exchange.transport.write(self._words)
        super().received(exchange)


class DribblingUpstream(Upstream):
    """Sends its answer a byte at a time, `seconds` apart, and never comes to an end."""

    def __init__(self, answer: bytes, seconds: float = 0.1, *, early: bool = False) -> None:
        super().__init__()
        self._answer = answer
        self._seconds = seconds
        self._early = early

    def received(self, exchange: Exchange) -> None:
        if not exchange.answered and (exchange.complete or self._early):
            exchange.answered = True
            self._send(exchange, 0)

    def _send(self, exchange: Exchange, sent: int) -> None:
        if not exchange.lost:
            exchange.transport.write(self._answer[sent : sent + 1] or b"x")
            asyncio.get_running_loop().call_later(self._seconds, self._send, exchange, sent + 1)


class EndlessUpstream(Upstream):
    """Its answer begins like this, and goes on with these bytes for ever, as fast as they are taken."""

    def __init__(self, first: bytes, rest: bytes) -> None:
        super().__init__()
        self._first = first
        self._rest = rest * (65536 // len(rest))
        self.sent_bytes = 0

    def received(self, exchange: Exchange) -> None:
        if exchange.complete and not exchange.answered:
            exchange.answered = True
            exchange.transport.write(self._first)
            self._go_on(exchange)

    def _go_on(self, exchange: Exchange) -> None:
        if not exchange.lost and not exchange.transport.is_closing():
            if exchange.transport.get_write_buffer_size() < len(self._rest):
                exchange.transport.write(self._rest)
                self.sent_bytes += len(self._rest)
            asyncio.get_running_loop().call_later(0.001, self._go_on, exchange)


class UnendingUpstream(Upstream):
    """Answers without saying how long, after `after` bytes or else a whole request, and never closes."""

    def __init__(self, status: int = 200, body: bytes = b"{}", *, after: int | None = None) -> None:
        super().__init__()
        self._status = status
        self._body = body
        self._after = after

    def received(self, exchange: Exchange) -> None:
        due = exchange.complete if self._after is None else len(exchange.body) >= self._after
        if due and not exchange.answered:
            exchange.answered = True
            exchange.transport.write(b"HTTP/1.1 %d Answered\r\n\r\n%b" % (self._status, self._body))


def closed_port() -> str:
    """The url of a destination that refuses connections."""
    return f"http://127.0.0.1:{ports.closed_port()}/"
