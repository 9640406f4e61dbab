"""Destinations that answer early, die, go silent or talk too much, before clients on raw sockets.

Each ends within its timeout with the documented status; a destination's early answer, where there was one, is the
client's; and nothing stays behind: no task, no connection, no descriptor, no file, and no memory. What relays make
of destinations otherwise is in test_sinks_relay_failures.
"""

from __future__ import annotations

import asyncio
import gc
import math
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytest

from tests.conftest import RunningGateway, StartGateway
from tests.contract import nothing_left_running
from tests.support.clients import Answer, Client, eventually, file, form, head, random_bytes
from tests.support.doubles import (
    ChattyUpstream,
    DeafUpstream,
    DribblingUpstream,
    DyingUpstream,
    EndlessUpstream,
    FullUpstream,
    HalfAnswerUpstream,
    HonestUpstream,
    MuteUpstream,
    RefusingUpstream,
    UnendingUpstream,
    Upstream,
)
from tests.support.processes import gateway_process

LENGTHS = ["chunked", "spool", "passthrough"]
"""The length strategies that every destination here is met with."""
STALL_SECONDS = 0.6
PATIENCE_SECONDS = 20  # for what should take a second or two: a hang takes for ever
STORE = [{"path": "/store", "kind": "upload", "parts": [{"sinks": ["api"]}]}]

BODY = form(file(b"x" * 1_000_000))
SMALL = form(file(b"x" * 1000))

both_kinds = pytest.mark.parametrize("path", ["/proxy", "/store"])
AnyUpstream = TypeVar("AnyUpstream", bound=Upstream)
Then = Literal["stay", "fin", "rst"]


@pytest.fixture(params=LENGTHS)
def length(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def options(length: str, **more: Any) -> dict[str, Any]:
    """Keys of the relay; the default strategy is not spelled out."""
    return {"api": {**({} if length == "chunked" else {"length": length}), **more}}


def descriptors(pid: int | str = "self") -> int:
    """How many are open, where that can be counted."""
    return len(os.listdir(f"/proc/{pid}/fd")) if os.path.isdir("/proc/self/fd") else 0


async def gone(upstreams: list[Upstream]) -> None:
    """Every connection to them has been closed by the gateway."""
    for upstream in upstreams:
        for exchange in upstream.exchanges:
            exchange.transport.resume_reading()  # who does not read does not see that the other side has closed
        await eventually(lambda upstream=upstream: all(exchange.lost for exchange in upstream.exchanges))


@asynccontextmanager
async def relaying(
    start_gateway: StartGateway,
    upstream: AnyUpstream,
    length: str,
    *,
    stall_seconds: float = STALL_SECONDS,
    **more: Any,
) -> AsyncIterator[tuple[RunningGateway, AnyUpstream]]:
    """A gateway before this upstream. Whatever happens within leaves nothing behind."""
    async with upstream:
        limits = {"stall_seconds": stall_seconds}
        gateway = await start_gateway(api=upstream.url, routes=STORE, limits=limits, sinks=options(length, **more))
        before = descriptors()
        async with asyncio.timeout(PATIENCE_SECONDS), nothing_left_running():
            yield gateway, upstream
            await eventually(lambda: gateway.services.gate.in_flight == 0)
        await gone([upstream])
        await eventually(lambda: descriptors() <= before)
        assert gateway.stored() == []


def request(path: str, body: bytes, declared: int | None = None) -> bytes:
    return head(path, content_length=len(body) if declared is None else declared) + body


async def send(client: Client, data: bytes) -> None:
    """As much of it as is taken: who answers early may close as well."""
    with suppress(ConnectionError):
        await client.send(data)


async def post(gateway: RunningGateway, path: str, body: bytes = BODY) -> Answer:
    async with Client(gateway.port) as client:
        await send(client, request(path, body))
        return await client.answer()


async def broken_answer(gateway: RunningGateway, body: bytes = BODY) -> bytes:
    """What comes of an answer through /proxy before the connection ends."""
    async with Client(gateway.port) as client:
        await send(client, request("/proxy", body))
        return await client.ended(PATIENCE_SECONDS)


def assert_problem(answer: Answer, status: int, slug: str, **members: object) -> None:
    problem = answer.json()
    assert (answer.status, problem["type"], problem["sink"]) == (status, f"/problems/{slug}", "api")
    assert {name: problem.get(name) for name in members} == members


def assert_answered(path: str, answer: Answer, status: int, body: bytes) -> None:
    """The destination's early answer: the client's to read behind /proxy, a refusal of a sink elsewhere."""
    if path == "/proxy":
        assert (answer.status, answer.body) == (status, body)
    else:
        assert_problem(answer, 502, "sink-refused", sink_status=status)


def succeeded(path: str) -> int:
    return 200 if path == "/proxy" else 201


# -- early 401 and 413


@both_kinds
@pytest.mark.parametrize("status", [401, 413])
@pytest.mark.parametrize("then", ["stay", "fin", "rst"])
@pytest.mark.parametrize("open_seconds", [0, 0.05], ids=["complete", "open"])
async def test_an_early_answer_is_the_clients_however_the_destination_goes_on(
    start_gateway: StartGateway, length: str, path: str, status: int, then: Then, open_seconds: float
) -> None:
    refusing = RefusingUpstream(status, b"no, thanks", after=1, open_seconds=open_seconds, then=then)
    async with relaying(start_gateway, refusing, length) as (gateway, upstream):
        assert_answered(path, await post(gateway, path), status, b"no, thanks")
        assert length == "spool" or not upstream.saw_a_whole_body


@both_kinds
@pytest.mark.parametrize("status", [401, 413])
async def test_an_early_answer_reaches_a_client_that_waits_with_the_rest_of_its_body(
    start_gateway: StartGateway, length: str, path: str, status: int
) -> None:
    if length == "spool":
        return  # a spooled body is whole before its destination hears of it
    async with relaying(start_gateway, RefusingUpstream(status, b"no", after=1), length) as (gateway, upstream):
        async with Client(gateway.port) as client:
            await client.send(request(path, BODY[:500_000], declared=len(BODY)))
            answer = await client.answer()
        assert_answered(path, answer, status, b"no")
        assert answer.headers["connection"] == "close"
        assert not upstream.saw_a_whole_body


@pytest.mark.parametrize("status", [401, 413])
async def test_an_early_answer_whose_own_body_never_comes_breaks_off_in_time(
    start_gateway: StartGateway, length: str, status: int
) -> None:
    refusing = RefusingUpstream(status, b"half and half", after=1, open_seconds=math.inf)
    async with relaying(start_gateway, refusing, length) as (gateway, _):
        assert (await broken_answer(gateway)).startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize("then", ["fin", "rst"])
async def test_an_early_answer_that_dies_half_way_breaks_the_clients_too(
    start_gateway: StartGateway, length: str, then: Then
) -> None:
    refusing = RefusingUpstream(413, b"half and half", after=1, open_seconds=math.inf, then=then)
    async with relaying(start_gateway, refusing, length, stall_seconds=30) as (gateway, _):
        assert (await broken_answer(gateway)).startswith(b"HTTP/1.1 413 ")


async def test_half_an_early_answer_is_a_refused_sink(start_gateway: StartGateway, length: str) -> None:
    refusing = RefusingUpstream(413, b"half and half", after=1, open_seconds=math.inf, then="rst")
    async with relaying(start_gateway, refusing, length) as (gateway, _):
        assert_problem(await post(gateway, "/store"), 502, "sink-refused", sink_status=413)


@both_kinds
async def test_half_the_head_of_an_early_answer_is_none(start_gateway: StartGateway, length: str, path: str) -> None:
    class HalfHeadUpstream(Upstream):
        def received(self, exchange: Any) -> None:
            if not exchange.answered:
                exchange.answered = True
                exchange.transport.write(b"HTTP/1.1 413 Too Mu")
                asyncio.get_running_loop().call_later(0.1, exchange.reset)

    async with relaying(start_gateway, HalfHeadUpstream(), length) as (gateway, _):
        assert_problem(await post(gateway, path), 502, "sink-refused")


async def test_an_early_answer_without_a_length_that_never_closes_breaks_off_in_time(
    start_gateway: StartGateway, length: str
) -> None:
    async with relaying(start_gateway, UnendingUpstream(413, b"no", after=1), length) as (gateway, _):
        assert (await broken_answer(gateway)).startswith(b"HTTP/1.1 413 ")


# -- no connection, and connections that break


@both_kinds
async def test_a_destination_that_answers_no_syn_is_a_timeout(
    start_gateway: StartGateway, length: str, path: str
) -> None:
    async with relaying(start_gateway, FullUpstream(), length, stall_seconds=30, connect_seconds=0.5) as (gateway, _):
        began = time.monotonic()
        assert_problem(await post(gateway, path, SMALL), 504, "sink-timeout")
        assert 0.4 < time.monotonic() - began < 10


@both_kinds
@pytest.mark.parametrize("after", [1, 300_000])
async def test_a_reset_in_mid_body_is_a_refused_sink(
    start_gateway: StartGateway, length: str, path: str, after: int
) -> None:
    async with relaying(start_gateway, DyingUpstream(after=after), length, stall_seconds=30) as (gateway, _):
        assert_problem(await post(gateway, path), 502, "sink-refused")


@both_kinds
async def test_a_reset_at_once_is_a_refused_sink(start_gateway: StartGateway, length: str, path: str) -> None:
    class SlammingUpstream(Upstream):
        def connected(self, exchange: Any) -> None:
            exchange.reset()

    async with relaying(start_gateway, SlammingUpstream(), length, stall_seconds=30) as (gateway, _):
        assert_problem(await post(gateway, path), 502, "sink-refused")


@both_kinds
@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\nX: "], ids=["none", "a word", "a header"])
@pytest.mark.parametrize("reset", [True, False], ids=["RST", "FIN"])
async def test_an_end_after_the_whole_body_and_before_the_answer_is_a_refused_sink(
    start_gateway: StartGateway, length: str, path: str, answer: bytes, reset: bool
) -> None:
    dying = HalfAnswerUpstream(answer, reset=reset)
    async with relaying(start_gateway, dying, length, stall_seconds=30) as (gateway, upstream):
        assert_problem(await post(gateway, path, SMALL), 502, "sink-refused")
        assert len(upstream.exchanges) == 1  # it may have acted on the first one


# `passed_through` asks for `connection.protocol.closed`, and where the
# read fails first, nobody retrieves that future's exception, which asyncio then logs with its traceback.
async def test_half_an_answer_is_no_traceback_in_the_log(
    start_gateway: StartGateway, length: str, caplog: pytest.LogCaptureFixture
) -> None:
    half = HalfAnswerUpstream(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
    async with relaying(start_gateway, half, length, stall_seconds=30) as (gateway, _):
        assert (await broken_answer(gateway, SMALL)).startswith(b"HTTP/1.1 200 ")
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []


# -- silence


@both_kinds
@pytest.mark.parametrize("body", [SMALL, BODY, form(file(b"x" * 24_000_000))], ids=["1 kB", "1 MB", "24 MB"])
async def test_a_destination_that_never_reads_is_a_timeout(
    start_gateway: StartGateway, length: str, path: str, body: bytes
) -> None:
    async with relaying(start_gateway, DeafUpstream(), length) as (gateway, _):
        began = time.monotonic()
        assert_problem(await post(gateway, path, body), 504, "sink-timeout")
        assert time.monotonic() - began > STALL_SECONDS / 2


@both_kinds
async def test_a_destination_that_reads_all_and_says_nothing_is_a_timeout(
    start_gateway: StartGateway, length: str, path: str
) -> None:
    async with relaying(start_gateway, MuteUpstream(), length) as (gateway, _):
        assert_problem(await post(gateway, path), 504, "sink-timeout")


@both_kinds
async def test_an_answer_whose_head_dribbles_for_ever_is_a_timeout(
    start_gateway: StartGateway, length: str, path: str
) -> None:
    async with relaying(start_gateway, DribblingUpstream(b"HTTP/1.1 200 OK\r\nX-Slow: "), length) as (gateway, _):
        assert_problem(await post(gateway, path, SMALL), 504, "sink-timeout")


# -- answers that do not end


@both_kinds
async def test_an_answer_after_which_the_connection_stays_is_complete(
    start_gateway: StartGateway, length: str, path: str
) -> None:
    async with relaying(start_gateway, HonestUpstream(200, b"{}"), length, stall_seconds=30) as (gateway, _):
        began = time.monotonic()
        assert (await post(gateway, path)).status == succeeded(path)
        assert time.monotonic() - began < 10  # nobody waited for the connection to close


async def test_an_answer_without_a_length_that_never_closes_breaks_off_in_time(
    start_gateway: StartGateway, length: str
) -> None:
    async with relaying(start_gateway, UnendingUpstream(200, b"so far"), length) as (gateway, _):
        got = await broken_answer(gateway, SMALL)
        assert got.startswith(b"HTTP/1.1 200 ")
        assert b"so far" in got
        assert not got.endswith(b"0\r\n\r\n")  # a clean end would be a lie


async def test_an_answer_that_does_not_end_is_good_enough_for_a_receipt(
    start_gateway: StartGateway, length: str
) -> None:
    async with relaying(start_gateway, UnendingUpstream(200, b"so far"), length, stall_seconds=30) as (gateway, _):
        answer = await post(gateway, "/store", SMALL)
        assert answer.status == 201
        assert answer.json()["parts"][0]["receipts"] == [{"sink": "api", "status": 200, "location": None}]


async def test_an_endless_answer_goes_on_as_fast_as_the_client_takes_it(
    start_gateway: StartGateway, length: str
) -> None:
    endless = EndlessUpstream(b"HTTP/1.1 200 OK\r\n\r\n", b"and so on, ")
    async with (
        relaying(start_gateway, endless, length, stall_seconds=30) as (gateway, upstream),
        Client(gateway.port, receive_buffer_bytes=65536) as client,
    ):
        await client.send(request("/proxy", SMALL))
        await eventually(lambda: upstream.sent_bytes > 1_000_000)
        sent = -1
        while sent != upstream.sent_bytes:  # until nothing goes any further
            sent = upstream.sent_bytes
            await asyncio.sleep(0.3)
        assert sent < 30_000_000


@both_kinds
@pytest.mark.parametrize("rest", [b"more\r\nX-Long: ", b"x"], ids=["headers", "one header"])
async def test_an_endless_head_is_no_answer(start_gateway: StartGateway, length: str, path: str, rest: bytes) -> None:
    endless = EndlessUpstream(b"HTTP/1.1 200 OK\r\nX-First: 1\r\nX-Long: ", rest)
    async with relaying(start_gateway, endless, length, stall_seconds=10) as (gateway, upstream):
        assert_problem(await post(gateway, path, SMALL), 502, "sink-refused")
        assert upstream.sent_bytes < 30_000_000


# -- answers of several kinds


@both_kinds
@pytest.mark.parametrize(
    "words",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 3,
        b"HTTP/1.1 102 Processing\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n",
    ],
    ids=["100", "three times 100", "102", "103"],
)
async def test_what_comes_before_an_answer_is_no_answer(
    start_gateway: StartGateway, length: str, path: str, words: bytes
) -> None:
    async with relaying(start_gateway, ChattyUpstream(words), length, stall_seconds=30) as (gateway, upstream):
        answer = await post(gateway, path)
        assert answer.status == succeeded(path)
        assert "link" not in answer.headers
        assert upstream.exchanges[0].complete


@both_kinds
async def test_a_switch_of_protocols_that_nobody_asked_for_is_a_refused_sink(
    start_gateway: StartGateway, length: str, path: str
) -> None:
    words = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n"
    async with relaying(start_gateway, ChattyUpstream(words), length) as (gateway, _):
        assert_problem(await post(gateway, path), 502, "sink-refused")


async def test_of_two_answers_the_first_one_counts(start_gateway: StartGateway, length: str) -> None:
    one = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none"
    two = b"HTTP/1.1 500 No\r\nContent-Length: 3\r\n\r\ntwo"
    async with relaying(start_gateway, HalfAnswerUpstream(one + two, reset=False), length) as (gateway, _):
        answer = await post(gateway, "/proxy", SMALL)
        assert (answer.status, answer.body) == (200, b"one")


@both_kinds
async def test_a_destination_that_ignores_expect_never_sees_one(
    start_gateway: StartGateway, length: str, path: str
) -> None:
    """It would wait for nothing: whether the client may go on is for the gateway to say."""
    async with relaying(start_gateway, HonestUpstream(200, b"{}"), length) as (gateway, upstream):
        async with Client(gateway.port) as client:
            await client.send(head(path, content_length=len(BODY), expect="100-continue"))
            assert (await client.answer()).status == 100
            await client.send(BODY)
            assert (await client.answer()).status == succeeded(path)
        assert "expect" not in dict(upstream.exchanges[0].headers)


@both_kinds
async def test_a_destination_that_ignores_our_own_expect_gets_the_body_all_the_same(
    start_gateway: StartGateway, length: str, path: str
) -> None:
    waiting = {"expect_continue": True, "expect_seconds": 0.3}
    async with relaying(start_gateway, HonestUpstream(200, b"{}"), length, stall_seconds=30, **waiting) as (
        gateway,
        upstream,
    ):
        began = time.monotonic()
        assert (await post(gateway, path)).status == succeeded(path)
        assert 0.2 < time.monotonic() - began < 15
        assert dict(upstream.exchanges[0].headers)["expect"] == "100-continue"
        assert upstream.exchanges[0].complete


# -- all of them, and memory


MISBEHAVING: list[Callable[[], Upstream]] = [
    DeafUpstream,
    MuteUpstream,
    UnendingUpstream,
    lambda: DyingUpstream(after=500_000),
    lambda: RefusingUpstream(413, b"no", after=100_000),
    lambda: RefusingUpstream(413, b"half and half", after=1, open_seconds=math.inf),
    lambda: RefusingUpstream(401, b"no", after=1, then="rst"),
    lambda: HalfAnswerUpstream(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"),
    lambda: EndlessUpstream(b"HTTP/1.1 200 OK\r\nX-Long: ", b"x"),
]


@pytest.mark.sockets
@pytest.mark.timeout(180)
async def test_memory_and_descriptors_stay_flat_whatever_destinations_do(tmp_path: Path, length: str) -> None:
    """Four uploads of 32 MiB at a time before each of them."""
    body = form(file(random_bytes(32 << 20)))
    headers = {"content_length": str(len(body)), "connection": "close"}
    option = "" if length == "chunked" else f'length = "{length}"\n'

    async def upload(port: int, number: int) -> None:
        async with Client(port) as client:
            await send(client, head(f"/to/{number}", **headers) + body)
            await client.ended(PATIENCE_SECONDS)

    async with AsyncExitStack() as stack:
        upstreams = [await stack.enter_async_context(make()) for make in MISBEHAVING]
        plain = '[[routes]]\npath = "/upload"\nparts = [{ sinks = ["disk"] }]\n'
        config = f"[limits]\nstall_seconds = {STALL_SECONDS}\n{plain}" + "".join(
            f'[sinks.s{number}]\ntype = "relay"\nurl = "{upstream.url}"\n{option}'
            f'[[routes]]\npath = "/to/{number}"\nkind = "relay"\nparts = [{{ sinks = ["s{number}"] }}]\n'
            for number, upstream in enumerate(upstreams)
        )
        gateway = stack.enter_context(gateway_process(tmp_path, config))
        async with Client(gateway.port) as client:
            await client.send(head("/upload", content_length=len(SMALL), connection="close") + SMALL)
            assert (await client.answer()).status == 201
            await client.ended()
        before = descriptors(gateway.pid)
        for number in range(len(upstreams)):
            async with asyncio.TaskGroup() as uploads:
                for _ in range(4):
                    uploads.create_task(upload(gateway.port, number))
        await gone(upstreams)
        await eventually(lambda: descriptors(gateway.pid) <= before)
        assert gateway.peak_rss_bytes() < 160 << 20


@contextmanager
def slamming_destination(read_bytes: int) -> Iterator[str]:
    """Reads a little, answers 413, and closes at once with the rest unread: the kernel sends a RST behind the answer.

    In threads, so that it runs while the gateway writes.
    """
    answer = b"HTTP/1.1 413 Too Much\r\nContent-Length: 8\r\n\r\ntoo much"

    def serve(connection: socket.socket) -> None:
        with connection:
            taken = b""
            while b"\r\n\r\n" not in taken or len(taken) < read_bytes:
                if not (data := connection.recv(65536)):
                    return
                taken += data
            connection.sendall(answer)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


@pytest.mark.parametrize("read_bytes", [0, 100_000])
async def test_an_answer_that_a_reset_is_close_behind_is_not_lost(start_gateway: StartGateway, read_bytes: int) -> None:
    body = form(file(b"x" * (4 << 20)))
    with slamming_destination(read_bytes) as url:
        gateway = await start_gateway(api=url)
        answers = []
        for _ in range(60):
            async with Client(gateway.port) as client:
                await client.send(head("/proxy", content_length=len(body)))
                with suppress(ConnectionError):
                    await client.send(body)
                answers.append(await client.answer())
    assert {(answer.status, answer.body) for answer in answers} == {(413, b"too much")}
