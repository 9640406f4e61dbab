"""A store that refuses, fails, hangs or goes away, and clients that do: what is answered, and that nothing is left.

All of it against Swift, which checks signatures and keeps parts, with something between that fails in its stead. What
is left is listed by another client.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest
from aiohttp import ClientError, ClientSession

from gateway.errors import SinkRefused, SinkUnavailable
from gateway.model import Upload
from gateway.sinks.objects import layout
from gateway.sinks.objects.sink import ObjectSink
from tests.conftest import RunningGateway, StartGateway
from tests.contract import BrokenSource, answer_of, delivering, file, form, source, upload
from tests.support.buckets import Place
from tests.support.failing_store import Call, FailingStore, failing_store

pytestmark = pytest.mark.sockets

_LARGE = bytes(range(256)) * 60_000  # 15.4 MB: three parts, and a bit
_STALL_SECONDS = 2
_SECONDS = 30


@dataclass
class Setting:
    place: Place
    store: FailingStore
    start: StartGateway

    async def gateway(self, **sink: object) -> RunningGateway:
        """A gateway whose store is the failing one."""
        settings = {**self.place.settings, "part_bytes": 5 << 20, **sink}
        return await self.start(
            sinks={"bucket": settings},
            routes=[{"path": "/in", "parts": [{"sinks": ["bucket"]}]}],
            limits={"stall_seconds": _STALL_SECONDS},
        )

    async def nothing_left(self) -> None:
        """Soon, if not now: what could not be removed is tried again."""
        async with asyncio.timeout(_SECONDS):
            while await asyncio.to_thread(self.left):  # noqa: ASYNC110 - nobody signals it
                await asyncio.sleep(0.1)

    def left(self) -> list[str]:
        return [name for name in self.place.left() if not name.startswith(".sweeps/")]


@pytest.fixture
async def setting(
    place_of: Callable[[str], Place], start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Setting]:
    place = place_of("swift")
    assert place.endpoint is not None
    async with failing_store(place.endpoint) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        yield Setting(place, store, start_gateway)


def always(kind: str, fails: int | str) -> Callable[[Call], int | str | None]:
    return lambda call: fails if call.kind == kind else None


FAULTS: dict[str, tuple[Callable[[Call], int | str | None], bytes, int, str]] = {
    "a large file may not be begun": (always("opens", 403), _LARGE, 502, "sink-refused"),
    "a part may not be written": (always("part", 403), _LARGE, 502, "sink-refused"),
    "a part cannot be written": (always("part", 500), _LARGE, 503, "sink-unavailable"),
    "it says to slow down, and goes on saying so": (always("part", 503), _LARGE, 503, "sink-unavailable"),
    "the second part breaks off": (
        lambda call: "cut" if call.kind == "part" and call.number else None,
        _LARGE,
        503,
        "sink-unavailable",
    ),
    "parts hang": (always("part", "hang"), _LARGE, 504, "sink-timeout"),
    "a large file may not be completed": (always("completes", 403), _LARGE, 502, "sink-refused"),
    "a large file cannot be completed": (always("completes", 500), _LARGE, 503, "sink-unavailable"),
    "a small file may not be written": (always("puts", 403), b"small", 502, "sink-refused"),
    "a small file cannot be written": (always("puts", 500), b"small", 503, "sink-unavailable"),
    "small files hang": (always("puts", "hang"), b"small", 504, "sink-timeout"),
    "the manifest may not be written": (always("manifest", 403), _LARGE, 502, "sink-refused"),
    "the manifest cannot be written": (always("manifest", 500), b"small", 503, "sink-unavailable"),
    "the manifest hangs": (always("manifest", "hang"), _LARGE, 504, "sink-timeout"),
    "the manifest is written, and nobody is told": (
        always("manifest", "cut after"),
        b"small",
        503,
        "sink-unavailable",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_a_store_that_fails_is_an_error_of_its_own_and_keeps_nothing(name: str, setting: Setting) -> None:
    fails, data, status, slug = FAULTS[name]
    gateway = await setting.gateway()
    setting.store.fails = fails
    async with ClientSession(gateway.url) as session, asyncio.timeout(_SECONDS):
        answered, problem = await answer_of(session, "/in", form((b"file", b"a.bin", data), (b"file", b"b", b"x")))
        assert (answered, problem["type"], problem["sink"]) == (status, f"/problems/{slug}", "bucket")
        upload_id = problem["instance"].rpartition("/")[2]
        setting.store.fails = lambda call: None
        await setting.nothing_left()
        async with session.get(f"/uploads/{upload_id}") as answer:
            assert answer.status == 404


@pytest.mark.parametrize("is_well", [True, False])
async def test_as_best_effort_a_bucket_fails_no_upload_and_what_it_missed_is_not_there(
    is_well: bool, setting: Setting
) -> None:
    best_effort = {"sink": "bucket", "mode": "best_effort", "lag_bytes": 20 << 20, "lag_seconds": 10 if is_well else 1}
    gateway = await setting.start(
        sinks={"bucket": {**setting.place.settings, "part_bytes": 5 << 20}},
        routes=[{"path": "/in", "parts": [{"sinks": ["disk", best_effort]}]}],
        limits={"stall_seconds": _STALL_SECONDS},
    )
    if not is_well:
        setting.store.fails = always("part", "hang")
    async with ClientSession(gateway.url) as session, asyncio.timeout(_SECONDS):
        status, manifest = await answer_of(session, "/in", form((b"file", b"a.bin", _LARGE)))
        assert status == 201
        kept, missed = manifest["parts"][0]["receipts"]
        assert ("dropped" in kept, "dropped" in missed) == (False, not is_well)
        setting.store.fails = lambda call: None
        if is_well:
            assert sorted(name.partition("/")[2] for name in setting.left()) == ["0", "manifest.json"]
            async with session.delete(f"/uploads/{manifest['upload']}") as answer:
                assert answer.status == 204
        await setting.nothing_left()


async def test_a_store_that_asks_to_slow_down_is_asked_again(setting: Setting) -> None:
    gateway = await setting.gateway()
    setting.store.fails = lambda call: 503 if call.kind in ("part", "puts") and call.number < 2 else None
    async with ClientSession(gateway.url) as session:
        status, _ = await answer_of(session, "/in", form((b"file", b"a.bin", _LARGE), (b"file", b"b", b"x")))
    assert status == 201


async def test_a_store_that_is_gone_between_the_last_part_and_the_manifest_is_cleaned_when_it_is_back(
    setting: Setting,
) -> None:
    gateway = await setting.gateway()
    gone = asyncio.Event()

    def fails(call: Call) -> str | None:
        if call.kind == "manifest":
            gone.set()
        return "cut" if gone.is_set() else None

    setting.store.fails = fails
    async with ClientSession(gateway.url) as session, asyncio.timeout(_SECONDS):
        status, problem = await answer_of(session, "/in", form((b"file", b"a.bin", _LARGE), (b"file", b"b", b"x")))
        assert (status, problem["type"]) == (503, "/problems/sink-unavailable")
        left = setting.left()
        assert len(left) == 2
        assert not any("manifest" in name for name in left)
        setting.store.fails = lambda call: None
        await setting.nothing_left()


async def test_a_client_that_hangs_up_leaves_nothing(setting: Setting) -> None:
    gateway = await setting.gateway()
    hung_up = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        async for chunk in form((b"file", b"a.bin", _LARGE), (b"file", b"b", _LARGE)):
            yield chunk
            if len([call for call in setting.store.calls if call.kind == "part"]) >= 2:
                hung_up.set()
                await asyncio.Event().wait()

    async with ClientSession(gateway.url) as session, asyncio.TaskGroup() as group:
        uploading = group.create_task(answer_of(session, "/in", body()))
        async with asyncio.timeout(_SECONDS):
            await hung_up.wait()
        uploading.cancel()
        with pytest.raises((asyncio.CancelledError, ClientError)):
            await asyncio.shield(uploading)
    await setting.nothing_left()


async def test_to_cancel_the_call_that_opens_an_upload_leaves_none_open(setting: Setting) -> None:
    """It is not cancelled: nobody would know the name of what it opened."""
    opening = asyncio.Event()

    def fails(call: Call) -> None:
        if call.kind == "opens":
            opening.set()

    setting.store.fails = fails
    async with setting.place.sink(part_bytes=5 << 20) as sink, asyncio.timeout(_SECONDS):
        for _ in range(5):
            async with delivering(sink, upload()) as delivery, asyncio.TaskGroup() as group:
                accepting = group.create_task(delivery.accept(file(0), BrokenSource(_LARGE)))
                await opening.wait()
                accepting.cancel()
            opening.clear()
        assert setting.left() == []


async def test_a_part_that_comes_after_the_abort_is_nobodys(setting: Setting) -> None:
    """The store is asked to abort when no call runs any more, and takes no part of what was aborted."""
    async with setting.place.sink(part_bytes=5 << 20) as sink, asyncio.timeout(_SECONDS):
        setting.store.fails = lambda call: "late" if call.kind == "part" and call.number == 1 else None
        broken = BrokenSource(_LARGE)
        async with delivering(sink, upload()) as delivery, asyncio.TaskGroup() as group:
            accepting = group.create_task(delivery.accept(file(0), broken))
            await setting.store.hanging.wait()
            accepting.cancel()
        setting.store.late.set()
        while not setting.store.came_late:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.05)
        assert setting.store.came_late == [404]
        await setting.nothing_left()
        kinds = [call.kind for call in setting.store.calls]
        assert kinds.count("aborts") == 1
        assert "part" not in kinds[kinds.index("aborts") :]


async def _given(sink: ObjectSink, one: Upload, chunks: AsyncIterator[bytes]) -> None:
    """A small file, and a large one."""
    async with delivering(sink, one) as delivery:
        await delivery.accept(file(1), source(b"small"))
        await delivery.accept(file(0), chunks)


async def _breaking_off() -> AsyncIterator[bytes]:
    async for chunk in source(_LARGE):
        yield chunk
    raise ConnectionResetError


@pytest.mark.parametrize("cause", ["a part fails, too", "the client breaks off", "it cannot be completed either"])
async def test_what_a_store_does_not_abort_stays_open_and_the_log_names_it(
    cause: str, setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody but the store's client knows its name, and that asks once; all else is removed."""
    failing = {"a part fails, too": "part", "it cannot be completed either": "completes"}.get(cause, "")
    async with setting.place.sink(part_bytes=5 << 20, stall_seconds=_STALL_SECONDS) as sink:
        setting.store.fails = lambda call: 500 if call.kind in ("aborts", failing) else None
        one = upload()
        with pytest.raises(SinkUnavailable if failing else ConnectionResetError):
            await _given(sink, one, source(_LARGE) if failing else _breaking_off())
        await sink.cleaned_up()
        assert setting.left() == [f"open: {setting.place.prefix}/{one.id}/0"]
        (said,) = [record for record in caplog.records if "is not aborted" in record.getMessage()]
        assert f"multipart upload of {one.id}/0 " in said.getMessage()
        assert "fails when it is asked to abort" in " ".join(sink.remark.split())


async def test_a_large_file_that_fails_and_is_aborted_is_not_said_to_stay_open(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    async with setting.place.sink(part_bytes=5 << 20, stall_seconds=_STALL_SECONDS) as sink:
        setting.store.fails = always("part", 403)
        with pytest.raises(SinkRefused):
            await _given(sink, upload(), source(_LARGE))
        await sink.cleaned_up()
        assert setting.left() == []
        assert "is not aborted" not in caplog.text


async def test_a_file_that_would_have_too_many_parts_is_a_507_that_names_the_key(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "MAX_PARTS", 2)
    async with setting.place.sink(part_bytes=5 << 20, max_part_bytes=6 << 20) as sink:
        async with delivering(sink, upload()) as delivery:
            with pytest.raises(Exception, match=r"sinks\.bucket\.part_bytes") as raised:
                await delivery.accept(file(0), source(_LARGE))
            assert getattr(raised.value, "status", None) == 507
        assert setting.left() == []


async def test_uploads_that_end_at_a_time_refuse_no_others_unless_the_store_hangs(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.sinks.objects.sink._MANY_LATE", 2)
    monkeypatch.setattr("gateway.sinks.objects.sink._MANY", 2)
    async with setting.place.sink(stall_seconds=4) as sink, asyncio.timeout(_SECONDS):

        async def fails(times: int = 1) -> None:
            for _ in range(times):
                async with sink.open(upload()) as delivery:
                    await delivery.accept(file(0), source(b"x"))

        async with asyncio.TaskGroup() as group:  # some begin while others end, and all are well
            for _ in range(4):
                group.create_task(fails(times=3))
        monkeypatch.setattr("gateway.sinks.objects.sink._PATIENCE_SECONDS", 0.5)
        setting.store.fails = always("deletes", "hang")
        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(fails())
        with pytest.raises(SinkUnavailable, match="cannot remove"):
            sink.admit(upload())
        setting.store.fails = lambda call: None
        await sink.cleaned_up()
        await setting.nothing_left()
        while sink._swept.left:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.1)
        sink.admit(upload())


async def test_what_cannot_be_removed_is_tried_again_and_too_much_of_it_refuses_uploads(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.sinks.objects.sink._MANY", 1)
    gateway = await setting.gateway()
    setting.store.fails = lambda call: 500 if call.kind in ("manifest", "deletes") else None
    async with ClientSession(gateway.url) as session, asyncio.timeout(_SECONDS):
        status, _ = await answer_of(session, "/in", form((b"file", b"b", b"x")))
        assert status == 503
        sink = gateway.services.sinks["bucket"]
        assert isinstance(sink, ObjectSink)
        await sink.cleaned_up()
        status, problem = await answer_of(session, "/in", form((b"file", b"b", b"x")))
        assert (status, "cannot remove" in problem["detail"]) == (503, True)
        setting.store.fails = lambda call: None
        await setting.nothing_left()
        while (await answer_of(session, "/in", form((b"file", b"b", b"x"))))[0] != 201:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.2)
