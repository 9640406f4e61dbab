"""Connections to destinations: TLS with real certificates, and pools."""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from gateway.config.load import load
from gateway.config.messages import ConfigError
from gateway.http.tls import TlsFileError
from gateway.server.app import build_app
from gateway.server.demo_destination import receiver_app
from gateway.sinks.relay.sending.connect import tls_context
from tests.conftest import RunningGateway, StartGateway
from tests.contract import eventually, nothing_left_running
from tests.support.certificates import Authority, openssl
from tests.support.clients import Answer, Client, ask, file, form, head, random_bytes
from tests.support.doubles import DyingUpstream, EarlyOkUpstream, Exchange, HonestUpstream, RefusingUpstream, Upstream

STORE = [{"path": "/store", "kind": "upload", "parts": [{"sinks": ["api"]}]}]

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made by openssl")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


StartTls = Callable[..., Any]


@pytest.fixture
async def start_tls(authority: Authority) -> AsyncIterator[StartTls]:
    """`await start_tls("IP:127.0.0.1", ask=True)`: the demo destination's URL, over TLS; `ask` for certificates."""
    async with AsyncExitStack() as stack:

        async def start(alternatives: str = "IP:127.0.0.1", *, ask: bool = False) -> str:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*authority.issue("server", alternatives))
            if ask:
                context.load_verify_locations(authority.ca)
                context.verify_mode = ssl.CERT_REQUIRED
            runner = web.AppRunner(receiver_app(), shutdown_timeout=1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
            return f"https://127.0.0.1:{runner.addresses[0][1]}/upload"

        yield start


def _refuse_one(listener: socket.socket, context: ssl.SSLContext) -> None:
    """A server that says why it refuses, and waits until that was read."""
    listener.settimeout(20)
    connection, _ = listener.accept()
    connection.settimeout(20)
    wrapped = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
    with pytest.raises(ssl.SSLError):
        wrapped.do_handshake()
    with socket.socket(fileno=wrapped.detach()) as connection:
        connection.settimeout(20)
        connection.shutdown(socket.SHUT_WR)  # to close it now would be a RST: what was sent meanwhile is unread
        while connection.recv(1 << 16):
            pass


async def through(gateway: RunningGateway, data: bytes = b"data", target: str = "/proxy") -> Answer:
    return await ask(gateway.port, target, "POST", form(file(data)))


async def failing(start_gateway: StartGateway, url: str, **tls: Any) -> tuple[str, str]:
    """(detail, RFC 9209's word) of the 503 that this destination causes. No task is left, and no traceback."""
    gateway = await start_gateway(api=url, sinks={"api": {"tls": tls}} if tls else {})
    async with nothing_left_running():
        answer = await through(gateway, random_bytes(3_000_000))
    assert (answer.status, answer.json()["type"]) == (503, "/problems/sink-unavailable")
    return answer.json()["detail"], answer.json()["reason"]


@needs_openssl
class TestTls:
    async def test_an_authority_of_ours_is_trusted_when_it_is_named(
        self, start_gateway: StartGateway, start_tls: StartTls, authority: Authority
    ) -> None:
        gateway = await start_gateway(api=await start_tls(), sinks={"api": {"tls": {"ca": str(authority.ca)}}})
        data = random_bytes(5_000_000)
        answer = await through(gateway, data)
        assert answer.status == 200
        assert answer.json()["parts"][0]["size"] == len(data)

    async def test_a_certificate_of_nobodys_is_not_trusted(
        self, start_gateway: StartGateway, start_tls: StartTls, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO", "gateway.connect")
        detail, reason = await failing(start_gateway, await start_tls())
        assert detail == "the certificate of sink api is not trusted"
        assert reason == "tls_certificate_error"
        assert not [record for record in caplog.records if record.exc_info]
        assert "unable to get local issuer certificate" in caplog.text

    async def test_a_certificate_for_another_host_is_not_trusted(
        self, start_gateway: StartGateway, start_tls: StartTls, authority: Authority, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO", "gateway.connect")
        url = await start_tls("DNS:api.example.org")
        detail, reason = await failing(start_gateway, url, ca=str(authority.ca))
        assert detail == "the certificate of sink api is not trusted"
        assert reason == "tls_certificate_error"
        assert "not valid for '127.0.0.1'" in caplog.text

    async def test_the_name_that_it_has_to_be_for_can_be_given(
        self, start_gateway: StartGateway, start_tls: StartTls, authority: Authority
    ) -> None:
        url, tls = await start_tls("DNS:api.example.org"), {"ca": str(authority.ca), "server_name": "api.example.org"}
        gateway = await start_gateway(api=url, sinks={"api": {"tls": tls}})
        assert (await through(gateway)).status == 200

    async def test_a_destination_that_asks_for_a_certificate_gets_ours(
        self, start_gateway: StartGateway, start_tls: StartTls, authority: Authority
    ) -> None:
        url, (cert, key) = await start_tls(ask=True), authority.issue("client", "DNS:client")
        tls = {"ca": str(authority.ca), "cert": str(cert), "key": str(key)}
        gateway = await start_gateway(api=url, sinks={"api": {"tls": tls}})
        assert (await through(gateway, random_bytes(1_000_000))).status == 200

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    async def test_without_one_its_alert_is_told(
        self, start_gateway: StartGateway, authority: Authority, version: ssl.TLSVersion
    ) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.maximum_version = version
        context.load_cert_chain(*authority.issue("server", "IP:127.0.0.1"))
        context.load_verify_locations(authority.ca)
        context.verify_mode = ssl.CERT_REQUIRED
        with socket.create_server(("127.0.0.1", 0)) as listener:
            refusing = asyncio.get_running_loop().run_in_executor(None, _refuse_one, listener, context)
            url = f"https://127.0.0.1:{listener.getsockname()[1]}/"
            detail, reason = await failing(start_gateway, url, ca=str(authority.ca))
            await refusing
        assert "alert" in detail
        assert reason == "tls_alert_received"

    async def test_a_destination_whose_alert_is_lost_has_closed_the_connection(
        self, start_gateway: StartGateway, start_tls: StartTls, authority: Authority
    ) -> None:
        """In TLS 1.3 it looks at our certificate when for us the connection stands; its RST may outrun its alert."""
        tls = {"ca": str(authority.ca)}
        gateway = await start_gateway(api=await start_tls(ask=True), sinks={"api": {"tls": tls}}, routes=STORE)
        async with nothing_left_running():
            answer = await through(gateway, random_bytes(3_000_000), "/store")
        said = (answer.status, answer.json()["reason"])
        assert said in [(503, "tls_alert_received"), (502, "connection_terminated")]

    async def test_a_destination_without_tls_is_told_apart(self, start_gateway: StartGateway) -> None:
        class Plain(Upstream):
            def connected(self, exchange: Exchange) -> None:
                exchange.transport.write(b"220 this is no TLS\r\n")
                exchange.transport.pause_reading()

        async with Plain() as upstream:
            detail, reason = await failing(start_gateway, upstream.url.replace("http:", "https:"))
        assert detail.startswith("TLS with sink api failed: ")
        assert reason == "tls_protocol_error"

    async def test_a_destination_that_hangs_up_in_the_handshake_is_unavailable(
        self, start_gateway: StartGateway
    ) -> None:
        class HangingUp(Upstream):
            def connected(self, exchange: Exchange) -> None:
                exchange.transport.abort()

        async with HangingUp() as upstream:
            _, reason = await failing(start_gateway, upstream.url.replace("http:", "https:"))
        assert reason == "destination_unavailable"

    async def test_a_destination_that_never_ends_its_handshake_is_a_timeout(self, start_gateway: StartGateway) -> None:
        class Silent(Upstream):
            def connected(self, exchange: Exchange) -> None:
                exchange.transport.pause_reading()

        async with Silent() as upstream, nothing_left_running():
            url = upstream.url.replace("http:", "https:")
            gateway = await start_gateway(api=url, sinks={"api": {"connect_seconds": 0.3}})
            answer = await through(gateway)
        assert (answer.status, answer.json()["type"]) == (504, "/problems/sink-timeout")
        assert "; error=connection_timeout; " in answer.headers["proxy-status"]

    async def test_who_trusts_anybody_is_warned_at_each_start(
        self, start_gateway: StartGateway, start_tls: StartTls, caplog: pytest.LogCaptureFixture
    ) -> None:
        url = await start_tls("DNS:elsewhere")
        for _ in range(2):
            caplog.clear()
            gateway = await start_gateway(api=url, sinks={"api": {"tls": {"verify": False}}})
            (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
            assert "sink api: tls.verify is off" in warning.getMessage()
            assert (await through(gateway)).status == 200

    async def test_a_client_that_is_cut_off_never_completes_a_request_over_tls(
        self, start_gateway: StartGateway, start_tls: StartTls, authority: Authority
    ) -> None:
        url = await start_tls()
        gateway = await start_gateway(api=url, sinks={"api": {"tls": {"ca": str(authority.ca)}}})
        body = form(file(random_bytes(1_000_000)))
        async with nothing_left_running():
            answer = await ask(gateway.port, "/proxy", "POST", body[:-8])
        assert answer.status == 400


@needs_openssl
class TestFiles:
    @pytest.mark.sockets
    def test_each_is_looked_at_when_the_gateway_starts(self, authority: Authority, tmp_path: Path) -> None:
        cert, key = authority.issue("one", "DNS:one")
        _, other = authority.issue("other", "DNS:other")
        junk, absent = tmp_path / "junk.pem", tmp_path / "absent.pem"
        junk.write_text("junk")
        for tls, where in [
            ({"ca": absent}, "ca"),
            ({"ca": junk}, "ca"),
            ({"cert": absent}, "cert"),
            ({"cert": junk, "key": key}, "cert"),
            ({"cert": cert}, "cert"),
            ({"cert": cert, "key": absent}, "key"),
            ({"cert": cert, "key": junk}, "key"),
            ({"cert": cert, "key": other}, "key"),
        ]:
            lines = [f'{name} = "{path}"' for name, path in tls.items()]
            config = tmp_path / "gateway.toml"
            config.write_text("\n".join(['[sinks.api]\nurl = "https://a/"', "[sinks.api.tls]", *lines]))
            settings = load(config)
            with pytest.raises(ConfigError, match=rf"^sinks\.api\.tls\.{where}: "):
                build_app(settings)

    @pytest.mark.sockets
    def test_a_key_may_lie_beside_its_certificate(self, authority: Authority, tmp_path: Path) -> None:
        cert, key = authority.issue("one", "DNS:one")
        both = tmp_path / "both.pem"
        both.write_bytes(cert.read_bytes() + key.read_bytes())
        tls_context(cert=str(both))

    @pytest.mark.sockets
    def test_a_locked_key_is_an_error_and_no_question(self, authority: Authority, tmp_path: Path) -> None:
        cert, key = authority.issue("one", "DNS:one")
        locked = tmp_path / "locked.key"
        openssl("ec", "-in", str(key), "-out", str(locked), "-aes256", "-passout", "pass:secret")
        with pytest.raises(TlsFileError):
            tls_context(cert=str(cert), key=str(locked))


@needs_openssl
async def test_health_checks_speak_to_a_destination_as_uploads_do(
    start_gateway: StartGateway, authority: Authority
) -> None:
    asked: list[str | None] = []

    async def health(request: web.Request) -> web.Response:
        asked.append(request.headers.get("X-Api-Key"))
        return web.Response()

    app = web.Application()
    app.router.add_get("/healthz", health)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("server", "DNS:api.example.org"))
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    sink = {
        "url": f"https://127.0.0.1:{runner.addresses[0][1]}/",
        "health_path": "/healthz",
        "headers": {"X-Api-Key": "secret"},
        "tls": {"ca": str(authority.ca), "server_name": "api.example.org"},
    }
    try:
        await start_gateway(sinks={"api": sink})
        await eventually(lambda: bool(asked))
        assert asked == ["secret"]
    finally:
        await runner.cleanup()


class KeepingUpstream(Upstream):
    """Answers every request of a connection that stays open, and says that it wants a body when it is asked."""

    def __init__(self, *, times: int = 1000) -> None:
        """`times`: it resets the connection of the request after those."""
        super().__init__()
        self.requests = 0
        self._asked = 0
        self._times = times
        self._answered: Counter[Exchange] = Counter()

    def received(self, exchange: Exchange) -> None:
        if self._answered[exchange] == self._times:
            exchange.reset()
        elif exchange.complete:
            self.requests += 1
            self._answered[exchange] += 1
            exchange.answer(200, b"{}")
            exchange.head, exchange.complete = b"", False
            exchange.body.clear()
        elif "expect" in dict(exchange.headers) and self._asked <= self.requests:
            self._asked = self.requests + 1
            exchange.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


@pytest.mark.parametrize("target", ["/proxy", "/store"])
class TestPool:
    async def test_each_upload_has_a_connection_of_its_own(self, start_gateway: StartGateway, target: str) -> None:
        async with KeepingUpstream() as upstream:
            gateway = await start_gateway(api=upstream.url, routes=STORE)
            for _ in range(3):
                assert (await through(gateway, target=target)).status in (200, 201)
            assert (len(upstream.exchanges), upstream.requests) == (3, 3)

    async def test_a_connection_is_kept_after_a_complete_exchange(
        self, start_gateway: StartGateway, target: str
    ) -> None:
        async with KeepingUpstream() as upstream:
            gateway = await start_gateway(api=upstream.url, routes=STORE, sinks={"api": {"keepalive_seconds": 30}})
            for _ in range(3):
                assert (await through(gateway, target=target)).status in (200, 201)
            assert (len(upstream.exchanges), upstream.requests) == (1, 3)

    async def test_one_that_went_stale_costs_no_upload(self, start_gateway: StartGateway, target: str) -> None:
        async with KeepingUpstream(times=1) as upstream:
            gateway = await start_gateway(api=upstream.url, routes=STORE, sinks={"api": {"keepalive_seconds": 30}})
            for _ in range(3):
                assert (await through(gateway, target=target)).status in (200, 201)
            assert upstream.requests == 3

    async def test_there_are_no_more_than_allowed_and_who_comes_later_waits(
        self, start_gateway: StartGateway, target: str
    ) -> None:
        async with HonestUpstream(200, b"{}") as upstream:
            gateway = await start_gateway(api=upstream.url, routes=STORE, sinks={"api": {"max_connections": 1}})
            async with Client(gateway.port) as first:
                body = form(file(b"x" * 300_000))
                await first.send(head(target, content_length=len(body)) + body[:-9])
                await eventually(lambda: bool(upstream.exchanges) and len(upstream.exchanges[0].body) > 200_000)
                async with asyncio.TaskGroup() as group:
                    second = group.create_task(through(gateway, target=target))
                    await asyncio.sleep(0.2)
                    assert (len(upstream.exchanges), second.done()) == (1, False)
                    await first.send(body[-9:])
                    assert (await first.answer()).status in (200, 201)
            assert second.result().status in (200, 201)
            assert len(upstream.exchanges) == 2

    @pytest.mark.parametrize(
        "make",
        [
            lambda: RefusingUpstream(413, after=10),
            lambda: EarlyOkUpstream(after=10, complete=True),
            lambda: DyingUpstream(after=10),
            lambda: HonestUpstream(200, b"{}", ("Connection", "close")),
        ],
        ids=["refused early", "lied early", "died", "closed"],
    )
    async def test_none_is_kept_after_anything_else(
        self, start_gateway: StartGateway, target: str, make: Callable[[], Upstream]
    ) -> None:
        async with make() as upstream:
            gateway = await start_gateway(api=upstream.url, routes=STORE, sinks={"api": {"keepalive_seconds": 30}})
            for _ in range(2):
                await through(gateway, random_bytes(2_000_000), target=target)
            assert len(upstream.exchanges) == 2
