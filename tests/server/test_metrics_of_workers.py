"""Two workers, many clients at once: the sums are what the clients counted, whichever worker is asked."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.support.clients import Answer, Client, ask, eventually, file, form, head, random_bytes
from tests.support.processes import Process, gateway_process, receiver_process
from tests.support.scrapes import Samples, by, comes_to, of, scraped

pytestmark = pytest.mark.sockets

TWO = "[server]\nworkers = 2\nmax_uploads_per_address = 0\n[sinks.disk]\nfsync = false\n"
CLIENTS, ROUNDS = 10, 3


class _Counts:
    """What clients have sent, and what they were told."""

    def __init__(self) -> None:
        self.uploads: Counter[tuple[str, str]] = Counter()
        self.bodies: Counter[str] = Counter()
        self.parts: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.fetched = self.empty = 0

    def uploaded(self, route: str, sink: str, body: bytes, parts: int, answer: Answer) -> None:
        """An upload whose body was read to its end, or not at all."""
        if answer.status in (200, 201):
            outcome = "ok"
        elif answer.headers["content-type"] == "application/problem+json":
            outcome = answer.json()["type"].rpartition("/")[2]
        else:
            outcome = "answered"
        self.uploads[route, outcome] += 1
        if outcome == "not-multipart":  # its body was not asked for
            self.refusals[outcome] += 1
            return
        self.bodies[route] += len(body)
        self.empty += not body
        self.parts[sink] += parts
        if outcome == "truncated":
            self.refusals[outcome] += 1


async def _client(port: int, number: int, counts: _Counts) -> None:
    for turn in range(ROUNDS):
        sizes = [1 + 40_000 * (number + turn) % 300_001, 700_000 * (turn == 2) + 17]
        body, size = form(*(file(random_bytes(one)) for one in sizes)), sum(sizes)
        answer = await ask(port, "/upload", "POST", body)
        counts.uploaded("/upload", "disk", body, size, answer)
        location = answer.headers["location"].replace("/uploads/", "/files/")
        for index in (0, 1):
            fetched = await ask(port, f"{location}/{index}")
            counts.fetched += len(fetched.body)
        raw = random_bytes(number * 1000 + turn)
        put = await ask(port, "/upload/a.bin", "PUT", raw, content_type="text/plain")
        counts.uploaded("/upload", "disk", raw, len(raw), put)
        counts.uploaded("/proxy", "api", body, size, await ask(port, "/proxy", "POST", body))
        refusing = await ask(port, "/proxy?status=409", "POST", body)
        counts.uploaded("/proxy", "api", body, size, refusing)
        short = form(file(b"abc"))[:-9]
        counts.uploaded("/upload", "disk", short, 0, await ask(port, "/upload", "POST", short))
        mixed = await ask(port, "/upload", "POST", body[:200], content_type="multipart/mixed; boundary=b0undary")
        counts.uploaded("/upload", "disk", body[:200], 0, mixed)
        assert (await ask(port, "/nothing")).status == 404
        counts.refusals["not-found"] += 1


def _lines(process: Process) -> list[dict[str, object]]:
    return [json.loads(line) for line in process.log.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _workers(process: Process) -> dict[object, int]:
    """Number -> process, of the workers that listened last."""
    return {line["worker"]: int(str(line["pid"])) for line in _lines(process) if "pid" in line}


def _check(samples: Samples, counts: _Counts) -> None:
    ended = sum(counts.uploads.values())
    assert by(samples, "gateway_uploads_total", "route", "outcome") == counts.uploads
    assert by(samples, "gateway_received_bytes_total", "route") == {(name,): n for name, n in counts.bodies.items()}
    assert by(samples, "gateway_sink_bytes_total", "sink") == {(name,): n for name, n in counts.parts.items()}
    assert by(samples, "gateway_refusals_total", "reason") == {(name,): n for name, n in counts.refusals.items()}
    assert of(samples, "gateway_sent_bytes_total", what="file") == counts.fetched
    assert of(samples, "gateway_reads_total", what="file", outcome="ok") == 2 * CLIENTS * ROUNDS
    let_in = ended - counts.refusals["not-multipart"]
    assert sum(by(samples, "gateway_upload_seconds_count", "route").values()) == let_in
    assert sum(by(samples, "gateway_upload_first_byte_seconds_count", "route").values()) == let_in - counts.empty
    assert of(samples, "gateway_destination_first_byte_seconds_count", sink="api") == 2 * CLIENTS * ROUNDS
    for name in ("uploads_in_flight", "in_flight_bytes", "reads_in_flight"):
        assert of(samples, f"gateway_{name}") == 0
    assert by(samples, "gateway_sink_waiting_bytes", "sink") == {}


async def test_the_sums_are_what_the_clients_counted_and_outlive_the_workers(tmp_path: Path) -> None:
    counts = _Counts()
    with (
        receiver_process(tmp_path) as receiver,
        gateway_process(tmp_path, TWO, GATEWAY_SINKS__API__URL=f"{receiver.url}/upload") as process,
    ):
        port = process.port
        await asyncio.gather(*(_client(port, number, counts) for number in range(CLIENTS)))
        assert set(counts.uploads) == {
            *(("/upload", outcome) for outcome in ("ok", "truncated", "not-multipart")),
            *(("/proxy", outcome) for outcome in ("ok", "answered")),
        }

        def ended() -> list[dict[str, object]]:
            return [line for line in _lines(process) if line["logger"] == "gateway.uploads"]

        await eventually(lambda: len(ended()) == sum(counts.uploads.values()))
        assert {line["worker"] for line in ended()} == {0, 1}
        await comes_to(port, "gateway_connections", 1)  # so that each worker has looked since
        for _ in range(6):
            _check(await scraped(port), counts)
        started = by(await scraped(port), "gateway_process_start_time_seconds", "worker")
        assert started.keys() == {("0",), ("1",)}
        before = _workers(process)
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        await eventually(lambda: not set(_workers(process).values()) & set(before.values()))
        _check(await scraped(port), counts)


async def test_what_is_in_progress_is_the_sum_and_goes_with_the_worker_that_had_it(tmp_path: Path) -> None:
    size, sent = 1_000_000, 400_000
    with gateway_process(tmp_path, TWO) as process:
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(Client(process.port)) for _ in range(8)]
            for client in clients:
                await client.send(head("/upload/a", "PUT", content_length=size, content_type="text/plain"))
                await client.send(random_bytes(sent))
            port = process.port
            await comes_to(port, "gateway_in_flight_bytes", 8 * sent)
            await comes_to(port, "gateway_received_bytes_total", 8 * sent, route="/upload")
            await comes_to(port, "gateway_connections", 9)
            samples = await scraped(port)
            assert of(samples, "gateway_uploads_in_flight") == 8
            memory = by(samples, "gateway_process_resident_memory_bytes", "worker")
            assert memory.keys() == {("0",), ("1",)}
            before = _workers(process)
            os.kill(before[0], signal.SIGKILL)
            await eventually(lambda: _workers(process)[0] != before[0])
            left = await comes_to(port, "gateway_in_flight_bytes", lambda value: value < 8 * sent)
            samples = await scraped(port)
            assert left == sent * of(samples, "gateway_uploads_in_flight")
            assert of(samples, "gateway_received_bytes_total", route="/upload") == 8 * sent
        await comes_to(port, "gateway_in_flight_bytes", 0)
        await comes_to(port, "gateway_connections", 1)
