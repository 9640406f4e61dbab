"""The gateway at the other end: where it is, and its answers.

1. The key goes to one origin only, the one that was named: redirects are followed without it, or not at all.
2. Answers are read up to a bound.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import aiohttp
from aiohttp import AddrInfoType, hdrs
from yarl import URL

from gateway.client.answers import is_http, joined
from gateway.client.outcomes import Code, Failed, parsed, refused, translated
from gateway.http import destination_socket

__all__ = [
    "CONNECTION_ERRORS",
    "Answer",
    "Place",
    "Remote",
    "below",
    "checked_url",
    "connected",
    "read",
]

CONNECTION_ERRORS = (aiohttp.ClientError, OSError, TimeoutError, ssl.SSLError)
_CONNECT_SECONDS = 15.0
_SILENT_SECONDS = 900.0
"""An answer may take as long as a commit does; a gateway's own clocks are shorter than this."""
_MOST_BYTES = 64 << 20
"""Of an answer that is read whole: a manifest, or what a destination says."""
_MOST_SEGMENTS = 8
_RESET = struct.pack("ii", 1, 0)


def checked_url(text: str) -> URL:
    """A URL of HTTP without user info. Raises Failed: what is on the command line can be read by anybody."""
    try:
        url = URL(text)
        is_one = is_http(url)
    except ValueError:
        is_one = False
    if not is_one:
        raise Failed(Code.USAGE, "a gateway's URL is like http://127.0.0.1:8080 or https://example.org/upload")
    if url.raw_user is not None or url.raw_password is not None:
        raise Failed(Code.USAGE, "a URL with a password in it is not taken: use GATEWAY_KEY or --key-file")
    return url.with_fragment(None)


@dataclass(slots=True)
class Answer:
    """`document` is None where it is no JSON, or too long."""

    status: int
    headers: Mapping[str, str]
    document: Any


@dataclass(slots=True)
class Kept:
    """A file that can be read at a gateway."""

    url: URL
    name: str | None
    sha256: str | None


@dataclass(slots=True)
class Place:
    """Where uploads go: the route, and what is known of it. `bases`: below which of these the gateway is, the likeliest
    first.
    """

    route: URL
    bases: list[URL]
    max_parts: int = 0
    """0: not known, or as many as there are."""


class Remote:
    """A session with one origin."""

    def __init__(self, session: aiohttp.ClientSession, key: str, sockets: WeakSet[socket.socket]) -> None:
        self.session = session
        self._sockets = sockets
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def headers(self, **more: str) -> dict[str, str]:
        """With the key, if there is one; `x_upload_id` is X-Upload-ID."""
        return {**self._headers, **{name.replace("_", "-").title(): value for name, value in more.items()}}

    def hang_up(self) -> None:
        """From now on a connection that is closed is reset: who has sent everything, and closes, would be answered."""
        for one in self._sockets:
            with suppress(OSError):  # it is closed
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    async def get(self, url: URL, *, accept: str = "application/json") -> Answer:
        """Raises Failed, also for an answer that is none of 2xx."""
        try:
            async with self.session.get(url, headers=self.headers(accept=accept), allow_redirects=False) as response:
                return await read(response)
        except CONNECTION_ERRORS as error:
            raise translated(error) from error

    async def delete(self, url: URL) -> None:
        """Remove an upload. Raises Failed."""
        try:
            async with self.session.delete(url, headers=self.headers(), allow_redirects=False) as response:
                await read(response)
        except CONNECTION_ERRORS as error:
            raise translated(error) from error

    async def files(self, upload: URL) -> list[Kept]:
        """All files of an upload, as its manifest has them. Raises Failed."""
        document = (await self.get(upload)).document
        kept = []
        try:
            for part in document["parts"]:
                receipt = next((one for one in part["receipts"] if str(one.get("location")).startswith("/")), None)
                if receipt is not None:  # what flows have made of it is said there
                    name, sha256 = receipt.get("filename", part["filename"]), receipt.get("sha256", part["sha256"])
                    url = joined(upload, receipt["location"])
                    if url is None or not isinstance(name, str | None):
                        raise ValueError("no file")
                    kept.append(Kept(url, name, sha256))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise Failed(Code.FAILED, f"{upload.path} is no manifest") from error
        if not kept:
            raise Failed(Code.REFUSED, f"{upload.path} has no file that can be read there")
        if any(one.url.origin() != upload.origin() for one in kept):
            raise Failed(Code.FAILED, f"{upload.path} leads elsewhere")
        return kept

    async def place(self, url: URL) -> Place:
        """What `url` is of a gateway, its base or one of its routes. Raises Failed where nobody listens."""
        bases = _bases(url)
        for base in bases:
            try:
                described = (await self.get(below(base, "/"))).document
                first = described["routes"][0]["path"]
                if not (isinstance(first, str) and first.startswith("/")):
                    continue
                most = int(described["limits"]["max_parts"])
                route = _at(url, first) if base.path.rstrip("/") == url.path.rstrip("/") else url
            except Failed as failed:
                if failed.code in (Code.LATER, Code.USAGE) and "status" not in failed.problem:
                    raise
            except (KeyError, IndexError, TypeError, ValueError, OverflowError):
                pass  # somebody else's
            else:
                return Place(route, [base], max(0, most))
        if not url.path.strip("/"):
            return Place(_at(url, "/upload"), [url])
        return Place(url, bases[1:])


@asynccontextmanager
async def connected(key: str) -> AsyncIterator[Remote]:
    """A session, without cookies, proxies of the environment, or connections that are kept."""
    sockets: WeakSet[socket.socket] = WeakSet()

    def made(address: AddrInfoType) -> socket.socket:
        sockets.add(one := destination_socket(address))
        return one

    connector = aiohttp.TCPConnector(limit=0, force_close=True, socket_factory=made)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENT_SECONDS)
    async with aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=timeout,
        auto_decompress=False,
        headers={hdrs.ACCEPT_ENCODING: "identity", hdrs.USER_AGENT: "gateway-client"},
    ) as session:
        yield Remote(session, key, sockets)


async def read(response: aiohttp.ClientResponse) -> Answer:
    """The whole of it, or the status alone of a very long one. Raises Failed for an answer that is none of 2xx."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > _MOST_BYTES:
            body.clear()  # the status counts all the same
            break
    if not 200 <= response.status < 300:
        raise refused(response.status, response.headers, bytes(body))
    return Answer(response.status, response.headers, parsed(body))


def below(base: URL, path: str) -> URL:
    """Without the query, which is the route's."""
    return base.with_path(base.path.rstrip("/") + path)


def _at(url: URL, path: str) -> URL:
    return url.with_path(path).with_query(url.query)


def _bases(url: URL) -> list[URL]:
    """The URL itself, and what it is below of."""
    segments = url.path.rstrip("/").split("/")[: _MOST_SEGMENTS + 1]
    return [url.with_path("/".join(segments[:count])) for count in range(len(segments), 0, -1)]
