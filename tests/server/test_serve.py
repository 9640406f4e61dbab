"""The process: its settings, its signals (G6), its log, what it leaves on disk when it is killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.config.settings import Settings
from gateway.server.app import build_app, check_took_effect
from gateway.server.serve import DrainingRunner
from tests.conftest import StartDestination, StartGateway
from tests.support.clients import Client, VanishingClient, ask, eventually, file, form, head
from tests.support.processes import Process, gateway_process

BODY = form(file(b"abc" * 1000))
HALF = len(BODY) // 2


def _settings(tmp_path: Path) -> Settings:
    document: dict[str, Any] = {"sinks": {"disk": {"root": str(tmp_path / "uploads")}}}
    return Settings(**document)


def _lines(process: Process) -> list[dict[str, Any]]:
    """The log; every line of it has to be JSON."""
    return [json.loads(line) for line in process.log.read_text().splitlines()]


def _uploads(process: Process) -> list[dict[str, Any]]:
    return [line for line in _lines(process) if line["logger"] == "gateway.uploads"]


def _stored(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


@contextlib.asynccontextmanager
async def _half_sent(process: Process, root: Path) -> AsyncIterator[Client]:
    """An upload in progress, of which the first half was sent."""
    before = _stored(root)
    async with Client(process.port) as client:
        await client.send(head(content_length=len(BODY)) + BODY[:HALF])
        await eventually(lambda: _stored(root) != before)
        yield client


async def _exit_code(process: Process, seconds: float = 20) -> int:
    return await asyncio.to_thread(process.wait, seconds)


class TestSettings:
    async def test_what_is_set_on_connections_took_effect(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway(server={"read_buffer_bytes": 65536})  # it checks that itself
        server = gateway.runner.server
        assert server is not None
        handler = server()
        assert handler._read_bufsize == 65536
        assert handler._lingering_time > 0
        assert handler.access_logger is None
        assert server._kwargs["max_head_bytes"] == 65536

    async def test_a_misspelt_setting_is_not_passed_over(self, tmp_path: Path) -> None:
        settings = _settings(tmp_path)
        app = build_app(settings)
        app._handler_args = {**(app._handler_args or {}), "lingering_tme": 3}
        runner = DrainingRunner(app, drain_seconds=0)
        await runner.setup()
        try:
            with pytest.raises(RuntimeError, match="did not take effect"):
                check_took_effect(runner, settings)
        finally:
            await runner.cleanup()

    async def test_another_value_than_was_set_is_not_passed_over(self, tmp_path: Path) -> None:
        settings = _settings(tmp_path)
        for argument in ("read_bufsize", "lingering_time", "keepalive_timeout", "head_seconds"):
            app = build_app(settings)
            app._handler_args = {**(app._handler_args or {}), argument: 17}
            runner = DrainingRunner(app, drain_seconds=0)
            await runner.setup()
            try:
                with pytest.raises(RuntimeError, match=argument):
                    check_took_effect(runner, settings)
            finally:
                await runner.cleanup()

    @pytest.mark.sockets
    def test_a_port_in_use_is_one_clear_line_and_exit_code_1(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            path = tmp_path / "gateway.toml"
            path.write_text(f'server.port = {port}\nsinks.disk.root = "{tmp_path}/uploads"\n')
            done = subprocess.run(
                [sys.executable, "-m", "gateway", "serve", "--config", str(path)],
                capture_output=True,
                timeout=30,
                text=True,
                check=False,
            )
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        (line,) = [line for line in done.stderr.splitlines() if not line.startswith("{")]
        assert line.startswith("gateway: ")
        assert str(port) in line
        assert "in use" in line


class TestG6CleanDrain:
    """On SIGTERM uploads in progress end well, or leave nothing; nothing new begins."""

    @pytest.mark.sockets
    async def test_an_upload_in_progress_completes_and_nothing_new_begins(self, tmp_path: Path) -> None:
        with gateway_process(tmp_path) as process:
            async with Client(process.port) as open_connection, _half_sent(process, tmp_path / "uploads") as client:
                await open_connection.send(head("/readyz", "GET", content_type=""))
                assert (await open_connection.answer()).status == 200
                process.terminate()
                await self._refused(process.port)
                await open_connection.send(head("/readyz", "GET", content_type=""))
                assert (await open_connection.answer()).status == 503
                for byte in range(HALF, HALF + 5):
                    await client.send(BODY[byte : byte + 1])
                    await asyncio.sleep(0.1)
                await client.send(BODY[HALF + 5 :])
                answer = await client.answer()
                assert (answer.status, answer.headers["connection"]) == (201, "close")
            assert await _exit_code(process) == 0
        assert _stored(tmp_path / "uploads") == [answer.json()["upload"]]
        assert [line["outcome"] for line in _uploads(process)] == ["ok"]

    @pytest.mark.sockets
    async def test_a_new_upload_on_an_open_connection_is_refused_meanwhile(self, tmp_path: Path) -> None:
        with gateway_process(tmp_path) as process:
            async with Client(process.port) as open_connection, _half_sent(process, tmp_path / "uploads") as client:
                await open_connection.send(head("/healthz", "GET", content_type=""))
                assert (await open_connection.answer()).status == 200
                process.terminate()
                await self._refused(process.port)
                await open_connection.send(head(content_length=len(BODY)))
                answer = await open_connection.answer()
                assert (answer.status, answer.json()["type"]) == (503, "/problems/draining")
                await client.send(BODY[HALF:])
                assert (await client.answer()).status == 201
            assert await _exit_code(process) == 0

    @pytest.mark.sockets
    async def test_who_has_connected_before_may_begin_his_first_request(self, tmp_path: Path) -> None:
        """He was not refused, so that no proxy would send it elsewhere."""
        with gateway_process(tmp_path) as process:
            async with Client(process.port) as client:
                process.terminate()
                await self._refused(process.port)
                await client.send(head(content_length=len(BODY)) + BODY)
                answer = await client.answer()
                assert (answer.status, answer.headers["connection"]) == (201, "close")
            assert await _exit_code(process) == 0
        assert _stored(tmp_path / "uploads") == [answer.json()["upload"]]

    @pytest.mark.sockets
    async def test_but_not_long_after(self, tmp_path: Path) -> None:
        with gateway_process(tmp_path) as process:
            async with Client(process.port) as late, _half_sent(process, tmp_path / "uploads") as client:
                process.terminate()
                await self._refused(process.port)
                await asyncio.sleep(1)
                await late.send(head(content_length=len(BODY)) + BODY)
                assert (await late.answer()).status == 503
                await client.send(BODY[HALF:])
                assert (await client.answer()).status == 201
            assert await _exit_code(process) == 0

    @pytest.mark.sockets
    async def test_an_upload_that_outlives_the_drain_is_broken_off_and_leaves_nothing(self, tmp_path: Path) -> None:
        with gateway_process(tmp_path, "server.drain_seconds = 1") as process:
            async with _half_sent(process, tmp_path / "uploads") as client:
                began = time.monotonic()
                process.terminate()
                assert not (await client.ended()).startswith(b"HTTP/1.1 2")
                assert await _exit_code(process) == 0
                assert time.monotonic() - began >= 1
        assert _stored(tmp_path / "uploads") == []
        (line,) = _uploads(process)
        assert line["level"] == "INFO"
        assert line["outcome"] not in ("ok", "internal-error")
        assert [line for line in _lines(process) if "traceback" in line or line["level"] == "ERROR"] == []

    async def test_a_relay_that_outlives_the_drain_is_broken_off_at_the_destination(
        self, tmp_path: Path, start_destination: StartDestination
    ) -> None:
        destination = await start_destination()
        env = {"GATEWAY_SINKS__API__URL": f"{destination.url}/upload", "GATEWAY_SERVER__DRAIN_SECONDS": "0.5"}
        with gateway_process(tmp_path, **env) as process:
            async with Client(process.port) as client:
                await client.send(head("/proxy", content_length=1 << 30) + file(bytes(1 << 20)))
                async with asyncio.timeout(20):
                    while not (await ask(destination.port, "/seen")).json()["started"]:  # noqa: ASYNC110 - it is elsewhere
                        await asyncio.sleep(0.05)
                process.terminate()
                assert not (await client.ended()).startswith(b"HTTP/1.1 2")
                assert await _exit_code(process) == 0
        seen = (await ask(destination.port, "/seen")).json()
        assert (seen["started"], seen["completed"]) == (1, 0)

    @pytest.mark.sockets
    @pytest.mark.parametrize("connections", [0, 3])
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    async def test_without_uploads_it_ends_at_once(
        self, tmp_path: Path, connections: int, number: signal.Signals
    ) -> None:
        with gateway_process(tmp_path) as process:
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(connections):
                    client = await stack.enter_async_context(Client(process.port))
                    await client.send(head("/healthz", "GET", content_type=""))
                    await client.answer()
                os.kill(process.pid, number)
                assert await _exit_code(process, 10) == 0

    @staticmethod
    async def _refused(port: int) -> None:
        """Wait until nobody can connect any more."""
        for _ in range(500):
            try:
                async with Client(port):
                    await asyncio.sleep(0.01)
            except ConnectionRefusedError:
                return
            except ConnectionResetError:
                continue  # it lay in the backlog when the listener closed; the next one tells
        raise AssertionError("it goes on listening")


class TestKilled:
    @pytest.mark.sockets
    async def test_what_a_kill_left_is_removed_and_what_others_write_is_not(self, tmp_path: Path) -> None:
        root = tmp_path / "uploads"
        with gateway_process(tmp_path) as other, gateway_process(tmp_path) as killed:
            async with _half_sent(other, root) as client:
                others = _stored(root)
                async with _half_sent(killed, root):
                    assert len(_stored(root)) == 2
                    killed.kill()
                assert len(_stored(root)) == 2
                with gateway_process(tmp_path) as restarted:
                    assert _stored(root) == others
                    assert (await ask(restarted.port, "/upload", "POST", BODY)).status == 201
                    await client.send(BODY[HALF:])
                    answer = await client.answer()
                    assert answer.status == 201
                    fetched = await ask(restarted.port, answer.headers["location"])
                    assert (fetched.status, fetched.body) == (200, answer.body)
        assert all(not name.startswith(".") for name in _stored(root))
        assert len(_stored(root)) == 2


class TestLog:
    @pytest.mark.sockets
    async def test_every_upload_is_one_line_of_json(self, tmp_path: Path) -> None:
        with gateway_process(tmp_path, "limits.max_body_bytes = 10000") as process:
            answer = await ask(process.port, "/upload", "POST", BODY)
            await ask(process.port, "/upload", "POST", BODY[:-9])
            await ask(process.port, "/healthz")
            await eventually(lambda: len(_uploads(process)) == 2)
            whole, truncated = _uploads(process)
        assert (whole["upload"], whole["outcome"]) == (answer.json()["upload"], "ok")
        assert (whole["level"], whole["route"], whole["parts"]) == ("INFO", "/upload", 1)
        assert whole["received_bytes"] == len(BODY)
        assert whole["seconds"] >= 0
        assert (truncated["level"], truncated["outcome"]) == ("INFO", "truncated")
        assert truncated["detail"]
        assert truncated["upload"] != whole["upload"]

    @staticmethod
    async def _not_http(client: VanishingClient) -> None:
        await client.send(b"GARBAGE\r\n\r\n")
        await client.ended()

    @staticmethod
    async def _bad_header(client: VanishingClient) -> None:
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\nBad Header: \x00\r\n\r\n")
        await client.ended()

    @staticmethod
    async def _endless_header(client: VanishingClient) -> None:
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 100_000 + b"\r\n\r\n")
        await client.ended()

    @staticmethod
    async def _tls(client: VanishingClient) -> None:
        hello = bytes.fromhex("16030100c8010000c40303") + bytes(range(189))
        await client.send(hello)
        await client.vanish_after(b"\r\n\r\n", "fin")

    @staticmethod
    async def _bad_chunk_size(client: VanishingClient) -> None:
        await client.send(head(transfer_encoding="chunked") + b"zz\r\nabc\r\n")
        await client.ended()

    @staticmethod
    async def _bad_chunk_size_later(client: VanishingClient) -> None:
        await client.send(head(transfer_encoding="chunked") + b"3\r\nabc\r\n")
        await asyncio.sleep(0.2)
        await client.send(b"zz\r\nabc\r\n")
        await client.ended()

    @staticmethod
    async def _two_lengths(client: VanishingClient) -> None:
        await client.send(head(content_length=3, transfer_encoding="chunked") + b"0\r\n\r\n")
        await client.ended()

    @staticmethod
    async def _gone_by_fin(client: VanishingClient) -> None:
        await client.vanish_after(head(content_length=len(BODY)) + BODY[:HALF], "fin")

    @staticmethod
    async def _gone_by_rst(client: VanishingClient) -> None:
        await client.send(head(content_length=len(BODY)) + BODY[:HALF])
        await asyncio.sleep(0.2)
        client.reset()

    @staticmethod
    async def _gone_before_its_answer(client: VanishingClient) -> None:
        await client.vanish_after(head(content_length=len(BODY)) + BODY, "rst")

    @staticmethod
    async def _gone_in_its_headers(client: VanishingClient) -> None:
        await client.vanish_after(head()[:50], "rst")

    @staticmethod
    async def _silent(client: VanishingClient) -> None:
        await client.send(head(content_length=len(BODY)) + BODY[:HALF])
        await client.ended()

    @staticmethod
    async def _refused_in_mid_body(client: VanishingClient) -> None:
        with contextlib.suppress(ConnectionError):
            await client.send(head(transfer_encoding="chunked") + b"5000\r\n" + BODY[:60] + b"x" * 0x5000)
            await client.ended()

    @pytest.mark.sockets
    @pytest.mark.parametrize(
        "fault",
        [
            _not_http,
            _bad_header,
            _endless_header,
            _tls,
            _bad_chunk_size,
            _bad_chunk_size_later,
            _two_lengths,
            _gone_by_fin,
            _gone_by_rst,
            _gone_before_its_answer,
            _gone_in_its_headers,
            _silent,
            _refused_in_mid_body,
        ],
        ids=lambda fault: fault.__func__.__name__.strip("_"),
    )
    async def test_a_fault_of_a_clients_is_no_error_and_no_traceback(
        self, tmp_path: Path, fault: staticmethod[[VanishingClient], Awaitable[None]]
    ) -> None:
        act: Callable[[VanishingClient], Awaitable[None]] = fault.__func__
        limits = "limits.idle_seconds = 0.5\nlimits.max_body_bytes = 10000\nsinks.disk.fsync = false\n"
        with gateway_process(tmp_path, limits) as process:
            async with VanishingClient(process.port) as client:
                await act(client)
            await asyncio.sleep(0.3)
            assert (await ask(process.port, "/upload", "POST", BODY)).status == 201
            process.terminate()
            assert await _exit_code(process) == 0
        loud = [line for line in _lines(process) if line["level"] not in ("INFO", "DEBUG") or "traceback" in line]
        assert loud == []
        assert len(_stored(tmp_path / "uploads")) in (1, 2)  # one was whole, and only its answer unread
