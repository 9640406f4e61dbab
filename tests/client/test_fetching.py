"""Files that are fetched: whole and verified under their name, or not there."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest
from aiohttp import web
from yarl import URL

from gateway.client import fetching, outcomes
from gateway.client.fetching import Fetch
from gateway.client.outcomes import Code, Failed
from gateway.client.remote import connected
from gateway.client.watching import Legs
from tests.conftest import StartDestination, StartGateway
from tests.support.clients import Client, eventually, file, form, head
from tests.support.ports import closed_port

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "_FIRST_PAUSE_SECONDS", 0.01)


class BrokenServer:
    """Gives a file, or a range of it, but breaks off after `each` bytes of every answer."""

    def __init__(self, data: bytes, each: int) -> None:
        self.data = data
        self.each = each
        self.etag = f'"{hashlib.sha256(data).hexdigest()}"'
        self.asked: list[tuple[str | None, str | None]] = []
        self.app = web.Application()
        self.app.router.add_get("/files/{rest:.*}", self._give)

    async def _give(self, request: web.Request) -> web.StreamResponse:
        wanted, condition = request.headers.get("Range"), request.headers.get("If-Range")
        self.asked.append((wanted, condition))
        start = int(wanted[6:-1]) if wanted and condition == self.etag else 0
        headers = {"ETag": self.etag, "Content-Length": str(len(self.data) - start)}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(self.data) - 1}/{len(self.data)}"
        response = web.StreamResponse(status=206 if start else 200, headers=headers)
        await response.prepare(request)
        await response.write(self.data[start : start + self.each])
        if start + self.each < len(self.data):
            await asyncio.sleep(0.1)  # what is unread when a connection ends is lost
            assert request.transport is not None
            request.transport.close()
        return response


async def fetched(url: str, path: Path, *, sha256: str | None = None, force: bool = False) -> Fetch:
    fetch = Fetch(URL(url), path, sha256, force)
    async with connected("") as remote:
        await fetch.fetch(remote, Legs(path.name), print)
    return fetch


async def test_what_breaks_off_goes_on_where_it_was(start_destination: StartDestination, tmp_path: Path) -> None:
    broken = BrokenServer(os.urandom(MIB), 400_000)
    server = await start_destination(broken.app)
    fetch = await fetched(f"{server.url}/files/a", tmp_path / "a")
    assert (fetch.failed, fetch.verified, fetch.size, fetch.resumed_from) == (None, True, MIB, 400_000)
    assert broken.asked == [(None, None), ("bytes=400000-", broken.etag), ("bytes=800000-", broken.etag)]
    assert (tmp_path / "a").read_bytes() == broken.data
    assert [one.name for one in tmp_path.iterdir()] == ["a"]


async def test_it_goes_on_another_time_too_and_of_another_file_it_begins_anew(
    start_destination: StartDestination, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "MOST_TRIES", 1)
    broken = BrokenServer(os.urandom(MIB), 600_000)
    server = await start_destination(broken.app)
    fetch = await fetched(f"{server.url}/files/a", tmp_path / "a")
    assert fetch.failed is not None
    assert fetch.failed.code is Code.LATER
    assert sorted(one.name for one in tmp_path.iterdir()) == [".a.part", ".a.part.etag"]
    changed = BrokenServer(os.urandom(MIB), 2 * MIB)
    other = await start_destination(changed.app)
    (tmp_path / ".b.part").write_bytes((tmp_path / ".a.part").read_bytes())
    (tmp_path / ".b.part.etag").write_text(broken.etag)
    assert (await fetched(f"{other.url}/files/b", tmp_path / "b")).resumed_from == 0
    assert (tmp_path / "b").read_bytes() == changed.data
    assert (await fetched(f"{server.url}/files/a", tmp_path / "a")).resumed_from == 600_000
    assert (tmp_path / "a").read_bytes() == broken.data


async def test_what_is_not_what_it_should_be_is_not_there(start_destination: StartDestination, tmp_path: Path) -> None:
    liar = BrokenServer(b"something else", 100)
    liar.etag = f'"{"0" * 64}"'
    server = await start_destination(liar.app)
    fetch = await fetched(f"{server.url}/files/a", tmp_path / "a")
    assert fetch.failed is not None
    assert (fetch.failed.code, fetch.verified) == (Code.DIFFERS, False)
    assert list(tmp_path.iterdir()) == []


async def test_nothing_is_overwritten_unless_it_is_said(start_destination: StartDestination, tmp_path: Path) -> None:
    server = await start_destination(BrokenServer(b"new", 10).app)
    (tmp_path / "a").write_bytes(b"old")
    fetch = await fetched(f"{server.url}/files/a", tmp_path / "a")
    assert fetch.failed is not None
    assert fetch.failed.code is Code.LOCAL
    assert (tmp_path / "a").read_bytes() == b"old"
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert (await fetched(f"{server.url}/files/a", tmp_path / "link")).failed is not None
    assert not (tmp_path / "nowhere").exists()
    assert (await fetched(f"{server.url}/files/a", tmp_path / "a", force=True)).failed is None
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize("force", [False, True])
async def test_a_folder_or_a_pipe_is_no_place_to_fetch_to(
    start_destination: StartDestination, tmp_path: Path, force: bool
) -> None:
    """A device, least of all: it would be replaced by a file."""
    server = await start_destination(BrokenServer(b"new", 10).app)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        fetch = await fetched(f"{server.url}/files/a", tmp_path / name, force=force)
        assert fetch.failed is not None
        assert (fetch.failed.code, "no regular file" in str(fetch.failed)) == (Code.LOCAL, True)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["folder", "pipe"]


@pytest.mark.parametrize("etag", ['W/"weak"', '"strong"'])
async def test_who_is_interrupted_is_told_whether_it_goes_on(
    start_destination: StartDestination, tmp_path: Path, etag: str
) -> None:
    async def dribble(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"ETag": etag})
        await response.prepare(request)
        await response.write(bytes(2 * MIB))
        await asyncio.sleep(10)
        return response

    app = web.Application()
    app.router.add_get("/a", dribble)
    server = await start_destination(app)
    fetch, legs = Fetch(URL(f"{server.url}/a"), tmp_path / "a"), Legs("a")
    async with connected("") as remote, asyncio.TaskGroup() as group:
        fetching = group.create_task(fetch.fetch(remote, legs, print))
        await eventually(lambda: fetch.size > 0)
        fetching.cancel()
    assert fetch.failed is not None
    assert str(fetch.failed).endswith("another time") == (etag == '"strong"') == bool(list(tmp_path.iterdir()))


async def test_of_two_who_fetch_the_same_one_does(start_destination: StartDestination, tmp_path: Path) -> None:
    async def slow(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.3)
        return web.Response(body=b"x")

    app = web.Application()
    app.router.add_get("/a", slow)
    server = await start_destination(app)
    both = await asyncio.gather(*(fetched(f"{server.url}/a", tmp_path / "a") for _ in range(2)))
    assert sorted(one.failed is None for one in both) == [False, True]
    assert [one.name for one in tmp_path.iterdir()] == ["a"]


async def test_the_etag_of_a_real_gateway_verifies_and_resumes(start_gateway: StartGateway, tmp_path: Path) -> None:
    gateway, data = await start_gateway(), os.urandom(MIB)
    body = form(file(data))
    async with Client(gateway.port) as client:
        await client.send(head(content_length=len(body)) + body)
        location = (await client.answer()).json()["parts"][0]["receipts"][0]["location"]
    (tmp_path / ".a.part").write_bytes(data[:1000])
    (tmp_path / ".a.part.etag").write_text(f'"{hashlib.sha256(data).hexdigest()}"')
    fetch = await fetched(gateway.url + location, tmp_path / "a")
    assert (fetch.failed, fetch.verified, fetch.resumed_from) == (None, True, 1000)
    assert (tmp_path / "a").read_bytes() == data
    (tmp_path / ".b.part").write_bytes(data)  # all of it was there
    (tmp_path / ".b.part.etag").write_text(f'"{hashlib.sha256(data).hexdigest()}"')
    fetch = await fetched(gateway.url + location, tmp_path / "b")
    assert (fetch.failed, fetch.verified, fetch.resumed_from) == (None, True, MIB)
    missing = await fetched(f"{gateway.url}{location}x"[:-40], tmp_path / "c")
    assert missing.failed is not None
    assert missing.failed.code is Code.REFUSED
    assert sorted(one.name for one in tmp_path.iterdir() if one.is_file()) == ["a", "b"]


async def test_a_redirect_is_asked_without_the_key(start_destination: StartDestination, tmp_path: Path) -> None:
    seen = []

    async def bucket(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.Response(body=b"x")

    store = web.Application()
    store.router.add_get("/signed", bucket)
    store_at = (await start_destination(store)).url

    async def lead(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.Response(status=307, headers={"Location": f"{store_at}/signed?X=1%2F2"})

    app = web.Application()
    app.router.add_get("/files/a", lead)
    server = await start_destination(app)
    fetch = Fetch(URL(f"{server.url}/files/a"), tmp_path / "a")
    async with connected("gw_secret") as remote:
        await fetch.fetch(remote, Legs("a"), print)
    assert (fetch.failed, seen) == (None, ["Bearer gw_secret", None])


async def test_an_upload_may_have_files_that_are_called_as_parts_once_were(
    start_destination: StartDestination, tmp_path: Path
) -> None:
    first, second = BrokenServer(os.urandom(1000), 2000), BrokenServer(os.urandom(2000), 4000)
    for name, broken in (("a.part", first), ("a.part.etag", first), ("a", second)):
        server = await start_destination(broken.app)
        assert (await fetched(f"{server.url}/files/{name}", tmp_path / name)).failed is None
    assert (tmp_path / "a.part").read_bytes() == (tmp_path / "a.part.etag").read_bytes() == first.data
    assert (tmp_path / "a").read_bytes() == second.data
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a", "a.part", "a.part.etag"]


@pytest.mark.sockets
async def test_what_was_not_begun_removes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "MOST_TRIES", 1)
    (tmp_path / "mine.part").write_bytes(b"mine")
    (tmp_path / ".mine.part").write_bytes(b"mine, too")
    fetch = await fetched(f"http://127.0.0.1:{closed_port()}/files/mine", tmp_path / "mine")
    assert fetch.failed is not None
    assert fetch.failed.code is Code.LOCAL
    assert (tmp_path / "mine.part").read_bytes() == b"mine"
    assert (tmp_path / ".mine.part").read_bytes() == b"mine, too"
    fetch = await fetched(f"http://127.0.0.1:{closed_port()}/files/other", tmp_path / "other")
    assert fetch.failed is not None
    assert fetch.failed.code is Code.LATER
    assert sorted(one.name for one in tmp_path.iterdir()) == [".mine.part", "mine.part"]


async def test_what_cannot_be_gone_on_with_is_not_left_there(
    start_destination: StartDestination, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "MOST_TRIES", 1)
    broken = BrokenServer(os.urandom(MIB), 600_000)
    broken.etag = 'W/"weak"'
    server = await start_destination(broken.app)
    assert (await fetched(f"{server.url}/files/a", tmp_path / "a")).failed is not None
    assert list(tmp_path.iterdir()) == []


async def test_what_began_anew_was_not_resumed(start_destination: StartDestination, tmp_path: Path) -> None:
    broken = BrokenServer(os.urandom(MIB), 600_000)
    server = await start_destination(broken.app)
    (tmp_path / ".a.part").write_bytes(broken.data[:1000])
    (tmp_path / ".a.part.etag").write_text(broken.etag)
    give = broken._give

    async def change(request: web.Request) -> web.StreamResponse:
        if len(broken.asked) == 1:  # it was gone on with, and broke off; now it is another file
            broken.data, broken.each = os.urandom(2 * MIB), 3 * MIB
            broken.etag = f'"{hashlib.sha256(broken.data).hexdigest()}"'
        return await give(request)

    app = web.Application()
    app.router.add_get("/files/{rest:.*}", change)
    server = await start_destination(app)
    fetch = await fetched(f"{server.url}/files/a", tmp_path / "a")
    assert (fetch.failed, fetch.verified, fetch.size, fetch.resumed_from) == (None, True, 2 * MIB, 0)


@pytest.mark.parametrize("location", ["http://[bad", "mailto:a@example.org", "//", "http://127.0.0.1:99999/"])
async def test_a_redirect_to_what_is_no_url_fails(
    start_destination: StartDestination, tmp_path: Path, location: str
) -> None:
    async def lead(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": location})

    app = web.Application()
    app.router.add_get("/a", lead)
    server = await start_destination(app)
    fetch = await fetched(f"{server.url}/a", tmp_path / "a")
    assert fetch.failed is not None
    assert fetch.failed.code is Code.FAILED
    assert list(tmp_path.iterdir()) == []


def test_no_redirect_leads_from_https_to_http() -> None:
    with pytest.raises(Failed):
        fetching._led(URL("https://example.org/a"), "http://example.org/a")
    for base in ("https://example.org/a", "http://example.org/a"):
        assert str(fetching._led(URL(base), "https://example.net/b")) == "https://example.net/b"
    assert str(fetching._led(URL("http://example.org/a"), "/b?c=%2F")) == "http://example.org/b?c=%2F"
