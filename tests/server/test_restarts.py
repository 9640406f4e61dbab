"""Restarts that nobody notices: by a socket that another process keeps, and what SIGHUP has read anew."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import aiohttp
import pytest

from gateway.access import new_key
from gateway.server.reloading import Repeated
from tests.support.clients import FORM_TYPE, Client, ask, eventually, file, form, head
from tests.support.processes import Process, activated_gateway, gateway_begun_by, gateway_process

pytestmark = pytest.mark.sockets

BODY = form(file(bytes(range(256)) * 256))
_HANGS_UP_AT_ITS_START = """
import os, signal, sys
class Importing:
    def find_spec(self, name, *_):
        if name == "gateway.config.settings":
            os.kill(os.getpid(), signal.SIGHUP)
sys.meta_path.insert(0, Importing())
from gateway.cli import main
sys.exit(main(sys.argv[2:]))
"""
FAST = "sinks.disk.fsync = false\n"


class Load:
    """Clients that do not try again: what each of their uploads became, in words."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.seen: Counter[str] = Counter()
        self._is_over = False

    @asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        """Some with a connection for each upload, some that keep theirs, some that send slowly."""
        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(self._repeat(self._one))
            for _ in range(2):
                group.create_task(self._repeat(self._slow_one))
            for _ in range(4):
                group.create_task(self._kept())
            try:
                await self.uploads(20)
                yield
                await self.uploads(20)
            finally:
                self._is_over = True

    async def uploads(self, more: int) -> None:
        """Until so many more have ended."""
        wanted = self.seen.total() + more
        await eventually(lambda: self.seen.total() >= wanted, seconds=60)

    async def _repeat(self, once: Callable[[], object]) -> None:
        while not self._is_over:
            await once()  # type: ignore[misc]

    async def _one(self) -> None:
        await self._send(BODY)

    async def _slow_one(self) -> None:
        half = len(BODY) // 2
        await self._send(BODY[:half], BODY[half:])

    async def _send(self, *pieces: bytes) -> None:
        try:
            async with Client(self._port) as client:
                await client.send(head(content_length=len(BODY), connection="close"))
                for piece in pieces:
                    await client.send(piece)
                    await asyncio.sleep(0.05)
                self.seen[str((await client.answer()).status)] += 1
        except OSError as error:
            self.seen[type(error).__name__] += 1

    async def _kept(self) -> None:
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            url = f"http://127.0.0.1:{self._port}/upload"
            while not self._is_over:
                try:
                    async with session.post(url, data=BODY, headers={"Content-Type": FORM_TYPE}) as response:
                        self.seen[str(response.status)] += 1
                        await response.read()
                except (OSError, aiohttp.ClientError) as error:
                    self.seen[type(error).__name__] += 1


class TestSocketActivation:
    """The socket is somebody else's, who keeps it: a restart refuses nobody, and breaks nothing off."""

    @pytest.fixture
    def listener(self) -> socket.socket:
        return socket.create_server(("127.0.0.1", 0), backlog=1024)

    @pytest.mark.parametrize("workers", [1, 2])
    async def test_restarts_under_load_fail_nobody(self, tmp_path: Path, listener: socket.socket, workers: int) -> None:
        load = Load(listener.getsockname()[1])
        config = f"server.workers = {workers}\n{FAST}"
        with listener:
            process = activated_gateway(tmp_path, listener, config)
            try:
                async with load.going_on():
                    for _ in range(3):
                        process.terminate()
                        assert await asyncio.to_thread(process.wait, 30) == 0
                        process = await asyncio.to_thread(activated_gateway, tmp_path, listener, config)
                        await load.uploads(20)
            finally:
                process.__exit__(None, None, None)
        assert load.seen.keys() == {"201"}

    async def test_what_comes_while_there_is_none_waits_for_the_next(
        self, tmp_path: Path, listener: socket.socket
    ) -> None:
        with listener:
            with activated_gateway(tmp_path, listener, FAST) as process:
                process.terminate()
                assert await asyncio.to_thread(process.wait, 30) == 0
            async with Client(listener.getsockname()[1]) as client:
                await client.send(head(content_length=len(BODY)) + BODY)
                with activated_gateway(tmp_path, listener, FAST):
                    assert (await client.answer()).status == 201

    async def test_who_was_idle_for_long_is_told_by_the_end_of_his_connection(
        self, tmp_path: Path, listener: socket.socket
    ) -> None:
        with listener, activated_gateway(tmp_path, listener, FAST) as process:
            async with Client(process.port) as idle, Client(process.port) as busy:
                await idle.send(head("/healthz", "GET", content_type=""))
                assert (await idle.answer()).status == 200
                await busy.send(head(content_length=len(BODY)) + BODY[:100])
                await asyncio.sleep(0.2)
                process.terminate()
                assert await idle.ended() == b""
                await busy.send(BODY[100:])
                answer = await busy.answer()
                assert (answer.status, answer.headers["connection"]) == (201, "close")
            assert await asyncio.to_thread(process.wait, 30) == 0

    @pytest.mark.parametrize("workers", [1, 2])
    async def test_who_was_reading_when_it_began_may_ask_for_one_more_thing(
        self, tmp_path: Path, listener: socket.socket, workers: int
    ) -> None:
        config = f"server.workers = {workers}\n{FAST}"
        with listener, activated_gateway(tmp_path, listener, config) as process:
            with closing(HTTPConnection("127.0.0.1", process.port, timeout=60)) as client:

                def asked(method: str, path: str, body: bytes | None = None) -> HTTPResponse:
                    client.request(method, path, body, {"Content-Type": FORM_TYPE} if body else {})
                    return client.getresponse()

                large = await asyncio.to_thread(asked, "POST", "/upload", form(file(bytes(24 << 20))))
                upload = json.loads(large.read())["upload"]
                reading = await asyncio.to_thread(asked, "GET", f"/files/{upload}/0")
                process.terminate()
                await eventually(lambda: "1 requests in progress" in process.log.read_text())
                assert len(await asyncio.to_thread(reading.read)) == 24 << 20
                connection = client.sock
                answer = await asyncio.to_thread(asked, "POST", "/upload", BODY)
                assert (answer.status, answer.headers["Connection"]) == (201, "close")
                assert connection is not None, "it was the same one"
            assert await asyncio.to_thread(process.wait, 30) == 0

    async def test_its_variables_are_for_nobody_else(self, tmp_path: Path, listener: socket.socket) -> None:
        with listener, activated_gateway(tmp_path, listener, f"server.workers = 2\n{FAST}") as process:
            lines = [json.loads(line) for line in process.log.read_text().splitlines() if line.startswith("{")]
            (pid, *_) = [line["pid"] for line in lines if "pid" in line]
            assert b"LISTEN_" not in Path(f"/proc/{pid}/environ").read_bytes()

    @pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="systemd is not installed")
    async def test_systemds_own_program_starts_it(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        config = tmp_path / "my.toml"
        config.write_text(
            f'server.listen = ["fd://"]\nsinks.disk.root = "{tmp_path}/uploads"\n'
            '[[routes]]\npath = "/upload"\naccess = ["none"]\nparts = [{sinks = ["disk"]}]\n'
        )
        with (tmp_path / "log").open("wb") as log:
            own = ["--setenv=PYTHONPATH", sys.executable, "-m", "gateway", "serve", "--config", str(config)]
            activator = subprocess.Popen(
                ["systemd-socket-activate", f"--listen=127.0.0.1:{port}", *own],
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            )
            try:
                await eventually(lambda: b"Listening on" in (tmp_path / "log").read_bytes())
                assert (await ask(port, "/upload", "POST", BODY)).status == 201
            finally:
                activator.terminate()
                assert await asyncio.to_thread(activator.wait, 30) == 0


async def test_what_is_asked_for_while_it_goes_on_is_done_once_more() -> None:
    done: list[int] = []
    going_on = asyncio.Event()

    async def work() -> None:
        done.append(0)
        await going_on.wait()

    async with Repeated(work) as repeated:
        for _ in range(5):
            repeated.ask()
            await asyncio.sleep(0)
        assert len(done) == 1
        going_on.set()
        await eventually(lambda: len(done) == 2)
        await asyncio.sleep(0.05)
        going_on.clear()
        repeated.ask()
        await eventually(lambda: len(done) == 3)
    repeated.ask()
    await asyncio.sleep(0.05)
    assert len(done) == 3, "and not at all behind its end, which waits for none"


class TestReload:
    """SIGHUP: what can be is read anew, the rest is named, and nothing is dropped."""

    ROUTES = '[[routes]]\npath = "/upload"\naccess = ["keys"]\nparts = [{sinks = ["disk"]}]\n'

    @staticmethod
    def _key(file: Path, name: str) -> str:
        key, line = new_key(name, ("upload", "read"))
        file.write_text(line + "\n")
        return key

    @pytest.mark.parametrize("workers", [1, 2])
    async def test_keys_and_the_log_level_are_read_anew_and_what_is_not_is_named(
        self, tmp_path: Path, workers: int
    ) -> None:
        keys = tmp_path / "keys.toml"
        first = self._key(keys, "first")
        config = f'[server]\nworkers = {workers}\n[access.keys]\nfile = "{keys}"\n{self.ROUTES}'
        with gateway_process(tmp_path, config) as process:
            path = process.log.with_suffix(".toml")
            second = self._key(keys, "second")
            more = 'log_level = "DEBUG"\nmax_uploads = 3\n[limits]\nstall_seconds = 7\n'
            path.write_text(config.replace("[access.keys]", f"{more}[access.keys]", 1))
            os.kill(process.pid, signal.SIGHUP)
            await eventually(lambda: process.log.read_text().count("keys and secrets were read anew") == workers)
            said = process.log.read_text()
            assert "the log level is DEBUG from here on" in said
            assert "these need a restart, and stay as they were: limits.stall_seconds, server.max_uploads" in said
            for key, status in ((first, 401), (second, 201)):
                answer = await ask(process.port, "/upload", "POST", BODY, x_api_key=key)
                assert answer.status == status
            path.write_text(config.replace("[access.keys]", 'log_level = "ERROR"\n[access.keys]', 1))
            os.kill(process.pid, signal.SIGHUP)
            await asyncio.sleep(1)
            before = process.log.read_text()
            assert (await ask(process.port, "/upload", "POST", BODY, x_api_key=second)).status == 201
            await asyncio.sleep(0.3)
            assert process.log.read_text() == before, "no line for an upload, in whichever process"

    @pytest.mark.parametrize("workers", [1, 2])
    async def test_while_it_starts_sighup_is_heard_when_it_has(self, tmp_path: Path, workers: int) -> None:
        with gateway_begun_by(_HANGS_UP_AT_ITS_START, tmp_path, f"server.workers = {workers}\n") as process:
            await eventually(lambda: "keys and secrets were read anew" in process.log.read_text())
            assert (await ask(process.port, "/upload", "POST", BODY)).status == 201

    async def test_a_worker_that_starts_meanwhile_is_told_when_it_has(self, tmp_path: Path) -> None:
        with gateway_process(tmp_path, "server.workers = 2\n") as process:
            path = process.log.with_suffix(".toml")
            path.write_text('[server]\nworkers = 2\nlog_level = "DEBUG"\n')
            before = self._workers(process.pid)
            os.kill(min(before), signal.SIGKILL)
            await eventually(lambda: len(self._workers(process.pid) - before) == 1)
            os.kill(process.pid, signal.SIGHUP)
            await eventually(lambda: self._said_by_workers(process).count("keys and secrets were read anew") == 2)

    @pytest.mark.parametrize("workers", [1, 2])
    async def test_while_it_ends_sighup_means_nothing(self, tmp_path: Path, workers: int) -> None:
        with gateway_process(tmp_path, f"server.workers = {workers}\n") as process:
            process.terminate()
            with suppress(ProcessLookupError):
                while process.is_running:
                    os.kill(process.pid, signal.SIGHUP)
                    await asyncio.sleep(0.001)
            assert await asyncio.to_thread(process.wait, 30) == 0

    @staticmethod
    def _workers(parent: int) -> set[int]:
        return {int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()}

    @staticmethod
    def _said_by_workers(process: Process) -> list[str]:
        lines = [json.loads(line) for line in process.log.read_text().splitlines() if line.startswith("{")]
        return [line["message"] for line in lines if "worker" in line]

    async def test_many_keys_are_read_while_others_are_served(self, tmp_path: Path) -> None:
        keys = tmp_path / "keys.toml"
        key, line = new_key("known", ("upload", "read"))
        more = "".join(f'k{number} = {{ sha256 = "{number:064x}" }}\n' for number in range(8000))
        keys.write_text(more + line + "\n")
        with gateway_process(tmp_path, f'access.keys.file = "{keys}"\n{self.ROUTES}') as process:
            os.kill(process.pid, signal.SIGHUP)
            answered = 0
            while "keys and secrets were read anew" not in process.log.read_text():
                assert (await ask(process.port, "/healthz")).status == 200
                answered += 1
            assert answered > 10
            assert (await ask(process.port, "/upload", "POST", BODY, x_api_key=key)).status == 201

    async def test_the_files_of_a_relay_are_named_whatever_else_of_it_was_changed(self, tmp_path: Path) -> None:
        config = '[sinks.api]\ntype = "relay"\nurl = "https://127.0.0.1:1/a"\n[sinks.api.tls]\nverify = true\n'
        with gateway_process(tmp_path, config) as process:
            process.log.with_suffix(".toml").write_text(config.replace("/a", "/b"))
            os.kill(process.pid, signal.SIGHUP)
            await eventually(lambda: "these need a restart" in process.log.read_text())
            assert "stay as they were: sinks.api.url, the files of sinks.api.tls" in process.log.read_text()

    async def test_a_configuration_that_is_none_changes_nothing_and_is_told(self, tmp_path: Path) -> None:
        with gateway_process(tmp_path, FAST) as process:
            process.log.with_suffix(".toml").write_text("[server]\nlog_level = 3\nmax_uploads = -1\n")
            os.kill(process.pid, signal.SIGHUP)
            await eventually(lambda: "keys and secrets were read anew" in process.log.read_text())
            lines = [line for line in process.log.read_text().splitlines() if "stays as it was" in line]
            assert len(lines) == 2
            assert (await ask(process.port, "/upload", "POST", BODY)).status == 201

    async def test_keys_that_cannot_be_read_stay(self, tmp_path: Path) -> None:
        keys = tmp_path / "keys.toml"
        key = self._key(keys, "first")
        with gateway_process(tmp_path, f'access.keys.file = "{keys}"\n{self.ROUTES}') as process:
            keys.write_text("no such thing")
            os.kill(process.pid, signal.SIGHUP)
            await eventually(lambda: "keys and secrets stay as they were: access.keys.file" in process.log.read_text())
            assert (await ask(process.port, "/upload", "POST", BODY, x_api_key=key)).status == 201

    async def test_signed_urls_are_checked_with_what_the_file_has(self, tmp_path: Path) -> None:
        secrets = tmp_path / "secrets"
        secrets.write_text("a" * 40 + "\n")
        table = f'access.signed.secrets_file = "{secrets}"\n'
        config = table + self.ROUTES.replace("keys", "signed")
        with gateway_process(tmp_path, config) as process:
            path = process.log.with_suffix(".toml")
            url = await asyncio.to_thread(self._signed, path)
            assert (await ask(process.port, url, "POST", BODY)).status == 201
            secrets.write_text("b" * 40 + "\n")
            os.kill(process.pid, signal.SIGHUP)
            await eventually(lambda: "keys and secrets were read anew" in process.log.read_text())
            assert (await ask(process.port, url, "POST", BODY)).status == 403
            url = await asyncio.to_thread(self._signed, path)
            assert (await ask(process.port, url, "POST", BODY)).status == 201

    @staticmethod
    def _signed(config: Path) -> str:
        command = [sys.executable, "-m", "gateway", "sign", "--config", str(config), "--route", "/upload"]
        return subprocess.run([*command, "--expires", "1h"], check=True, capture_output=True, text=True).stdout.strip()

    @pytest.mark.parametrize("workers", [1, 2])
    async def test_it_fails_nobody_under_load(self, tmp_path: Path, workers: int) -> None:
        with gateway_process(tmp_path, f"server.workers = {workers}\n{FAST}") as process:
            load = Load(process.port)
            async with load.going_on():
                for _ in range(5):
                    os.kill(process.pid, signal.SIGHUP)
                    await load.uploads(10)
            assert load.seen.keys() == {"201"}


class TestDrainDelay:
    """A balancer is told first, and has that long to send nobody here any more."""

    @pytest.mark.parametrize("workers", [1, 2])
    async def test_readiness_says_so_while_all_is_served(self, tmp_path: Path, workers: int) -> None:
        config = f"[server]\ndrain_delay_seconds = 3\nworkers = {workers}\n"
        with gateway_process(tmp_path, config) as process:
            process.terminate()
            await self._not_ready(process)
            answer = await ask(process.port, "/readyz")
            assert (answer.status, answer.body) == (503, b"draining soon: it still takes what comes\n")
            assert (await ask(process.port, "/healthz")).status == 200
            async with Client(process.port) as client:
                await client.send(head(content_length=len(BODY)) + BODY)
                told = await client.answer()
                assert (told.status, told.headers["connection"]) == (201, "close")
            assert await asyncio.to_thread(process.wait, 20) == 0
            with pytest.raises(ConnectionRefusedError):
                await ask(process.port, "/readyz")

    async def test_another_signal_ends_it_at_once(self, tmp_path: Path) -> None:
        with gateway_process(tmp_path, "server.drain_delay_seconds = 60") as process:
            process.terminate()
            await self._not_ready(process)
            process.terminate()
            assert await asyncio.to_thread(process.wait, 10) == 0

    @staticmethod
    async def _not_ready(process: Process) -> None:
        async with asyncio.timeout(10):
            while (await ask(process.port, "/readyz")).status == 200:  # noqa: ASYNC110 - it is elsewhere
                await asyncio.sleep(0.01)
