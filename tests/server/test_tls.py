"""TLS of the listener: certificates that are read anew, clients that show one, and what is no TLS."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from gateway.config.load import load
from gateway.config.make import make_tls
from gateway.config.messages import ConfigError
from gateway.config.policies import make_policies
from tests.conftest import RunningGateway, StartGateway
from tests.support.clients import Answer, eventually, file, form, head, random_bytes
from tests.support.doubles import HonestUpstream
from tests.support.processes import Process, gateway_process
from tests.support.signing import Authority, Pair

pytestmark = pytest.mark.sockets

needs_uvloop = pytest.mark.skipif(find_spec("uvloop") is None, reason="uvloop is not installed")

DATA = random_bytes(3 << 20)
BODY = form(file(DATA, filename="a.bin"))
SMALL = form(file(b"hello"))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def trusting(authority: Authority, pair: Pair | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.ca)
    if pair is not None:
        context.load_cert_chain(pair.cert, pair.key)
    return context


@contextlib.asynccontextmanager
async def connected(
    port: int, context: ssl.SSLContext | None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    sock = socket.socket()
    # What is not read waits at the gateway, and not in a buffer of this side that grows to tens of megabytes.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 << 10)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    hostname = "127.0.0.1" if context is not None else None
    reader, writer = await asyncio.open_connection(sock=sock, ssl=context, server_hostname=hostname)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def answer(reader: asyncio.StreamReader) -> Answer:
    first = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode("latin-1")
    status, *lines = first.strip().split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await asyncio.wait_for(reader.readexactly(int(fields.get("content-length", 0))), 10)
    return Answer(int(status.split()[1]), fields, body)


async def ask(
    port: int, context: ssl.SSLContext, target: str, method: str = "GET", body: bytes = b"", **headers: str | int
) -> Answer:
    framing: dict[str, str | int] = {"content_length": len(body)} if body else {"content_type": ""}
    async with connected(port, context) as (reader, writer):
        writer.write(head(target, method, **{**framing, **headers}) + body)
        await writer.drain()
        return await answer(reader)


def tls(pair: Pair, ca: Path | None = None) -> dict[str, Any]:
    return {"cert": str(pair.cert), "key": str(pair.key), **({"ca": str(ca)} if ca else {})}


class TestServed:
    async def test_what_is_sent_is_stored_and_given_back(
        self, start_gateway: StartGateway, authority: Authority
    ) -> None:
        gateway = await start_gateway(tls=tls(authority.pair("server")))
        context = trusting(authority)
        stored = (await ask(gateway.port, context, "/upload", "POST", BODY)).json()
        target = f"/files/{stored['upload']}/0"
        assert (await ask(gateway.port, context, target)).body == DATA
        ranged = await ask(gateway.port, context, target, range="bytes=5-9")
        assert (ranged.status, ranged.body) == (206, DATA[5:10])
        assert (await ask(gateway.port, context, f"/uploads/{stored['upload']}")).json() == stored
        assert (await ask(gateway.port, context, f"/uploads/{stored['upload']}/archive.zip")).body[:2] == b"PK"
        async with connected(gateway.port, context) as (reader, writer):  # one connection, kept
            for _ in range(3):
                writer.write(head(content_length=len(SMALL), expect="100-continue"))
                assert (await answer(reader)).status == 100
                writer.write(SMALL)
                assert (await answer(reader)).status == 201

    async def test_a_destination_is_told_that_it_was_https(
        self, start_gateway: StartGateway, authority: Authority
    ) -> None:
        async with HonestUpstream() as upstream:
            gateway = await start_gateway(api=upstream.url, tls=tls(authority.pair("server")))
            assert (await ask(gateway.port, trusting(authority), "/proxy", "POST", SMALL)).status == 200
            (exchange,) = upstream.exchanges
        assert ("x-forwarded-proto", "https") in [(name.lower(), value) for name, value in exchange.headers]

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    @pytest.mark.parametrize(("version", "works"), [("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)])
    async def test_tls_1_2_and_later(
        self, start_gateway: StartGateway, authority: Authority, version: str, works: bool
    ) -> None:
        gateway = await start_gateway(tls=tls(authority.pair("server")))
        context = trusting(authority)
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
        if works:
            assert (await ask(gateway.port, context, "/healthz")).status == 200
        else:
            with pytest.raises((OSError, asyncio.IncompleteReadError)):
                await ask(gateway.port, context, "/healthz")

    @pytest.mark.parametrize(
        "sent", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\x16\x03\x01\x02\x00" + b"x" * 600, b"\0" * 100, b""]
    )
    async def test_what_is_no_tls_is_closed_and_told_to_nobody_but_who_debugs(
        self, start_gateway: StartGateway, authority: Authority, caplog: pytest.LogCaptureFixture, sent: bytes
    ) -> None:
        gateway = await start_gateway(tls=tls(authority.pair("server")))
        with caplog.at_level(logging.DEBUG):
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            writer.write(sent)
            if not sent:
                writer.write_eof()
            received = await asyncio.wait_for(reader.read(), 5)
            assert not received.startswith(b"HTTP")
            writer.close()
            await eventually(lambda: any("did not come about" in record.message for record in caplog.records))
        assert {record.levelno for record in caplog.records} == {logging.DEBUG}
        lines = [record for record in caplog.records if record.name.startswith("gateway")]
        assert len(lines) == 1
        assert (await ask(gateway.port, trusting(authority), "/healthz")).status == 200

    async def test_a_handshake_that_does_not_end_has_a_clock_and_holds_up_nobody(
        self, start_gateway: StartGateway, authority: Authority
    ) -> None:
        gateway = await start_gateway(tls=tls(authority.pair("server")), server={"head_seconds": 1})
        half = [socket.create_connection(("127.0.0.1", gateway.port)) for _ in range(50)]
        try:
            for one in half:
                one.sendall(b"\x16\x03\x01")
            assert (await ask(gateway.port, trusting(authority), "/healthz")).status == 200
            assert gateway.runner.server is not None
            for one in half:
                one.settimeout(5)
                assert await asyncio.to_thread(one.recv, 10) == b""
        finally:
            for one in half:
                one.close()


class TestReload:
    @staticmethod
    def serial(gateway: RunningGateway | Process, authority: Authority) -> int:
        with (
            socket.create_connection(("127.0.0.1", gateway.port)) as plain,
            trusting(authority).wrap_socket(plain, server_hostname="localhost") as one,
        ):
            return int(str((one.getpeercert() or {})["serialNumber"]), 16)

    async def test_files_that_change_are_read_anew_and_a_broken_pair_changes_nothing(
        self,
        start_gateway: StartGateway,
        authority: Authority,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr("gateway.http.tls._LOOK_SECONDS", 0)
        pair = authority.pair("server")
        gateway = await start_gateway(tls=tls(pair))
        first = await asyncio.to_thread(self.serial, gateway, authority)
        async with connected(gateway.port, trusting(authority)) as (reader, writer):  # it keeps what it had
            writer.write(head(content_length=len(BODY)) + BODY[:1000])
            authority.pair("server")
            second = await asyncio.to_thread(self.serial, gateway, authority)
            assert second != first
            writer.write(BODY[1000:])
            assert (await answer(reader)).status == 201
        good = pair.key.read_bytes()
        with caplog.at_level(logging.WARNING):
            pair.key.write_bytes(authority.pair("other").key.read_bytes())
            for _ in range(3):
                assert await asyncio.to_thread(self.serial, gateway, authority) == second
            pair.key.unlink()
            assert await asyncio.to_thread(self.serial, gateway, authority) == second
        assert len(caplog.records) == 2, "once for each"
        pair.key.write_bytes(good)
        assert await asyncio.to_thread(self.serial, gateway, authority) == second

    @pytest.mark.parametrize("workers", [1, 2])
    async def test_sighup_reads_them_and_drops_nothing(
        self, tmp_path: Path, authority: Authority, workers: int
    ) -> None:
        pair = authority.pair("server")
        config = f'[server]\nworkers = {workers}\n[tls]\ncert = "{pair.cert}"\nkey = "{pair.key}"\n'
        with gateway_process(tmp_path, config) as process:
            assert process.url.startswith("https://")
            before = await asyncio.to_thread(self.serial, process, authority)
            async with connected(process.port, trusting(authority)) as (reader, writer):
                writer.write(head(content_length=len(BODY)) + BODY[:1000])
                await writer.drain()
                authority.pair("server")
                os.kill(process.pid, signal.SIGHUP)
                await eventually(lambda: process.log.read_text().count("the certificate was read anew") >= workers)
                assert await asyncio.to_thread(self.serial, process, authority) != before
                writer.write(BODY[1000:])
                assert (await answer(reader)).status == 201
            process.terminate()
            assert await asyncio.to_thread(process.wait, 20) == 0
        levels = [json.loads(line)["level"] for line in process.log.read_text().splitlines() if line.startswith("{")]
        assert set(levels) == {"INFO"}


class TestClientCertificates:
    @pytest.fixture
    async def gateway(self, start_gateway: StartGateway, authority: Authority) -> RunningGateway:
        routes = [
            {"path": "/upload", "access": ["certificate"], "parts": [{"sinks": ["disk"]}]},
            {"path": "/convert", "access": ["certificate"], "parts": [{"sinks": ["disk"]}]},
            {"path": "/proxy", "access": ["certificate"], "parts": [{"sinks": ["disk"]}]},
        ]
        return await start_gateway(routes=routes, tls=tls(authority.pair("server"), authority.ca))

    async def test_who_shows_one_of_the_authority_is_its_common_name(
        self, gateway: RunningGateway, authority: Authority
    ) -> None:
        ours = trusting(authority, authority.pair("billing"))
        stored = (await ask(gateway.port, ours, "/upload", "POST", SMALL)).json()
        assert stored["identity"] == "cert:billing"
        target = f"/files/{stored['upload']}/0"
        assert (await ask(gateway.port, ours, target)).body == b"hello"
        other = trusting(authority, authority.pair("other"))
        assert (await ask(gateway.port, other, target)).status == 404
        assert (await ask(gateway.port, trusting(authority), target)).status == 401

    async def test_who_shows_none_is_refused_before_the_body(
        self, gateway: RunningGateway, authority: Authority
    ) -> None:
        async with connected(gateway.port, trusting(authority)) as (reader, writer):
            writer.write(head(content_length=1 << 40, expect="100-continue"))
            refused = await answer(reader)
            assert (refused.status, refused.headers["connection"]) == (401, "close")
        assert gateway.stored() == []

    async def test_a_page_of_another_site_does_nothing_with_the_certificate_of_its_visitor(
        self, gateway: RunningGateway, authority: Authority
    ) -> None:
        ours = trusting(authority, authority.pair("billing"))
        stored = (await ask(gateway.port, ours, "/upload", "POST", SMALL)).json()
        page: dict[str, Any] = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"}
        assert (await ask(gateway.port, ours, "/upload", "POST", SMALL, **page)).status == 403
        for target, method in ((f"/files/{stored['upload']}/0", "GET"), (f"/uploads/{stored['upload']}", "DELETE")):
            assert (await ask(gateway.port, ours, target, method, **page)).status == 403
            assert (await ask(gateway.port, ours, target, method, sec_fetch_site="same-origin")).status in (200, 204)

    @pytest.mark.parametrize("names", [(), ("one", "two")], ids=["no name", "two names"])
    async def test_a_subject_that_says_not_who_is_nobody(
        self, gateway: RunningGateway, authority: Authority, names: tuple[str, ...]
    ) -> None:
        context = trusting(authority, authority.pair(*names))
        assert (await ask(gateway.port, context, "/upload", "POST", SMALL)).status == 401

    @pytest.mark.parametrize("kind", ["expired", "foreign"])
    async def test_one_that_is_over_or_anothers_is_refused_by_tls(
        self, gateway: RunningGateway, authority: Authority, tmp_path: Path, kind: str
    ) -> None:
        if kind == "expired":
            pair = authority.pair("late", days=-1)
        else:
            (tmp_path / "foreign").mkdir()
            pair = Authority(tmp_path / "foreign").pair("billing")
        with pytest.raises((OSError, asyncio.IncompleteReadError)):
            await ask(gateway.port, trusting(authority, pair), "/upload", "POST", SMALL)
        assert gateway.stored() == []


class TestConfiguration:
    @pytest.mark.parametrize(
        ("document", "right"),
        [
            ('cert = "no.crt"', "tls.cert: no.crt: No such file or directory"),
            ('cert = "a.crt"\nkey = "no.key"', "tls.key: no.key: No such file or directory"),
            ('cert = "a.crt"\nkey = "b.key"', "tls.key: the certificate and its key are not of one pair, or not PEM"),
            ('cert = "a.key"\nkey = "a.key"', "tls.cert: the certificate and its key are not of one pair, or not PEM"),
            ('cert = "a.crt"\nkey = "a.key"\nca = "a.key"', "tls.ca: it holds no certificates"),
            ('key = "a.key"', "tls.cert: needed"),
        ],
    )
    def test_files_that_cannot_be_used_are_told_by_their_keys(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, document: str, right: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        authority = Authority(tmp_path)
        authority.pair("a")
        authority.pair("b")
        Path("gateway.toml").write_text(f"[tls]\n{document}\n")
        with pytest.raises(ConfigError) as wrong:
            make_tls(load("gateway.toml"))
        (line,) = wrong.value.problems
        assert line.startswith(right)

    def test_certificates_of_clients_need_an_authority(self, tmp_path: Path) -> None:
        path = tmp_path / "gateway.toml"
        path.write_text('[[routes]]\npath = "/x"\naccess = ["certificate"]\nparts = [{ sinks = ["none"] }]\n')
        with pytest.raises(ConfigError) as wrong:
            make_policies(load(path))
        assert wrong.value.problems == ["routes.0.access: certificate needs tls.ca, whose certificates those are"]


@pytest.mark.parametrize("event_loop", ["asyncio", pytest.param("uvloop", marks=needs_uvloop)])
@pytest.mark.parametrize("with_tls", [False, True])
async def test_a_client_that_takes_nothing_is_cut_off_on_every_kind_of_connection(
    tmp_path: Path, authority: Authority, event_loop: str, with_tls: bool
) -> None:
    pair = authority.pair("server")
    config = f'server.event_loop = "{event_loop}"\nlimits.idle_seconds = 1\n'
    config += f'[tls]\ncert = "{pair.cert}"\nkey = "{pair.key}"\n' if with_tls else ""
    context = trusting(authority) if with_tls else None
    body = form(file(bytes(24 << 20)))
    with gateway_process(tmp_path, config) as process:
        async with connected(process.port, context) as (reader, writer):
            writer.write(head(content_length=len(body)) + body)
            stored = (await answer(reader)).json()
        async with connected(process.port, context) as (reader, writer):
            writer.write(head(f"/files/{stored['upload']}/0", "GET", content_type=""))
            await eventually(lambda: "the client took nothing of its answer for 1 s" in process.log.read_text())
            with contextlib.suppress(OSError):
                assert len(await reader.read(-1)) < 24 << 20
