"""Uploads passed on to another API: one outbound multipart request per upload, filled as the parts come.

1. The request begins with the first part (a route of kind relay makes one even for no parts at all). It
   stays open, one part after the other in the order of the wire, until commit: only then the closing
   delimiter and the last chunk are sent. Whatever goes wrong before closes the connection instead.
2. `length` says how the destination learns how long the body is; of several ways the first that can be used:
   - `chunked`: it does not, and anything can be sent so;
   - `passthrough`: the client's own bytes under the client's own framing, after each was parsed and checked;
   - `known`: of a raw body with a Content-Length it can be computed, since the form around it is ours;
   - `spool`: the body waits in a temporary file until it is whole.
   A body of an opaque route goes as by `passthrough`, whatever it is.
   An upload that no way is left for is LengthRequired, before its body is asked for.
3. Attempts at one of several destinations, what ends them and what is told of that: outbound.py, exchange.py.
4. Redirects are passed back, never followed; cookies, proxies and credentials of ours do not exist.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import replace

import aiohttp
from yarl import URL

from gateway.codec import Encoder
from gateway.errors import LengthRequired
from gateway.forwarding import HeaderRules, outbound_headers
from gateway.model import Part, Receipt, Upload
from gateway.pipe import Progress, gathered
from gateway.sinks import Answered
from gateway.sinks.connect import Connecting
from gateway.sinks.destinations import Destination, Destinations, check_health
from gateway.sinks.exchange import Clocks, Exchange, StreamingRequest
from gateway.sinks.outbound import COALESCE_BYTES, Outbound
from gateway.sinks.spool import Spool

__all__ = ["RelaySink"]


class RelaySink:
    """One of the `urls` gets the POST. Times are in seconds, 0 = none; the README has the meaning of each key."""

    commit_stage = 0  # first: its yes cannot be taken back, so its no must come while all else still can

    def __init__(
        self,
        *,
        name: str,
        url: str = "",
        urls: Sequence[str] = (),
        length: str | Sequence[str] = "chunked",
        spool_dir: str = "",
        replay_bytes: int = 1 << 20,
        failures_to_open: int = 3,
        open_seconds: float = 10,
        health_path: str = "",
        health_seconds: float = 10,
        expect_continue: bool = False,
        expect_seconds: float = 1,
        connect_seconds: float = 10,
        write_seconds: float = 0,
        first_byte_seconds: float = 0,
        read_seconds: float | None = None,
        total_seconds: float = 0,
        connecting: Connecting = Connecting(),  # noqa: B008 - frozen
        rules: HeaderRules = HeaderRules(),  # noqa: B008 - frozen
    ) -> None:
        self.name = name
        self.lengths = (length,) if isinstance(length, str) else tuple(length)
        self.takes_wire = "passthrough" in self.lengths
        self.read_seconds = read_seconds
        """Between bytes of the answer; None is for whoever reads it to decide."""
        self.replay_bytes = replay_bytes
        self.destinations = Destinations(
            [url] if url else list(urls), failures_to_open=failures_to_open, open_seconds=open_seconds
        )
        self._spool_dir = spool_dir
        self._health_path = health_path
        self._health_seconds = health_seconds
        self._clocks = Clocks(
            connect_seconds=connect_seconds,
            write_seconds=write_seconds,
            first_byte_seconds=first_byte_seconds,
            total_seconds=total_seconds,
            expect_seconds=expect_seconds if expect_continue else 0,
        )
        self._connecting = connecting
        self._rules = rules
        self._session: aiohttp.ClientSession | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> RelaySink:
        session = self._connecting.session(request_class=StreamingRequest)
        self._connecting.warn(self.name)
        self._executor = ThreadPoolExecutor(2, thread_name_prefix=f"spool-{self.name}")
        self._stack.callback(self._executor.shutdown)
        self._session = await self._stack.enter_async_context(session)
        if self._health_path:
            # with a pool of their own, so that they never wait for uploads
            connecting = replace(self._connecting, max_connections=0, keepalive_seconds=0)
            asking = await self._stack.enter_async_context(connecting.session(headers=self._rules.headers))
            checks = await self._stack.enter_async_context(asyncio.TaskGroup())
            task = checks.create_task(
                check_health(
                    self.destinations,
                    asking,
                    path=self._health_path,
                    every_seconds=self._health_seconds,
                    patience=self._clocks.connect_seconds or self._health_seconds,
                    server_name=self._connecting.server_name,
                )
            )
            self._stack.callback(task.cancel)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    def admit(self, upload: Upload) -> None:
        """Refuse what there is no way to send, on its headers alone. Raises LengthRequired."""
        self._way(upload)

    @asynccontextmanager
    async def open(self, upload: Upload) -> AsyncIterator[RelayDelivery]:
        delivery = RelayDelivery(self, upload, self._way(upload))
        try:
            yield delivery
        finally:
            await delivery.end()

    # -- for deliveries

    def _way(self, upload: Upload) -> str:
        """Rule 2: the first of the ways that this upload can go."""
        for way in self.lengths:
            declared = upload.content_length is not None
            if way in ("chunked", "spool") or (declared and (way == "passthrough" or not upload.multipart)):
                return way
        if self.takes_wire:
            return "chunked"
        raise LengthRequired(f"sink {self.name} needs to know the length of what it is sent", sink=self.name)

    def outbound(
        self,
        upload: Upload,
        *,
        content_type: str,
        length: int | None,
        spooled: bool,
        unchanged: bool,
        progress: Progress | None,
    ) -> Outbound:
        headers = outbound_headers(upload, self._rules, unchanged=unchanged)
        method = upload.method if upload.kind == "opaque" else "POST"

        def exchange(destination: Destination) -> Exchange:
            assert self._session is not None
            url = _with_query(destination.url, upload.query)
            return Exchange(
                self.name,
                self._session,
                url,
                headers,
                self._clocks,
                method=method,
                server_name=self._connecting.server_name,
            )

        def spool() -> Spool:
            assert self._executor is not None
            return Spool(self._spool_dir, self._executor)

        def excused() -> AbstractContextManager[None]:
            return nullcontext() if progress is None else progress.excused()

        return Outbound(
            self.name,
            self.destinations,
            exchange,
            content_type=content_type.encode("utf-8", "replace").decode(),
            length=length,
            replay_bytes=self.replay_bytes,
            spool=spool,
            spooled=spooled,
            excused=excused,
        )


class RelayDelivery:
    """One upload on its way to a destination."""

    def __init__(self, sink: RelaySink, upload: Upload, way: str) -> None:
        self._sink = sink
        self._upload = upload
        self._way = way
        self.read_seconds = sink.read_seconds
        # a raw body is wrapped as a form with one file
        content_type = upload.content_type.encode("utf-8", "surrogateescape")
        self._encoder = Encoder.like(content_type) if upload.multipart else Encoder()
        self._progress: Progress | None = None
        self._outbound: Outbound | None = None
        self._made = asyncio.Event()
        self._response: aiohttp.ClientResponse | None = None
        self._turn = asyncio.Lock()  # first come, first served: the order of the wire
        self._files: list[int] = []
        self._tail = b""

    def takes_wire(self) -> bool:
        return self._sink.takes_wire or self._upload.kind == "opaque"

    def keep_time(self, progress: Progress) -> None:
        self._progress = progress

    async def accept(self, part: Part, chunks: AsyncIterable[bytes]) -> None:
        async with self._turn:
            outbound = await self._begin(part)
            if part.is_file:
                self._files.append(part.index)
            await self._pass_on(outbound, chunks)

    async def _pass_on(self, outbound: Outbound, chunks: AsyncIterable[bytes]) -> None:
        """As soon as it comes: what is there is joined, what is not there is not waited for."""
        async for batch, _ in gathered(chunks, COALESCE_BYTES):
            for chunk in batch:
                await outbound.put(chunk)
            await outbound.flush()
        await outbound.flush()  # of a part without bytes there is a head

    async def accept_all(self, parts: list[tuple[Part, bytes]]) -> None:
        async with self._turn:
            for part, data in parts:
                outbound = await self._begin(part)
                if part.is_file and (data or part.raw_filename != b""):  # an empty file input is no file
                    self._files.append(part.index)
                await outbound.put(data)
            if self._outbound is not None:  # a batch may be empty, and the first
                await self._outbound.flush()

    async def accept_wire(self, chunks: AsyncIterable[bytes]) -> None:
        upload = self._upload
        async for batch, _ in gathered(chunks, COALESCE_BYTES):
            outbound = self._made_for(upload.content_type, upload.content_length)
            for chunk in batch:
                await outbound.put(chunk)
            await outbound.flush()

    def hold_wire(self, files: Sequence[int], tail: bytes) -> None:
        self._files = list(files)
        self._tail = tail

    async def _begin(self, part: Part) -> Outbound:
        head = self._encoder.begin_part(part)
        outbound = self._form(head)
        await outbound.put(head)
        return outbound

    def _form(self, head: bytes = b"") -> Outbound:
        length = None
        if self._way == "known" and self._outbound is None:
            assert self._upload.content_length is not None
            length = len(head) + self._upload.content_length + len(self._encoder.close())
        return self._made_for(self._encoder.content_type, length)

    def _made_for(self, content_type: str, length: int | None) -> Outbound:
        if self._outbound is None:
            self._outbound = self._sink.outbound(
                self._upload,
                content_type=content_type,
                length=length,
                spooled=self._way == "spool",
                unchanged=self.takes_wire(),
                progress=self._progress,
            )
            self._made.set()
        return self._outbound

    async def watch(self) -> None:
        """Make the request, and see to the answer, whenever it comes."""
        await self._made.wait()
        assert self._outbound is not None
        await self._outbound.run()

    async def commit(self) -> list[Receipt]:
        if self._upload.kind not in ("relay", "opaque") and self._outbound is None and not self._files:
            return []
        for _ in range(2):
            await asyncio.sleep(0)  # an answer that is already here came before the closing delimiter
        if self.takes_wire():
            outbound, tail = self._made_for(self._upload.content_type, self._upload.content_length), self._tail
        else:
            outbound, tail = self._form(), self._encoder.close()
        response = self._response = await outbound.finish(tail)
        if not 200 <= response.status < 300:
            raise Answered(self._sink.name, response)
        return [Receipt(index, self._sink.name, status=response.status) for index in self._files]

    def answer(self) -> aiohttp.ClientResponse | None:
        """The destination's response, after a commit; its body has not been read."""
        return self._response

    async def end(self) -> None:
        """Let go of the connection; without a commit, break the request off."""
        if self._outbound is not None:
            await self._outbound.end()


def _with_query(url: str, query: str) -> str:
    if not query:
        return url
    joint = "&" if URL(url, encoded=True).raw_query_string else "?"
    return f"{url}{joint}{query}"
