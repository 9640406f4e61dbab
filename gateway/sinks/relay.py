"""Uploads passed on to another API: one outbound multipart request per upload, filled as the parts come.

1. The request begins with the first part (a route of kind relay makes one even for no parts at all). It
   stays open, one part after the other in the order of the wire, until commit: only then the closing
   delimiter and the last chunk are sent. Whatever goes wrong before closes the connection instead.
2. The answer is awaited beside the upload (`watch`). One that comes before the closing delimiter:
   - 400 and above ends the upload at once, and is the client's to read on a route of kind relay;
   - 2xx and 3xx, complete or breaking our body off, is a lie about a body that was not seen: refused;
   - 2xx and 3xx whose own body is still open is held until commit.
3. What aiohttp raises is told apart by what had happened: no connection is SinkUnavailable, a connection
   that broke is SinkRefused without a status, a clock is SinkTimeout. A failure met while feeding is not
   reported there: the response, if one came, says more, and `watch` has it.
4. Redirects are passed back, never followed; cookies, proxies and credentials of ours do not exist.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import NoReturn

import aiohttp
from aiohttp import AddrInfoType, hdrs
from yarl import URL

from gateway.errors import SinkRefused, SinkTimeout, SinkUnavailable
from gateway.model import Part, Receipt, Upload
from gateway.sinks import Answered
from gateway.sinks.writer import ConnectionLost, StreamingMultipartWriter

__all__ = ["RelaySink", "end_to_end", "to_destination"]

_HOP_BY_HOP = frozenset(
    # RFC 9110 7.6.1, and what HTTP/1.1 grew before it
    [
        "connection",
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
    ]
)
_NOT_FORWARDED = frozenset(
    ["host", "expect", "cookie", "authorization", "accept-encoding", "forwarded", "digest", "repr-digest"]
)


_UNSENT_BYTES = 128 << 10


class RelaySink:
    """`url` gets the POST. `connect_seconds` limits the TCP connect."""

    commit_stage = 0  # first: its yes cannot be taken back, so its no must come while all else still can

    def __init__(self, *, name: str, url: str, connect_seconds: float = 10) -> None:
        self.name = name
        self.url = url
        self._connect_seconds = connect_seconds
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> RelaySink:
        self._session = aiohttp.ClientSession(
            # A body cannot be sent twice, so a pooled connection that went stale would cost an upload.
            connector=aiohttp.TCPConnector(limit=0, force_close=True, socket_factory=_socket),
            timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=self._connect_seconds),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=(hdrs.USER_AGENT, hdrs.ACCEPT, hdrs.ACCEPT_ENCODING),
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._session is not None
        await self._session.close()

    @asynccontextmanager
    async def open(self, upload: Upload) -> AsyncIterator[RelayDelivery]:
        assert self._session is not None
        delivery = RelayDelivery(self.name, self.url, self._session, upload)
        try:
            yield delivery
        finally:
            delivery.end()


class RelayDelivery:
    """One upload on its way to a destination."""

    def __init__(self, name: str, url: str, session: aiohttp.ClientSession, upload: Upload) -> None:
        self._name = name
        self._url = url
        self._session = session
        self._upload = upload
        self._writer = StreamingMultipartWriter("form-data")
        self._begun = asyncio.Event()
        self._answered = asyncio.Event()
        self._response: aiohttp.ClientResponse | None = None
        self._turn = asyncio.Lock()  # first come, first served: the order of the wire
        self._files: list[int] = []

    async def accept(self, part: Part, chunks: AsyncIterable[bytes]) -> None:
        async with self._turn:
            try:
                await self._begin(part)
                if part.is_file:
                    self._files.append(part.index)
                async for chunk in chunks:
                    await self._writer.feed(chunk)
                await self._writer.flush()
            except ConnectionLost:
                await self._verdict()

    async def accept_all(self, parts: list[tuple[Part, bytes]]) -> None:
        async with self._turn:
            try:
                for part, data in parts:
                    await self._begin(part)
                    if part.is_file and (data or part.raw_filename != b""):  # an empty file input is no file
                        self._files.append(part.index)
                    await self._writer.feed(data)
                await self._writer.flush()
            except ConnectionLost:
                await self._verdict()

    async def _begin(self, part: Part) -> None:
        self._begun.set()
        await self._writer.begin_relayed_part(part)

    async def watch(self) -> None:
        """Make the request, and see to the answer, whenever it comes (rule 2)."""
        await self._begun.wait()
        response = self._response = await self._request()
        if response.status < 200:
            raise SinkRefused(f"sink {self._name} switched protocols", sink=self._name, sink_status=response.status)
        writer = self._writer
        response.content.on_eof(writer.changed.set)
        while not writer.closed:
            if response.status >= 400:
                raise Answered(self._name, response)
            if response.content.is_eof() or writer.lost:
                raise SinkRefused(
                    f"sink {self._name} answered {response.status} before it had the whole body",
                    sink=self._name,
                    sink_status=response.status,
                )
            writer.changed.clear()
            await writer.changed.wait()
        self._answered.set()

    async def commit(self) -> list[Receipt]:
        if self._upload.kind != "relay" and not self._begun.is_set():
            return []
        self._begun.set()
        for _ in range(2):
            await asyncio.sleep(0)  # an answer that is already here came before the closing delimiter
        with suppress(ConnectionLost):  # the destination may have answered all the same; if not, `watch` raises
            await self._writer.finish()
        await self._answered.wait()
        assert self._response is not None
        if not 200 <= self._response.status < 300:
            raise Answered(self._name, self._response)
        return [Receipt(index, self._name, status=self._response.status) for index in self._files]

    def answer(self) -> aiohttp.ClientResponse | None:
        """The destination's response, after a commit; its body has not been read."""
        return self._response

    def end(self) -> None:
        """Let go of the connection; without a commit, break the request off."""
        if self._response is not None:
            self._response.close()
        self._writer.abort()

    async def _request(self) -> aiohttp.ClientResponse:
        url = URL(self._url, encoded=True)
        if self._upload.query:
            joint = "&" if url.raw_query_string else "?"
            url = URL(f"{self._url}{joint}{self._upload.query}", encoded=True)
        try:
            return await self._session.post(
                url, data=self._writer, headers=list(self._upload.headers), allow_redirects=False
            )
        except TimeoutError as error:
            raise SinkTimeout(f"sink {self._name} took too long to connect", sink=self._name) from error
        except aiohttp.ClientConnectorError as error:
            raise SinkUnavailable(f"sink {self._name} cannot be reached", sink=self._name) from error
        except aiohttp.ClientError as error:
            raise SinkRefused(
                f"sink {self._name} closed the connection after {self._writer.sent_bytes} bytes"
                if isinstance(error, (aiohttp.ClientConnectionError, OSError))
                else f"sink {self._name} gave no valid answer",
                sink=self._name,
            ) from error

    async def _verdict(self) -> NoReturn:
        """Wait for `watch` to say what happened (rule 3); its error cancels this."""
        await asyncio.get_running_loop().create_future()
        raise AssertionError


def _socket(address: AddrInfoType) -> socket.socket:
    """A socket that says it is writable only when little is unsent.

    Else megabytes lie in the kernel after our last write, and a destination that reads slowly but steadily
    looks like one that does not answer.
    """
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setblocking(False)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
    return made


def end_to_end(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Headers without the hop-by-hop ones, those that Connection names among them (RFC 9110 7.6.1).

    One that is not valid UTF-8 is dropped: aiohttp cannot send it as it came.
    """
    headers = list(headers)
    named = {
        token.strip().lower() for name, value in headers if name.lower() == "connection" for token in value.split(",")
    }
    drop = _HOP_BY_HOP | named
    return [(name, value) for name, value in headers if name.lower() not in drop and _is_text(value)]


def to_destination(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The client's headers that a destination gets: no framing, no credentials, no trust (design section 5)."""
    return [
        (name, value)
        for name, value in end_to_end(headers)
        if (lower := name.lower()) not in _NOT_FORWARDED and not lower.startswith(("content-", "x-forwarded-"))
    ]


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
