"""Clients of nginx, which never try again, and what they count: uploads, downloads, and what is meant to fail."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

from tests.support.clients import FORM_TYPE, file, form

__all__ = ["Tally", "Traffic"]

_NGINX = "http://nginx:8000"
_SIZES = (1, 1000, 65536, 300_000, 300_000, 2 << 20)
_SLOW_BYTES = 8_000_000
"""More than the buffers of connections hold, so that some of it waits in the gateway."""
_CLIENTS = 6
_PAUSE_SECONDS = 0.15
_FAILURE_SECONDS = 0.8
"""One that is meant to fail in this time."""
_SECONDS = 60.0
_STORED = {"/upload": 201, "/both": 201, "/proxy": 200}
"""Route -> the status of an upload that went well."""


@dataclass
class Tally:
    """What clients know, in the words of the metrics."""

    uploads: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(route, outcome) -> how many."""
    downloads: int = 0
    downloaded_bytes: int = 0
    manifests: int = 0
    manifest_bytes: int = 0
    removals: int = 0
    wrong: list[str] = field(default_factory=list)
    """What ought not to have happened."""

    @property
    def failed_uploads(self) -> int:
        return len([one for one in self.wrong if one.startswith("upload")])


class Traffic:
    """`await traffic.run(until)` sends until then; `async with traffic.long_upload() as end` has one in progress."""

    def __init__(self, key: str, *, seed: int = 1) -> None:
        self._key = key
        self._random = random.Random(seed)
        self.tally = Tally()

    async def run(self, until: asyncio.Event) -> None:
        """All clients, until the event; what is under way then comes to its end."""
        async with asyncio.TaskGroup() as group:
            for number in range(_CLIENTS):
                group.create_task(self._again(self._good, f"127.0.1.{number + 1}", _PAUSE_SECONDS, until))
            group.create_task(self._again(self._slow, "127.0.1.98", _PAUSE_SECONDS, until))
            failures = itertools.cycle((self._no_key, self._truncated, self._refused, self._gone, self._neither))
            group.create_task(self._again(lambda s: next(failures)(s), "127.0.1.99", _FAILURE_SECONDS, until))

    async def _again(
        self,
        one: Callable[[aiohttp.ClientSession], Awaitable[None]],
        address: str,
        pause_seconds: float,
        until: asyncio.Event,
    ) -> None:
        async with _session(address) as session:
            while not until.is_set():
                try:
                    await one(session)
                except (aiohttp.ClientError, TimeoutError) as error:
                    self.tally.wrong.append(f"upload or read: {error!r}")
                await asyncio.sleep(self._random.uniform(0, 2 * pause_seconds))

    # -- what goes well

    async def _good(self, session: aiohttp.ClientSession) -> None:
        """An upload of one to three files, and what is stored of it read back."""
        route = self._random.choice(list(_STORED))
        files = [self._random.randbytes(self._random.choice(_SIZES)) for _ in range(self._random.randint(1, 3))]
        status, location, text = await self._upload(session, route, form(*map(file, files)))
        self._counted(route, "ok", status, _STORED[route], text)
        if status == 201:
            await self._read_back(session, location, files)

    async def _slow(self, session: aiohttp.ClientSession) -> None:
        """An upload that waits for its destination."""
        status, _, text = await self._upload(
            session, f"/proxy?rate_bytes={_SLOW_BYTES // 8}", form(file(bytes(_SLOW_BYTES)))
        )
        self._counted("/proxy", "ok", status, 200, text)

    async def _read_back(self, session: aiohttp.ClientSession, location: str, files: list[bytes]) -> None:
        upload = location.rpartition("/")[2]
        for index, data in enumerate(files):
            async with session.get(f"{_NGINX}/files/{upload}/{index}", headers=self._keyed) as answer:
                got = await answer.read()
            if answer.status != 200 or got != data:
                self.tally.wrong.append(f"download of {location}, file {index}: {answer.status}, {len(got)} bytes")
            self.tally.downloads += 1
            self.tally.downloaded_bytes += len(got)
        async with session.get(f"{_NGINX}{location}", headers=self._keyed) as answer:
            text = await answer.read()
        manifest = json.loads(text)
        if [part["size"] for part in manifest["parts"]] != list(map(len, files)):
            self.tally.wrong.append(f"manifest of {location}")
        self.tally.manifests += 1
        self.tally.manifest_bytes += len(text)
        if self._random.random() < 0.2:
            async with session.delete(f"{_NGINX}{location}", headers=self._keyed) as answer:
                if answer.status != 204:
                    self.tally.wrong.append(f"removal of {location}: {answer.status}")
            self.tally.removals += 1

    @asynccontextmanager
    async def long_upload(self, end: asyncio.Event) -> AsyncIterator[None]:
        """In progress until the event, and stored then."""

        async def body() -> AsyncIterator[bytes]:
            yield file(b"")
            while not end.is_set():
                yield bytes(65536)
                await asyncio.sleep(0.25)
            yield b"\r\n" + form()

        async def send() -> None:
            async with _session("127.0.1.100", seconds=None) as session:
                status, _, text = await self._upload(session, "/upload", body())
            self._counted("/upload", "ok", status, 201, text)

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            yield
            end.set()

    # -- what does not

    async def _no_key(self, session: aiohttp.ClientSession) -> None:
        body = form(file(self._random.randbytes(1000)))
        async with session.post(f"{_NGINX}/upload", data=body, headers={"Content-Type": FORM_TYPE}) as answer:
            self._counted("/upload", "unauthenticated", answer.status, 401, await answer.text())

    async def _truncated(self, session: aiohttp.ClientSession) -> None:
        """A whole request, whose form has no end."""
        status, _, text = await self._upload(session, "/both", form(file(self._random.randbytes(100_000)))[:-20])
        self._counted("/both", "truncated", status, 400, text)

    async def _refused(self, session: aiohttp.ClientSession) -> None:
        """By the destination, whose answer comes back as it is."""
        status, _, text = await self._upload(session, "/proxy?status=503", form(file(b"a")))
        self._counted("/proxy", "answered", status, 503, text)

    async def _neither(self, session: aiohttp.ClientSession) -> None:
        """By the destination, where another sink keeps it: neither has it then."""
        status, _, text = await self._upload(session, "/both?status=503", form(file(b"a")))
        self._counted("/both", "sink-refused", status, 502, text)

    async def _gone(self, session: aiohttp.ClientSession) -> None:
        """Hangs up in the middle."""
        begun = asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield file(bytes(200_000))
            begun.set()
            await asyncio.Event().wait()

        async with asyncio.TaskGroup() as group:
            task = group.create_task(self._upload(session, "/upload", body()))
            await begun.wait()
            await asyncio.sleep(0.3)  # until it is at the gateway, which has to see it go
            task.cancel()
        self.tally.uploads["/upload", "client-gone"] += 1

    # -- of both

    @property
    def _keyed(self) -> dict[str, str]:
        return {"X-API-Key": self._key}

    async def _upload(
        self, session: aiohttp.ClientSession, target: str, body: bytes | AsyncIterator[bytes]
    ) -> tuple[int, str, str]:
        """Status, Location and text of the answer."""
        headers = {"Content-Type": FORM_TYPE, **self._keyed}
        async with session.post(f"{_NGINX}{target}", data=body, headers=headers) as answer:
            return answer.status, answer.headers.get("Location", ""), await answer.text()

    def _counted(self, route: str, outcome: str, status: int, expected: int, text: str) -> None:
        self.tally.uploads[route, outcome] += 1
        if status != expected:
            self.tally.wrong.append(f"upload to {route} that is {outcome}: {status} {text[:200]}")


def _session(address: str, *, seconds: float | None = _SECONDS) -> aiohttp.ClientSession:
    """From an address of its own, a connection for each request: aiohttp's client makes none of those again."""
    connector = aiohttp.TCPConnector(local_addr=(address, 0), force_close=True)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(seconds))
