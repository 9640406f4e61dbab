"""The contract as a user meets it: a sink with nothing but what has to be written, on routes of every kind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from gateway.config.load import load
from gateway.config.messages import ConfigError
from gateway.model import Receipt, Upload
from gateway.sinks import Delivery, Sink, Stage
from tests.conftest import RunningGateway, StartDestination, StartGateway
from tests.contract import END, FORM, SinkContract, Subject, file, form_part, sha256, source, upload
from tests.support.doubles import MemorySink, MinimalDroppingSink, MinimalSink

SMALL, LARGE = b"small", bytes(range(256)) * 2000
PLAIN = [{"sink": "mine", "location": None}]
BODY = form_part(b"file", b"a.bin", SMALL) + form_part(b"note", None, b"field") + form_part(b"file", b"b", LARGE) + END


def double(kind: str) -> dict[str, Any]:
    return {"type": f"tests.support.doubles:{kind}"}


def route(*sinks: str | Mapping[str, Any], **keys: Any) -> list[dict[str, Any]]:
    return [{"path": "/in", "parts": [{"sinks": list(sinks)}], **keys}]


def kept(gateway: RunningGateway) -> list[dict[int, bytes]]:
    sink = gateway.services.sinks["mine"]
    assert isinstance(sink, MinimalSink)
    return list(sink.kept.values())


class _InMemory(SinkContract):
    def _subject(self, sink: MinimalSink | MemorySink) -> Subject:
        async def visible() -> int:
            return len(sink.kept)

        async def digests(upload: Upload, _: Delivery) -> list[str]:
            return [sha256(data) for _, data in sorted(sink.kept[upload.id].items())]

        return Subject(sink, visible, digests, gives_receipts=isinstance(sink, MemorySink))


class TestDouble(_InMemory):
    @pytest.fixture
    def subject(self) -> Subject:
        return self._subject(MemorySink())


class TestDroppingSink(_InMemory):
    @pytest.fixture
    def subject(self) -> Subject:
        return self._subject(MinimalDroppingSink())


class TestMinimalSink(_InMemory):
    @pytest.fixture
    def subject(self) -> Subject:
        return self._subject(MinimalSink())


# -- through a gateway


async def test_an_upload_route_gives_it_files_and_plain_receipts(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(sinks={"mine": double("MinimalSink")}, routes=route("mine"))
    async with ClientSession() as session, session.post(gateway.url + "/in", data=BODY, headers=FORM) as answer:
        assert answer.status == 201
        assert "Location" not in answer.headers
        parts = (await answer.json())["parts"]
    assert [part["receipts"] for part in parts] == [PLAIN, [], PLAIN]
    assert kept(gateway) == [{0: SMALL, 2: LARGE}]


async def test_a_raw_body_is_one_file(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(sinks={"mine": double("MinimalSink")}, routes=route("mine"))
    async with ClientSession() as session, session.put(gateway.url + "/in/a.bin", data=LARGE) as answer:
        assert answer.status == 201
    assert kept(gateway) == [{0: LARGE}]


async def test_a_relay_route_gives_it_files_beside_the_destination_that_answers(
    start_gateway: StartGateway, start_destination: StartDestination
) -> None:
    api = (await start_destination()).url + "/upload"
    routes = route("mine", "api", kind="relay")
    gateway = await start_gateway(api=api, sinks={"mine": double("MinimalSink")}, routes=routes)
    async with ClientSession() as session, session.post(gateway.url + "/in", data=BODY, headers=FORM) as answer:
        assert answer.status == 200
        assert len((await answer.json())["parts"]) == 3
    assert kept(gateway) == [{0: SMALL, 2: LARGE}]


async def test_a_convert_route_gives_it_what_the_flows_made(start_gateway: StartGateway) -> None:
    routes = route("mine", kind="convert")
    routes[0]["parts"][0]["flows"] = ["gzip"]
    gateway = await start_gateway(sinks={"mine": double("MinimalSink")}, routes=routes)
    async with ClientSession() as session, session.post(gateway.url + "/in", data=BODY, headers=FORM) as answer:
        assert answer.status == 200
        outputs = [result["output"] for result in await answer.json()]
    (parts,) = kept(gateway)
    assert [output["sha256"] for output in outputs] == [sha256(parts[0]), sha256(parts[2])]
    assert [output["location"] for output in outputs] == [None, None]


def test_an_opaque_route_is_for_one_relay_and_says_so(tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text(
        '[sinks.mine]\ntype = "tests.support.doubles:MinimalSink"\n'
        '[[routes]]\npath = "/in"\nkind = "opaque"\n[[routes.parts]]\nsinks = ["mine"]'
    )
    with pytest.raises(ConfigError, match="opaque"):
        load(str(config))


async def test_where_each_part_is_kept_it_has_to_be_able_to_drop_one(start_gateway: StartGateway) -> None:
    with pytest.raises(ConfigError, match="mine has no can_drop"):
        await start_gateway(sinks={"mine": double("MinimalSink")}, routes=route("mine", keep="each"))
    limits = {"max_file_bytes": 1000}
    sinks = {"mine": double("MinimalDroppingSink")}
    gateway = await start_gateway(sinks=sinks, routes=route("mine", keep="each"), limits=limits)
    async with ClientSession() as session, session.post(gateway.url + "/in", data=BODY, headers=FORM) as answer:
        assert answer.status == 207
        parts = (await answer.json())["parts"]
    assert [part.get("problem", {}).get("status") for part in parts] == [None, None, 413]
    assert kept(gateway) == [{0: SMALL}]


async def test_as_best_effort_it_gets_everything_too(start_gateway: StartGateway) -> None:
    mine = {"sink": "mine", "mode": "best_effort"}
    gateway = await start_gateway(sinks={"mine": double("MinimalSink")}, routes=route("disk", mine))
    async with ClientSession() as session, session.post(gateway.url + "/in", data=BODY, headers=FORM) as answer:
        manifest = json.loads(await answer.read())
    assert [part["receipts"][-1:] for part in manifest["parts"]] == [PLAIN, [], PLAIN]
    assert kept(gateway) == [{0: SMALL, 2: LARGE}]


@pytest.mark.tracebacks
async def test_a_delivery_that_is_none_is_the_fault_of_its_sink(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(sinks={"mine": {"type": f"{__name__}:Misdelivering"}}, routes=route("mine"))
    async with ClientSession() as session, session.post(gateway.url + "/in", data=BODY, headers=FORM) as answer:
        assert (answer.status, (await answer.json(content_type=None))["sink"]) == (503, "mine")


class Misdelivering(MinimalSink):
    """What it opens has no contract."""

    def open(self, upload: Upload) -> Any:
        return _NoDelivery()


class _NoDelivery:
    async def __aenter__(self) -> object:
        return object()

    async def __aexit__(self, *exc_info: object) -> None: ...


# -- the defaults


async def test_what_is_left_out_has_a_default_that_does_nothing() -> None:
    sink, one = MinimalSink(), upload()
    sink.admit(one)
    assert (sink.stage, sink.can_drop, sink.takes_wire, sink.leaves_out(file(0))) == (Stage.OTHER, False, False, False)
    async with sink as entered, sink.open(one) as delivery:
        assert entered is sink
        traits = (delivery.takes_batches, delivery.takes_wire, delivery.is_watched, delivery.hashes)
        assert (traits, delivery.completes_parts, delivery.read_seconds) == ((False,) * 4, False, None)
        await delivery.accept(file(0), source(b"x"))
        delivery.inform([])
        assert (delivery.began, list(delivery.committed()), delivery.answer()) == (True, [], None)
        assert await delivery.commit() == []


def test_a_sink_or_a_delivery_without_its_verbs_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="open"):
        type("Verbless", (Sink,), {})()
    with pytest.raises(TypeError, match="accept"):
        type("Verbless", (Delivery,), {})()
    assert Receipt(0, "mine").location is None
