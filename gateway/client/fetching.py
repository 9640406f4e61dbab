"""One file, fetched: it has its name when all of it is there and verified, and not before.

Until then it is `NAME.part`, and its strong ETag beside it (`NAME.part.etag`), so that what breaks off goes on where it
was, by a range of that very file (RFC 9110 13.1.5), and what has changed meanwhile begins anew.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import aiohttp
from aiohttp import hdrs
from yarl import URL

from gateway.client.outcomes import Code, Failed, patiently, refused, translated
from gateway.client.remote import CONNECTION_ERRORS, Remote
from gateway.client.watching import Legs

__all__ = ["Fetch"]

_CHUNK_BYTES = 1 << 20
_HASH_BYTES = 8 << 20
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 3
_SHA256 = re.compile(r'"([0-9a-f]{64})"')
_STRONG = re.compile(r'"[^"]*"')
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
    _etag: str | None = field(default=None)

    @property
    def _part(self) -> Path:
        return self.path.with_name(self.path.name + ".part")

    @property
    def _beside(self) -> Path:
        return self.path.with_name(self.path.name + ".part.etag")

    async def fetch(self, remote: Remote, legs: Legs, say: Callable[[str], None]) -> None:
        """It ends well, or has `failed`; it may be cancelled, and goes on another time."""
        began = time.monotonic()
        try:
            if await self._is_there():
                return
            with await asyncio.to_thread(self._opened) as file:
                try:
                    await patiently(lambda: self._attempt(remote, file, legs), say)
                finally:
                    if not (self.size or self._etag):  # nothing came
                        self._remove_parts()
                await self._compare(file)
                await asyncio.to_thread(self._finish, file)
            legs.is_kept = True
        except OSError as error:
            self.failed = Failed(Code.LOCAL, f"{error.filename or self.path}: {error.strerror}")
        except Failed as failed:
            self.failed = failed
        except asyncio.CancelledError:
            self.failed = Failed(Code.LATER, "interrupted; it goes on from there another time", state="interrupted")
            raise
        finally:
            self.seconds = round(time.monotonic() - began, 3)

    async def _is_there(self) -> bool:
        """Whether this very file is. Raises Failed where another one has its name, OSError."""
        if self.force or not os.path.lexists(self.path):  # noqa: ASYNC240  # one look
            return False
        if self.sha256 is not None and self.path.is_file():
            with self.path.open("rb") as file:
                self.verified = await _sha256(file) == self.sha256 or None
                self.size = file.tell()
        if not self.verified:
            raise Failed(Code.LOCAL, f"{self.path} is there already; --force is for another one in its place")
        return True

    def _opened(self) -> IO[bytes]:
        """What is there of it, for nobody else. Raises OSError, Failed."""
        descriptor = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        file = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise Failed(Code.LOCAL, f"{self._part} is being fetched by somebody else") from error
        with suppress(OSError, ValueError):
            self._etag = self._beside.read_text("ascii")
        return file

    async def _attempt(self, remote: Remote, file: IO[bytes], legs: Legs) -> None:
        have = file.seek(0, os.SEEK_END) if self._etag else 0
        headers = remote.headers()
        if have and self._etag:
            headers |= {hdrs.RANGE: f"bytes={have}-", hdrs.IF_RANGE: self._etag}
        url = self.url
        try:
            for _ in range(_MOST_REDIRECTS):
                async with remote.session.get(url, headers=headers, allow_redirects=False) as response:
                    if response.status not in _REDIRECTS or hdrs.LOCATION not in response.headers:
                        await self._take(response, file, have, legs)
                        return
                    url = url.join(URL(response.headers[hdrs.LOCATION], encoded=True))
                    headers.pop(hdrs.AUTHORIZATION, None)  # a bucket has no use for it
            raise Failed(Code.FAILED, "it leads from one place to the next")
        except CONNECTION_ERRORS as error:
            if isinstance(error, OSError) and not isinstance(error, aiohttp.ClientError | TimeoutError):
                raise  # of the file
            failed = translated(error)
            # a part of it is there, and nothing is lost by going on
            failed.pause = 0.0 if failed.code is Code.UNKNOWN else failed.pause
            failed.code = Code.LATER
            raise failed from error

    async def _take(self, response: aiohttp.ClientResponse, file: IO[bytes], have: int, legs: Legs) -> None:
        etag, total = response.headers.get(hdrs.ETAG, ""), response.content_length
        if response.status == 416 and response.headers.get(hdrs.CONTENT_RANGE) == f"bytes */{have}":
            self.size = self.resumed_from = have
            return
        if response.status == 206 and have:
            found = _RANGE.fullmatch(response.headers.get(hdrs.CONTENT_RANGE, ""))
            if found is None or int(found[1]) != have or etag not in ("", self._etag):
                self._etag = None
                raise Failed(Code.FAILED, "what was answered is not the range that was asked for", pause=0.0)
            total = int(found[2])
        elif response.status == 200:
            await asyncio.to_thread(self._begin, file, etag)
            have = 0
        else:
            body = await response.content.read(64 << 10)
            self._etag = None if response.status == 416 else self._etag
            failed = refused(response.status, response.headers, body)
            failed.pause = 0.0 if response.status == 416 else failed.pause
            raise failed
        self.resumed_from = self.resumed_from or have
        self.size, legs.size = have, total
        legs.arrived = lambda: self.size / (total or 1) if total is not None else float(self.size)
        async for chunk in _gathered(response.content):
            await asyncio.to_thread(file.write, chunk)
            self.size += len(chunk)
        if total is not None and self.size != total:
            raise aiohttp.ClientPayloadError("it ended early")

    def _begin(self, file: IO[bytes], etag: str) -> None:
        """Anew."""
        file.seek(0)
        file.truncate()
        self._etag = etag if _STRONG.fullmatch(etag) and etag.isascii() else None
        if self._etag is None:
            self._beside.unlink(missing_ok=True)
        else:
            self._beside.write_text(self._etag, "ascii")

    async def _compare(self, file: IO[bytes]) -> None:
        """Raises Failed, OSError."""
        file.seek(0)
        found = await _sha256(file)
        by_etag = _SHA256.fullmatch(self._etag or "")
        wanted = self.sha256 or (by_etag and by_etag[1])
        self.verified = None if wanted is None else wanted == found
        self.sha256 = found
        if self.verified is False:
            self._remove_parts()
            raise Failed(Code.DIFFERS, f"{self.url.path}: what came is not what is kept there", state="differs")

    def _finish(self, file: IO[bytes]) -> None:
        """Give it its name. Raises Failed, OSError."""
        os.fsync(file.fileno())
        if self.force:
            os.replace(self._part, self.path)
        else:
            try:
                os.link(self._part, self.path)  # unlike a rename it takes nobody's place
            except FileExistsError:
                raise Failed(Code.LOCAL, f"{self.path} is there already, since a moment ago") from None
        self._remove_parts()

    def _remove_parts(self) -> None:
        self._part.unlink(missing_ok=True)
        self._beside.unlink(missing_ok=True)


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
