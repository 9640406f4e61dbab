"""A remote file, streamed through: what `GET /download/{url}` answers.

1. Every hop passes both fences of `guard`: its URL the operator's list, and each address that is dialled for
   it the address guard, at the socket: there is no name, literal or redirect that leads around it. Of a name
   with several addresses the refused ones are skipped; with none left it is Forbidden.
2. We are nobody there: no cookies, no credentials, no proxy of the environment. Ranges and conditions of the
   client go along, and little else.
3. What comes back is served under our origin: headers by a list, and a sandbox for whatever is rendered.
4. Whatever breaks after the head was sent breaks the client's connection: never a clean end. A client whose
   connection is reset ends the fetch, also while nothing comes that could be written to it. One that has sent its FIN
   may still read: only a write can tell that it does not.

At most a receive buffer and what the client's socket takes are in memory; a slow client slows the server there.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass

import aiohttp
from aiohttp import hdrs, web
from aiohttp.abc import AbstractResolver
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict
from yarl import URL

from gateway import __version__
from gateway.downloads.guard import AddressGuard, UrlRules, redirect_target, target_of
from gateway.downloads.presence import report_loss, while_connected
from gateway.downloads.stored import OUTCOME
from gateway.errors import ClientGone, Forbidden, GatewayError, SinkRefused, SinkTimeout, SinkUnavailable
from gateway.http.answering import HEAD_LIMITS, AnswerConnector
from gateway.http.answers import SENT_BYTES, reset
from gateway.http.forwarding import check_loop, end_to_end, via
from gateway.http.obs_text import ForwardedResponse
from gateway.http.problems import severity
from gateway.http.target import origin_form

__all__ = ["Downloader"]

log = logging.getLogger("gateway.download")

_PREFIX = "/download/"
_SINK = "download"
_REDIRECTS = frozenset([301, 302, 303, 307, 308])
_BODILESS = frozenset([204, 304])

_REQUEST_HEADERS = frozenset(
    ["accept", "range", "if-range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since"]
)
_RESPONSE_HEADERS = frozenset(
    [
        "accept-ranges",
        "cache-control",
        "content-disposition",
        "content-encoding",
        "content-language",
        "content-range",
        "content-type",
        "etag",
        "expires",
        "last-modified",
        "retry-after",
        "vary",  # where Cache-Control goes, it has to go, too
    ]
)


@dataclass(slots=True)
class _Dial:
    """What became of the addresses of one hop."""

    refused: int = 0
    dialled: int = 0


_DIAL: ContextVar[_Dial] = ContextVar("dial")
"""The hop that a socket is made for: tasks that race for a connection inherit it."""


class _Download:
    """One download, for its line in the log."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self.url: URL | None = None
        self.redirects = 0
        self.sent_bytes = 0
        self.response: web.StreamResponse | None = None

    @property
    def server(self) -> str:
        """How the client is told of the server that is being asked: by the host that it knows."""
        host = "" if self.url is None else self.url.host
        return f"a server that {host} redirects to" if self.redirects else str(host)

    @property
    def begun(self) -> bool:
        """Whether the client may have seen something of the answer."""
        return self.response is not None and self.response.prepared

    def ended(self, error: BaseException | None) -> None:
        if isinstance(error, GatewayError):
            outcome = error.slug()
        else:
            outcome = "ok" if error is None else "internal-error" if isinstance(error, Exception) else "cancelled"
        log.log(
            severity(error),
            "download %s",
            outcome,
            extra={
                "outcome": outcome,
                "url": None if self.url is None else str(self.url.with_query(None)),  # a query may hold a secret
                "detail": error.detail if isinstance(error, GatewayError) else None,
                "status": None if self.response is None else self.response.status,
                "redirects": self.redirects,
                "sent_bytes": self.sent_bytes,
                "seconds": round(time.monotonic() - self._began, 3),
            },
        )


class Downloader:
    """Fetches what `allow` covers, as patterns of UrlRules. Use as a context manager: it owns the HTTP client.

    `allow_private` opens ranges of addresses that are refused otherwise. `max_bytes` limits a body, declared or
    met; `connect_seconds` the way to a connection, names and all addresses included; `idle_seconds` each wait
    for the server's next bytes; `total_seconds` all of it. 0 is unlimited, and so is an idle client. `gateway` is the
    name of this instance in Via.

    Raises ValueError for a pattern or a range that is none.
    """

    def __init__(
        self,
        *,
        allow: Sequence[str] = (),
        allow_private: Sequence[str] = (),
        max_bytes: int = 0,
        max_redirects: int = 5,
        connect_seconds: float = 10,
        idle_seconds: float = 30,
        total_seconds: float = 0,
        gateway: str = "gateway",
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._rules = UrlRules(allow)
        self._guard = AddressGuard(allow_private)
        self._max_bytes = max_bytes
        self._max_redirects = max_redirects
        self._connect_seconds = connect_seconds
        self._idle_seconds = idle_seconds
        self._total_seconds = total_seconds
        self._gateway = gateway
        self._resolver = resolver
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Downloader:
        self._session = aiohttp.ClientSession(
            # A connection of its own for each hop: each is dialled, and so each is checked.
            connector=AnswerConnector(limit=0, force_close=True, socket_factory=self._socket, resolver=self._resolver),
            timeout=aiohttp.ClientTimeout(
                total=None, connect=self._connect_seconds or None, sock_read=self._idle_seconds or None
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            **HEAD_LIMITS,
            headers={hdrs.USER_AGENT: f"multipart-relay-gateway/{__version__}", hdrs.ACCEPT_ENCODING: "identity"},
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def respond(self, request: web.Request, *, close: bool = False) -> web.StreamResponse:
        """Answer a GET or HEAD of `/download/{url}`; `close` ends the client's connection with it.

        Raises GatewayError while nothing was sent. After an error or a cancellation the connection to the
        server is closed, and so is the client's if its answer had begun.
        """
        download = _Download()
        try:
            response = await self._in_time(request, download, close)
        except BaseException as error:
            request[SENT_BYTES] = download.sent_bytes
            download.ended(error)
            if not download.begun:
                raise
            reset(request)
            if not isinstance(error, GatewayError):
                raise
            assert download.response is not None
            download.response[OUTCOME] = error.slug()
            return download.response
        request[SENT_BYTES] = download.sent_bytes
        download.ended(None)
        return response

    async def _in_time(self, request: web.Request, download: _Download, close: bool) -> web.StreamResponse:
        try:
            async with while_connected(request), asyncio.timeout(self._total_seconds or None):
                return await self._respond(request, download, close)
        except TimeoutError as error:
            detail = f"the download took more than {self._total_seconds:g} seconds"
            raise SinkTimeout(detail, sink=_SINK, limit=self._total_seconds) from error
        except ConnectionError as error:  # what the server's connection raises was translated below
            raise ClientGone("the client hung up before the end of the download") from error

    async def _respond(self, request: web.Request, download: _Download, close: bool) -> web.StreamResponse:
        if not self._rules:
            raise Forbidden("nothing may be downloaded here")
        url = download.url = self._rules.check(target_of(origin_form(request.raw_path).removeprefix(_PREFIX)))
        headers = [
            (name, value)
            for name, value in end_to_end(request.headers.items())
            if name.lower() in _REQUEST_HEADERS and _is_text(value)
        ]
        check_loop(request.headers.items(), self._gateway)
        protocol = f"{request.version.major}.{request.version.minor}"
        headers.append((hdrs.VIA, via(request.headers.items(), protocol, self._gateway)))
        answer = await self._answer(request.method, url, headers, download)
        try:
            response = download.response = self._head(request, answer, download)
            if close:
                response.force_close()
            await response.prepare(request)
            if request.method != hdrs.METH_HEAD and answer.status not in _BODILESS:
                await self._body(answer, response, download)
            await response.write_eof()
            return response
        finally:
            answer.close()

    # -- there

    async def _answer(
        self, method: str, url: URL, headers: list[tuple[str, str]], download: _Download
    ) -> aiohttp.ClientResponse:
        """What stands at the end of the redirects."""
        while True:
            answer = await self._ask(method, url, headers, download)
            locations = set(answer.headers.getall(hdrs.LOCATION, ()))
            if answer.status not in _REDIRECTS or not locations:
                return answer
            answer.close()
            if len(locations) > 1:
                raise SinkRefused(f"{download.server} redirects to more than one place", sink=_SINK)
            if download.redirects == self._max_redirects:
                detail = f"there are more than {self._max_redirects} redirects"
                raise SinkRefused(detail, sink=_SINK, limit=self._max_redirects)
            try:
                url = self._rules.check(redirect_target(url, locations.pop()))
            except ValueError as error:
                raise SinkRefused(f"{download.server} redirects to nowhere: {error}", sink=_SINK) from error
            download.redirects += 1

    async def _ask(
        self, method: str, url: URL, headers: list[tuple[str, str]], download: _Download
    ) -> aiohttp.ClientResponse:
        assert self._session is not None
        dial = _Dial()
        _DIAL.set(dial)
        try:
            return await self._session.request(method, url, headers=CIMultiDict(headers), allow_redirects=False)
        except TimeoutError as error:
            raise SinkTimeout(f"{download.server} took too long to answer", sink=_SINK) from error
        except aiohttp.ClientConnectorError as error:
            log.info("%s cannot be reached: %s", url.host, error.os_error)  # which is nothing for the client
            if dial.refused and not dial.dialled:
                raise Forbidden(f"{download.server} has no address that may be downloaded from") from error
            raise SinkUnavailable(f"{download.server} cannot be reached", sink=_SINK) from error
        except (aiohttp.ClientError, HttpProcessingError) as error:
            raise SinkRefused(f"{download.server} gave no valid answer", sink=_SINK) from error

    def _socket(self, address_info: aiohttp.AddrInfoType) -> socket.socket:
        """A socket for one address, on its way to be dialled; OSError makes the client go on to the next."""
        family, kind, protocol, _, address = address_info
        dial = _DIAL.get()
        try:
            self._guard.check(str(address[0]))
        except Forbidden as error:
            dial.refused += 1
            log.debug("not dialled: %s", error.detail)
            raise OSError(errno.EACCES, error.detail) from error
        dial.dialled += 1
        return socket.socket(family, kind, protocol)

    # -- here

    def _head(self, request: web.Request, answer: aiohttp.ClientResponse, download: _Download) -> web.StreamResponse:
        """The answer's status and headers. Its reason is left there: it means nothing, and may be anything."""
        if not 200 <= answer.status < 600:
            raise SinkRefused(f"{download.server} answered {answer.status}", sink=_SINK, sink_status=answer.status)
        response = ForwardedResponse(status=answer.status)
        for name, value in end_to_end(answer.headers.items()):
            if name.lower() in _RESPONSE_HEADERS:
                response.headers.add(name, value)
        version = answer.version
        protocol = "1.1" if version is None else f"{version.major}.{version.minor}"
        response.headers[hdrs.VIA] = via(answer.headers.items(), protocol, self._gateway)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Content-Security-Policy"] = "sandbox"
        if answer.status not in _BODILESS:
            response.content_length = self._declared_bytes(answer, download)
        return response

    def _declared_bytes(self, answer: aiohttp.ClientResponse, download: _Download) -> int | None:
        """Content-Length, unless a transfer coding overrides it (RFC 9112 6.3)."""
        declared = answer.headers.get(hdrs.CONTENT_LENGTH)
        if declared is None or hdrs.TRANSFER_ENCODING in answer.headers:
            return None
        if not (declared.isascii() and declared.isdigit() and len(declared) < 20):
            raise SinkRefused(f"{download.server} gave no valid answer", sink=_SINK)
        if self._max_bytes and int(declared) > self._max_bytes:
            raise self._too_large()
        return int(declared)

    async def _body(self, answer: aiohttp.ClientResponse, response: web.StreamResponse, download: _Download) -> None:
        report_loss(answer)
        while True:
            try:
                data = await answer.content.readany()
            except TimeoutError as error:
                detail = f"no byte came from {download.server} for {self._idle_seconds:g} seconds"
                raise SinkTimeout(detail, sink=_SINK, limit=self._idle_seconds) from error
            except (aiohttp.ClientError, HttpProcessingError, OSError) as error:
                raise SinkRefused(f"{download.server} broke off its answer", sink=_SINK) from error
            if not data:
                return
            if self._max_bytes and download.sent_bytes + len(data) > self._max_bytes:
                raise self._too_large()
            await response.write(data)  # not in the try: the client's own hang-up is a ClientError, too
            download.sent_bytes += len(data)

    def _too_large(self) -> SinkRefused:
        return SinkRefused(f"the file has more than {self._max_bytes} bytes", sink=_SINK, limit=self._max_bytes)


def _is_text(value: str) -> bool:
    """Whether aiohttp sends it as it came: a condition that lacks some of its bytes is another one."""
    return value.encode(errors="ignore").decode() == value
