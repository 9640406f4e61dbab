"""The sink that keeps nothing, on purpose."""

from __future__ import annotations

import pytest
from aiohttp import ClientSession

from gateway.model import Receipt
from gateway.sinks.discard import DiscardSink
from tests.conftest import StartGateway
from tests.contract import SinkContract, Subject, delivering, file, source, upload


async def _nothing() -> int:
    return 0


class TestContract(SinkContract):
    @pytest.fixture
    def subject(self) -> Subject:
        return Subject(DiscardSink(name="none"), visible=_nothing)


async def test_its_receipts_name_it_and_no_place() -> None:
    async with delivering(DiscardSink(name="none"), upload()) as delivery:
        await delivery.accept(file(1), source(b"data"))
        assert await delivery.commit() == [Receipt(1, "none", None, None)]


async def test_a_route_that_only_discards_has_no_place_to_fetch_from(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(routes=[{"path": "/dry", "parts": [{"sinks": ["none"]}]}])
    async with ClientSession() as session, session.put(gateway.url + "/dry/a.bin", data=b"x" * 1_000_000) as response:
        manifest = await response.json()
        assert response.status == 201
        assert "Location" not in response.headers
    assert manifest["parts"][0]["size"] == 1_000_000
    assert manifest["parts"][0]["receipts"] == [{"sink": "none", "location": None}]
    assert gateway.stored() == []
