"""Several processes on one port: real ones, ended by real signals."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.access import new_key
from gateway.config.load import load
from gateway.config.messages import ConfigError
from gateway.http.ulids import new_ulid
from gateway.server.slots import SharedCounts, clear_slots, make_slots
from tests.support.clients import Client, ask, eventually, file, form, head
from tests.support.ports import free_port
from tests.support.processes import Process, gateway_process, receiver_process

pytestmark = pytest.mark.sockets

BODY = form(file(b"abc" * 1000))
HALF = len(BODY) // 2
needs_uvloop = pytest.mark.skipif(find_spec("uvloop") is None, reason="uvloop is not installed")
TWO = "server.workers = 2\nsinks.disk.fsync = false\n"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the gateways of a test put what their workers share."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    return directory


def _lines(process: Process) -> list[dict[str, Any]]:
    """The log; every line of it has to be JSON. The last one may be half-written."""
    return [json.loads(line) for line in process.log.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _pids(process: Process) -> dict[int, int]:
    """Number -> process, of the workers that listened last."""
    return {line["worker"]: line["pid"] for line in _lines(process) if "pid" in line}


def _uploads(process: Process) -> list[dict[str, Any]]:
    return [line for line in _lines(process) if line["logger"] == "gateway.uploads"]


def _loud(process: Process) -> list[dict[str, Any]]:
    """But for 503 and the like."""
    lines = [line for line in _lines(process) if line["logger"] != "gateway.uploads"]
    return [line for line in lines if line["level"] != "INFO" or "traceback" in line]


def _stored(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def _lives(pid: int) -> bool:
    """A zombie does not: whoever adopts it may take its time."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextlib.asynccontextmanager
async def _half_sent(process: Process, root: Path) -> AsyncIterator[Client]:
    """An upload in progress, of which the first half was sent."""
    before = set(_stored(root))
    async with Client(process.port) as client:
        await client.send(head(content_length=len(BODY)) + BODY[:HALF])
        await eventually(lambda: set(_stored(root)) - before)
        yield client


async def _exit_code(process: Process, seconds: float = 30) -> int:
    return await asyncio.to_thread(process.wait, seconds)


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


async def _samples(port: int) -> dict[str, float]:
    """Name -> the sum over its labels."""
    sums: dict[str, float] = {}
    text = (await ask(port, "/metrics")).body.decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0) + sample.value
    return sums


class TestServing:
    async def test_both_serve_on_one_port_and_say_so_once(self, tmp_path: Path) -> None:
        with gateway_process(tmp_path, TWO) as process:
            assert len(_pids(process)) == len({*_pids(process).values(), process.pid}) - 1 == 2
            async with contextlib.AsyncExitStack() as stack:
                clients = [await stack.enter_async_context(_half_sent(process, tmp_path / "uploads")) for _ in range(8)]
                for client in clients:
                    await client.send(BODY[HALF:])
                    answer = await client.answer()
                    assert answer.status == 201
                    # any of them gives back what any of them took
                    assert (await ask(process.port, answer.headers["location"])).body == answer.body
            await eventually(lambda: len(_uploads(process)) == 8)
            assert {line["worker"] for line in _uploads(process)} == {0, 1}
        assert len([line for line in _lines(process) if line["message"].startswith("listening on")]) == 1
        assert _loud(process) == []

    async def test_connections_go_to_whoever_has_fewer(self, tmp_path: Path) -> None:
        """A hash of the kernel's would give all of 12 to one of two about once in 2000 runs, and 10 or more once in 26.

        Here it depends on how soon an idle process runs, so that only the worst is refused.
        """
        with gateway_process(tmp_path, TWO) as process:
            async with contextlib.AsyncExitStack() as stack:
                clients = [await stack.enter_async_context(Client(process.port)) for _ in range(12)]
                await asyncio.sleep(0.5)
                for client in clients:
                    await client.send(head(content_length=len(BODY)) + BODY)
                for client in clients:
                    assert (await client.answer()).status == 201
            await eventually(lambda: len(_uploads(process)) == 12)
            taken = [line["worker"] for line in _uploads(process)]
        assert min(taken.count(0), taken.count(1)) >= 2

    async def test_a_relay_works_with_the_demo_destination_beside_it(self, tmp_path: Path) -> None:
        path = tmp_path / "gateway.toml"
        path.write_text(TWO)
        env = {"GATEWAY_SERVER__PORT": "0", "GATEWAY_SINKS__DISK__ROOT": str(tmp_path / "uploads")}
        arguments = ("serve", "--config", str(path), "--with-receiver", "0")
        with Process(*arguments, log=tmp_path / "serve.log", env=env) as process:
            for _ in range(4):
                answer = await ask(process.port, "/proxy", "POST", BODY)
                assert (answer.status, answer.json()["parts"][0]["size"]) == (200, 3000)
            assert f"curl http://127.0.0.1:{process.port}/metrics" in process.log.read_text()
            process.terminate()
            assert await _exit_code(process) == 0

    async def test_a_name_is_listened_on_with_all_its_addresses(self, tmp_path: Path) -> None:
        port = free_port()
        with gateway_process(tmp_path, TWO, GATEWAY_SERVER__HOST="localhost", GATEWAY_SERVER__PORT=str(port)):
            for *_, address in socket.getaddrinfo("localhost", port, type=socket.SOCK_STREAM):
                with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
                    if len(address) == 4:
                        probe.bind(("::1", 0))  # or there is no IPv6 here
                        with socket.create_connection(address[:2], timeout=10) as connection:
                            connection.sendall(head("/healthz", "GET", connection="close"))
                            assert connection.recv(100).startswith(b"HTTP/1.1 200")
            assert (await ask(port, "/healthz")).status == 200


class TestProgress:
    async def test_whichever_process_is_asked_tells_how_far_an_upload_is_and_knows_that_its_id_is_taken(
        self, tmp_path: Path
    ) -> None:
        upload_id = new_ulid()
        with gateway_process(tmp_path, TWO) as process:
            async with contextlib.AsyncExitStack() as stack:
                uploading = await stack.enter_async_context(Client(process.port))
                await uploading.send(head(x_upload_id=upload_id, content_length=len(BODY)) + BODY[:HALF])
                await eventually(lambda: _stored(tmp_path / "uploads"))
                clients = [await stack.enter_async_context(Client(process.port)) for _ in range(6)]
                for client in clients:
                    await client.send(head(f"/uploads/{upload_id}/progress", "GET", accept="application/json"))
                    told = (await client.answer()).json()
                    assert (told["state"], told["received"]) == ("receiving", HALF)
                    await client.send(head(x_upload_id=upload_id, content_length=len(BODY)) + BODY)
                    assert (await client.answer()).status == 409
                watching = await stack.enter_async_context(Client(process.port))
                await watching.send(head(f"/uploads/{upload_id}/progress", "GET"))
                await uploading.send(BODY[HALF:])
                assert (await uploading.answer()).status == 201
                assert b'"state": "kept"' in await watching.ended()
            await eventually(lambda: {line["worker"] for line in _lines(process) if "worker" in line} == {0, 1})
            read = [line["worker"] for line in _lines(process) if line["logger"] == "gateway.read"]
        assert set(read) == {0, 1}
        assert _loud(process) == []

    async def test_a_link_that_one_of_them_has_signed_is_good_at_the_other(self, tmp_path: Path) -> None:
        secret, line = new_key("ci", ("upload", "read"))
        (tmp_path / "keys.toml").write_text(line)
        config = (
            f'{TWO}page.enabled = true\naccess.keys.file = "{tmp_path}/keys.toml"\n'
            '[[routes]]\npath = "/upload"\naccess = ["keys"]\n[[routes.parts]]\nsinks = ["disk"]\n'
        )
        with gateway_process(tmp_path, config) as process:
            kept = await ask(process.port, "/upload", "POST", BODY, x_api_key=secret)
            links = f"{kept.headers['location']}/links"
            async with contextlib.AsyncExitStack() as stack:
                clients = [await stack.enter_async_context(Client(process.port)) for _ in range(6)]
                await clients[0].send(head(f"{links}/0", "GET", x_api_key=secret))
                url = (await clients[0].answer()).json()["url"]
                for client in clients:
                    await client.send(head(url, "GET"))
                    assert (await client.answer()).body == b"abc" * 1000
            assert (await ask(process.port, f"{links}/0")).status == 401
            read = [line["worker"] for line in _lines(process) if line["logger"] == "gateway.read"]
        assert set(read) == {0, 1}


class TestStart:
    @pytest.mark.parametrize("workers", [1, 2])
    def test_a_port_in_use_is_one_clear_line_and_exit_code_1(self, tmp_path: Path, workers: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            said = self._serve(tmp_path, f"server.port = {taken.getsockname()[1]}\nserver.workers = {workers}\n")
        (line,) = said
        assert line.startswith("gateway: ")
        assert "address already in use" in line

    async def test_a_port_that_other_workers_share_is_in_use(self, tmp_path: Path) -> None:
        with gateway_process(tmp_path, TWO) as process:
            (line,) = self._serve(tmp_path, f"server.port = {process.port}\n{TWO}")
            assert "address already in use" in line
            assert (await ask(process.port, "/healthz")).status == 200

    def test_workers_that_cannot_start_are_given_up(self, tmp_path: Path, temporary: Path) -> None:
        (tmp_path / "uploads").symlink_to(tmp_path / "nowhere")  # as good as absent, and cannot be made
        said = self._serve(tmp_path, f"server.port = 0\n{TWO}")
        assert any(re.fullmatch(r"gateway: worker \d: .*File exists.*", line) for line in said)
        assert re.fullmatch(r"gateway: worker \d did not start: exit code 1", said[-1])
        assert list(temporary.iterdir()) == []

    @staticmethod
    def _serve(tmp_path: Path, config: str) -> list[str]:
        """What it said, but for the log."""
        path = tmp_path / "failing.toml"
        path.write_text(f'{config}\nsinks.disk.root = "{tmp_path}/uploads"\n')
        done = subprocess.run(
            [sys.executable, "-m", "gateway", "serve", "--config", str(path)],
            capture_output=True,
            timeout=100,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        return [line for line in done.stderr.splitlines() if not line.startswith("{")]


class TestDrain:
    async def test_uploads_in_progress_complete_and_nothing_new_begins(self, tmp_path: Path, temporary: Path) -> None:
        root = tmp_path / "uploads"
        with gateway_process(tmp_path, TWO) as process:
            pids = _pids(process)
            async with Client(process.port) as idle, contextlib.AsyncExitStack() as stack:
                await idle.send(head("/readyz", "GET", content_type=""))
                assert (await idle.answer()).status == 200
                clients = [await stack.enter_async_context(_half_sent(process, root)) for _ in range(4)]
                process.terminate()
                await _refused(process.port)
                for pid in pids.values():
                    os.kill(pid, signal.SIGTERM)  # a second one is none, unless it is the parent's
                await idle.send(head("/readyz", "GET", content_type=""))
                assert (await idle.answer()).status == 503
                for client in clients:
                    await client.send(BODY[HALF:])
                    assert (await client.answer()).status == 201
            assert await _exit_code(process) == 0
        assert not any(map(_lives, pids.values()))
        assert len(_stored(root)) == 4
        assert _loud(process) == []
        assert list(temporary.iterdir()) == []

    async def test_what_outlives_the_drain_is_broken_off_and_leaves_nothing(self, tmp_path: Path) -> None:
        root = tmp_path / "uploads"
        with gateway_process(tmp_path, TWO + "server.drain_seconds = 0.5\n") as process:
            async with _half_sent(process, root) as one, _half_sent(process, root) as other:
                process.terminate()
                for client in (one, other):
                    assert not (await client.ended()).startswith(b"HTTP/1.1 2")
            assert await _exit_code(process) == 0
        assert _stored(root) == []

    async def test_ctrl_c_reaches_all_processes_and_drains_once(self, tmp_path: Path) -> None:
        root = tmp_path / "uploads"
        with gateway_process(tmp_path, TWO) as process:
            async with _half_sent(process, root) as client:
                for pid in (process.pid, *_pids(process).values()):  # as a terminal does to its group
                    os.kill(pid, signal.SIGINT)
                await _refused(process.port)
                await client.send(BODY[HALF:])
                assert (await client.answer()).status == 201
            assert await _exit_code(process) == 0
        assert _loud(process) == []

    @pytest.mark.parametrize(
        ("workers", "event_loop"), [(1, "asyncio"), (2, "asyncio"), pytest.param(2, "uvloop", marks=needs_uvloop)]
    )
    async def test_signals_that_come_until_the_very_end_change_nothing(
        self, tmp_path: Path, workers: int, event_loop: str
    ) -> None:
        config = f'server.workers = {workers}\nserver.event_loop = "{event_loop}"\nsinks.disk.fsync = false\n'
        with gateway_process(tmp_path, config) as process:
            assert (await ask(process.port, "/upload", "POST", BODY)).status == 201
            process.terminate()
            async with asyncio.TaskGroup() as group:
                for pid in (process.pid, *_pids(process).values()):
                    group.create_task(asyncio.to_thread(self._signal_until_its_end, pid))
                assert await _exit_code(process) == 0
        assert _loud(process) == []

    @staticmethod
    def _signal_until_its_end(pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            while _lives(pid):
                os.kill(pid, signal.SIGTERM)
                os.kill(pid, signal.SIGINT)
                time.sleep(0.0005)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    async def test_a_signal_while_they_start_ends_all_of_them_quietly(
        self, tmp_path: Path, number: signal.Signals
    ) -> None:
        path = tmp_path / "gateway.toml"
        path.write_text(f'server.port = 0\n{TWO}sinks.disk.root = "{tmp_path}/uploads"\n')
        command = [sys.executable, "-m", "gateway", "serve", "--config", str(path)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            await eventually(lambda: len(children.read_text().split()) == 2)
            os.killpg(process.pid, number)
            _, said = await asyncio.to_thread(process.communicate, timeout=30)
        assert process.returncode == 0
        assert "Traceback" not in said

    async def test_workers_whose_parent_was_killed_drain_and_end(self, tmp_path: Path, temporary: Path) -> None:
        with gateway_process(tmp_path, TWO) as process:
            pids = _pids(process).values()
            async with _half_sent(process, tmp_path / "uploads") as client:
                process.kill()
                await _refused(process.port)
                await client.send(BODY[HALF:])
                assert (await client.answer()).status == 201
            await eventually(lambda: not any(map(_lives, pids)))
        assert list(temporary.iterdir()) == []


class TestReplacement:
    async def test_a_killed_worker_is_replaced_and_what_it_wrote_is_removed(self, tmp_path: Path) -> None:
        root = tmp_path / "uploads"
        with gateway_process(tmp_path, TWO + "server.max_uploads = 2\n") as process:
            before = _pids(process)
            async with _half_sent(process, root) as one, _half_sent(process, root) as other:
                assert (await ask(process.port, "/upload", "POST", BODY)).status == 503
                for pid in before.values():
                    os.kill(pid, signal.SIGKILL)
                for client in (one, other):
                    assert await client.ended() == b""
            await eventually(lambda: not set(_pids(process).values()) & set(before.values()))
            await eventually(lambda: _stored(root) == [])
            # their slots are free again, and it counts none that they had
            async with _half_sent(process, root) as one, _half_sent(process, root) as other:
                assert (await _samples(process.port))["gateway_uploads_in_flight"] == 2
                for client in (one, other):
                    await client.send(BODY[HALF:])
                    assert (await client.answer()).status == 201
            process.terminate()
            assert await _exit_code(process) == 0
        replaced = [line["worker"] for line in _loud(process)]
        assert sorted(replaced) == [0, 1]

    async def test_one_that_drains_by_itself_leaves_new_connections_to_others(self, tmp_path: Path) -> None:
        with gateway_process(tmp_path, TWO) as process:
            before = _pids(process)
            async with _half_sent(process, tmp_path / "uploads") as client:
                for number in before:
                    os.kill(before[number], signal.SIGTERM)
                    await eventually(lambda number=number: self._has_stopped(process, number, before[number]))
                    for _ in range(8):  # where both have stopped they wait for a successor
                        assert (await ask(process.port, "/readyz")).status == 200
                await client.send(BODY[HALF:])
                assert (await client.answer()).status == 201
            await eventually(lambda: not set(_pids(process).values()) & set(before.values()))

    @staticmethod
    def _has_stopped(process: Process, number: int, pid: int) -> bool:
        """It drains, or it had nothing to drain."""
        drains = [line for line in _lines(process) if line["message"].startswith("draining")]
        return any(line["worker"] == number for line in drains) or not _lives(pid)

    async def test_workers_that_cannot_start_any_more_are_given_up(self, tmp_path: Path) -> None:
        root = tmp_path / "uploads"
        with gateway_process(tmp_path, TWO) as process:
            root.rmdir()
            root.write_text("no directory")
            os.kill(_pids(process)[0], signal.SIGKILL)
            assert await _exit_code(process, 60) == 1
        text = process.log.read_text()
        assert text.count("did not start (exit code 1)") == 5
        assert "gateway: worker 0 did not start" in text


class TestTogether:
    async def test_metrics_are_the_sums_of_all_whoever_is_asked(self, tmp_path: Path) -> None:
        root = tmp_path / "uploads"
        with gateway_process(tmp_path, TWO) as process:
            async with contextlib.AsyncExitStack() as stack:
                clients = [await stack.enter_async_context(_half_sent(process, root)) for _ in range(6)]
                for _ in range(4):
                    assert (await _samples(process.port))["gateway_uploads_in_flight"] == 6
                for client in clients:
                    await client.send(BODY[HALF:])
                    await client.answer()
            await eventually(lambda: len(_uploads(process)) == 6)
            assert {line["worker"] for line in _uploads(process)} == {0, 1}
            for _ in range(4):
                samples = await _samples(process.port)
                # one, not one for each process
                shown = samples["gateway_destination_up"], samples["gateway_destination_circuit_open"]
                assert shown == (1, 0)
                assert samples["gateway_uploads_total"] == samples["gateway_upload_seconds_count"] == 6
                assert samples["gateway_received_bytes_total"] == 6 * len(BODY)
                assert samples["gateway_uploads_in_flight"] == 0
            # a successor goes on with what was counted
            before = _pids(process)
            for pid in before.values():
                os.kill(pid, signal.SIGKILL)
            await eventually(lambda: not set(_pids(process).values()) & set(before.values()))
            assert (await _samples(process.port))["gateway_uploads_total"] == 6

    async def test_max_uploads_counts_for_all_of_them(self, tmp_path: Path) -> None:
        root = tmp_path / "uploads"
        with gateway_process(tmp_path, TWO + "server.max_uploads = 5\n") as process:
            async with contextlib.AsyncExitStack() as stack:
                clients = [await stack.enter_async_context(_half_sent(process, root)) for _ in range(5)]
                for _ in range(4):
                    answer = await ask(process.port, "/upload", "POST", BODY)
                    assert (answer.status, answer.json()["limit"]) == (503, 5)
                await clients[0].send(BODY[HALF:])
                assert (await clients[0].answer()).status == 201
                await asyncio.sleep(0.1)
                assert (await ask(process.port, "/upload", "POST", BODY)).status == 201

    async def test_0_is_unlimited(self, tmp_path: Path) -> None:
        with gateway_process(tmp_path, TWO + "server.max_uploads = 0\n") as process:
            async with _half_sent(process, tmp_path / "uploads"):
                assert (await ask(process.port, "/upload", "POST", BODY)).status == 201

    async def test_a_destination_sees_what_both_send(self, tmp_path: Path) -> None:
        with receiver_process(tmp_path) as receiver:
            env = {"GATEWAY_SINKS__API__URL": f"{receiver.url}/upload"}
            with gateway_process(tmp_path, TWO, **env) as process:
                answers = await asyncio.gather(*(ask(process.port, "/proxy", "POST", BODY) for _ in range(8)))
                assert {answer.status for answer in answers} == {200}
            assert (await ask(receiver.port, "/seen")).json()["completed"] == 8


class TestSlots:
    @pytest.mark.parametrize("kind", ["uploads", "reads"])
    def test_no_more_are_taken_than_there_are_and_those_of_the_dead_come_back(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "slots"
        make_slots(path, processes=2)
        with contextlib.ExitStack() as stack:
            counts = [stack.enter_context(contextlib.closing(SharedCounts(path, number=number))) for number in (0, 1)]
            one, other = (getattr(count, kind)(3) for count in counts)
            for count in counts:  # the other kind's, and connections, are none of them
                assert (count.reads if kind == "uploads" else count.uploads)(2).take()
                count.connections().tell(7)
            assert [one.take(), other.take(), one.take(), other.take(), one.take()] == [True, True, True, False, False]
            other.give_back()
            assert [one.take(), other.take()] == [True, False]
            clear_slots(path, 0)
            assert [other.take(), other.take(), other.take(), other.take()] == [True, True, True, False]

    def test_who_has_most_connections_leaves_the_next_one_for_a_moment_and_the_dead_are_not_waited_for(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "slots"
        make_slots(path, processes=2)
        with contextlib.ExitStack() as stack:
            counts = [stack.enter_context(contextlib.closing(SharedCounts(path, number=number))) for number in (0, 1)]
            one, other = (count.connections() for count in counts)
            one.tell(5)
            assert (one.is_our_turn(), one.of_others()) == (True, 0)  # there is nobody else yet
            other.tell(5)
            assert one.is_our_turn()
            assert other.is_our_turn()
            other.tell(4)
            assert (one.is_our_turn(), one.of_others(), other.of_others()) == (False, 4, 5)
            assert other.is_our_turn()
            time.sleep(0.02)
            assert not one.is_our_turn()  # another one than before
            while not one.is_our_turn():  # that nobody takes
                pass
            clear_slots(path, 1)
            assert one.is_our_turn()
            other.tell(4)
            assert not one.is_our_turn()
            other.accept_no_more()
            other.tell(3)
            assert (one.is_our_turn(), one.of_others()) == (True, 0)


class TestEventLoop:
    @needs_uvloop
    @pytest.mark.parametrize("workers", [1, 2])
    async def test_uvloop_takes_gives_back_and_drains(self, tmp_path: Path, workers: int) -> None:
        config = f'server.workers = {workers}\nserver.event_loop = "uvloop"\n'
        with gateway_process(tmp_path, config) as process:
            answer = await ask(process.port, "/upload", "POST", form(file(bytes(3 << 20))))
            location = answer.json()["parts"][0]["receipts"][0]["location"]
            assert (await ask(process.port, location)).body == bytes(3 << 20)
            async with _half_sent(process, tmp_path / "uploads") as client:
                process.terminate()
                await _refused(process.port)
                await client.send(BODY[HALF:])
                assert (await client.answer()).status == 201
            assert await _exit_code(process) == 0
        assert _loud(process) == []

    def test_a_loop_that_is_not_installed_is_an_error_of_the_configuration(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "uvloop", None)
        monkeypatch.setenv("GATEWAY_SERVER__EVENT_LOOP", "uvloop")
        with pytest.raises(ConfigError, match=r"server.event_loop: .*uvloop needs the package of that name"):
            load()
