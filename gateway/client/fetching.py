"""One file, fetched: it has its name when all of it is there and verified, and not before.

Until then it is a `Partial`, with its strong ETag beside it, so that what breaks off goes on where it was, by a range
of that very file (RFC 9110 13.1.5), and what has changed meanwhile begins anew.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import ssl
import stat
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import aiohttp
from aiohttp import hdrs
from yarl import URL

from gateway.client.answers import joined
from gateway.client.outcomes import Code, Failed, patiently, refused, translated
from gateway.client.partial import Partial
from gateway.client.remote import CONNECTION_ERRORS, Remote
from gateway.client.watching import Legs

__all__ = ["Fetch"]

_CHUNK_BYTES = 1 << 20
_HASH_BYTES = 8 << 20
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 3
_SHA256 = re.compile(r'"([0-9a-f]{64})"')
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


@dataclass(slots=True)
class Fetch:
    """What is fetched, and what became of it."""

    url: URL
    path: Path
    """Where it is in the end."""
    sha256: str | None = None
    """Of what is kept, as the manifest says; then of what was fetched."""
    force: bool = False
    size: int = 0
    resumed_from: int = 0
    verified: bool | None = None
    """None: there was nothing to compare with."""
    seconds: float = 0.0
    failed: Failed | None = None
    _goes_on: bool = False
    """Whether there is a part of it that can be gone on with."""

    async def fetch(self, remote: Remote, legs: Legs, say: Callable[[str], None]) -> None:
        """It ends well, or has `failed`; it may be cancelled, and goes on another time."""
        began = time.monotonic()
        try:
            if await self._is_there():
                return
            with Partial(self.path, force=self.force) as part:  # in no thread, which could be left with it
                try:
                    await patiently(lambda: self._attempt(remote, part, legs), say)
                except BaseException:
                    with suppress(OSError):
                        self._goes_on = part.give_up()
                    raise
                await self._compare(part)
                await asyncio.to_thread(part.finish)
            legs.is_kept = True
        except OSError as error:
            self.failed = Failed(Code.LOCAL, f"{error.filename or self.path}: {error.strerror}")
        except Failed as failed:
            self.failed = failed
        except asyncio.CancelledError:
            later = "it goes on from there another time" if self._goes_on else "nothing of it is there"
            self.failed = Failed(Code.LATER, f"interrupted; {later}", state="interrupted")
            raise
        finally:
            self.seconds = round(time.monotonic() - began, 3)

    async def _is_there(self) -> bool:
        """Whether this very file is. Raises Failed where another one has its name, or what is no file, OSError."""
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            return False
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)):
            raise Failed(Code.LOCAL, f"{self.path} is there, and no regular file")
        if self.force:
            return False
        if self.sha256 is not None and self.path.is_file():
            with self.path.open("rb") as file:
                self.verified = await _sha256(file) == self.sha256 or None
                self.size = file.tell()
        if not self.verified:
            raise Failed(Code.LOCAL, f"{self.path} is there already; --force is for another one in its place")
        return True

    async def _attempt(self, remote: Remote, part: Partial, legs: Legs) -> None:
        have = part.file.seek(0, os.SEEK_END) if part.etag else 0
        headers = remote.headers()
        if have and part.etag:
            headers |= {hdrs.RANGE: f"bytes={have}-", hdrs.IF_RANGE: part.etag}
        url = self.url
        try:
            for _ in range(_MOST_REDIRECTS):
                async with remote.session.get(url, headers=headers, allow_redirects=False) as response:
                    if response.status not in _REDIRECTS or hdrs.LOCATION not in response.headers:
                        await self._take(response, part, have, legs)
                        return
                    url = _led(url, response.headers[hdrs.LOCATION])
                    headers.pop(hdrs.AUTHORIZATION, None)  # a bucket has no use for it
            raise Failed(Code.FAILED, "it leads from one place to the next")
        except CONNECTION_ERRORS as error:
            of_connections = aiohttp.ClientError | TimeoutError | ConnectionError | ssl.SSLError
            if isinstance(error, OSError) and not isinstance(error, of_connections):
                raise  # of the file
            failed = translated(error)
            # a part of it is there, and nothing is lost by going on
            failed.pause = 0.0 if failed.code is Code.UNKNOWN else failed.pause
            failed.code = Code.LATER
            raise failed from error

    async def _take(self, response: aiohttp.ClientResponse, part: Partial, have: int, legs: Legs) -> None:
        etag, total = response.headers.get(hdrs.ETAG, ""), response.content_length
        if response.status == 416 and response.headers.get(hdrs.CONTENT_RANGE) == f"bytes */{have}":
            self.size = self.resumed_from = have
            return
        if response.status == 206 and have:
            found = _RANGE.fullmatch(response.headers.get(hdrs.CONTENT_RANGE, ""))
            if found is None or int(found[1]) != have or etag not in ("", part.etag):
                part.etag = None
                raise Failed(Code.FAILED, "what was answered is not the range that was asked for", pause=0.0)
            total = int(found[2])
        elif response.status == 200:
            await asyncio.to_thread(part.begin, etag)
            have = self.resumed_from = 0
        else:
            body = await response.content.read(64 << 10)
            part.etag = None if response.status == 416 else part.etag
            failed = refused(response.status, response.headers, body)
            failed.pause = 0.0 if response.status == 416 else failed.pause
            raise failed
        self.resumed_from = self.resumed_from or have
        self.size, legs.size = have, total
        legs.arrived = lambda: self.size / (total or 1) if total is not None else float(self.size)
        async for chunk in _gathered(response.content):
            await asyncio.to_thread(part.write, chunk)
            self.size += len(chunk)
        if total is not None and self.size != total:
            raise aiohttp.ClientPayloadError("it ended early")

    async def _compare(self, part: Partial) -> None:
        """Raises Failed, OSError."""
        part.file.seek(0)
        found = await _sha256(part.file)
        by_etag = _SHA256.fullmatch(part.etag or "")
        wanted = self.sha256 or (by_etag and by_etag[1])
        self.verified = None if wanted is None else wanted == found
        self.sha256 = found
        if self.verified is False:
            part.remove()
            raise Failed(Code.DIFFERS, f"{self.url.path}: what came is not what is kept there", state="differs")


def _led(url: URL, location: str) -> URL:
    """Where a redirect leads. Raises Failed for what is no URL of HTTP, or would go on without TLS."""
    led = joined(url, location)
    if led is None:
        raise Failed(Code.FAILED, f"{url.path} leads to what is no URL of HTTP")
    if url.scheme == "https" and led.scheme == "http":
        raise Failed(Code.FAILED, f"{url.path} leads from https to http, where anybody on the way could change it")
    return led


async def _sha256(file: IO[bytes]) -> str:
    """Of what is left of it; a little in each job, since a job cannot be ended."""
    hasher = hashlib.sha256()

    def hash_some() -> bool:
        data = file.read(_HASH_BYTES)
        hasher.update(data)
        return bool(data)

    while await asyncio.to_thread(hash_some):
        pass
    return hasher.hexdigest()


async def _gathered(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """In pieces of about 1 MiB: each is written by a thread. What came before it broke off is given, too."""
    pieces: list[bytes] = []
    size = 0
    try:
        async for piece in content.iter_any():
            pieces.append(piece)
            size += len(piece)
            if size >= _CHUNK_BYTES:
                yield b"".join(pieces)
                pieces, size = [], 0
    except aiohttp.ClientError:
        if pieces:
            yield b"".join(pieces)
        raise
    if pieces:
        yield b"".join(pieces)
