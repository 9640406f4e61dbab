"""Each metric of requests: what is refused, read, removed, downloaded and sent, in a run that makes it move."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiohttp import web

from gateway.access import QUOTAS, SCOPES, new_key
from gateway.errors import LEAVES, ClientFault, Refused
from tests.conftest import RunningGateway, StartDestination, StartGateway
from tests.support.clients import Client, VanishingClient, ask, eventually, file, form, head, random_bytes
from tests.support.scrapes import Samples, by, comes_to, of, scraped

WHOLE = form(file(b"abc"))
LARGE = random_bytes(3 << 20)
UNKNOWN = "0" * 26


def refusals(samples: Samples) -> dict[str, float]:
    """Reason -> count."""
    return {reason: count for (reason,), count in by(samples, "gateway_refusals_total", "reason").items()}


class TestRefusals:
    async def test_each_by_the_name_of_its_problem_whichever_request_it_is(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway(limits={"max_body_bytes": 4096}, server={"hosts": ["gateway"], "max_reads": 10})
        port = gateway.port
        kept = (await ask(port, "/upload", "POST", WHOLE)).headers["location"]
        kept_file = kept.replace("/uploads/", "/files/") + "/0"
        assert refusals(await scraped(port)) == {}
        for answer, status in (
            (await ask(port, "/nothing"), 404),
            (await ask(port, f"/uploads/{UNKNOWN}"), 404),
            (await ask(port, f"/uploads/{UNKNOWN}", "DELETE"), 404),
            (await ask(port, "/upload", "PATCH", b"abc"), 405),
            (await ask(port, "/upload", "POST", form(file(bytes(5000)))), 413),
            (await ask(port, "/upload", "POST", WHOLE[:-9]), 400),
            (await ask(port, "/upload", "POST", WHOLE, content_type="multipart/mixed; boundary=b0undary"), 415),
            (await ask(port, kept_file, range="bytes=3-"), 416),
            (await ask(port, kept_file, if_match='"other"'), 412),
            (await ask(port, "/upload", "POST", WHOLE, host="elsewhere"), 421),
            (await ask(port, "/download/http://127.0.0.1:1/"), 403),
        ):
            assert answer.status == status
        async with Client(port) as client:  # what no handler sees
            await client.send(b"GET / HTTP/1.1\r\nHost: gateway\r\n broken\r\n\r\n")
            assert (await client.answer()).status == 400
        assert refusals(await scraped(port)) == {
            "not-found": 3,
            "method-not-allowed": 1,
            "too-large": 1,
            "truncated": 1,
            "not-multipart": 1,
            "range-not-satisfiable": 1,
            "precondition-failed": 1,
            "misdirected-request": 1,
            "forbidden": 1,
            "malformed": 1,
        }

    async def test_what_there_is_no_room_for(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway(server={"max_uploads": 1})
        async with Client(gateway.port) as client:
            await client.send(head(content_length=len(WHOLE)) + WHOLE[:50])
            await eventually(lambda: gateway.services.gate.in_flight == 1)
            for _ in range(3):
                assert (await ask(gateway.port, "/upload", "POST", WHOLE)).status == 503
        samples = await scraped(gateway.port)
        assert refusals(samples)["busy"] == 3
        assert of(samples, "gateway_uploads_total", route="/upload", outcome="busy") == 3

    async def test_none_of_what_fails_behind_the_gateway_or_of_who_went_away(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway(api="http://127.0.0.1:1/")
        assert (await ask(gateway.port, "/proxy", "POST", WHOLE)).status == 503
        async with VanishingClient(gateway.port) as client:
            await client.send(head(content_length=len(WHOLE)))
            await eventually(lambda: gateway.services.gate.in_flight)
            await client.vanish_after(WHOLE[:50], "rst")
        await eventually(lambda: not gateway.services.requests)
        samples = await scraped(gateway.port)
        assert refusals(samples) == {}
        outcomes = by(samples, "gateway_uploads_total", "outcome")
        assert outcomes == {("sink-unavailable",): 1, ("client-gone",): 1}

    async def test_all_that_there_may_be_are_shown_from_the_start(self, start_gateway: StartGateway) -> None:
        samples = await scraped((await start_gateway()).port)
        shown = {dict(labels)["reason"] for name, labels in samples if name == "gateway_refusals_total"}
        kinds = [leaf for leaf in LEAVES if issubclass(leaf, Refused | ClientFault) and leaf.slug() != "client-gone"]
        assert shown == {leaf.slug() for leaf in kinds}
        assert {quota for quota in QUOTAS if of(samples, "gateway_quota_refusals_total", quota=quota) == 0} == {*QUOTAS}


class TestQuotas:
    @pytest.fixture
    def key(self, tmp_path: Path) -> str:
        key, line = new_key("ci", SCOPES)
        (tmp_path / "keys.toml").write_text(line)
        return key

    async def refused(self, start_gateway: StartGateway, tmp_path: Path, key: str, **quotas: int) -> Samples:
        """After an upload, and a second one that is refused."""
        gateway = await start_gateway(
            access={"keys": {"file": str(tmp_path / "keys.toml")}},
            routes=[{"path": "/upload", "access": ["keys"], "parts": [{"sinks": ["disk"]}]}],
            quotas=quotas,
        )
        assert (await ask(gateway.port, "/upload", "POST", WHOLE, x_api_key=key)).status == 201
        assert by(await scraped(gateway.port), "gateway_quota_refusals_total", "quota") == {}
        assert (await ask(gateway.port, "/upload", "POST", WHOLE, x_api_key=key)).status == 429
        return await scraped(gateway.port)

    @pytest.mark.parametrize(
        ("key_of_quota", "quota", "most"),
        [
            ("requests_per_minute", "requests", 1),
            ("bytes_per_day", "bytes", len(WHOLE) + 5),
            ("stored_bytes", "stored-bytes", len(WHOLE) + 2),  # what is declared counts, and then what is kept
        ],
    )
    async def test_of_an_identity(
        self,
        start_gateway: StartGateway,
        tmp_path: Path,
        key: str,
        monkeypatch: pytest.MonkeyPatch,
        key_of_quota: str,
        quota: str,
        most: int,
    ) -> None:
        monkeypatch.setattr("gateway.access.quotas._MINUTE", 3600)  # none ends meanwhile
        samples = await self.refused(start_gateway, tmp_path, key, **{key_of_quota: most})
        assert by(samples, "gateway_quota_refusals_total", "quota") == {(quota,): 1}
        assert refusals(samples) == {"too-many-requests": 1}

    async def test_of_an_address(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway(server={"max_uploads_per_address": 1})
        async with Client(gateway.port) as client:
            await client.send(head(content_length=1000) + WHOLE[:60])
            await eventually(lambda: gateway.services.gate.in_flight == 1)
            assert (await ask(gateway.port, "/upload", "POST", WHOLE)).status == 429
        assert by(await scraped(gateway.port), "gateway_quota_refusals_total", "quota") == {("uploads",): 1}

    async def test_of_reads_of_an_address(self, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch) -> None:
        gateway = await start_gateway()
        monkeypatch.setattr(gateway.services.quotas, "reads_per_address", 1)
        location = await _uploaded(gateway)
        async with Client(gateway.port, receive_buffer_bytes=4096) as client:
            await client.send(head(location.replace("uploads", "files") + "/0", "GET"))
            await comes_to(gateway.port, "gateway_reads_in_flight", 1)
            answer = await ask(gateway.port, location)
            assert (answer.status, answer.json()["quota"]) == (429, "reads")
            samples = await scraped(gateway.port)
            assert by(samples, "gateway_quota_refusals_total", "quota") == {("reads",): 1}
            assert of(samples, "gateway_reads_in_flight") == 1
        await comes_to(gateway.port, "gateway_reads_in_flight", 0)


async def _uploaded(gateway: RunningGateway, data: bytes = LARGE * 8) -> str:
    return (await ask(gateway.port, "/upload", "POST", form(file(data)))).headers["location"]


class TestReads:
    async def test_bytes_sent_are_those_that_clients_got(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway()
        port, location = gateway.port, await _uploaded(gateway, LARGE)
        files = location.replace("uploads", "files")
        whole, some = await ask(port, f"{files}/0"), await ask(port, f"{files}/0", range="bytes=5-104")
        assert whole.body == LARGE
        assert len(some.body) == 100
        await ask(port, f"{files}/0", "HEAD")
        await ask(port, f"{files}/0", if_none_match=whole.headers["etag"])
        manifests = [await ask(port, location) for _ in range(2)]
        archive = await ask(port, f"{location}/archive.zip")
        assert archive.status == 200
        assert (await ask(port, f"{files}/7")).status == 404
        samples = await scraped(port)
        assert by(samples, "gateway_sent_bytes_total", "what") == {
            ("file",): len(LARGE) + 100,
            ("manifest",): sum(len(manifest.body) for manifest in manifests),
            ("archive",): len(archive.body),
        }
        assert by(samples, "gateway_reads_total", "what", "outcome") == {
            ("file", "ok"): 4,
            ("file", "not-found"): 1,
            ("manifest", "ok"): 2,
            ("archive", "ok"): 1,
        }

    async def test_a_read_that_broke_off_sent_what_it_sent(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway()
        location = await _uploaded(gateway)
        async with VanishingClient(gateway.port, receive_buffer_bytes=4096) as client:
            await client.send(head(location.replace("uploads", "files") + "/0", "GET"))
            await comes_to(gateway.port, "gateway_reads_in_flight", 1)
            await client.vanish_after(b"", "rst")
        await comes_to(gateway.port, "gateway_reads_in_flight", 0)
        samples = await scraped(gateway.port)
        assert by(samples, "gateway_reads_total", "what", "outcome") == {("file", "client-gone"): 1}
        assert 0 <= of(samples, "gateway_sent_bytes_total", what="file") < 8 * len(LARGE)

    async def test_removals(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway()
        location = await _uploaded(gateway, b"abc")
        assert [(await ask(gateway.port, location, "DELETE")).status for _ in range(3)] == [204, 404, 404]
        deletes = by(await scraped(gateway.port), "gateway_deletes_total", "outcome")
        assert deletes == {("ok",): 1, ("not-found",): 2}


async def test_downloads_with_the_bytes_that_went_to_clients(
    start_gateway: StartGateway, start_destination: StartDestination
) -> None:
    async def whole(request: web.Request) -> web.Response:
        return web.Response(body=LARGE)

    async def broken(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(LARGE))})
        await response.prepare(request)
        await response.write(LARGE[:1000])
        assert request.transport is not None
        request.transport.close()
        return response

    app = web.Application()
    app.router.add_get("/whole", whole)
    app.router.add_get("/broken", broken)
    there = (await start_destination(app)).url
    gateway = await start_gateway(download={"allow": [f"{there}/*"], "allow_private": ["127.0.0.0/8"]})
    assert (await ask(gateway.port, f"/download/{there}/whole")).body == LARGE
    with pytest.raises(ConnectionError):
        await ask(gateway.port, f"/download/{there}/broken")
    assert (await ask(gateway.port, "/download/http://127.0.0.1:1/")).status == 403
    samples = await scraped(gateway.port)
    downloads = by(samples, "gateway_downloads_total", "outcome")
    assert downloads == {("ok",): 1, ("sink-refused",): 1, ("forbidden",): 1}
    assert of(samples, "gateway_sent_bytes_total", what="download") == len(LARGE) + 1000
