"""Where a gateway is, as far as it tells."""

from __future__ import annotations

import re

import pytest
from yarl import URL

from gateway.client.outcomes import Code, Failed
from gateway.client.remote import ID, connected, new_id
from gateway.sinks.store import UPLOAD_ID
from tests.conftest import StartGateway

ROUTES = [
    {"path": "/first", "parts": [{"sinks": ["disk"]}]},
    {"path": "/v1/second", "parts": [{"sinks": ["disk"]}]},
]


@pytest.mark.parametrize("base_path", ["", "/gw"])
async def test_the_base_of_a_gateway_means_its_first_route(start_gateway: StartGateway, base_path: str) -> None:
    server = {"base_path": base_path} if base_path else {}
    gateway = await start_gateway(routes=ROUTES, page={"enabled": True}, server=server)
    base = URL(gateway.url + base_path)
    async with connected("") as remote:
        for given, route in (("", "/first"), ("/", "/first"), ("/v1/second", "/v1/second")):
            place = await remote.place(URL(f"{base}{given}?signature=a%2Fb"))
            assert str(place.route) == f"{base}{route}?signature=a%2Fb".replace("%2F", "/")
            assert [str(one).rstrip("/") for one in place.bases] == [str(base).rstrip("/")]
            assert place.max_parts == 1000


async def test_without_anybody_who_tells_it_is_as_it_is_given(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(routes=ROUTES, page={"enabled": False})
    async with connected("") as remote:
        place = await remote.place(URL(gateway.url))
        assert str(place.route) == f"{gateway.url}/upload"
        place = await remote.place(URL(f"{gateway.url}/v1/second"))
        assert str(place.route) == f"{gateway.url}/v1/second"
        assert [one.path for one in place.bases] == ["/v1", "/"]


async def test_a_manifest_that_leads_elsewhere_is_not_followed(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    async with connected("gw_key") as remote:
        with pytest.raises(Failed) as raised:
            await remote.files(URL(f"{gateway.url}/healthz"))
    assert raised.value.code in (Code.FAILED, Code.REFUSED)


def test_ids_are_ulids() -> None:
    ids = {new_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(UPLOAD_ID.fullmatch(one) and ID.fullmatch(one) for one in ids)
    assert re.fullmatch(ID, "8" * 26) is None
