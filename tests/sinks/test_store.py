"""Stores of a user's: what they keep is given back at the places that are told, or no place is told."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any

import pytest
from aiohttp import ClientSession

from gateway.config.messages import ConfigError
from gateway.sinks.store import manifest_keeper
from tests.conftest import StartGateway
from tests.contract import END, FORM, SinkContract, Subject, form_part, sha256
from tests.support.doubles import HoardingSink, MemorySink, MemoryStore


def double(kind: str, **arguments: Any) -> dict[str, Any]:
    return {"type": f"tests.support.doubles:{kind}", **arguments}


def route(*sinks: str | Mapping[str, Any], **keys: Any) -> list[dict[str, Any]]:
    return [{"path": "/in", "parts": [{"sinks": list(sinks)}], **keys}]


class TestContract(SinkContract):
    @pytest.fixture
    def subject(self) -> Subject:
        store = MemoryStore()

        async def visible() -> int:
            return len(store.kept)

        async def digests(upload: Any, delivery: object) -> list[str]:
            return [sha256(data) for _, data in sorted(store.kept[upload.id].items())]

        return Subject(store, visible, digests)


BODY = form_part(b"file", b"a b.bin", b"0123456789") + form_part(b"note", None, b"a field") + END


async def test_the_location_of_an_upload_that_a_users_store_keeps_is_its_manifest(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(sinks={"mine": double("MemoryStore")}, routes=route("mine"))
    async with ClientSession(gateway.url) as session:
        async with session.post("/in", data=BODY, headers=FORM) as answer:
            assert answer.status == 201
            location, manifest = answer.headers["location"], await answer.read()
        (file, _) = json.loads(manifest)["parts"]
        place = f"/files/{location.rpartition('/')[2]}/0/a%20b.bin"
        assert file["receipts"] == [{"sink": "mine", "location": place}]
        async with session.get(location) as stored:
            assert (stored.status, await stored.read()) == (200, manifest)
        async with session.get(place) as answer:
            assert (answer.status, await answer.read()) == (200, b"0123456789")
            assert answer.headers["etag"] == f'"{hashlib.sha256(b"0123456789").hexdigest()}"'
        async with session.get(place, headers={"Range": "bytes=2-4"}) as answer:
            assert (answer.status, await answer.read()) == (206, b"234")
        async with session.get(f"{location}/archive.zip") as answer:
            assert (answer.status, (await answer.json(content_type=None))["status"]) == (404, 404)
        async with session.delete(location) as answer:
            assert answer.status == 204
        async with session.get(location) as answer:
            assert answer.status == 404


async def test_a_large_file_of_a_users_store_is_read_in_pieces(start_gateway: StartGateway) -> None:
    gateway, data = await start_gateway(sinks={"mine": double("MemoryStore")}, routes=route("mine")), bytes(3_000_000)
    async with ClientSession(gateway.url) as session:
        async with session.put("/in/large", data=io.BytesIO(data)) as answer:
            place = (await answer.json())["parts"][0]["receipts"][0]["location"]
        async with session.get(place) as answer:
            assert await answer.read() == data


async def test_who_would_keep_the_manifest_and_is_no_store_is_not_asked_and_no_location_is_told(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(sinks={"mine": double("HoardingSink")}, routes=route("mine"))
    async with ClientSession(gateway.url) as session, session.post("/in", data=BODY, headers=FORM) as answer:
        assert answer.status == 201
        assert "location" not in answer.headers
        assert (await answer.json())["parts"][0]["receipts"] == [{"sink": "mine", "location": None}]
    sink = gateway.services.sinks["mine"]
    assert isinstance(sink, HoardingSink)
    assert (len(sink.kept), sink.manifests) == (1, {})


@pytest.mark.parametrize("order", [("mine", "disk"), ("disk", "mine")])
async def test_the_first_store_of_a_route_keeps_the_manifest_and_one_removal_removes_all(
    start_gateway: StartGateway, order: tuple[str, str]
) -> None:
    gateway = await start_gateway(sinks={"mine": double("MemoryStore")}, routes=route(*order))
    store = gateway.services.sinks["mine"]
    assert isinstance(store, MemoryStore)
    async with ClientSession(gateway.url) as session:
        async with session.post("/in", data=BODY, headers=FORM) as answer:
            location = answer.headers["location"]
            receipts = (await answer.json())["parts"][0]["receipts"]
        assert [receipt["sink"] for receipt in receipts] == list(order)
        assert len({receipt["location"] for receipt in receipts}) == 1
        names = [path.name for path in gateway.stored() if path.is_file()]
        assert (len(store.manifests), "manifest.json" in names) == ((1, False) if order[0] == "mine" else (0, True))
        async with session.get(location) as answer:
            assert answer.status == 200
        async with session.get(f"{location}/archive.zip") as answer:  # of two that have a file the first configured
            assert answer.status == 200
            await answer.read()  # for as long as something is left to read it cannot be removed
        async with session.delete(location) as answer:
            assert answer.status == 204
    assert (store.kept, gateway.stored()) == ({}, [])


async def test_what_became_of_best_effort_is_in_the_manifest_that_a_users_store_gives_back(
    start_gateway: StartGateway,
) -> None:
    other = {"sink": "b", "mode": "best_effort"}
    sinks = {"mine": double("MemoryStore"), "b": double("MemorySink")}
    gateway = await start_gateway(sinks=sinks, routes=route("mine", other))
    async with ClientSession(gateway.url) as session:
        async with session.post("/in", data=BODY, headers=FORM) as answer:
            location, manifest = answer.headers["location"], await answer.read()
        async with session.get(location) as stored:
            assert await stored.read() == manifest
    assert json.loads(manifest)["parts"][0]["receipts"][1] == {"sink": "b", "location": "memory:0"}


@pytest.mark.parametrize(
    ("sinks", "uses", "problem"),
    [
        ({"mine": double("MemoryStore")}, [{"sink": "mine", "mode": "best_effort"}, "none"], "has to be required"),
        ({"mine": double("MemoryStore", keep_seconds=60)}, ["disk", "mine"], "different keep_seconds"),
    ],
)
async def test_what_a_route_asks_of_a_users_store_is_said_at_the_start(
    start_gateway: StartGateway, sinks: dict[str, Any], uses: list[Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        await start_gateway(sinks=sinks, routes=route(*uses))


def test_the_keeper_of_the_manifest_is_the_first_store_if_there_is_one() -> None:
    sinks = {"a": MemorySink(), "b": MemoryStore(), "c": MemoryStore()}
    assert manifest_keeper(["a", "c", "b"], sinks) == "c"
    assert manifest_keeper(["a"], sinks) is None
