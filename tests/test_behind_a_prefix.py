"""Below `/gw/` of an nginx, as docs/behind-a-proxy.md has it: each address in an answer leads back to us."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import main
from tests.conftest import RunningGateway, StartGateway
from tests.support.clients import Answer, Client, ask, chunked, file, form, head
from tests.support.destinations import absent, serving
from tests.support.doubles import HonestUpstream
from tests.support.ports import free_port
from tests.test_docs import block

pytestmark = pytest.mark.sockets

TRUSTED = {"trusted_networks": ["127.0.0.1/32"]}
STRIPPED, LEFT = block("nginx", "http://gateway/;"), block("nginx", "http://gateway;")
ADDRESS = ("/uploads/", "/files/", "/problems/")


@contextmanager
def nginx(recipe: str, upstream: str, directory: Path) -> Iterator[int]:
    """The port of one that has the gateway below /gw/, and nothing else."""
    command = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if command is None:
        absent("nginx is not installed")
    (directory / "tmp").mkdir()
    port = free_port()
    temporary = " ".join(f"{kind}_temp_path tmp;" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (directory / "nginx.conf").write_text(
        f"{'user root;' if os.geteuid() == 0 else ''} daemon off; worker_processes 1; pid nginx.pid;\n"
        f"error_log stderr; events {{}} http {{ {temporary} access_log off; client_max_body_size 0;\n"
        f"upstream gateway {{ server {upstream.removeprefix('http://')}; }}\n"
        f"server {{ listen 127.0.0.1:{port}; location / {{ return 418; }}\n{recipe} }} }}\n"
    )
    arguments = ["-p", f"{directory}/", "-c", "nginx.conf", "-e", "stderr"]
    with serving([command, *arguments], directory / "nginx.log", port=port):
        yield port


def addresses(answer: Answer) -> list[str]:
    """Of the gateway, in the head and in the document: whatever looks like one, with or without a prefix."""
    found = [value for name, value in answer.headers.items() if name in ("location", "content-location", "link")]
    return [one for one in [*found, *texts(answer.json())] if any(path in one for path in ADDRESS) and " " not in one]


def texts(value: Any) -> list[str]:
    match value:
        case dict():
            return [text for one in value.values() for text in texts(one)]
        case list():
            return [text for one in value for text in texts(one)]
        case str():
            return [value]
    return []


@dataclass
class Below:
    """A gateway, asked through a proxy."""

    port: int

    async def ask(self, target: str, method: str = "GET", body: bytes = b"", **headers: str | int) -> Answer:
        return await ask(self.port, f"/gw{target}", method, body, **headers)

    async def follow(self, answer: Answer) -> set[str]:
        """Each address in an answer, which has to lead to what it says; of which kinds there were."""
        for address in addresses(answer):
            assert address.startswith("/gw/")
            found = await ask(self.port, address)
            assert found.status == (404 if "/uploads/" in address and "instance" in answer.json() else 200), address
            if found.status == 404:
                assert found.json()["type"] == "/gw/problems/not-found"
            elif "/uploads/" in address:
                assert (await ask(self.port, f"{address}/archive.zip")).body[:2] == b"PK"
        return {address.split("/")[2] for address in addresses(answer)}


ROUTES = [
    {"path": "/each", "keep": "each", "parts": [{"match": {"filename": "*.bin"}, "sinks": ["disk"]}]},
    {"path": "/kept", "kind": "relay", "parts": [{"sinks": ["disk", "api"]}]},
]
WAYS = {
    "the proxy takes it away and says so": (STRIPPED, TRUSTED),
    "the proxy leaves it": (LEFT, {"base_path": "/gw"}),
    "the proxy takes it away and the configuration says so": (STRIPPED, {"base_path": "/gw"}),
    "the proxy takes another one away": (STRIPPED, {"base_path": "/other", **TRUSTED}),
}


@pytest.mark.parametrize("way", WAYS)
async def test_every_address_in_an_answer_leads_back_through_the_proxy(
    start_gateway: StartGateway, tmp_path: Path, way: str
) -> None:
    recipe, server = WAYS[way]
    body = form(file(b"one", "a.bin"), file(b"two", "b,.bin"), file(b"three", "c.txt"))
    async with HonestUpstream(200, b'{"type": "/problems/of-the-destination"}') as upstream:
        gateway = await start_gateway(server=server, routes=ROUTES, api=upstream.url)
        with nginx(recipe, gateway.url, tmp_path) as port:
            below = Below(port)
            for path, status, kinds in (
                ("/upload", 201, {"uploads", "files"}),
                ("/convert", 200, {"uploads", "files"}),
                ("/each", 207, {"uploads", "files", "problems"}),
            ):
                answer = await below.ask(path, "POST", body)
                assert (answer.status, await below.follow(answer)) == (status, kinds)
            answer = await below.ask("/upload/name.txt", "PUT", b"raw", content_type="text/plain")
            assert (answer.status, await below.follow(answer)) == (201, {"uploads", "files"})
            stored = answer.json()["parts"][0]["receipts"][0]["location"]
            assert (await ask(port, stored)).body == b"raw"
            relayed = await below.ask("/kept", "POST", body)
            assert (relayed.status, relayed.body) == (200, b'{"type": "/problems/of-the-destination"}')
            assert (await ask(port, relayed.headers["location"])).json()["upload"] in relayed.headers["location"]
            for refused in (
                await below.ask("/upload", "POST", b"x", content_type="multipart/mixed; boundary=b"),
                await below.ask("/upload", "POST", b"--b\r\n\r\nx", content_type="multipart/form-data; boundary=b"),
                await ask(port, stored, range="bytes=99-"),
                await ask(port, stored, "POST"),
                await below.ask("/nothing"),
            ):
                assert refused.status >= 400
                assert "problems" in await below.follow(refused)
            named = (await below.ask("/each/", "POST", body)).json()["detail"]
            assert "but at /gw/each, without" in named
            assert (await below.ask("/readyz")).body == b"ok\n"


@pytest.mark.parametrize("parts", [1, 3000])
async def test_what_is_stored_has_no_prefix_and_is_read_with_that_of_its_reader(
    start_gateway: StartGateway, tmp_path: Path, parts: int
) -> None:
    limits = {"max_parts": 0}
    gateway = await start_gateway(server={"base_path": "/gw", **TRUSTED}, limits=limits)
    body = form(*(file(b"x", f"{'a' * 50}-{number}.bin") for number in range(parts)))
    answer = await ask(gateway.port, "/gw/upload", "POST", body)
    manifest = answer.json()
    assert (len(manifest["parts"]), len(answer.body) > 1 << 19) == (parts, parts > 1)
    identifier = manifest["upload"]
    stored = next(path for path in gateway.stored() if path.name == "manifest.json").read_bytes()
    assert (stored.count(b"/gw/"), stored.count(b'"/files/')) == (0, parts)
    for prefix in ("/gw", "/b", ""):
        said = prefix or "/"
        read = await ask(gateway.port, f"/uploads/{identifier}", x_forwarded_prefix=said)
        assert read.body == stored.replace(b'"/files/', f'"{prefix}/files/'.encode())
        asked = await ask(gateway.port, f"/uploads/{identifier}", "HEAD", x_forwarded_prefix=said)
        assert (asked.headers["content-length"], asked.body) == (str(len(read.body)), b"")
        assert prefix != "/gw" or read.body == answer.body


@pytest.mark.parametrize(
    ("server", "said", "prefix"),
    [
        ({}, "/evil", ""),
        ({"trusted_networks": ["10.0.0.0/8"]}, "/evil", ""),
        ({"trusted_header": "forwarded", **TRUSTED}, "/evil", ""),
        ({"base_path": "/gw"}, "/evil", "/gw"),
        ({"base_path": "/gw", **TRUSTED}, "//evil", "/gw"),
        (TRUSTED, "//evil", ""),
        (TRUSTED, "https://evil", ""),
        (TRUSTED, "/a, /b", ""),
        (TRUSTED, "/a/", "/a"),
    ],
)
async def test_a_prefix_is_believed_from_trusted_proxies_only_and_where_it_is_one(
    start_gateway: StartGateway, server: dict[str, Any], said: str, prefix: str
) -> None:
    gateway = await start_gateway(server=server)
    for path, kind in (("/upload", "uploads"), ("/nothing", "problems")):
        answer = await ask(gateway.port, path, "POST", form(file(b"x")), x_forwarded_prefix=said)
        for address in addresses(answer):
            assert address.startswith((f"{prefix}/{kind}/", f"{prefix}/files/"))


async def test_a_signed_url_is_good_below_the_path_it_was_printed_with_and_behind_a_proxy_that_takes_it_away(
    start_gateway: StartGateway, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys, config = tmp_path / "signing.keys", tmp_path / "my.toml"
    keys.write_text("0123456789abcdef" * 4)
    access = {"signed": {"secrets_file": str(keys)}}
    config.write_text(f'server.base_path = "/gw"\naccess.signed.secrets_file = "{keys}"\n')
    base = ["--base", "https://files.example.org/"]
    assert main(["sign", "--config", str(config), "--route", "/signed", "--expires", "1h", *base]) == 0
    target = capsys.readouterr().out.strip().removeprefix("https://files.example.org")
    route = {"path": "/signed", "access": ["signed"], "parts": [{"sinks": ["disk"]}]}
    gateway = await start_gateway(server={"base_path": "/gw"}, access=access, routes=[route])
    assert target.startswith("/gw/signed?signature=")
    for sent in (target, target.removeprefix("/gw")):
        assert (await ask(gateway.port, sent, "POST", form(file(b"x")))).status == 201
        assert (await ask(gateway.port, sent[:-1], "POST", form(file(b"x")))).status == 403


class TestBasePath:
    @pytest.fixture
    async def gateway(self, start_gateway: StartGateway) -> RunningGateway:
        return await start_gateway(server={"base_path": "/gw", "max_connections": 1}, management={"port": 0})

    async def test_paths_are_served_with_it_and_without_it(self, gateway: RunningGateway) -> None:
        body = form(file(b"x"))
        for target in ("/upload", "/gw/upload", "http://a/upload", "http://a/gw/upload"):
            answer = await ask(gateway.port, target, "POST", body)
            assert (answer.status, answer.headers["location"][:12]) == (201, "/gw/uploads/")
        chunks = head("/gw/upload", transfer_encoding="chunked") + chunked(body)
        async with Client(gateway.port) as client:
            for _ in range(2):
                await client.send(chunks)
                assert (await client.answer()).status == 201
        for target in ("/gw", "/gw/gw/upload", "/GW/upload", "/gwupload", "/%67w/upload", "/x/gw/upload"):
            assert (await ask(gateway.port, target, "POST", body)).status == 404

    async def test_a_refused_head_and_a_client_too_many_are_told_with_it_too(self, gateway: RunningGateway) -> None:
        async with Client(gateway.port) as client:
            await client.send(b"GET /gw/\xff HTTP/1.1\r\nHost: a\r\n\r\n")
            assert json.loads((await client.answer()).body)["type"] == "/gw/problems/malformed"
        async with Client(gateway.port) as first:
            await first.send(head("/gw/healthz", "GET", content_type=""))
            assert (await first.answer()).status == 200
            assert (await ask(gateway.port, "/gw/healthz")).status == 200
            assert (await ask(gateway.port, "/gw/upload")).json()["type"] == "/gw/problems/busy"

    async def test_a_download_behind_it_is_of_the_same_url(self, start_gateway: StartGateway) -> None:
        async with HonestUpstream(200, b"data") as upstream:
            origin = upstream.url.rpartition("/")[0]
            download = {"allow": [f"{origin}/*"], "allow_private": ["127.0.0.0/8"]}
            gateway = await start_gateway(server={"base_path": "/gw"}, download=download)
            for before in ("", "/gw"):
                answer = await ask(gateway.port, f"{before}/download/{origin}/gw/a?b=/gw/")
                assert (answer.status, upstream.exchanges.pop().target) == (200, "/gw/a?b=/gw/")
