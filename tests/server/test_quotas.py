"""How much one may have, over sockets: what one address holds is not what others need."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.access import SCOPES, new_key, signed_url
from tests.conftest import RunningGateway, StartGateway
from tests.support.clients import Answer, Client, ask, eventually, file, form, head, random_bytes
from tests.support.processes import gateway_process

pytestmark = pytest.mark.sockets

BODY = form(file(b"hello"))
LARGE = form(file(random_bytes(300_000)))


@contextlib.asynccontextmanager
async def slow_uploads(port: int, count: int, address: str) -> AsyncIterator[list[int]]:
    """From one address: the head, a few bytes, and then next to nothing. The statuses of those that are answered."""
    statuses: list[int] = []

    async def slow() -> None:
        client = Client(port)
        client._socket.bind((address, 0))
        async with client:
            await client.send(head(content_length=1 << 20) + BODY[:60])
            statuses.append((await client.answer(60)).status)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(slow()) for _ in range(count)]
        await asyncio.sleep(0.5)
        yield statuses
        for task in tasks:
            task.cancel()


class TestOneAddress:
    @pytest.mark.parametrize("workers", [1, 2])
    async def test_with_the_defaults_it_is_held_to_its_share_and_others_lose_nothing(
        self, tmp_path: Path, workers: int
    ) -> None:
        env = {"GATEWAY_SERVER__MAX_UPLOADS_PER_ADDRESS": ""}
        config = f"[server]\nworkers = {workers}\n"
        with gateway_process(tmp_path, config, **env) as process:
            async with slow_uploads(process.port, 75, "127.0.0.2") as statuses:
                await eventually(lambda: len(statuses) == 75 - 16)
                assert set(statuses) == {429}
                for _ in range(5):
                    answers = await asyncio.gather(*(ask(process.port, "/upload", "POST", BODY) for _ in range(15)))
                    assert {answer.status for answer in answers} == {201}
            answers = await asyncio.gather(*(ask(process.port, "/upload", "POST", BODY) for _ in range(15)))
            assert {answer.status for answer in answers} == {201}

    async def test_what_is_given_back_may_be_had_again_however_it_ended(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway(server={"max_uploads_per_address": 1})
        for body in (BODY, BODY[:-10], LARGE):
            assert (await ask(gateway.port, "/upload", "POST", body)).status in (201, 400)
        async with Client(gateway.port) as client:
            await client.send(head(content_length=1000) + BODY[:60])
            await eventually(lambda: gateway.services.gate.in_flight == 1)
            answer = await ask(gateway.port, "/upload", "POST", BODY)
            assert (answer.status, answer.headers["retry-after"]) == (429, "2")
            assert (answer.json()["type"], answer.json()["limit"]) == ("/problems/too-many-requests", 1)
        await eventually(lambda: gateway.services.gate.in_flight == 0)
        assert (await ask(gateway.port, "/upload", "POST", BODY)).status == 201

    async def test_a_refusal_of_another_kind_gives_the_share_back(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway(server={"max_uploads": 1, "max_uploads_per_address": 2})
        async with Client(gateway.port) as client:
            await client.send(head(content_length=1000) + BODY[:60])
            await eventually(lambda: gateway.services.gate.in_flight == 1)
            for _ in range(5):
                assert (await ask(gateway.port, "/upload", "POST", BODY)).status == 503

    async def test_behind_a_trusted_proxy_it_is_the_clients(self, start_gateway: StartGateway) -> None:
        server = {"max_uploads_per_address": 1, "trusted_networks": ["127.0.0.0/8"]}
        gateway = await start_gateway(server=server)
        async with Client(gateway.port) as client:
            await client.send(head(content_length=1000, x_forwarded_for="2001:db8::1") + BODY[:60])
            await eventually(lambda: gateway.services.gate.in_flight == 1)
            for address, status in (("2001:db8::2", 429), ("2001:db8:0:1::2", 201), ("192.0.2.1", 201)):
                answer = await ask(gateway.port, "/upload", "POST", BODY, x_forwarded_for=address)
                assert answer.status == status, address


class TestIdentities:
    @pytest.fixture
    def keys(self, tmp_path: Path) -> dict[str, str]:
        made = {name: new_key(name, SCOPES) for name in ("ci", "other")}
        (tmp_path / "keys.toml").write_text("\n".join(line for _, line in made.values()))
        (tmp_path / "signing.keys").write_text("s" * 40)
        return {name: key for name, (key, _) in made.items()}

    @staticmethod
    async def start(start_gateway: StartGateway, tmp_path: Path, **quotas: Any) -> RunningGateway:
        access = {
            "keys": {"file": str(tmp_path / "keys.toml")},
            "signed": {"secrets_file": str(tmp_path / "signing.keys")},
        }
        routes = [{"path": "/upload", "access": ["keys", "signed"], "parts": [{"sinks": ["disk"]}]}]
        sinks = {"disk": {"root": str(tmp_path / "disk"), "fsync": False}}
        return await start_gateway(access=access, routes=routes, sinks=sinks, quotas=quotas)

    @staticmethod
    async def upload(gateway: RunningGateway, key: str, body: bytes = BODY) -> Answer:
        return await ask(gateway.port, "/upload", "POST", body, x_api_key=key)

    async def test_requests_in_a_minute(
        self, start_gateway: StartGateway, tmp_path: Path, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gateway.access.quotas._MINUTE", 3600)  # none ends meanwhile
        gateway = await self.start(start_gateway, tmp_path, requests_per_minute=3)
        upload_id = (await self.upload(gateway, keys["ci"])).json()["upload"]
        for _ in range(2):
            assert (await ask(gateway.port, f"/uploads/{upload_id}", x_api_key=keys["ci"])).status == 200
        for answer in (
            await self.upload(gateway, keys["ci"]),
            await ask(gateway.port, f"/uploads/{upload_id}", "DELETE", x_api_key=keys["ci"]),
        ):
            assert answer.status == 429
            assert answer.headers["ratelimit-policy"] == '"requests";q=3;w=3600'
            assert answer.headers["ratelimit"] == f'"requests";r=0;t={answer.headers["retry-after"]}'
        assert (await self.upload(gateway, keys["other"])).status == 201

    async def test_bytes_in_a_day(self, start_gateway: StartGateway, tmp_path: Path, keys: dict[str, str]) -> None:
        gateway = await self.start(start_gateway, tmp_path, bytes_per_day=3 * len(LARGE))
        assert (await self.upload(gateway, keys["ci"], LARGE)).status == 201
        for _ in range(5):  # what was declared and did not come is given back
            async with Client(gateway.port) as client:
                declared = 2 * len(LARGE) - 1000
                await client.send(head(x_api_key=keys["ci"], content_length=declared) + BODY[:60])
                await eventually(lambda: gateway.services.gate.in_flight == 1)
            await eventually(lambda: gateway.services.gate.in_flight == 0)
        assert (await self.upload(gateway, keys["ci"], LARGE)).status == 201
        refused = await self.upload(gateway, keys["ci"], LARGE)
        assert (refused.status, refused.json()["quota"]) == (429, "bytes")
        assert (await self.upload(gateway, keys["ci"])).status == 201, "there is room for a small one"
        assert (await self.upload(gateway, keys["other"], LARGE)).status == 201

    async def test_bytes_that_are_not_declared(
        self, start_gateway: StartGateway, tmp_path: Path, keys: dict[str, str]
    ) -> None:
        gateway = await self.start(start_gateway, tmp_path, bytes_per_day=4 << 20)
        body = form(file(random_bytes(8 << 20)))
        async with Client(gateway.port) as client:
            await client.send(head(x_api_key=keys["ci"], transfer_encoding="chunked"))
            with contextlib.suppress(ConnectionError):
                for start in range(0, len(body), 1 << 16):
                    piece = body[start : start + (1 << 16)]
                    await client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
                await client.send(b"0\r\n\r\n")
            assert (await client.answer()).status == 429
        assert gateway.stored() == []

    async def test_bytes_that_are_kept_until_they_are_not(
        self, start_gateway: StartGateway, tmp_path: Path, keys: dict[str, str]
    ) -> None:
        quotas = {"stored_bytes": 2 * len(LARGE) + 1000}
        gateway = await self.start(start_gateway, tmp_path, **quotas)
        kept = [(await self.upload(gateway, keys["ci"], LARGE)).json() for _ in range(2)]
        assert [manifest["size"] for manifest in kept] == [300_000] * 2
        refused = await self.upload(gateway, keys["ci"], LARGE)
        assert (refused.status, refused.json()["quota"], refused.headers["retry-after"]) == (429, "stored-bytes", "60")
        assert refused.headers["ratelimit-policy"] == f'"stored-bytes";q={quotas["stored_bytes"]}'
        assert (await self.upload(gateway, keys["other"], LARGE)).status == 201
        await gateway.runner.cleanup()
        again = await self.start(start_gateway, tmp_path, **quotas)
        assert (await self.upload(again, keys["ci"], LARGE)).status == 429, "it is asked of the disk"
        assert (await ask(again.port, f"/uploads/{kept[0]['upload']}", "DELETE", x_api_key=keys["ci"])).status == 204
        assert (await self.upload(again, keys["ci"], LARGE)).status == 201
        shutil.rmtree(tmp_path / "disk" / kept[1]["upload"])
        assert (await self.upload(again, keys["ci"], LARGE)).status == 201, "by whomever it was removed"

    @pytest.mark.parametrize("declared", [True, False])
    async def test_uploads_at_the_same_time_keep_no_more_together(
        self, start_gateway: StartGateway, tmp_path: Path, keys: dict[str, str], declared: bool
    ) -> None:
        gateway = await self.start(start_gateway, tmp_path, stored_bytes=8 << 20)
        body = form(file(bytes(3 << 20)))
        chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)

        async def upload() -> int:
            async with Client(gateway.port) as client:
                length = {"content_length": len(body)} if declared else {"transfer_encoding": "chunked"}
                with contextlib.suppress(ConnectionError):
                    await client.send(head(x_api_key=keys["ci"], **length) + (body if declared else chunked))
                return (await client.answer()).status

        statuses = await asyncio.gather(*(upload() for _ in range(6)))
        assert set(statuses) <= {201, 429}
        assert statuses.count(201) == len(list((tmp_path / "disk").iterdir())) <= 2
        while (await upload()) == 201:
            pass
        assert len(list((tmp_path / "disk").iterdir())) == 2, "what was refused gave its share back"

    async def test_uploads_at_a_time(self, start_gateway: StartGateway, tmp_path: Path, keys: dict[str, str]) -> None:
        gateway = await self.start(start_gateway, tmp_path, uploads=1)
        async with Client(gateway.port) as client:
            await client.send(head(x_api_key=keys["ci"], content_length=1000) + BODY[:60])
            await eventually(lambda: gateway.services.gate.in_flight == 1)
            assert (await self.upload(gateway, keys["ci"])).status == 429
            assert (await self.upload(gateway, keys["other"])).status == 201

    async def test_counts_in_a_file_outlive_the_gateway(
        self, start_gateway: StartGateway, tmp_path: Path, keys: dict[str, str]
    ) -> None:
        url = signed_url(["s" * 40], "/upload", expires_seconds=60, count=1)
        quotas = {"file": str(tmp_path / "quotas.db"), "bytes_per_day": 2 * len(LARGE) - 1}
        first = await self.start(start_gateway, tmp_path, **quotas)
        assert (await ask(first.port, url, "POST", BODY)).status == 201
        assert (await self.upload(first, keys["ci"], LARGE)).status == 201
        await first.runner.cleanup()
        second = await self.start(start_gateway, tmp_path, **quotas)
        assert (await ask(second.port, url, "POST", BODY)).status == 403
        assert (await self.upload(second, keys["ci"], LARGE)).status == 429

    async def test_workers_count_together(self, tmp_path: Path, keys: dict[str, str]) -> None:
        config = f"""
[server]
workers = 2
[access.keys]
file = "{tmp_path}/keys.toml"
[access.signed]
secrets_file = "{tmp_path}/signing.keys"
[quotas]
bytes_per_day = {3 * len(BODY)}
[[routes]]
path = "/upload"
access = ["keys", "signed"]
parts = [{{ sinks = ["disk"] }}]
"""
        url = signed_url(["s" * 40], "/upload", expires_seconds=60, count=2)
        with gateway_process(tmp_path, config) as process:
            answers = [await ask(process.port, url, "POST", BODY) for _ in range(8)]
            assert sorted(answer.status for answer in answers) == [201] * 2 + [403] * 6
            answers = [await ask(process.port, "/upload", "POST", BODY, x_api_key=keys["ci"]) for _ in range(8)]
            assert sorted(answer.status for answer in answers) == [201] * 3 + [429] * 5


class TestMinFreeBytes:
    async def test_a_disk_is_full_before_it_is(self, start_gateway: StartGateway, tmp_path: Path) -> None:
        status = os.statvfs(tmp_path)
        free = status.f_bavail * status.f_frsize
        for min_free, right in ((0, 201), (free // 2, 201), (free * 2, 507)):
            gateway = await start_gateway(sinks={"disk": {"root": str(tmp_path / "disk"), "min_free_bytes": min_free}})
            answer = await ask(gateway.port, "/upload", "POST", BODY)
            assert answer.status == right
            assert (await ask(gateway.port, "/readyz")).status == (200 if right == 201 else 503)
            stored = list((tmp_path / "disk").iterdir())
            assert bool(stored) == (right == 201)
            for upload in stored:
                shutil.rmtree(upload)

    async def test_what_is_declared_has_to_have_room_beside_it(
        self, start_gateway: StartGateway, tmp_path: Path
    ) -> None:
        disk = {"root": str(tmp_path / "disk"), "min_free_bytes": 1}
        gateway = await start_gateway(sinks={"disk": disk})
        async with Client(gateway.port) as client:
            await client.send(head(content_length=1 << 46) + BODY[:-10] + bytes(1 << 20))
            assert (await client.answer()).status == 507
        assert list((tmp_path / "disk").iterdir()) == []


def test_the_client_binds_where_it_says() -> None:
    with socket.socket() as own:
        own.bind(("127.0.0.2", 0))
