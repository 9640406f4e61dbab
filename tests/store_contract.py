"""What every store must do, whatever it is, asked by clients of a gateway. Not collected: a test file inherits it.

class TestDisk(StoreContract):
    @pytest.fixture
    def subject(self) -> StoreSubject:
        return StoreSubject({"type": "disk", ...}, left=...)
"""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import ClientSession

from gateway.sinks.store import Store
from tests.conftest import RunningGateway, StartGateway
from tests.contract import END, FORM, answer_of, form, form_part, sha256

__all__ = ["StoreContract", "StoreSubject"]

_LARGE = bytes(range(256)) * 30_000  # 7.7 MB: more than one part of an object
_SECONDS = 30


@dataclass
class StoreSubject:
    """A store under test: its table in a configuration, and what is left in it, whatever that is."""

    settings: Mapping[str, Any]
    left: Callable[[Store], Awaitable[list[str]]]


class StoreContract:
    """Inherit it as `Test…`, and give it a fixture named `subject`."""

    @pytest.fixture
    async def gateway(self, subject: StoreSubject, start_gateway: StartGateway) -> RunningGateway:
        return await self._started(subject, start_gateway)

    async def _started(self, subject: StoreSubject, start_gateway: StartGateway, **more: Any) -> RunningGateway:
        settings = {**subject.settings, **more.pop("settings", {})}
        rule = {"flows": more.pop("flows", []), "sinks": [*more.pop("beside", []), "kept"]}
        routes = [{"path": "/in", "parts": [rule], **more.pop("route", {})}]
        return await start_gateway(sinks={"kept": settings, **more.pop("sinks", {})}, routes=routes, **more)

    async def _left(self, subject: StoreSubject, gateway: RunningGateway) -> list[str]:
        store = gateway.services.sinks["kept"]
        assert isinstance(store, Store)
        return await subject.left(store)

    async def test_what_was_answered_is_given_back(self, gateway: RunningGateway) -> None:
        async with ClientSession(gateway.url) as session:
            parts = (b"file", b"a b.bin", _LARGE), (b"note", None, b"a field"), (b"file", b"empty", b"")
            async with session.post("/in", data=form(*parts), headers=FORM) as answer:
                assert answer.status == 201
                manifest, location = await answer.read(), answer.headers["Location"]
            async with session.get(location) as answer:
                assert (answer.status, await answer.read()) == (200, manifest)
            large, note, empty = json.loads(manifest)["parts"]
            assert note["receipts"] == []
            for part, data in ((large, _LARGE), (empty, b"")):
                (receipt,) = part["receipts"]
                async with session.get(receipt["location"]) as answer:
                    assert await answer.read() == data
                    assert answer.headers["ETag"] == f'"{sha256(data)}"'
                    assert answer.headers["Content-Type"] == "application/octet-stream"
                    assert "attachment" in answer.headers["Content-Disposition"]
            async with session.get(f"{location.replace('/uploads/', '/files/')}/1") as answer:
                assert answer.status == 404

    async def test_ranges_and_conditions_are_judged_here(self, gateway: RunningGateway) -> None:
        async with ClientSession(gateway.url) as session:
            _, manifest = await answer_of(session, "/in", form((b"file", b"a.bin", _LARGE)))
            place = manifest["parts"][0]["receipts"][0]["location"]
            async with session.head(place) as answer:
                assert (answer.status, answer.headers["Content-Length"]) == (200, str(len(_LARGE)))
                etag, modified = answer.headers["ETag"], answer.headers["Last-Modified"]
            for asked, start, stop in (
                ("bytes=0-0", 0, 1),
                ("bytes=1000000-1999999", 1_000_000, 2_000_000),
                ("bytes=-7", len(_LARGE) - 7, len(_LARGE)),
            ):
                async with session.get(place, headers={"Range": asked}) as answer:
                    assert (answer.status, await answer.read()) == (206, _LARGE[start:stop])
                    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(_LARGE)}"
            for condition, status in (
                ({"If-None-Match": etag}, 304),
                ({"If-Modified-Since": modified}, 304),
                ({"If-Match": '"another"'}, 412),
                ({"Range": f"bytes={len(_LARGE)}-"}, 416),
                ({"Range": "bytes=0-9", "If-Range": '"another"'}, 200),
                ({"Range": "bytes=0-9", "If-Range": etag}, 206),
            ):
                async with session.get(place, headers=condition) as answer:
                    assert answer.status == status, condition

    async def test_an_archive_has_all_files(self, gateway: RunningGateway) -> None:
        parts = [(b"file", f"{number}.bin".encode(), _LARGE[: number * 1_000_000]) for number in range(4)]
        async with ClientSession(gateway.url) as session:
            async with session.post("/in", data=form(*parts), headers=FORM) as answer:
                location = answer.headers["Location"]
            async with session.get(f"{location}/archive.zip") as answer:
                assert answer.status == 200
                archive = zipfile.ZipFile(io.BytesIO(await answer.read()))
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == {
            name.decode(): data for _, name, data in parts
        }

    async def test_what_is_removed_is_gone_with_all_that_was_of_it(
        self, subject: StoreSubject, gateway: RunningGateway
    ) -> None:
        async with ClientSession(gateway.url) as session:
            places = []
            for _ in range(2):
                async with session.post(
                    "/in", data=form((b"file", b"a", _LARGE), (b"file", b"b", b"x")), headers=FORM
                ) as answer:
                    places.append(answer.headers["Location"])
            for place in places:
                async with session.delete(place) as answer:
                    assert answer.status == 204
                for path in (place, f"{place}/archive.zip", place.replace("/uploads/", "/files/") + "/0"):
                    async with session.get(path) as answer:
                        assert answer.status == 404
                async with session.delete(place) as answer:
                    assert answer.status == 404
        assert await self._left(subject, gateway) == []

    async def test_nothing_is_served_before_the_end_nor_left_when_that_does_not_come(
        self, subject: StoreSubject, gateway: RunningGateway
    ) -> None:
        sent, checked = asyncio.Event(), asyncio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield form_part(b"file", b"a.bin", _LARGE) + form_part(b"file", b"small", b"x")
            sent.set()
            await checked.wait()
            yield b"--b\r\nno header\r\n\r\n" + END

        async with ClientSession(gateway.url) as session, asyncio.TaskGroup() as group:
            upload = group.create_task(answer_of(session, "/in", body()))
            await sent.wait()
            await asyncio.sleep(0.3)
            for one in {
                name.partition("/")[0].strip(".").partition(".")[0] for name in await self._left(subject, gateway)
            }:
                for path in (f"/uploads/{one}", f"/files/{one}/0", f"/uploads/{one}/archive.zip"):
                    async with session.get(path) as answer:
                        assert answer.status == 404
            checked.set()
            status, _ = await upload
        assert status == 400
        assert await self._left(subject, gateway) == []

    async def test_bytes_that_are_not_those_declared_leave_nothing(
        self, subject: StoreSubject, gateway: RunningGateway
    ) -> None:
        async with ClientSession(gateway.url) as session:
            wrong = {"Content-Digest": "sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:"}
            async with session.put("/in/a.bin", data=io.BytesIO(_LARGE), headers=wrong) as answer:
                problem = await answer.json(content_type=None)
                assert (answer.status, problem["type"]) == (400, "/problems/digest-mismatch")
        assert await self._left(subject, gateway) == []

    async def test_each_part_may_be_kept_for_itself(self, subject: StoreSubject, start_gateway: StartGateway) -> None:
        gateway = await self._started(
            subject, start_gateway, route={"keep": "each"}, limits={"max_file_bytes": 6_000_000}
        )
        parts = (b"file", b"good", _LARGE[:5_500_000]), (b"file", b"large", _LARGE), (b"file", b"small", b"x")
        async with ClientSession(gateway.url) as session:
            async with session.post("/in", data=form(*parts), headers=FORM) as answer:
                assert answer.status == 207
                good, large, small = (await answer.json())["parts"]
                location = answer.headers["Location"]
            assert large["receipts"] == []
            for part, data in ((good, _LARGE[:5_500_000]), (small, b"x")):
                async with session.get(part["receipts"][0]["location"]) as answer:
                    assert await answer.read() == data
            async with session.get(f"{location.replace('/uploads/', '/files/')}/1") as answer:
                assert answer.status == 404
            async with session.delete(location) as answer:
                assert answer.status == 204
        assert await self._left(subject, gateway) == []

    async def test_what_flows_make_of_a_file_is_given_back(
        self, subject: StoreSubject, start_gateway: StartGateway
    ) -> None:
        gateway = await self._started(subject, start_gateway, flows=["gzip"])
        async with ClientSession(gateway.url, auto_decompress=False) as session:
            async with session.post("/in", data=form((b"file", b"a.txt", _LARGE)), headers=FORM) as answer:
                assert answer.status == 201
                (part,) = (await answer.json())["parts"]
            (receipt,) = part["receipts"]
            assert (part["sha256"], receipt["filename"]) == (sha256(_LARGE), "a.txt.gz")
            async with session.get(receipt["location"]) as answer:
                made = await answer.read()
                assert (gzip.decompress(made), sha256(made)) == (_LARGE, receipt["sha256"])
                assert answer.headers["Content-Disposition"].endswith("a.txt.gz")

    async def test_it_may_stand_beside_a_disk_and_a_relay(
        self, subject: StoreSubject, start_gateway: StartGateway, start_destination: Any
    ) -> None:
        destination = await start_destination()
        api = f"{destination.url}/upload"
        beside = ["disk", "api", {"sink": "late", "mode": "best_effort"}]
        gateway = await self._started(
            subject, start_gateway, api=api, beside=beside, sinks={"late": {"type": "discard"}}
        )
        async with ClientSession(gateway.url) as session:
            async with session.post("/in", data=form((b"file", b"a", _LARGE)), headers=FORM) as answer:
                assert answer.status == 201
                location, told = answer.headers["Location"], await answer.read()
                (part,) = json.loads(told)["parts"]
            assert [receipt["sink"] for receipt in part["receipts"]] == ["disk", "api", "late", "kept"]
            async with session.get(location) as answer:
                assert await answer.read() == told
            async with session.delete(location) as answer:
                assert answer.status == 204
        assert await self._left(subject, gateway) == []
        assert gateway.stored() == []

    async def test_a_relay_that_refuses_leaves_nothing_here(
        self, subject: StoreSubject, start_gateway: StartGateway, start_destination: Any
    ) -> None:
        destination = await start_destination()
        gateway = await self._started(
            subject, start_gateway, api=f"{destination.url}/upload?status=500", beside=["api"]
        )
        async with ClientSession(gateway.url) as session:
            status, problem = await answer_of(session, "/in", form((b"file", b"a", _LARGE)))
        assert (status, problem["sink"]) == (502, "api")
        assert await self._left(subject, gateway) == []

    async def test_what_is_older_than_it_is_kept_goes(self, subject: StoreSubject, start_gateway: StartGateway) -> None:
        gateway = await self._started(subject, start_gateway, settings={"keep_seconds": 1})
        async with ClientSession(gateway.url) as session:
            async with session.post("/in", data=form((b"file", b"a", b"x")), headers=FORM) as answer:
                location = answer.headers["Location"]
            async with asyncio.timeout(_SECONDS):
                status = 200
                while status == 200:
                    async with session.get(location) as answer:
                        status = answer.status
                    await asyncio.sleep(0.2)
            assert status == 404
            async with asyncio.timeout(_SECONDS):
                while await self._left(subject, gateway):  # noqa: ASYNC110 - a sweep signals nothing
                    await asyncio.sleep(0.1)
