"""Where a gateway is, as far as it tells."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web
from yarl import URL

from gateway.client.outcomes import Failed
from gateway.client.remote import connected
from tests.conftest import StartDestination, StartGateway

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


def manifest(*locations: object, name: object = "a") -> dict[str, Any]:
    receipts = [{"sink": "disk", "location": location} for location in locations]
    return {"parts": [{"filename": name, "sha256": "0" * 64, "receipts": receipts}]}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (manifest("//elsewhere.example.org/files/1/0"), "leads elsewhere"),
        (manifest("https://elsewhere.example.org/files/1/0"), "has no file"),  # a destination's own
        (manifest("//["), "is no manifest"),
        (manifest("/files/1/0", name=3), "is no manifest"),
        (manifest("/files/1/0", name={"a": 1}), "is no manifest"),
        ({"parts": [{"receipts": [3]}]}, "is no manifest"),
        ({"parts": 3}, "is no manifest"),
        ([], "is no manifest"),
        (None, "is no manifest"),
    ],
)
async def test_a_manifest_that_leads_elsewhere_or_is_none_is_not_followed(
    start_destination: StartDestination, document: object, said: str
) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response(document)

    app = web.Application()
    app.router.add_get("/uploads/1", answer)
    server = await start_destination(app)
    async with connected("gw_key") as remote:
        with pytest.raises(Failed, match=said):
            await remote.files(URL(f"{server.url}/uploads/1"))


async def test_a_manifest_says_where_its_files_are(start_destination: StartDestination) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response(manifest("https://elsewhere.example.org/1", "/files/1/0", name=None))

    app = web.Application()
    app.router.add_get("/gw/uploads/1", answer)
    server = await start_destination(app)
    async with connected("gw_key") as remote:
        (found,) = await remote.files(URL(f"{server.url}/gw/uploads/1"))
    assert (str(found.url), found.name, found.sha256) == (f"{server.url}/files/1/0", None, "0" * 64)


@pytest.mark.parametrize("path", [3, "upload", None, ["/"]])
@pytest.mark.parametrize("most", [float("inf"), 5])
async def test_who_describes_something_else_is_no_gateway(
    start_destination: StartDestination, path: object, most: float
) -> None:
    async def describe(request: web.Request) -> web.Response:
        return web.json_response({"routes": [{"path": path}], "limits": {"max_parts": most}})

    app = web.Application()
    app.router.add_get("/", describe)
    server = await start_destination(app)
    async with connected("") as remote:
        assert str((await remote.place(URL(server.url))).route) == f"{server.url}/upload"
