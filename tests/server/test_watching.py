"""How far an upload is, as those are told who watch it: over sockets, with destinations that count what they read."""

from __future__ import annotations

import asyncio
import errno
import json
import resource
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from gateway.config.load import load
from gateway.config.memory import connection_bound_bytes
from gateway.http.ulids import new_ulid
from gateway.server.board import Board, _Ended
from gateway.sinks.disk.jobs import Jobs
from gateway.upload.standing import TOLD_BYTES
from tests.conftest import RunningGateway, StartDestination, StartGateway
from tests.support.clients import Answer, Client, ask, eventually, file, form, head
from tests.support.doubles import RefusingUpstream, closed_port
from tests.support.processes import gateway_process
from tests.support.slow_destination import SOCKETS_BYTES, SlowDestination

MIB = 1 << 20


async def progress(gateway: RunningGateway | int, upload_id: str) -> Any:
    port = gateway if isinstance(gateway, int) else gateway.port
    answer = await ask(port, f"/uploads/{upload_id}/progress", accept="application/json")
    return answer.json() if answer.status == 200 else answer.status


@asynccontextmanager
async def watching(port: int, upload_id: str) -> AsyncIterator[AsyncIterator[Any]]:
    """The events of one upload, as they come."""
    async with Client(port) as client:
        await client.send(head(f"/uploads/{upload_id}/progress", "GET", accept="text/event-stream"))
        yield _events(client)


async def _events(client: Client) -> AsyncIterator[Any]:
    first = (await client._until(b"\r\n\r\n")).decode()
    assert "200 OK" in first
    assert "content-type: text/event-stream" in first.lower()
    text = b""  # of one event, which comes in as many chunks as it likes
    while (size := int(await client._until(b"\r\n"), 16)) > 0:
        text += await client._exactly(size)
        await client._until(b"\r\n")
        if text.endswith(b"\n\n"):
            if text.startswith(b"data: "):
                yield json.loads(text[6:])
            text = b""


def sink_of(told: Any, name: str, part: int | None = None) -> Any:
    sinks = told["sinks"] if part is None else told["parts"][part]["sinks"]
    return next(sink for sink in sinks if sink["sink"] == name)


FAT = b"".join(file(b"x", "f" * 390, name="n" * 390) + b"\r\n" for _ in range(999))
"""The beginning of a form of many files that have long names."""
BODY = form(file(b"x" * MIB, "a.bin"), file(b"y" * 1000, "b.bin"))
TWICE = [{"path": "/upload", "parts": [{"sinks": ["disk", "api"]}]}]


async def test_what_has_come_and_what_is_kept_are_told_of_each_part_and_sink(start_gateway: StartGateway) -> None:
    gateway, upload_id = await start_gateway(), new_ulid()
    async with Client(gateway.port) as client:
        await client.send(head(x_upload_id=upload_id, content_length=len(BODY)) + BODY[: MIB // 2])
        await eventually(lambda: _all_has_come(gateway, upload_id, MIB // 2))
        told = await progress(gateway, upload_id)
        assert (told["state"], told["expected"], told["received"]) == ("receiving", len(BODY), MIB // 2)
        (part,) = told["parts"]
        assert (part["index"], part["filename"], part["size"]) == (0, "a.bin", None)
        assert MIB // 2 - 200 <= part["received"] < MIB // 2
        assert part["sinks"][0]["committed"] == 0
        assert told["received_per_second"] > 0
        await client.send(BODY[MIB // 2 :])
        assert (await client.answer()).headers["location"] == f"/uploads/{upload_id}"
    told = await progress(gateway, upload_id)
    assert (told["state"], told["problem"], told["received_per_second"]) == ("kept", None, 0)
    kept = [(part["size"], part["sinks"][0]["committed"], part["sinks"][0]["state"]) for part in told["parts"]]
    assert kept == [(MIB, MIB, "kept"), (1000, 1000, "kept")]
    assert sink_of(told, "disk")["delivered"] == MIB + 1000


def _all_has_come(gateway: RunningGateway, upload_id: str, size: int) -> bool:
    told = gateway.services.board.known(upload_id)
    return told is not None and json.loads(told.text)["received"] == size


async def test_what_is_told_of_a_destination_is_what_it_has_read_but_for_the_sockets(
    start_gateway: StartGateway, start_destination: StartDestination
) -> None:
    slow = SlowDestination(20 * MIB)
    destination = await start_destination(slow.app)
    gateway, upload_id = await start_gateway(api=f"{destination.url}/upload", routes=TWICE), new_ulid()
    body = form(file(bytes(24 * MIB)))
    async with Client(gateway.port) as client, asyncio.TaskGroup() as tasks:
        sending = tasks.create_task(client.send(head(x_upload_id=upload_id, content_length=len(body)) + body))
        await eventually(lambda: gateway.services.board.known(upload_id))
        ahead, states = [], set()
        async with watching(gateway.port, upload_id) as events:
            async for told in events:
                with suppress(StopIteration):
                    sink = sink_of(told, "api")
                    states.add(sink["state"])
                    ahead.append(sink["delivered"] - slow.read_bytes)
                    if sink["state"] != "kept":
                        assert sink["committed"] == 0
        await sending
        assert (await client.answer()).status == 201
    assert max(ahead) <= SOCKETS_BYTES
    assert states >= {"receiving", "kept"}
    assert sink_of(told, "api", 0)["committed"] == sink_of(told, "disk", 0)["committed"] == 24 * MIB


BEST_EFFORT = {"sink": "api", "mode": "best_effort", "lag_bytes": 64 * MIB, "lag_seconds": 10}


@pytest.mark.parametrize(
    ("route", "sink"),
    [
        ({"kind": "opaque", "parts": [{"sinks": ["api"]}]}, {}),
        ({"kind": "relay", "parts": [{"sinks": ["api"]}]}, {"replay_bytes": 0}),
        ({"parts": [{"sinks": ["disk", "api"]}]}, {"length": "spool"}),
        ({"parts": [{"sinks": ["disk", "api"]}]}, {"fields_first_bytes": 64 * MIB}),
        ({"parts": [{"sinks": ["disk", "api"]}]}, {"per": "part"}),
        ({"parts": [{"sinks": ["disk", "api"]}], "keep": "each"}, {"per": "part"}),
        ({"parts": [{"sinks": ["disk", BEST_EFFORT]}]}, {}),
        ({"parts": [{"sinks": ["api"], "flows": ["sniff"]}]}, {}),
    ],
)
async def test_however_it_goes_there_what_was_not_read_is_not_delivered(
    start_gateway: StartGateway, start_destination: StartDestination, route: dict[str, Any], sink: dict[str, Any]
) -> None:
    slow = SlowDestination(40 * MIB)
    destination = await start_destination(slow.app)
    routes, sinks = [{"path": "/upload", **route}], {"api": {"url": f"{destination.url}/upload", **sink}}
    gateway, upload_id = await start_gateway(routes=routes, sinks=sinks), new_ulid()
    body = form(file(bytes(1000)), file(bytes(8 * MIB)), file(bytes(12 * MIB)))
    ahead, told = [], None
    async with Client(gateway.port) as client, asyncio.TaskGroup() as tasks:
        sending = tasks.create_task(client.send(head(x_upload_id=upload_id, content_length=len(body)) + body))
        await eventually(lambda: gateway.services.board.known(upload_id))
        async with watching(gateway.port, upload_id) as events:
            async for told in events:
                with suppress(StopIteration):
                    ahead.append(sink_of(told, "api")["delivered"] - slow.read_bytes)
        await sending
        assert (await client.answer()).status in (200, 201)
    assert len(ahead) > 2
    assert max(ahead) <= SOCKETS_BYTES * (3 if sink.get("per") == "part" else 1)  # each request has sockets of its own
    files = [len(body)] if route.get("kind") == "opaque" else [1000, 8 * MIB, 12 * MIB]
    assert [sink_of(told, "api", part)["committed"] for part, _ in enumerate(files)] == files


async def test_an_upload_that_fails_says_why_and_has_nothing(start_gateway: StartGateway) -> None:
    async with RefusingUpstream(503) as refusing:
        gateway, upload_id = await start_gateway(api=refusing.url, routes=TWICE), new_ulid()
        answer = await ask(gateway.port, "/upload", "POST", form(file(b"abc")), x_upload_id=upload_id)
    told = await progress(gateway, upload_id)
    assert (answer.status, told["state"], told["problem"]) == (502, "failed", answer.json())
    assert [(sink["state"], sink["committed"]) for sink in told["sinks"]] == [("failed", 0), ("failed", 0)]
    # what failed has kept nothing: its id is free
    again = await ask(gateway.port, "/proxy", "POST", b"abc", x_upload_id=upload_id, content_type="text/plain")
    assert again.status != 409


async def test_a_client_that_hangs_up_is_told_to_those_who_watch(start_gateway: StartGateway) -> None:
    gateway, upload_id = await start_gateway(), new_ulid()
    async with Client(gateway.port) as client:
        await client.send(head(x_upload_id=upload_id, content_length=len(BODY)) + BODY[:1000])
        await eventually(lambda: gateway.services.board.known(upload_id))
        async with watching(gateway.port, upload_id) as events:
            assert (await anext(events))["state"] == "receiving"
            client.reset()
            last = [told async for told in events][-1]
    assert (last["state"], last["problem"]["type"]) == ("failed", "/problems/client-gone")


async def test_a_best_effort_sink_that_was_dropped_says_why(start_gateway: StartGateway) -> None:
    uses = ["disk", {"sink": "api", "mode": "best_effort"}]
    routes = [{"path": "/upload", "parts": [{"sinks": uses}]}]
    gateway, upload_id = await start_gateway(api=closed_port(), routes=routes), new_ulid()
    answer = await ask(gateway.port, "/upload", "POST", form(file(b"abc")), x_upload_id=upload_id)
    told = await progress(gateway, upload_id)
    assert (answer.status, told["state"]) == (201, "kept")
    dropped = {"sink": "api", "state": "dropped", "delivered": 0, "committed": 0, "reason": "failed"}
    assert sink_of(told, "api", 0) == dropped
    assert sink_of(told, "disk", 0)["state"] == "kept"


def _ulid_at(seconds: float) -> str:
    number, digits = int(seconds * 1000) << 80, "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
    return "".join(digits[number >> shift & 31] for shift in range(125, -1, -5))


class TestIds:
    @pytest.mark.parametrize("wrong", ["abc", "8" + "0" * 25, "0" * 27, "0" * 25 + "U", "0" * 25 + "a"])
    async def test_one_that_is_no_ulid_is_refused(self, start_gateway: StartGateway, wrong: str) -> None:
        gateway = await start_gateway()
        answer = await ask(gateway.port, "/upload", "POST", form(file(b"abc")), x_upload_id=wrong)
        assert (answer.status, answer.json()["type"]) == (400, "/problems/malformed")
        assert gateway.stored() == []

    @pytest.mark.parametrize(
        ("hours", "status"), [(0.9, 201), (1.1, 400), (24 * 365 * 100, 400), (-24 * 365 * 20, 201)]
    )
    async def test_an_id_from_the_future_is_refused_for_it_would_not_expire(
        self, hours: float, status: int, start_gateway: StartGateway
    ) -> None:
        gateway = await start_gateway()
        chosen = _ulid_at(time.time() + hours * 3600)
        answer = await ask(gateway.port, "/upload", "POST", form(file(b"abc")), x_upload_id=chosen)
        assert answer.status == status
        if status == 400:
            assert "more than an hour ahead" in answer.json()["detail"]

    async def test_one_that_is_taken_is_refused_while_it_comes_and_when_it_is_stored(
        self, start_gateway: StartGateway
    ) -> None:
        gateway, upload_id = await start_gateway(), new_ulid()

        async def claim() -> Answer:
            return await ask(gateway.port, "/upload", "POST", form(file(b"abc")), x_upload_id=upload_id)

        async with Client(gateway.port) as client:
            await client.send(head(x_upload_id=upload_id, content_length=len(BODY)) + BODY[:1000])
            await eventually(lambda: gateway.services.board.known(upload_id))
            assert (await claim()).status == 409
            await client.send(BODY[1000:])
            assert (await client.answer()).status == 201
        assert (await claim()).status == 409
        gateway.services.board._asked = _Ended(1)  # as after a minute
        assert (await claim()).status == 409
        assert (await ask(gateway.port, f"/uploads/{upload_id}")).json()["parts"][0]["size"] == MIB

    async def test_it_is_the_request_id_too_and_goes_no_further(
        self, start_gateway: StartGateway, start_destination: StartDestination
    ) -> None:
        headers: dict[str, str] = {}

        async def take(request: web.Request) -> web.Response:
            headers.update(request.headers)
            await request.read()
            return web.Response()

        app = web.Application()
        app.router.add_post("/upload", take)
        destination = await start_destination(app)
        gateway, upload_id = await start_gateway(api=f"{destination.url}/upload"), new_ulid()
        answer = await ask(gateway.port, "/proxy", "POST", form(file(b"abc")), x_upload_id=upload_id)
        assert (answer.status, answer.headers["x-request-id"]) == (200, upload_id)
        assert headers["X-Request-ID"] == upload_id
        assert "X-Upload-ID" not in headers


class TestWhoWatches:
    async def test_what_nobody_has_begun_is_not_there(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway()
        answer = await ask(gateway.port, f"/uploads/{new_ulid()}/progress")
        assert (answer.status, "replicas" in answer.json()["detail"]) == (404, True)
        assert (await ask(gateway.port, "/uploads/none/progress")).status == 404

    async def test_it_is_told_for_a_minute_after_the_end_also_of_what_nobody_has_asked_for(
        self, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gateway = await start_gateway()
        answer = await ask(gateway.port, "/upload", "POST", form(file(b"abc")))
        upload_id = answer.headers["location"].rpartition("/")[2]
        assert (await progress(gateway, upload_id))["parts"][0]["sinks"][0]["committed"] == 3
        monkeypatch.setattr("gateway.server.board.REMEMBERED_SECONDS", 0.0)
        assert await progress(gateway, upload_id) == 404
        assert (len(gateway.services.board._unasked), gateway.services.board._unasked._parts) == (0, 0)

    async def test_a_thousand_of_them_cost_one_text_at_a_time(self, start_gateway: StartGateway) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(4096, hard)), hard))
        gateway, upload_id = await start_gateway(server={"max_connections": 1100}), new_ulid()
        board = gateway.services.board
        made = _counted(board)
        clients = [Client(gateway.port) for _ in range(1000)]
        async with Client(gateway.port) as uploading:
            await uploading.send(head(x_upload_id=upload_id, content_length=len(BODY)) + BODY[:1000])
            await eventually(lambda: board._running)
            for client in clients:
                await client.__aenter__()
                await client.send(head(f"/uploads/{upload_id}/progress", "GET"))
            await eventually(lambda: board._watches and board._watches[upload_id].watchers == 1000)
            made.clear()
            await asyncio.sleep(1.5)
            assert len(made) <= 2
            await uploading.send(BODY[1000:])
            assert (await uploading.answer()).status == 201
        for client in clients:
            assert b'"state": "kept"' in await client.ended()
            await client.__aexit__()
        assert (board._watches, board._running) == ({}, {})

    async def test_one_who_does_not_read_is_sent_the_newest_when_he_does(self, start_gateway: StartGateway) -> None:
        """His connection holds a few texts at most, however long the upload goes on."""
        gateway, upload_id = await start_gateway(), new_ulid()
        body = form(*(file(bytes(100), f"{number}{'x' * 150}") for number in range(900)), file(bytes(4 * MIB)))
        board = gateway.services.board
        async with Client(gateway.port) as uploading, Client(gateway.port, receive_buffer_bytes=4096) as unreading:
            start = len(body) - 4 * MIB
            await uploading.send(head(x_upload_id=upload_id, content_length=len(body)) + body[:start])
            await eventually(lambda: board._running)
            await unreading.send(head(f"/uploads/{upload_id}/progress", "GET"))
            for offset in range(start, len(body), MIB // 2):
                await uploading.send(body[offset : offset + MIB // 2])
                await asyncio.sleep(0.15)
            assert (await uploading.answer()).status == 201
            events = [event async for event in _events(unreading)]
        assert len(events) <= 3
        assert events[-1]["state"] == "kept"

    async def test_one_who_slept_is_not_sent_what_was_told_meanwhile(self, start_gateway: StartGateway) -> None:
        gateway, upload_id = await start_gateway(), new_ulid()
        async with Client(gateway.port) as uploading, Client(gateway.port, receive_buffer_bytes=2048) as unreading:
            await uploading.send(head(x_upload_id=upload_id, content_length=len(BODY)) + BODY[:1000])
            await eventually(lambda: gateway.services.board._running)
            await unreading.send(head(f"/uploads/{upload_id}/progress", "GET"))
            for offset in range(1000, 5000, 100):
                await uploading.send(BODY[offset : offset + 100])
                await asyncio.sleep(0.11)
            await uploading.send(BODY[5000:])
            assert (await uploading.answer()).status == 201
            events = [event async for event in _events(unreading)]
        assert len(events) <= 20
        assert events[-1]["state"] == "kept"

    @pytest.mark.sockets
    async def test_those_who_do_not_read_hold_no_more_than_check_says(self, tmp_path: Path) -> None:
        upload_id, watchers = new_ulid(), 60
        config = "limits.max_parts = 5000\nserver.drain_seconds = 1\n"
        with gateway_process(tmp_path, config) as process:
            bound = connection_bound_bytes(load(tmp_path / "gateway-0.toml"))
            async with AsyncExitStack() as stack:
                uploading = await stack.enter_async_context(Client(process.port))
                await uploading.send(head(x_upload_id=upload_id, content_length=10 * MIB) + FAT)
                await asyncio.sleep(1)
                text = await ask(process.port, f"/uploads/{upload_id}/progress", accept="application/json")
                told = text.json()
                assert len(text.body) < TOLD_BYTES
                assert (len(told["parts"]) + told["more_parts"], told["more_parts"] > 0) == (999, True)
                before = process.peak_rss_bytes()
                for _ in range(watchers):
                    client = await stack.enter_async_context(Client(process.port, receive_buffer_bytes=4096))
                    await client.send(head(f"/uploads/{upload_id}/progress", "GET"))
                await asyncio.sleep(3)
                grown = process.peak_rss_bytes() - before
        assert grown < watchers * min(bound, TOLD_BYTES + MIB // 4)

    async def test_one_who_takes_nothing_is_left_and_holds_up_no_end(
        self, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gateway.server.watching._PATIENCE_SECONDS", 0.5)
        gateway, upload_id = await start_gateway(), new_ulid()
        board = gateway.services.board
        async with Client(gateway.port) as uploading, Client(gateway.port, receive_buffer_bytes=4096) as unreading:
            await uploading.send(head(x_upload_id=upload_id, content_length=10 * MIB) + FAT)
            await eventually(lambda: board._running)
            await unreading.send(head(f"/uploads/{upload_id}/progress", "GET"))
            await eventually(lambda: board._watches)
            await eventually(lambda: not board._watches, seconds=5)
            assert await progress(gateway, upload_id) != 404

    async def test_an_id_that_is_used_again_is_told_anew_while_somebody_is_stuck_with_what_failed(
        self, start_gateway: StartGateway
    ) -> None:
        gateway, upload_id = await start_gateway(), new_ulid()
        board = gateway.services.board
        async with Client(gateway.port, receive_buffer_bytes=4096) as unreading:
            async with Client(gateway.port) as uploading:
                await uploading.send(head(x_upload_id=upload_id, content_length=10 * MIB) + FAT)
                await eventually(lambda: board._running)
                await unreading.send(head(f"/uploads/{upload_id}/progress", "GET"))
                await eventually(lambda: board._watches)
                await asyncio.sleep(0.3)
                uploading.reset()
            await eventually(lambda: not board._running)
            await asyncio.sleep(1.1)  # what was told last is told that long
            assert (await progress(gateway, upload_id))["state"] == "failed"
            assert board._watches, "the other one is still stuck"
            async with Client(gateway.port) as uploading:
                await uploading.send(head(x_upload_id=upload_id, content_length=len(BODY)) + BODY[:1000])
                await eventually(lambda: board._running)
                await asyncio.sleep(1.1)
                assert (await progress(gateway, upload_id))["state"] == "receiving"

    async def test_of_what_is_not_told_of_each_file_the_sums_are_true(self, start_gateway: StartGateway) -> None:
        """Every second file goes elsewhere."""
        sinks = {name: {"type": "discard"} for name in ("a", "b")}
        routes = [
            {
                "path": "/upload",
                "parts": [{"match": {"filename": "*.a"}, "sinks": ["disk", "a"]}, {"sinks": ["disk", "b"]}],
            }
        ]
        gateway = await start_gateway(sinks=sinks, routes=routes, limits={"max_parts": 2000})
        for count, most, upload_id in ((20, 8, None), (1200, 1000, new_ulid())):
            body = form(*(file(bytes(100), f"{number}.{'ba'[number % 2]}") for number in range(count)))
            chosen = {} if upload_id is None else {"x_upload_id": upload_id}
            answer = await ask(gateway.port, "/upload", "POST", body, **chosen)
            told = await progress(gateway, answer.headers["location"].rpartition("/")[2])
            assert (len(told["parts"]) + told["more_parts"], 0 < len(told["parts"]) <= most) == (count, True)
            for name, size in (("disk", count * 100), ("a", count * 50), ("b", count * 50)):
                sink = sink_of(told, name)
                assert (sink["delivered"], sink["committed"], sink["state"]) == (size, size, "kept")
            for part in told["parts"]:
                assert [sink["sink"] for sink in part["sinks"]] == ["disk", "ba"[part["index"] % 2]]

    async def test_what_an_upload_that_failed_has_kept_all_the_same_is_told_in_short(
        self, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Jobs, "publish", _full)
        gateway = await start_gateway(
            sinks={"first": {"type": "tests.support.doubles:MemorySink", "stage": 0}},
            routes=[{"path": "/upload", "parts": [{"sinks": ["first", "disk"]}]}],
        )
        upload_id = new_ulid()
        answer = await ask(gateway.port, "/upload", "POST", form(*[file(b"abc")] * 20), x_upload_id=upload_id)
        problem = (await progress(gateway, upload_id))["problem"]
        assert (answer.status, len(answer.json()["kept"])) == (502, 20)
        assert problem == {**answer.json(), "kept": answer.json()["kept"][:8]}

    async def test_ended_uploads_are_remembered_within_bounds(
        self, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gateway.server.board._MOST_UNASKED", 3)
        monkeypatch.setattr("gateway.server.board._MOST_PARTS", 25)
        gateway = await start_gateway()
        board = gateway.services.board
        for _ in range(5):
            await ask(gateway.port, "/upload", "POST", form(file(b"abc"), file(b"def")))
        assert (len(board._unasked), board._unasked._parts) == (3, 6)
        twenty = form(*[file(b"a")] * 20)
        ids = [new_ulid() for _ in range(2)]
        for upload_id in ids:
            await ask(gateway.port, "/upload", "POST", twenty, x_upload_id=upload_id)
        assert (len(board._asked), board._asked._parts) == (1, 20)
        assert await progress(gateway, ids[0]) == 404
        assert len((await progress(gateway, ids[1]))["parts"]) == 20
        answer = await ask(gateway.port, "/upload", "POST", form(*[file(b"a")] * 20))  # nobody has asked for this one
        told = await progress(gateway, answer.headers["location"].rpartition("/")[2])
        assert (len(told["parts"]), told["more_parts"]) == (8, 12)


def _full(self: Jobs, *arguments: Any) -> None:
    raise OSError(errno.ENOSPC, "no space left")


def _counted(board: Board) -> list[str]:
    """Which uploads' texts are made from now on."""
    made: list[str] = []
    known = board.known

    def counted(upload_id: str) -> Any:
        made.append(upload_id)
        return known(upload_id)

    board.known = counted  # type: ignore[method-assign]
    return made
