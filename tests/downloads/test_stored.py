"""What was stored, given back: compared with nginx case by case, and what nginx does not do."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import io
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from multidict import CIMultiDict

from gateway.downloads import stored
from gateway.downloads.stored import STORES
from gateway.errors import GatewayError
from gateway.http.conditions import chosen
from gateway.http.problems import problem
from gateway.model import Part, Upload
from gateway.sinks.disk.sink import DiskSink
from gateway.sinks.disk.upload_directory import OpenedDirectory
from gateway.sinks.store import StoredFile
from tests.support.clients import eventually
from tests.support.ports import free_port
from tests.support.stores import remove_kept

pytestmark = pytest.mark.sockets

_MODIFIED = 1_700_000_000
_DATA = bytes(range(256)) * 40
_SECONDS = 60


def ulid(number: int) -> str:
    return f"01JD{number:022d}"


# -- a server, its disk, a client


@dataclass
class Shop:
    """A server of the handlers alone; `disks` are what it serves."""

    disks: list[DiskSink]
    port: int = 0
    uploads: int = 0
    requests: set[asyncio.Task[Any]] = field(default_factory=set)

    @property
    def problems(self) -> Middleware:
        @web.middleware
        async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
            task = asyncio.current_task()
            assert task is not None
            self.requests.add(task)
            try:
                return await handler(request)
            except GatewayError as error:
                return problem(error)
            finally:
                self.requests.discard(task)

        return problems

    async def store(self, *files: bytes | None, disk: int = 0, **described: Any) -> str:
        """An upload of these files; None is a field. `described` goes into every part, and `receipt` into receipts."""
        self.uploads += 1
        upload_id, sink = ulid(self.uploads), self.disks[disk]
        receipt = described.pop("receipt", {})
        names = described.pop("names", None)
        async with sink.open(Upload(upload_id, "/upload")) as delivery:
            parts = []
            for index, data in enumerate(files):
                is_file = data is not None
                part = {
                    "index": index,
                    "name": "file",
                    "filename": (names[index] if names else f"{index}.bin") if is_file else None,
                    "content_type": None,
                    "size": len(data or b""),
                    "sha256": hashlib.sha256(data or b"").hexdigest(),
                    "receipts": [{"sink": sink.name, "location": None, **receipt}] if is_file else [],
                    **described,
                }
                parts.append(part)
                if data is not None:
                    await delivery.accept_all([(Part(index, b"file", b"x", None), data)])
            delivery.keep_manifest(json.dumps({"upload": upload_id, "parts": parts}).encode())
            await delivery.commit()
        for index, data in enumerate(files):
            if data is not None:
                os.utime(self.path(upload_id, index, disk), (_MODIFIED + 0.7, _MODIFIED + 0.7))
        return upload_id

    def path(self, upload_id: str, index: int = 0, disk: int = 0) -> Path:
        return self.disks[disk].root / upload_id / str(index)

    async def store_sparse(self, size: int, *more: bytes) -> str:
        """An upload whose first file is `size` bytes of nothing."""
        upload_id = await self.store(b"", *more, sha256=None)
        os.truncate(self.path(upload_id), size)
        return upload_id

    async def ask(self, target: str, method: str = "GET", **headers: str) -> Answer:
        return await ask(self.port, target, method, headers)


@asynccontextmanager
async def shop_of(*disks: DiskSink) -> AsyncIterator[Shop]:
    async with AsyncExitStack() as stack:
        shop = Shop([await stack.enter_async_context(disk) for disk in disks])
        app = web.Application(middlewares=[shop.problems], handler_args={"handler_cancellation": False})
        app[STORES] = shop.disks
        app.router.add_get("/files/{id}/{index}/{filename}", stored.get_file)
        app.router.add_get("/uploads/{id}", stored.get_upload)
        app.router.add_get("/uploads/{id}/archive.zip", stored.get_archive)
        app.router.add_delete("/uploads/{id}", stored.delete_upload)
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        shop.port = runner.addresses[0][1]
        yield shop


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    async with shop_of(DiskSink(name="disk", root=str(tmp_path / "root"), fsync=False)) as shop:
        yield shop


@dataclass
class Answer:
    status: int
    headers: CIMultiDict[str]
    body: bytes

    @property
    def problem(self) -> str:
        assert self.headers["content-type"].startswith("application/problem+json")
        document = json.loads(self.body)
        assert document["status"] == self.status
        slug: str = document["type"].rpartition("/")[2]
        return slug


class Client:
    """A connection with one request on it, read as slowly as the test likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.status = 0
        self.headers: CIMultiDict[str] = CIMultiDict()

    @classmethod
    async def get(cls, port: int, target: str, method: str = "GET", headers: dict[str, str] | None = None) -> Client:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
        client = cls(*await asyncio.open_connection(sock=connection, limit=64 << 10))
        lines = [f"{method} {target} HTTP/1.1", "Host: x", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in (headers or {}).items()]
        client._writer.write("\r\n".join([*lines, "", ""]).encode())
        head = (await client._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        client.status = int(head[0].split()[1])
        for line in head[1:-2]:
            name, _, value = line.partition(": ")
            client.headers.add(name, value)
        return client

    async def read(self, size: int = 256 << 10) -> bytes:
        return await self._reader.read(size)

    async def rest(self) -> bytes:
        return await self._reader.read()

    async def rest_exactly(self, read: int = 0) -> None:
        """Read and drop what the headers promised; not the end of the connection."""
        left = int(self.headers["content-length"]) - read
        while left:
            data = await self._reader.read(min(left, 256 << 10))
            assert data
            left -= len(data)

    async def close(self) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def hang_up(self) -> None:
        self._writer.transport.abort()
        await self.close()


async def ask(port: int, target: str, method: str = "GET", headers: dict[str, str] | None = None) -> Answer:
    async with asyncio.timeout(_SECONDS):
        client = await Client.get(port, target, method, headers)
        body = await client.rest()
        await client.close()
    return Answer(client.status, client.headers, body)


async def removed(shop: Shop, upload_id: str) -> None:
    """Removes it as soon as nobody reads it any more."""
    async with asyncio.timeout(_SECONDS):
        while True:
            answer = await shop.ask(f"/uploads/{upload_id}", "DELETE")
            if answer.status != 409:
                break
            await asyncio.sleep(0.05)
    assert answer.status == 204


# -- as nginx does it


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """(the port of an nginx, the directory whose files it serves)."""
    command = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if command is None:
        pytest.skip("nginx is not installed")
    prefix = tmp_path_factory.mktemp("nginx")
    (prefix / "files").mkdir()
    port = free_port()
    temporary = " ".join(f"{kind}_temp_path tmp;" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (prefix / "nginx.conf").write_text(
        f"daemon off; master_process off; pid nginx.pid; error_log error.log; events {{}} http {{ {temporary} "
        "access_log off; default_type application/octet-stream; if_modified_since before; "
        f"server {{ listen 127.0.0.1:{port}; root files; }} }}"
    )
    with subprocess.Popen([command, "-p", f"{prefix}/", "-c", "nginx.conf", "-e", "error.log"]) as process:
        try:
            deadline = time.monotonic() + 20
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    assert process.poll() is None, (prefix / "error.log").read_text()
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            yield port, prefix / "files"
        finally:
            process.terminate()


_EARLIER, _DATE, _LATER = (formatdate(_MODIFIED + days * 86400, usegmt=True) for days in (-1, 0, 1))
_RFC850 = time.strftime("%A, %d-%b-%y %H:%M:%S GMT", time.gmtime(_MODIFIED))
_ASCTIME = time.asctime(time.gmtime(_MODIFIED))
_LAST = len(_DATA) - 1

ALIKE: dict[str, dict[str, str]] = {
    "no condition": {},
    "first byte": {"Range": "bytes=0-0"},
    "first bytes": {"Range": "bytes=0-99"},
    "middle": {"Range": "bytes=100-299"},
    "last byte by number": {"Range": f"bytes={_LAST}-{_LAST}"},
    "all of it": {"Range": f"bytes=0-{_LAST}"},
    "from the beginning": {"Range": "bytes=0-"},
    "from the middle": {"Range": "bytes=5000-"},
    "from the last byte": {"Range": f"bytes={_LAST}-"},
    "end beyond the file": {"Range": "bytes=5000-999999999"},
    "suffix of one": {"Range": "bytes=-1"},
    "suffix": {"Range": "bytes=-100"},
    "suffix of all": {"Range": f"bytes=-{len(_DATA)}"},
    "suffix beyond the file": {"Range": "bytes=-999999999"},
    "suffix of nothing": {"Range": "bytes=-0"},
    "begins behind the end": {"Range": f"bytes={len(_DATA)}-"},
    "lies behind the end": {"Range": "bytes=999999998-999999999"},
    "unit in capitals": {"Range": "BYTES=0-9"},
    "another unit": {"Range": "lines=0-9"},
    "no range": {"Range": "bytes="},
    "space before the range": {"Range": "bytes= 0-9"},
    "If-Range, same tag": {"Range": "bytes=0-9", "If-Range": "{etag}"},
    "If-Range, another tag": {"Range": "bytes=0-9", "If-Range": '"another"'},
    "If-Range, weak tag": {"Range": "bytes=0-9", "If-Range": "W/{etag}"},
    "If-Range, same date": {"Range": "bytes=0-9", "If-Range": _DATE},
    "If-Range, later date": {"Range": "bytes=0-9", "If-Range": _LATER},
    "If-Range, earlier date": {"Range": "bytes=0-9", "If-Range": _EARLIER},
    "If-Range, no date": {"Range": "bytes=0-9", "If-Range": "yesterday"},
    "If-Range without a range": {"If-Range": "{etag}"},
    "If-Range, another tag, not satisfiable": {"Range": "bytes=99999-", "If-Range": '"another"'},
    "If-Range, same tag, not satisfiable": {"Range": "bytes=99999-", "If-Range": "{etag}"},
    "If-None-Match, same": {"If-None-Match": "{etag}"},
    "If-None-Match, same but weak": {"If-None-Match": "W/{etag}"},
    "If-None-Match, another": {"If-None-Match": '"another"'},
    "If-None-Match, in a list": {"If-None-Match": '"another", {etag}, W/"third"'},
    "If-None-Match, not in a list": {"If-None-Match": '"another", "third"'},
    "If-None-Match, any": {"If-None-Match": "*"},
    "If-None-Match, same, with a range": {"If-None-Match": "{etag}", "Range": "bytes=0-9"},
    "If-None-Match, another, with a range": {"If-None-Match": '"another"', "Range": "bytes=0-9"},
    "If-Match, same": {"If-Match": "{etag}"},
    "If-Match, same but weak": {"If-Match": "W/{etag}"},
    "If-Match, another": {"If-Match": '"another"'},
    "If-Match, in a list": {"If-Match": '"another", {etag}'},
    "If-Match, any": {"If-Match": "*"},
    "If-Match, same, with a range": {"If-Match": "{etag}", "Range": "bytes=0-9"},
    "If-Match, another, with a range": {"If-Match": '"another"', "Range": "bytes=0-9"},
    "If-Modified-Since, same": {"If-Modified-Since": _DATE},
    "If-Modified-Since, earlier": {"If-Modified-Since": _EARLIER},
    "If-Modified-Since, later": {"If-Modified-Since": _LATER},
    "If-Modified-Since, RFC 850": {"If-Modified-Since": _RFC850},
    "If-Modified-Since, asctime": {"If-Modified-Since": _ASCTIME},
    "If-Modified-Since, no date": {"If-Modified-Since": "yesterday"},
    "If-Modified-Since, same, with a range": {"If-Modified-Since": _DATE, "Range": "bytes=0-9"},
    "If-Unmodified-Since, same": {"If-Unmodified-Since": _DATE},
    "If-Unmodified-Since, earlier": {"If-Unmodified-Since": _EARLIER},
    "If-Unmodified-Since, later": {"If-Unmodified-Since": _LATER},
    "both tags agree": {"If-Match": "{etag}", "If-None-Match": "{etag}"},
    "both dates agree": {"If-Unmodified-Since": _DATE, "If-Modified-Since": _DATE},
    "tag and date agree": {"If-None-Match": "{etag}", "If-Modified-Since": _DATE},
    "neither tag nor date agrees": {"If-None-Match": '"another"', "If-Modified-Since": _EARLIER},
    "If-Match fails before If-None-Match": {"If-Match": '"another"', "If-None-Match": "{etag}"},
}

DIFFERENT: dict[str, tuple[dict[str, str], int, int]] = {
    "several ranges": ({"Range": "bytes=0-9,20-29"}, 200, 206),
    "ends before it begins": ({"Range": "bytes=9-0"}, 200, 416),
    "no numbers": ({"Range": "bytes=a-b"}, 200, 416),
    "only a dash": ({"Range": "bytes=-"}, 200, 416),
    "negative": ({"Range": "bytes=--5"}, 200, 416),
    "something after it": ({"Range": "bytes=0-9x"}, 200, 416),
    # RFC 9110 13.2.2: the tag decides, and the date beside it is not looked at; nginx wants both to agree
    "same tag, earlier date": ({"If-None-Match": "{etag}", "If-Modified-Since": _EARLIER}, 304, 200),
    "same tag required, changed since": ({"If-Match": "{etag}", "If-Unmodified-Since": _EARLIER}, 200, 412),
    # RFC 9110 13.1.4: what is no date is ignored
    "If-Unmodified-Since, no date": ({"If-Unmodified-Since": "yesterday"}, 200, 412),
}

_COMPARED = {
    200: ("content-length", "content-range", "last-modified", "accept-ranges"),
    206: ("content-length", "content-range", "last-modified"),
    304: ("content-length", "content-range", "last-modified"),
    412: ("content-range",),
    416: ("content-range",),
}


@dataclass
class Pair:
    """The same bytes, here and at nginx."""

    shop: Shop
    nginx_port: int
    ours: str
    theirs: str

    async def ask(self, method: str, headers: dict[str, str]) -> tuple[Answer, Answer]:
        answers = []
        for port, target in ((self.shop.port, self.ours), (self.nginx_port, self.theirs)):
            etag = (await ask(port, target, "HEAD")).headers["etag"]
            assert re.fullmatch('"[^"]+"', etag)
            filled = {name: value.replace("{etag}", etag) for name, value in headers.items()}
            answer = await ask(port, target, method, filled)
            if answer.status in (200, 206, 304):
                assert answer.headers["etag"] == etag
            answers.append(answer)
        return answers[0], answers[1]


MakePair = Callable[[bytes], Awaitable[Pair]]


@pytest.fixture
async def pair(shop: Shop, nginx: tuple[int, Path]) -> MakePair:
    port, directory = nginx

    async def make(data: bytes) -> Pair:
        upload_id = await shop.store(data)
        path = directory / f"{hashlib.sha256(data).hexdigest()}.bin"
        path.write_bytes(data)
        os.utime(path, (_MODIFIED + 0.7, _MODIFIED + 0.7))
        return Pair(shop, port, f"/files/{upload_id}/0/x", f"/{path.name}")

    return make


def comparable(answer: Answer, method: str) -> dict[str, object]:
    compared: dict[str, object] = {name: answer.headers.get(name) for name in _COMPARED[answer.status]}
    if answer.status in (200, 206, 304) or method == "HEAD":
        compared["body"] = answer.body  # of the others each has its own words
    return {"status": answer.status, **compared}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("case", ALIKE)
async def test_conditions_and_ranges_are_answered_as_nginx_does(pair: MakePair, case: str, method: str) -> None:
    ours, theirs = await (await pair(_DATA)).ask(method, ALIKE[case])
    assert comparable(ours, method) == comparable(theirs, method)


@pytest.mark.parametrize("range_", ["", "bytes=0-0", "bytes=0-", "bytes=-5", "bytes=-0", "bytes=5-", "bytes=0-99"])
async def test_ranges_of_an_empty_file_are_answered_as_nginx_does(pair: MakePair, range_: str) -> None:
    ours, theirs = await (await pair(b"")).ask("GET", {"Range": range_} if range_ else {})
    assert comparable(ours, "GET") == comparable(theirs, "GET")


@pytest.mark.parametrize("case", DIFFERENT)
async def test_where_nginx_does_it_otherwise_we_follow_the_rfc(pair: MakePair, case: str) -> None:
    headers, our_status, their_status = DIFFERENT[case]
    ours, theirs = await (await pair(_DATA)).ask("GET", headers)
    assert (ours.status, theirs.status) == (our_status, their_status)
    assert ours.body == (_DATA if our_status == 200 else b"")


# -- the rules alone


def judged(**headers: str) -> tuple[int, int, int]:
    fields = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})
    return chosen(fields, etag='"t"', modified=_MODIFIED, size=100)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, (200, 0, 100)),
        ({"range": "bytes=10-19"}, (206, 10, 20)),
        ({"range": "bytes=-7"}, (206, 93, 100)),
        ({"range": "bytes=99-"}, (206, 99, 100)),
        ({"range": "bytes=100-"}, (416, 0, 0)),
        ({"range": "bytes=\t5-6 "}, (206, 5, 7)),
        ({"range": "bytes=0-0,5-9"}, (200, 0, 100)),
        ({"range": "bytes=5"}, (200, 0, 100)),
        ({"range": "bytes=٣-٤"}, (200, 0, 100)),
        ({"range": "bytes=0-" + "9" * 5000}, (200, 0, 100)),
        ({"range": "bytes=0-1", "if_range": 'W/"t"'}, (200, 0, 100)),
        ({"range": "bytes=0-1", "if_range": ""}, (200, 0, 100)),
        ({"range": "bytes=0-1", "if_range": _RFC850}, (206, 0, 2)),
        ({"if_match": ""}, (412, 0, 0)),
        ({"if_match": "t"}, (412, 0, 0)),
        ({"if_none_match": ""}, (200, 0, 100)),
        ({"if_none_match": '"a, b", "t"'}, (304, 0, 0)),
        ({"if_none_match": '"x"t"'}, (200, 0, 100)),
        ({"if_modified_since": "Tue, 14 Nov 2023 22:13:20 +0000"}, (200, 0, 100)),
        ({"if_none_match": '"a"', "if_modified_since": _LATER}, (200, 0, 100)),
    ],
)
def test_conditions_are_judged_in_order(headers: dict[str, str], expected: tuple[int, int, int]) -> None:
    assert judged(**headers) == expected


def test_a_header_on_several_lines_is_one_list_but_for_the_range() -> None:
    fields = CIMultiDict([("If-None-Match", '"a"'), ("If-None-Match", '"t"')])
    assert chosen(fields, etag='"t"', modified=_MODIFIED, size=9)[0] == 304
    fields = CIMultiDict([("Range", "bytes=0-1"), ("Range", "bytes=2-3")])
    assert chosen(fields, etag='"t"', modified=_MODIFIED, size=9)[0] == 200


@pytest.mark.parametrize("text", ["bytes=0-9", "bytes=-3", "bytes=5-"])
def test_what_is_cut_off_a_range_is_another_range_or_none(text: str) -> None:
    for end in range(len(text)):
        status, start, stop = judged(range=text[:end])
        assert status in (200, 206)
        assert 0 <= start <= stop <= 100


# -- files


async def test_a_file_is_a_download_with_its_own_type_and_strong_validators(shop: Shop) -> None:
    data = b"<script>"
    upload_id = await shop.store(data, content_type='text/html; charset="x"')
    answer = await shop.ask(f"/files/{upload_id}/0/whatever")
    assert (answer.status, answer.body) == (200, data)
    assert {name: value for name, value in answer.headers.items() if name not in ("Date", "Server")} == {
        "Content-Type": 'text/html; charset="x"',
        "Content-Length": "8",
        "Content-Disposition": "attachment; filename=\"0.bin\"; filename*=UTF-8''0.bin",
        "Accept-Ranges": "bytes",
        "Etag": f'"{hashlib.sha256(data).hexdigest()}"',
        "Last-Modified": _DATE,
        "Cache-Control": "private, no-cache",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Connection": "close",
    }


@pytest.mark.parametrize(
    ("filename", "disposition"),
    [
        (None, "attachment; filename=\"file\"; filename*=UTF-8''file"),
        ("../../etc/passwd", "attachment; filename=\"passwd\"; filename*=UTF-8''passwd"),
        ("a b;c.txt", "attachment; filename=\"a b;c.txt\"; filename*=UTF-8''a%20b%3Bc.txt"),
        ('a"b%41.txt', "attachment; filename=\"a_b_41.txt\"; filename*=UTF-8''a%22b%2541.txt"),
        (
            "naïve 漢字.txt",
            "attachment; filename=\"na_ve __.txt\"; filename*=UTF-8''na%C3%AFve%20%E6%BC%A2%E5%AD%97.txt",
        ),
        ("a\r\nb: c", "attachment; filename=\"ab: c\"; filename*=UTF-8''ab%3A%20c"),
    ],
)
async def test_a_name_is_given_in_two_forms(shop: Shop, filename: str | None, disposition: str) -> None:
    upload_id = await shop.store(b"x", filename=filename)
    answer = await shop.ask(f"/files/{upload_id}/0/x")
    assert answer.headers["content-disposition"] == disposition


@pytest.mark.parametrize("content_type", [None, "", "a\r\nb: c", "a\x00", "\ud800"])
async def test_a_type_that_cannot_be_sent_is_octets(shop: Shop, content_type: str | None) -> None:
    upload_id = await shop.store(b"x", content_type=content_type)
    answer = await shop.ask(f"/files/{upload_id}/0/x")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/octet-stream")


async def test_a_file_without_a_digest_has_a_tag_of_its_place(shop: Shop) -> None:
    upload_id = await shop.store(b"x", b"y", sha256=None)
    assert (await shop.ask(f"/files/{upload_id}/1/x")).headers["etag"] == f'"{upload_id}-1"'


async def test_what_flows_changed_is_described_by_the_receipt_of_the_disk_that_has_it(shop: Shop) -> None:
    changed = {"filename": "a.gz", "content_type": "application/gzip", "size": 1, "sha256": "ab" * 32}
    upload_id = await shop.store(b"x", receipt=changed)
    answer = await shop.ask(f"/files/{upload_id}/0/x")
    assert answer.headers["etag"] == f'"{"ab" * 32}"'
    assert answer.headers["content-type"] == "application/gzip"
    assert "a.gz" in answer.headers["content-disposition"]
    upload_id = await shop.store(b"x", receipt={**changed, "sha256": None})
    assert (await shop.ask(f"/files/{upload_id}/0/x")).headers["etag"] == f'"{upload_id}-0"'
    upload_id = await shop.store(b"x", receipt={**changed, "sink": "another"})
    assert "0.bin" in (await shop.ask(f"/files/{upload_id}/0/x")).headers["content-disposition"]


async def test_refusals_are_problems(shop: Shop) -> None:
    upload_id = await shop.store(b"12345")
    answer = await shop.ask(f"/files/{upload_id}/0/x", Range="bytes=5-")
    assert (answer.status, answer.problem) == (416, "range-not-satisfiable")
    assert answer.headers["content-range"] == "bytes */5"
    answer = await shop.ask(f"/files/{upload_id}/0/x", If_Match='"other"')
    assert (answer.status, answer.problem) == (412, "precondition-failed")


@pytest.mark.parametrize("target", ["/files/{}/0/x", "/uploads/{}", "/uploads/{}/archive.zip"])
@pytest.mark.parametrize("identifier", [ulid(9), "x", "..%2f..", "%00", ulid(1).lower(), ulid(1) + "%0a"])
async def test_what_is_not_there_is_not_found(shop: Shop, target: str, identifier: str) -> None:
    await shop.store(b"x")
    answer = await shop.ask(target.format(identifier))
    assert (answer.status, answer.problem) == (404, "not-found")


@pytest.mark.parametrize("index", ["1", "2", "00", "-1", "x", "manifest.json", "%2e%2e", "0%2f..%2f0", "9" * 5000])
async def test_only_a_file_of_the_upload_is_found(shop: Shop, index: str) -> None:
    upload_id = await shop.store(b"x", None)
    answer = await shop.ask(f"/files/{upload_id}/{index}/x")
    assert (answer.status, answer.problem) == (404, "not-found")


async def test_a_manifest_is_given_as_it_was_kept(shop: Shop) -> None:
    upload_id = await shop.store(b"x", None)
    answer = await shop.ask(f"/uploads/{upload_id}")
    assert answer.headers["content-type"] == "application/json"
    assert answer.body == shop.path(upload_id).with_name("manifest.json").read_bytes()
    head = await shop.ask(f"/uploads/{upload_id}", "HEAD")
    assert (head.status, head.headers["content-length"], head.body) == (200, str(len(answer.body)), b"")


@pytest.mark.parametrize("size", [0, 1, 65536, 65537, (1 << 20) + 65536, (3 << 20) + 7])
async def test_files_of_all_sizes_arrive_whole(shop: Shop, size: int) -> None:
    data = os.urandom(size)
    upload_id = await shop.store(data)
    assert (await shop.ask(f"/files/{upload_id}/0/x")).body == data
    if size > 10:
        assert (await shop.ask(f"/files/{upload_id}/0/x", Range="bytes=3-")).body == data[3:]
        assert (await shop.ask(f"/files/{upload_id}/0/x", Range=f"bytes=3-{size - 3}")).body == data[3 : size - 2]


@pytest.mark.parametrize("error", [NotImplementedError, asyncio.SendfileNotAvailableError])
async def test_where_sendfile_cannot_be_had_the_file_is_read(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    async def sendfile(*args: object, **options: object) -> int:
        raise error

    monkeypatch.setattr(asyncio.get_running_loop(), "sendfile", sendfile)
    data = os.urandom((2 << 20) + 7)
    upload_id = await shop.store(data)
    assert (await shop.ask(f"/files/{upload_id}/0/x")).body == data


async def test_two_files_fit_on_one_connection(shop: Shop) -> None:
    data = os.urandom(1 << 20)
    upload_id = await shop.store(data)
    reader, writer = await asyncio.open_connection("127.0.0.1", shop.port)
    for _ in range(3):
        writer.write(f"GET /files/{upload_id}/0/x HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(len(data)) == data
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("size", [10, 5 << 20])
async def test_a_file_shorter_than_promised_breaks_the_connection(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    opened = OpenedDirectory.open

    async def longer(self: OpenedDirectory, index: int) -> StoredFile | None:
        found = await opened(self, index)
        assert found is not None
        found.size += 100_000
        return found

    monkeypatch.setattr(OpenedDirectory, "open", longer)
    upload_id = await shop.store(b"x" * size)
    client = await Client.get(shop.port, f"/files/{upload_id}/0/x")
    with pytest.raises(ConnectionResetError):
        await client.rest()
    await client.close()
    assert "broke off" in caplog.text
    await removed(shop, upload_id)


@pytest.mark.parametrize("target", ["/files/{}/0/x", "/uploads/{}/archive.zip"])
async def test_a_client_that_goes_away_is_no_error(shop: Shop, caplog: pytest.LogCaptureFixture, target: str) -> None:
    caplog.set_level(logging.INFO)
    for hang_up in (Client.hang_up, Client.close):
        upload_id = await shop.store_sparse(64 << 20)
        client = await Client.get(shop.port, target.format(upload_id))
        await client.read()
        await hang_up(client)
        await removed(shop, upload_id)
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors")
@pytest.mark.parametrize("target", ["/files/{}/0/x", "/uploads/{}/archive.zip"])
async def test_a_request_that_is_cancelled_lets_go_of_what_it_reads(shop: Shop, target: str) -> None:
    upload_id = await shop.store_sparse(64 << 20)
    client = await Client.get(shop.port, target.format(upload_id))
    await client.read()
    (task,) = shop.requests
    task.cancel()
    await asyncio.wait([task], timeout=_SECONDS)
    await eventually(lambda: not [path for path in _open_paths() if path.startswith(str(shop.disks[0].root))])
    assert await remove_kept(shop.disks[0], upload_id)
    await client.hang_up()


def _open_paths() -> list[str]:
    paths = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            paths.append(os.readlink(f"/proc/self/fd/{number}"))
    return paths


# -- removal


@pytest.mark.parametrize("target", ["/files/{}/0/x", "/uploads/{}/archive.zip"])
async def test_what_is_being_read_is_removed_at_once_and_read_to_its_end(shop: Shop, target: str) -> None:
    upload_id = await shop.store_sparse(32 << 20)
    client = await Client.get(shop.port, target.format(upload_id))
    read = len(await client.read())
    assert (await shop.ask(f"/uploads/{upload_id}", "DELETE")).status == 204
    assert list(shop.disks[0].root.iterdir()) == []
    for gone in (f"/uploads/{upload_id}", f"/files/{upload_id}/0/x", f"/uploads/{upload_id}/archive.zip"):
        assert (await shop.ask(gone)).problem == "not-found"
    assert (await shop.ask(f"/uploads/{upload_id}", "DELETE")).problem == "not-found"
    await client.rest_exactly(read)
    await client.close()


async def test_an_archive_whose_upload_is_removed_breaks_off_where_a_file_is_missing(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    upload_id = await shop.store_sparse(32 << 20, b"the second")
    client = await Client.get(shop.port, f"/uploads/{upload_id}/archive.zip")
    await client.read()
    assert (await shop.ask(f"/uploads/{upload_id}", "DELETE")).status == 204
    with pytest.raises(ConnectionResetError):
        await client.rest()
    await client.close()
    assert "broke off" in caplog.text


@pytest.mark.parametrize("target", ["/files/{}/0/x", "/uploads/{}/archive.zip"])
async def test_who_has_read_the_last_byte_can_remove_at_once(shop: Shop, target: str) -> None:
    for size in (0, 1, 65536, 300_000, 256 << 10, 2 << 20) * 3:
        upload_id = await shop.store(b"x" * size)
        client = await Client.get(shop.port, target.format(upload_id))
        await client.rest_exactly()
        assert (await shop.ask(f"/uploads/{upload_id}", "DELETE")).status == 204
        await client.close()


async def test_readers_do_not_keep_each_other_out(shop: Shop) -> None:
    upload_id = await shop.store_sparse(32 << 20)
    client = await Client.get(shop.port, f"/files/{upload_id}/0/x")
    assert (await shop.ask(f"/files/{upload_id}/0/x", Range="bytes=0-9")).body == bytes(10)
    await client.hang_up()


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Shop]:
    disks = [DiskSink(name=name, root=str(tmp_path / name), fsync=False) for name in ("first", "second")]
    async with shop_of(*disks) as shop:
        yield shop


async def test_an_upload_on_two_disks_is_one(two: Shop) -> None:
    upload_id = await two.store(b"on both", b"on the second", b"on the first", disk=0)
    shutil.copytree(two.path(upload_id).parent, two.path(upload_id, disk=1).parent)
    two.path(upload_id, 1).unlink()
    for left_over in (two.path(upload_id, 2, disk=1), two.path(upload_id, disk=1).with_name("manifest.json")):
        left_over.unlink()
    bodies = [(await two.ask(f"/files/{upload_id}/{index}/x")).body for index in range(3)]
    assert bodies == [b"on both", b"on the second", b"on the first"]
    archive = zipfile.ZipFile(io.BytesIO((await two.ask(f"/uploads/{upload_id}/archive.zip")).body))
    assert [archive.read(name) for name in archive.namelist()] == bodies
    async with two.disks[1].removal(upload_id):  # as one that has not ended
        assert (await two.ask(f"/uploads/{upload_id}", "DELETE")).status == 409
        assert two.path(upload_id).exists(), "it was removed by half"
    assert (await two.ask(f"/uploads/{upload_id}", "DELETE")).status == 204
    assert [list(disk.root.iterdir()) for disk in two.disks] == [[], []]


# -- archives


async def test_an_upload_of_which_a_file_is_gone_already_has_no_archive(shop: Shop) -> None:
    """As one that is being removed: the manifest was read before, what is there is listed after it."""
    upload_id = await shop.store(b"the first", b"the second", None)
    for index in (1, 0):
        shop.path(upload_id, index).unlink()
        assert (await shop.ask(f"/uploads/{upload_id}/archive.zip")).problem == "not-found"


@pytest.mark.parametrize("receipt", [{"dropped": "it was slow"}, {"sink": "one that is no store of ours"}])
async def test_what_was_never_here_is_not_missing_in_an_archive(shop: Shop, receipt: dict[str, str]) -> None:
    upload_id = await shop.store(b"x", receipt=receipt)
    shop.path(upload_id).unlink()
    answer = await shop.ask(f"/uploads/{upload_id}/archive.zip")
    assert zipfile.ZipFile(io.BytesIO(answer.body)).namelist() == []


async def test_an_archive_of_many_files_opens_everywhere(shop: Shop, tmp_path: Path) -> None:
    names = [f"a{number % 7}.bin" for number in range(48)] + ["naïve 漢字.txt", "../../etc/passwd"]
    files = [os.urandom(number * 1000) for number in range(50)]
    upload_id = await shop.store(*files, names=names)
    answer = await shop.ask(f"/uploads/{upload_id}/archive.zip")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"] == f'attachment; filename="{upload_id}.zip"'
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-length"] == str(len(answer.body))
    archive = zipfile.ZipFile(io.BytesIO(answer.body))
    assert archive.testzip() is None
    assert len(set(archive.namelist())) == 50
    assert archive.namelist()[7] == "a0 (2).bin"
    assert archive.namelist()[48:] == ["naïve 漢字.txt", "passwd"]
    assert [archive.read(name) for name in archive.namelist()] == files
    assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
    head = await shop.ask(f"/uploads/{upload_id}/archive.zip", "HEAD")
    same = ("content-length", "content-type", "content-disposition")
    assert [head.headers[name] for name in same] == [answer.headers[name] for name in same]
    assert head.body == b""
    if unzip := shutil.which("unzip"):
        (tmp_path / "archive.zip").write_bytes(answer.body)
        subprocess.run([unzip, "-tqq", str(tmp_path / "archive.zip")], check=True, capture_output=True)


async def test_an_archive_has_no_ranges_and_is_no_page_either(shop: Shop) -> None:
    answer = await shop.ask(f"/uploads/{await shop.store(b'x')}/archive.zip", Range="bytes=0-1")
    shown = ("Accept-Ranges", "Cache-Control", "Content-Security-Policy", "Cross-Origin-Resource-Policy")
    assert answer.status == 200
    assert [answer.headers[name] for name in shown] == ["none", "private, no-cache", "sandbox", "same-origin"]


async def test_an_upload_without_files_is_an_empty_archive(shop: Shop) -> None:
    for parts in ((), (None, None)):
        answer = await shop.ask(f"/uploads/{await shop.store(*parts)}/archive.zip")
        assert answer.headers["content-length"] == str(len(answer.body))
        assert zipfile.ZipFile(io.BytesIO(answer.body)).namelist() == []


async def test_a_file_that_shrinks_while_it_is_archived_breaks_the_connection(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    upload_id = await shop.store_sparse(64 << 20)
    client = await Client.get(shop.port, f"/uploads/{upload_id}/archive.zip")
    os.truncate(shop.path(upload_id), 1 << 20)
    with pytest.raises(ConnectionResetError):
        await client.rest()
    await client.close()
    assert "broke off" in caplog.text
    await removed(shop, upload_id)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("target", ["/files/{}/0/x", "/uploads/{}/archive.zip"])
async def test_memory_is_flat_however_large_the_file(shop: Shop, tmp_path: Path, target: str) -> None:
    """Client and server in one process; what is received is kept as a sparse file."""
    upload_id = await shop.store_sparse(2 << 30, b"behind it")
    gc.collect()
    before = peak = _resident_bytes()
    client = await Client.get(shop.port, target.format(upload_id))
    length = int(client.headers["content-length"])
    received = 0
    with (tmp_path / "received").open("wb") as copy:
        while data := await client.read(1 << 20):
            if data.count(0) == len(data):
                copy.seek(len(data), os.SEEK_CUR)
            else:
                copy.write(data)
            if received >> 26 != (received := received + len(data)) >> 26:
                peak = max(peak, _resident_bytes())
        copy.truncate()
    await client.close()
    assert received == length >= 2 << 30
    assert peak - before < 40 << 20
    if target.endswith("zip"):
        archive = zipfile.ZipFile(tmp_path / "received")
        assert [entry.file_size for entry in archive.infolist()] == [2 << 30, 9]
        assert archive.read("1.bin") == b"behind it"
