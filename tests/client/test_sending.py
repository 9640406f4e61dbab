"""Uploads against real gateways, and against servers that answer what no gateway should, or not at once."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from aiohttp import web
from yarl import URL

from gateway.client import outcomes, sources
from gateway.client.outcomes import Code
from gateway.client.remote import Place, Remote, connected, read
from gateway.client.sending import Upload
from gateway.client.sources import Source, Sources
from gateway.client.watching import Legs
from tests.conftest import RunningGateway, StartDestination, StartGateway
from tests.support.clients import eventually
from tests.support.ports import free_port

MIB = 1 << 20
BOTH = [{"path": "/both", "parts": [{"sinks": ["disk", "api"]}]}]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "_FIRST_PAUSE_SECONDS", 0.01)


def file(directory: Path, data: bytes, name: str = "a.bin") -> Sources:
    (directory / name).write_bytes(data)
    return Sources(name, [Source(str(directory / name), name.encode())])


async def sent(url: str, files: Sources, *, key: str = "", fields: list[tuple[bytes, bytes]] | None = None) -> Upload:
    upload = Upload(files, fields or [])
    async with connected(key) as remote:
        place = await outcomes.patiently(lambda: remote.place(URL(url)), print)
        await upload.send(remote, place, Legs(files.given), print)
    return upload


def app_of(handler: Handler) -> web.Application:
    app = web.Application(client_max_size=0)
    app.router.add_post("/upload", handler)
    return app


async def read_all(request: web.Request) -> bytes:
    return b"".join([chunk async for chunk in request.content.iter_any()])


# -- kept


@pytest.mark.parametrize("size", [0, 1, 65536, 3 * MIB + 7])
async def test_what_is_kept_is_what_was_sent_and_was_declared(
    start_gateway: StartGateway, tmp_path: Path, size: int
) -> None:
    gateway, data = await start_gateway(), os.urandom(size)
    upload = await sent(gateway.url, file(tmp_path, data), fields=[(b"note", b"hello"), ("ä".encode(), b"")])
    assert upload.failed is None
    assert upload.answer is not None
    note, empty, part = upload.answer.document["parts"]
    assert (note["value"], empty["name"], empty["value"]) == ("hello", "ä", "")
    assert part["sha256"] == hashlib.sha256(data).hexdigest() == upload.sources.files[0].sha256
    assert part["verified"] == ["sha256"]
    assert upload.sources.files[0].verified is True
    assert (gateway.root / upload.id / "2").read_bytes() == data


async def test_what_was_kept_before_anybody_asked_is_told_to_be_safe(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await start_gateway()
    upload, legs = Upload(file(tmp_path, b"x")), Legs("a", is_watched=False)
    async with connected("") as remote:
        await upload.send(remote, Place(URL(f"{gateway.url}/upload"), [URL(gateway.url)]), legs, print)
    assert (legs.sent, legs.safe, legs.sinks) == (1.0, 1.0, "disk: kept")


async def test_a_long_file_is_compared_afterwards(
    start_gateway: StartGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "DECLARED_BYTES", MIB)
    gateway = await start_gateway()
    upload = await sent(f"{gateway.url}/upload", file(tmp_path, os.urandom(2 * MIB)))
    assert upload.failed is None
    assert upload.answer is not None
    assert "verified" not in upload.answer.document["parts"][0]
    assert upload.sources.files[0].verified is True


async def test_a_folder_is_one_upload(start_gateway: StartGateway, tmp_path: Path) -> None:
    gateway = await start_gateway()
    (tmp_path / "top/sub").mkdir(parents=True)
    for number, name in enumerate(["top/b", "top/a", 'top/sub/"quoted" ä\n.txt']):
        (tmp_path / name).write_bytes(bytes(number * 1000))
    (found,) = sources.gathered([str(tmp_path / "top")], recursive=True, most=0, say=pytest.fail)
    upload = await sent(gateway.url, found)
    assert upload.failed is None
    assert upload.answer is not None
    names = [part["filename"] for part in upload.answer.document["parts"]]
    assert names == ["top/a", "top/b", 'top/sub/"quoted" ä\n.txt']
    assert all(one.verified for one in upload.sources.files)


async def test_the_length_is_known_before_and_right(start_destination: StartDestination, tmp_path: Path) -> None:
    seen = []

    async def take(request: web.Request) -> web.Response:
        seen.append((request.content_length, len(await read_all(request))))
        return web.Response(status=200)

    server = await start_destination(app_of(take))
    upload = await sent(server.url, file(tmp_path, b"x" * 100_000), fields=[(b"k", b"v" * 70_000)])
    assert upload.failed is None
    assert seen[0][0] == seen[0][1]
    assert upload.sources.files[0].verified is None  # this one did not say


# -- not kept, and tried again


async def test_what_was_refused_with_503_or_429_is_sent_again_with_the_same_id(
    start_destination: StartDestination, tmp_path: Path
) -> None:
    ids = []

    async def hesitate(request: web.Request) -> web.Response:
        ids.append(request.headers["X-Upload-ID"])
        if len(ids) == 2:
            return web.Response(status=429, headers={"Retry-After": "0", "Connection": "close"})
        if len(ids) < 4:
            return web.Response(status=503, headers={"Connection": "close"})
        await read_all(request)
        return web.Response(status=201)

    server = await start_destination(app_of(hesitate))
    upload = await sent(server.url, file(tmp_path, os.urandom(2 * MIB)))
    assert upload.failed is None
    assert (len(ids), len(set(ids)), upload.tries) == (4, 1, 4)


@pytest.mark.parametrize(
    ("status", "headers", "code"),
    [
        (429, {}, Code.LATER),
        (503, {"Via": "1.1 gateway"}, Code.LATER),  # a destination's own: it may have kept something
        (503, {"Retry-After": "100000"}, Code.LATER),  # more than anybody waits
        (500, {}, Code.FAILED),
        (413, {"Retry-After": "0"}, Code.REFUSED),
        (401, {}, Code.ACCESS),
        (307, {"Location": "/elsewhere"}, Code.REFUSED),
    ],
)
async def test_anything_else_is_not_sent_again(
    start_destination: StartDestination, tmp_path: Path, status: int, headers: dict[str, str], code: Code
) -> None:
    async def refuse(request: web.Request) -> web.Response:
        await read_all(request)
        return web.Response(status=status, headers=headers)

    server = await start_destination(app_of(refuse))
    upload = await sent(server.url, file(tmp_path, b"x"))
    assert upload.failed is not None
    assert (upload.failed.code, upload.failed.problem["status"], upload.tries) == (code, status, 1)


async def test_patience_has_an_end(start_destination: StartDestination, tmp_path: Path) -> None:
    async def refuse(request: web.Request) -> web.Response:
        return web.Response(status=503)

    server = await start_destination(app_of(refuse))
    upload = await sent(server.url, file(tmp_path, b"x"))
    assert upload.failed is not None
    assert (upload.failed.code, upload.tries) == (Code.LATER, outcomes.MOST_TRIES)


async def test_nobody_who_listens_yet_is_waited_for(start_gateway: StartGateway, tmp_path: Path) -> None:
    port = free_port()
    async with asyncio.TaskGroup() as group:
        sending = group.create_task(sent(f"http://127.0.0.1:{port}/upload", file(tmp_path, b"x")))
        await asyncio.sleep(0.02)
        assert not sending.done()
        await start_gateway(server={"port": port})
    upload = sending.result()
    assert upload.failed is None


@pytest.fixture
def standard_input() -> Iterator[int]:
    """Where to write what comes from standard input."""
    before = os.dup(0)
    reading, writing = os.pipe()
    os.dup2(reading, 0)
    os.close(reading)
    try:
        yield writing
    finally:
        os.dup2(before, 0)
        os.close(before)


@pytest.mark.parametrize("says_continue_first", [False, True])
async def test_standard_input_is_sent_again_if_none_of_it_is_gone(
    start_destination: StartDestination, standard_input: int, says_continue_first: bool
) -> None:
    asked, data = 0, os.urandom(50_000)

    async def consider(request: web.Request) -> web.StreamResponse | None:
        nonlocal asked
        asked += 1
        if asked > 2 or says_continue_first:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
            return None
        return web.Response(status=503, headers={"Connection": "close"})

    async def take(request: web.Request) -> web.Response:
        body = await read_all(request)
        if asked < 3:
            return web.Response(status=503)
        assert data in body
        return web.Response(status=201)

    app = web.Application(client_max_size=0)
    app.router.add_post("/upload", take, expect_handler=consider)
    server = await start_destination(app)
    os.write(standard_input, data)
    os.close(standard_input)
    upload = await sent(server.url, Sources("-", [Source("-", b"stdin")]))
    if says_continue_first:
        assert upload.failed is not None
        assert (upload.failed.code, asked) == (Code.LATER, 1)
        return
    assert upload.failed is None
    assert (upload.tries, upload.sources.files[0].size) == (3, 50_000)
    assert upload.sources.files[0].sha256 == hashlib.sha256(data).hexdigest()


async def test_of_standard_input_that_was_being_read_nothing_is_sent_again(
    start_destination: StartDestination, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a file here: its first bytes are read by a thread, and are gone, whatever is answered meanwhile."""
    asked, reading = 0, threading.Event()

    async def consider(request: web.Request) -> web.StreamResponse | None:
        nonlocal asked
        asked += 1
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await asyncio.to_thread(reading.wait, 10)
        return web.Response(status=503, headers={"Connection": "close"})

    read_file = os.read

    def slowly(descriptor: int, size: int) -> bytes:
        data = read_file(descriptor, size)
        if descriptor == 0:
            reading.set()
            time.sleep(0.5)
        return data

    app = web.Application()
    app.router.add_post("/upload", read_all, expect_handler=consider)  # type: ignore[arg-type]
    server = await start_destination(app)
    (tmp_path / "in").write_bytes(bytes(2 * MIB))
    before = os.dup(0)
    try:
        with open(tmp_path / "in", "rb") as given:
            os.dup2(given.fileno(), 0)
        monkeypatch.setattr(os, "read", slowly)
        upload = await sent(server.url, Sources("-", [Source("-", b"stdin")]))
    finally:
        os.dup2(before, 0)
        os.close(before)
    assert upload.failed is not None
    assert (upload.failed.code, asked) == (Code.LATER, 1)


# -- not known, or kept all the same


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_what_a_destination_may_have_acted_on_is_not_sent_again(
    start_destination: StartDestination, tmp_path: Path, status: int
) -> None:
    async def refuse(request: web.Request) -> web.Response:
        await read_all(request)
        return web.json_response({"title": "t", "type": "/problems/x", "may_have_acted": True}, status=status)

    server = await start_destination(app_of(refuse))
    upload = await sent(server.url, file(tmp_path, b"x"))
    assert upload.failed is not None
    assert (upload.failed.code, upload.failed.state, upload.tries) == (Code.UNKNOWN, "unknown", 1)


async def test_a_destination_behind_a_real_gateway_may_have_acted(
    start_gateway: StartGateway, start_destination: StartDestination, tmp_path: Path
) -> None:
    async def vanish(request: web.Request) -> web.Response:
        await read_all(request)
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    destination = await start_destination(app_of(vanish))
    gateway = await start_gateway(api=f"{destination.url}/upload", routes=BOTH)
    upload = await sent(f"{gateway.url}/both", file(tmp_path, b"x"))
    assert upload.failed is not None
    assert (upload.failed.code, upload.failed.state, upload.failed.problem["status"]) == (Code.UNKNOWN, "unknown", 502)


class ProxiedGateway:
    """It keeps what is sent, and tells so when it is asked; `answer` is what a proxy in front of it says."""

    def __init__(self, answer: Callable[[int], web.Response], state: str = "kept") -> None:
        self.answer = answer
        self.state = state
        self.count = 0
        self.app = app_of(self._post)
        self.app.router.add_get("/uploads/{id}/progress", self._progress)

    async def _post(self, request: web.Request) -> web.Response:
        await read_all(request)
        self.count += 1
        return self.answer(self.count)

    async def _progress(self, request: web.Request) -> web.Response:
        return web.json_response({"state": self.state, "problem": {"title": "t", "status": 422}})


@pytest.mark.parametrize("status", [502, 504])
@pytest.mark.parametrize("state", ["kept", "failed"])
async def test_what_a_proxy_says_of_a_whole_body_is_asked_about(
    start_destination: StartDestination, tmp_path: Path, status: int, state: str
) -> None:
    server = await start_destination(ProxiedGateway(lambda _: web.Response(status=status), state).app)
    upload = await sent(server.url, file(tmp_path, b"x"))
    assert upload.tries == 1
    if state == "kept":
        assert upload.failed is None
        return
    assert upload.failed is not None
    assert (upload.failed.code, upload.failed.problem["status"]) == (Code.REFUSED, 422)


async def test_that_an_id_is_taken_at_a_second_try_is_no_failure_of_the_first(
    start_destination: StartDestination, tmp_path: Path
) -> None:
    conflict = {"title": "It is in use", "type": "/problems/conflict"}

    def answer(count: int) -> web.Response:
        return web.Response(status=503) if count == 1 else web.json_response(conflict, status=409)

    server = await start_destination(ProxiedGateway(answer).app)
    upload = await sent(server.url, file(tmp_path, b"x"))
    assert (upload.failed, upload.tries) == (None, 2)
    server = await start_destination(ProxiedGateway(lambda _: web.json_response(conflict, status=409)).app)
    upload = await sent(server.url, file(tmp_path, b"x"))
    assert upload.failed is not None
    assert (upload.failed.code, upload.tries) == (Code.REFUSED, 1)


async def test_an_answer_that_is_too_long_is_kept_all_the_same(
    start_destination: StartDestination, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.client.remote._MOST_BYTES", 1000)
    server = await start_destination(ProxiedGateway(lambda _: web.json_response(["x" * 2000], status=201)).app)
    upload = await sent(server.url, file(tmp_path, b"x"))
    assert upload.failed is None
    assert upload.answer is not None
    assert (upload.answer.status, upload.answer.document) == (201, None)


@pytest.mark.parametrize(
    ("document", "location"),
    [
        ([{"input": 3}], "http://[bad"),
        ([{"input": {}, "index": [], "output": 3}], "mailto:a@example.org"),
        ([{"input": {}, "index": 0, "output": {"location": "//["}, "receipts": 3}], "http://127.0.0.1:99999/"),
        ([{"input": {}, "index": 0, "problem": 3, "receipts": [3]}], "\udcff"),
    ],
)
async def test_an_odd_answer_is_no_failure(
    start_destination: StartDestination, tmp_path: Path, document: object, location: str
) -> None:
    def answer(_: int) -> web.Response:
        return web.json_response(document, status=201, headers={"Location": location})

    server = await start_destination(ProxiedGateway(answer).app)
    upload = await sent(server.url, file(tmp_path, b"x"))
    assert (upload.failed, upload.sources.files[0].verified, upload.sources.files[0].url) == (None, None, None)


@pytest.mark.parametrize("problem", [3, {"status": "x"}, {"status": None}, ["status"]])
async def test_odd_words_about_a_failure_are_one_all_the_same(
    start_destination: StartDestination, tmp_path: Path, problem: object
) -> None:
    proxied = ProxiedGateway(lambda _: web.Response(status=504), "failed")

    async def progress(request: web.Request) -> web.Response:
        return web.json_response({"state": "failed", "problem": problem})

    app = app_of(proxied._post)
    app.router.add_get("/uploads/{id}/progress", progress)
    server = await start_destination(app)
    upload = await sent(server.url, file(tmp_path, b"x"))
    assert upload.failed is not None
    assert (upload.failed.code, upload.failed.state) == (Code.LATER, "failed")


async def test_who_does_not_answer_is_not_asked_for_ever(
    start_destination: StartDestination, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.client.sending._ASK_SECONDS", 0.5)

    async def say_nothing(request: web.Request) -> web.Response:
        await asyncio.sleep(5)
        return web.Response()

    app = app_of(ProxiedGateway(lambda _: web.Response(status=504))._post)
    app.router.add_get("/uploads/{id}/progress", say_nothing)
    server = await start_destination(app)
    upload = await sent(server.url, file(tmp_path, b"x"))
    assert upload.failed is not None
    assert (upload.failed.code, upload.failed.state) == (Code.UNKNOWN, "unknown")
    assert upload.seconds < 4


# -- broken


@pytest.mark.parametrize("after", [10, 3 * MIB])
async def test_a_file_that_changes_while_it_is_sent_is_not_kept(
    start_gateway: StartGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    gateway = await start_gateway()
    files = file(tmp_path, os.urandom(2 * MIB))
    read = sources.Reading.read

    def change_and_read(reading: sources.Reading) -> bytes:
        os.truncate(tmp_path / "a.bin", after)
        return read(reading)

    monkeypatch.setattr(sources.Reading, "read", change_and_read)
    upload = await sent(gateway.url, files)
    assert upload.failed is not None
    assert (upload.failed.code, upload.failed.state) == (Code.LOCAL, "failed")
    assert "changed while it was sent" in str(upload.failed)
    await eventually(lambda: not gateway.stored())


async def test_what_differs_from_what_was_sent_is_told(start_destination: StartDestination, tmp_path: Path) -> None:
    async def misremember(request: web.Request) -> web.Response:
        await read_all(request)
        part = {"index": 0, "sha256": "0" * 64, "size": 1, "receipts": []}
        document = {"upload": request.headers["X-Upload-ID"], "parts": [part]}
        return web.json_response(document, status=201)

    server = await start_destination(app_of(misremember))
    upload = await sent(server.url, file(tmp_path, b"x"))
    assert upload.failed is not None
    assert (upload.failed.code, upload.failed.state) == (Code.DIFFERS, "differs")
    assert upload.sources.files[0].verified is False


@pytest.mark.parametrize("read_first", [False, True])
async def test_a_lost_connection_is_no_proof_and_is_not_tried_again(
    start_destination: StartDestination, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_first: bool
) -> None:
    monkeypatch.setattr("gateway.client.sending._ASK_SECONDS", 0.2)

    async def hang_up(request: web.Request) -> web.Response:
        if read_first:
            await read_all(request)
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    server = await start_destination(app_of(hang_up))
    upload = await sent(server.url, file(tmp_path, os.urandom(20 * MIB)))
    assert upload.failed is not None
    expected = (Code.UNKNOWN, "unknown") if read_first else (Code.LATER, "failed")
    assert (upload.failed.code, upload.failed.state, upload.tries) == (*expected, 1)


async def test_a_lost_answer_is_asked_for(
    start_gateway: StartGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await start_gateway()

    async def lose(response: object) -> object:
        if getattr(response, "method", "") == "POST":
            raise ConnectionResetError("it was cut")
        return await read(response)  # type: ignore[arg-type]

    monkeypatch.setattr("gateway.client.sending.read", lose)
    upload = await sent(gateway.url, file(tmp_path, b"kept all the same"))
    assert upload.failed is None
    assert upload.url == f"{gateway.url}/uploads/{upload.id}"
    assert upload.sources.files[0].verified is True


# -- interrupted


async def interrupted(gateway: RunningGateway, files: Sources, when: Callable[[Legs], bool]) -> Upload:
    upload, legs = Upload(files), Legs(files.given)

    async def send(remote: Remote) -> None:
        place = Place(URL(f"{gateway.url}/both"), [URL(gateway.url)])
        await upload.send(remote, place, legs, print)

    async with connected("") as remote, asyncio.TaskGroup() as group:
        sending = group.create_task(send(remote))
        await eventually(lambda: when(legs))
        remote.hang_up()
        sending.cancel()
    return upload


async def test_interrupted_in_the_middle_nothing_is_kept(
    start_gateway: StartGateway, start_destination: StartDestination, tmp_path: Path
) -> None:
    destination = await start_destination()
    gateway = await start_gateway(api=f"{destination.url}/upload?rate_bytes=4000000", routes=BOTH)
    files = file(tmp_path, os.urandom(60 * MIB))
    upload = await interrupted(gateway, files, lambda legs: legs.safe is not None and legs.safe > 0.01)
    assert upload.failed is not None
    assert upload.failed.state == "interrupted"
    await eventually(lambda: not gateway.stored())


async def test_interrupted_when_all_was_sent_it_is_removed_again(
    start_gateway: StartGateway, start_destination: StartDestination, tmp_path: Path
) -> None:
    destination = await start_destination()
    gateway = await start_gateway(api=f"{destination.url}/upload?delay_seconds=0.5", routes=BOTH)
    upload = await interrupted(gateway, file(tmp_path, b"x" * 1000), lambda legs: (legs.safe or 0) > 0.9)
    assert upload.failed is not None
    assert (upload.failed.state, str(upload.failed)) == (
        "interrupted",
        "interrupted; it was kept, and is removed again",
    )
    await eventually(lambda: not gateway.stored())


@pytest.mark.parametrize(
    ("problem", "state", "code"),
    [
        ({"title": "t", "status": 502, "kept": [{"sink": "api"}]}, "partly", Code.PARTLY),
        ({"title": "t", "status": 502, "may_have_acted": True}, "unknown", Code.UNKNOWN),
        ({"title": "t", "status": 502}, "interrupted", Code.LATER),
    ],
)
async def test_interrupted_what_is_kept_in_part_is_told(
    start_destination: StartDestination, tmp_path: Path, problem: dict[str, object], state: str, code: Code
) -> None:
    arrived = asyncio.Event()

    async def take(request: web.Request) -> web.Response:
        await read_all(request)
        arrived.set()
        await asyncio.sleep(10)
        return web.Response()

    async def progress(request: web.Request) -> web.Response:
        return web.json_response({"state": "failed", "problem": problem})

    app = app_of(take)
    app.router.add_get("/uploads/{id}/progress", progress)
    server = await start_destination(app)
    upload = Upload(file(tmp_path, b"x"))
    async with connected("") as remote:
        place = Place(URL(f"{server.url}/upload"), [URL(server.url)])
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(upload.send(remote, place, Legs("a", is_watched=False), print))
            await arrived.wait()
            sending.cancel()
    assert upload.failed is not None
    assert (upload.failed.state, upload.failed.code) == (state, code)
