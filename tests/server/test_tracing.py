"""Traces: which spans there are of a request, what they say, what they never say, and whom they reach."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway import __version__
from gateway.access import SCOPES, new_key
from gateway.config import ConfigError
from gateway.server import tracing
from tests.conftest import StartDestination, StartGateway
from tests.support.clients import VanishingClient, ask, eventually, file, form, head
from tests.support.doubles import HonestUpstream, RefusingUpstream
from tests.support.ports import free_port
from tests.support.processes import gateway_process, imported_by_default

ON = {"enabled": True}
BOTH = [{"path": "/both", "parts": [{"sinks": ["api", "disk"]}]}]
WHOLE = form(file(b"abc"))
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


class Spans:
    """What was exported."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()

    @property
    def all(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    def text(self) -> str:
        """Everything that they say."""
        return "".join(span.to_json() for span in self.all)

    async def of_request(self, requests: int = 1) -> dict[str, ReadableSpan]:
        """Those of the last request, by name, when all of so many have come."""
        await eventually(lambda: sum(span.kind.name == "SERVER" for span in self.all) == requests)
        last = next(span for span in reversed(self.all) if span.kind.name == "SERVER")
        assert last.context is not None
        found = [span for span in self.all if span.context and span.context.trace_id == last.context.trace_id]
        named = {span.name: span for span in found}
        assert len(named) == len(found)
        return named


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    """Where the traces of a gateway go, at once."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    found = Spans()
    monkeypatch.setattr(tracing, "make_exporter", lambda: found.exporter)
    return found


def _attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def _parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def _id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    span_id: int = span.context.span_id
    return span_id


def _times(span: ReadableSpan) -> tuple[int, int]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time, span.end_time


def _is_within(inner: ReadableSpan, outer: ReadableSpan) -> bool:
    (began, ended), (first, last) = _times(inner), _times(outer)
    return first <= began <= ended <= last


@pytest.mark.parametrize("size", [3, 3 << 20], ids=["whole in memory", "in pieces"])
async def test_an_upload_to_disk_and_a_relay_is_one_trace_from_its_client_to_the_destination(
    start_gateway: StartGateway, spans: Spans, size: int
) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await start_gateway(api=upstream.url, tracing=ON, routes=BOTH)
        body = form(file(bytes(size)))
        answer = await ask(gateway.port, "/both", "POST", body, traceparent=TRACEPARENT, tracestate="rojo=1,congo=t")
        assert answer.status == 201
        found = await spans.of_request()
        (exchange,) = upstream.exchanges
    assert set(found) == {"POST /both", "arrival", "sink api", "commit api", "sink disk", "commit disk"}
    request, arrival = found["POST /both"], found["arrival"]
    assert all(span.context and f"{span.context.trace_id:032x}" == TRACE for span in found.values())
    assert _parent_of(request) == int(PARENT, 16)
    for name in ("arrival", "sink api", "sink disk"):
        assert _parent_of(found[name]) == _id_of(request)
        assert _is_within(found[name], request)
    for name in ("api", "disk"):
        commit, sink = found[f"commit {name}"], found[f"sink {name}"]
        assert _parent_of(commit) == _id_of(sink)
        assert _is_within(commit, sink)
        assert _times(commit)[0] >= _times(arrival)[1]  # all was read before anybody committed
    assert _times(found["commit api"])[1] <= _times(found["commit disk"])[0]  # relays first
    headers = dict(exchange.headers)
    assert headers["traceparent"] == f"00-{TRACE}-{_id_of(request):016x}-01"
    assert headers["tracestate"] == "rojo=1,congo=t"

    upload = answer.json()["upload"]
    assert _attributes(request) == {
        "http.request.method": "POST",
        "url.scheme": "http",
        "http.route": "/both",
        "http.response.status_code": 201,
        "http.request.body.size": len(body),
        "gateway.upload.id": upload,
        "gateway.outcome": "ok",
    }
    assert re.fullmatch(r"[0-9A-HJKMNP-TV-Z]{26}", upload)
    assert _attributes(arrival) == {"gateway.bytes": len(body)}
    assert _attributes(found["sink disk"]) == {"gateway.sink": "disk", "gateway.outcome": "kept", "gateway.bytes": size}
    assert _attributes(found["commit disk"]) == {"gateway.sink": "disk", "gateway.outcome": "kept"}
    assert all(span.status.status_code.name == "UNSET" for span in found.values())


async def test_no_span_has_a_secret(
    start_gateway: StartGateway, start_destination: StartDestination, spans: Spans, tmp_path: Path
) -> None:
    async def refuse(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(status=400, text="s3cret of the destination", headers={"X-Why": "s3cret"})

    app = web.Application()
    app.router.add_post("/s3cret/upload", refuse)
    destination = await start_destination(app)
    key, line = new_key("s3cret", SCOPES)
    (tmp_path / "keys.toml").write_text(line)
    guarded = {"path": "/guarded", "access": ["keys"], "parts": [{"sinks": ["disk"]}]}
    gateway = await start_gateway(
        api=f"{destination.url}/s3cret/upload?key=s3cret",
        sinks={"api": {"headers": {"X-Api-Key": "s3cret"}}},
        access={"keys": {"file": str(tmp_path / "keys.toml")}},
        tracing=ON,
        routes=[*BOTH, guarded],
    )
    body = form(file(b"s3cret", filename="s3cret.txt", name="s3cret"))
    said: dict[str, Any] = {
        "authorization": "Bearer s3cret",
        "cookie": "a=s3cret",
        "x_request_id": "s3cret",
        "user_agent": "s3cret",
    }
    more = {"traceparent": TRACEPARENT, "tracestate": "s3cret=s3cret", "baggage": "a=s3cret"}
    port = gateway.port
    assert (await ask(port, "/both?token=s3cret", "POST", body, **said, **more)).status == 502
    assert (await ask(port, "/upload/s3cret.txt", "PUT", b"s3cret", **said, content_type="text/s3cret")).status == 201
    assert (await ask(port, "/guarded", "POST", body, x_api_key=key)).status == 201
    assert (await ask(port, "/guarded", "POST", body, **said)).status == 401
    await ask(port, "/download/http://s3cret.example/s3cret?s3cret", **said)
    await ask(port, "/files/s3cret/0/s3cret", **said)
    await ask(port, "/s3cret?s3cret", "PROPFIND", **said)
    await eventually(lambda: sum(span.kind.name == "SERVER" for span in spans.all) == 7)
    assert "s3cret" not in spans.text().lower()
    assert key not in spans.text()
    assert [span.name for span in spans.all if span.kind.name == "SERVER"] == [
        "POST /both",
        "PUT /upload/{filename}",
        "POST /guarded",
        "POST /guarded",
        "GET /download/{url}",
        "GET /files/{id}/{index}/{filename}",
        "HTTP",
    ]


async def test_the_sink_that_failed_is_told_from_those_that_it_took_along(
    start_gateway: StartGateway, spans: Spans
) -> None:
    async with HonestUpstream(500, b"no") as upstream:
        gateway = await start_gateway(api=upstream.url, tracing=ON, routes=BOTH)
        assert (await ask(gateway.port, "/both", "POST", WHOLE)).status == 502
        found = await spans.of_request()
    assert set(found) == {"POST /both", "arrival", "sink api", "commit api", "sink disk"}
    request = found["POST /both"]
    assert request.status.status_code.name == "ERROR"
    assert request.status.description is None
    assert _attributes(request)["error.type"] == _attributes(request)["gateway.outcome"] == "sink-refused"
    outcomes = {name: _attributes(found[name])["gateway.outcome"] for name in ("sink api", "commit api", "sink disk")}
    assert outcomes == {"sink api": "failed", "commit api": "failed", "sink disk": "undone"}
    failed = {name for name, span in found.items() if span.status.status_code.name == "ERROR"}
    assert failed == {"POST /both", "sink api", "commit api"}


async def test_a_sink_that_cannot_be_opened_has_a_span(start_gateway: StartGateway, spans: Spans) -> None:
    gateway = await start_gateway(tracing=ON)
    gateway.root.rmdir() if not any(gateway.root.iterdir()) else shutil.rmtree(gateway.root)
    gateway.root.write_bytes(b"no directory")
    answer = await ask(gateway.port, "/upload", "POST", WHOLE)
    found = await spans.of_request()
    assert answer.status >= 500
    assert _attributes(found["sink disk"])["gateway.outcome"] == "failed"


async def test_what_a_client_did_wrong_is_no_error_of_the_gateway(start_gateway: StartGateway, spans: Spans) -> None:
    gateway = await start_gateway(tracing=ON, limits={"max_file_bytes": 2})
    assert (await ask(gateway.port, "/upload", "POST", WHOLE)).status == 413
    found = await spans.of_request()
    request = found["POST /upload"]
    assert request.status.status_code.name == "UNSET"
    assert _attributes(request)["gateway.outcome"] == "too-large"
    assert "error.type" not in _attributes(request)
    assert _attributes(found["sink disk"])["gateway.outcome"] == "undone"


async def test_a_client_that_is_gone_leaves_a_trace(start_gateway: StartGateway, spans: Spans) -> None:
    gateway = await start_gateway(tracing=ON)
    async with VanishingClient(gateway.port) as client:
        await client.vanish_after(head(content_length=len(WHOLE) + 5) + WHOLE, "fin")
    found = await spans.of_request()
    assert _attributes(found["POST /upload"])["gateway.outcome"] == "client-gone"
    assert found["arrival"].status.status_code.name == "ERROR"
    assert _is_within(found["arrival"], found["POST /upload"])


async def test_a_best_effort_sink_ends_where_it_was_dropped(start_gateway: StartGateway, spans: Spans) -> None:
    async with RefusingUpstream(500, b"no") as upstream:
        rule = {"sinks": ["disk", {"sink": "api", "mode": "best_effort"}]}
        gateway = await start_gateway(api=upstream.url, tracing=ON, routes=[{"path": "/some", "parts": [rule]}])
        assert (await ask(gateway.port, "/some", "POST", form(file(bytes(1 << 20))))).status == 201
        found = await spans.of_request()
    told = _attributes(found["sink api"])
    assert told["gateway.outcome"] == "dropped"
    assert _is_within(found["sink api"], found["POST /some"])
    assert _attributes(found["sink disk"])["gateway.outcome"] == "kept"


@pytest.mark.parametrize(
    ("kind", "rules"),
    [("relay", {}), ("opaque", {}), ("relay", {"forward_headers": ["x-other"]}), ("relay", {"per": "part"})],
    ids=["form", "opaque", "few headers go on", "a request per part"],
)
async def test_every_kind_of_relay_tells_its_destination_the_span(
    start_gateway: StartGateway, spans: Spans, kind: str, rules: dict[str, Any]
) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        routes = [{"path": "/there", "kind": kind, "parts": [{"sinks": ["api"]}]}]
        gateway = await start_gateway(api=upstream.url, sinks={"api": rules}, tracing=ON, routes=routes)
        answer = await ask(gateway.port, "/there", "POST", WHOLE, traceparent=TRACEPARENT)
        assert answer.status < 300
        request = (await spans.of_request())["POST /there"]
        told = [value for one in upstream.exchanges for name, value in one.headers if name == "traceparent"]
    assert told == [f"00-{TRACE}-{_id_of(request):016x}-01"]


@pytest.mark.parametrize("said", ["", "00-0-0-00", "ff" + TRACEPARENT[2:], "00-" + "0" * 32 + f"-{PARENT}-01"])
async def test_a_client_that_is_in_no_trace_begins_one(start_gateway: StartGateway, spans: Spans, said: str) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await start_gateway(api=upstream.url, tracing=ON)
        await ask(gateway.port, "/proxy", "POST", WHOLE, traceparent=said)
        request = (await spans.of_request())["POST /proxy"]
        told = dict(upstream.exchanges[0].headers)["traceparent"]
    assert request.parent is None
    assert request.context is not None
    assert told == f"00-{request.context.trace_id:032x}-{_id_of(request):016x}-{request.context.trace_flags:02x}"
    assert request.context.trace_flags.sampled


async def test_a_trace_that_its_client_does_not_keep_is_passed_on_and_not_kept(
    start_gateway: StartGateway, spans: Spans
) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await start_gateway(api=upstream.url, tracing=ON)
        await ask(gateway.port, "/proxy", "POST", WHOLE, traceparent=f"{TRACEPARENT[:-2]}00")
        told = dict(upstream.exchanges[0].headers)["traceparent"]
        await ask(gateway.port, "/proxy", "POST", WHOLE)
        await spans.of_request()
    assert re.fullmatch(rf"00-{TRACE}-(?!{PARENT})[0-9a-f]{{16}}-00", told)
    assert TRACE not in spans.text()


async def test_reads_and_downloads_are_one_span_each_and_probes_none(
    start_gateway: StartGateway, start_destination: StartDestination, spans: Spans
) -> None:
    async def serve(request: web.Request) -> web.Response:
        return web.Response(body=b"there")

    app = web.Application()
    app.router.add_get("/file", serve)
    remote = f"{(await start_destination(app)).url}/file"
    gateway = await start_gateway(tracing=ON, download={"allow": [remote], "allow_private": ["127.0.0.0/8"]})
    manifest = (await ask(gateway.port, "/upload", "POST", WHOLE)).json()
    await spans.of_request()
    spans.exporter.clear()
    for path in ("/healthz", "/readyz", "/metrics"):
        assert (await ask(gateway.port, path)).status == 200
    for path in (f"/uploads/{manifest['upload']}", f"/files/{manifest['upload']}/0", f"/download/{remote}", "/nothing"):
        await ask(gateway.port, path)
    await eventually(lambda: len(spans.all) == 4)
    told = [(span.name, _attributes(span)) for span in spans.all]
    assert [(name, one["http.response.status_code"], one["gateway.outcome"]) for name, one in told] == [
        ("GET /uploads/{id}", 200, "ok"),
        ("GET /files/{id}/{index}", 200, "ok"),
        ("GET /download/{url}", 200, "ok"),
        ("GET", 404, "not-found"),
    ]
    assert [one.get("gateway.upload.id") for _, one in told] == [manifest["upload"]] * 2 + [None] * 2


async def test_who_decides_who_may_is_in_the_trace_and_is_told_of_it(
    start_gateway: StartGateway, start_destination: StartDestination, spans: Spans
) -> None:
    async def decide(request: web.Request) -> web.Response:
        heard.append(request.headers.get("traceparent"))
        await asyncio.sleep(0.05)
        return web.json_response({})

    heard: list[str | None] = []
    app = web.Application()
    app.router.add_post("/may", decide)
    hook = {"url": f"{(await start_destination(app)).url}/may"}
    routes = [{"path": "/hooked", "access": ["hook"], "parts": [{"sinks": ["disk"]}]}]
    gateway = await start_gateway(tracing=ON, access={"hook": hook}, routes=routes)
    assert (await ask(gateway.port, "/hooked", "POST", WHOLE, traceparent=TRACEPARENT)).status == 201
    found = await spans.of_request()
    request, access = found["POST /hooked"], found["access"]
    assert heard == [f"00-{TRACE}-{_id_of(request):016x}-01"]
    assert _parent_of(access) == _id_of(request)
    assert _is_within(access, request)
    began, ended = _times(access)
    assert ended - began >= 50_000_000
    assert ended <= _times(found["arrival"])[0]


async def test_what_a_process_is_can_be_said_by_the_variables(
    start_gateway: StartGateway, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=one,deployment.environment.name=test")
    gateway = await start_gateway(tracing=ON)
    await ask(gateway.port, "/upload", "POST", WHOLE)
    told = dict((await spans.of_request())["POST /upload"].resource.attributes)
    assert (told["service.name"], told["service.version"]) == ("gateway", __version__)
    assert (told["service.instance.id"], told["deployment.environment.name"]) == ("one", "test")


async def test_of_traces_that_begin_here_so_many_a_second_are_kept_and_all_that_a_client_keeps(
    start_gateway: StartGateway, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "_PER_SECOND", 2)
    gateway = await start_gateway(tracing=ON)
    began = time.monotonic()
    for number in range(12):
        said: dict[str, Any] = {"traceparent": TRACEPARENT} if number % 2 else {}
        assert (await ask(gateway.port, "/uploads/none", **said)).status == 404
    most = 2 + 2 * (time.monotonic() - began)
    await eventually(lambda: sum(span.parent is not None for span in spans.all) == 6)
    assert 2 <= len(spans.all) - 6 <= min(most, 6)


@pytest.mark.parametrize(("sampler", "kept"), [("parentbased_always_on", 6), ("always_off", 0)])
async def test_a_sampler_that_is_named_decides(
    start_gateway: StartGateway, spans: Spans, monkeypatch: pytest.MonkeyPatch, sampler: str, kept: int
) -> None:
    monkeypatch.setattr(tracing, "_PER_SECOND", 2)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    gateway = await start_gateway(tracing=ON)
    for _ in range(6):
        await ask(gateway.port, "/nothing")
    await asyncio.sleep(0.2)
    assert len(spans.all) == kept


async def test_the_variable_that_turns_the_sdk_off_turns_traces_off(
    start_gateway: StartGateway, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await start_gateway(api=upstream.url, tracing=ON)
        await ask(gateway.port, "/proxy", "POST", WHOLE, traceparent=TRACEPARENT)
        assert dict(upstream.exchanges[0].headers)["traceparent"] == TRACEPARENT
    await asyncio.sleep(0.1)
    assert spans.all == ()


async def test_a_variable_that_says_nothing_is_a_mistake_in_the_configuration(
    start_gateway: StartGateway, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "-1")
    with pytest.raises(ConfigError, match="tracing: max_queue_size"):
        await start_gateway(tracing=ON)


# -- processes


@pytest.mark.sockets
def test_where_traces_are_off_nothing_of_them_is_imported() -> None:
    assert imported_by_default("opentelemetry", "gateway.server.tracing") == []


@pytest.mark.sockets
def test_where_the_packages_are_missing_one_line_says_so(tmp_path: Path) -> None:
    hidden = tmp_path / "opentelemetry"
    hidden.mkdir()
    (hidden / "__init__.py").write_text("")
    (tmp_path / "my.toml").write_text("[tracing]\nenabled = true\n")
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "serve", "--config", str(tmp_path / "my.toml")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        timeout=60,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert 'pip install "multipart-relay-gateway[otel]"' in line


class Collector:
    """Takes OTLP over HTTP, as a collector does."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.app = web.Application()
        self.app.router.add_post("/v1/traces", self._take)

    async def _take(self, request: web.Request) -> web.Response:
        assert request.content_type == "application/x-protobuf"
        assert request.headers["x-key"] == "ours"
        self.requests.append(ExportTraceServiceRequest.FromString(await request.read()))
        return web.Response(content_type="application/x-protobuf")

    def spans(self) -> list[tuple[str, str]]:
        """(which process, name)."""
        found = []
        for request in self.requests:
            for of_process in request.resource_spans:
                resource = {one.key: one.value.string_value for one in of_process.resource.attributes}
                assert resource["service.name"] == "ours"
                spans = (span for scope in of_process.scope_spans for span in scope.spans)
                found += [(resource["service.instance.id"], span.name) for span in spans]
        return found


@pytest.mark.parametrize("workers", [1, 2])
async def test_the_last_spans_of_each_process_are_sent_before_it_ends(
    start_destination: StartDestination, tmp_path: Path, workers: int
) -> None:
    collector = Collector()
    to = (await start_destination(collector.app)).url
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": to,
        "OTEL_EXPORTER_OTLP_HEADERS": "x-key=ours",
        "OTEL_SERVICE_NAME": "ours",
        "OTEL_BSP_SCHEDULE_DELAY": "600000",
    }
    config = f"[tracing]\nenabled = true\n[server]\nworkers = {workers}\n"
    with await asyncio.to_thread(gateway_process, tmp_path, config, **variables) as gateway:
        for _ in range(40):
            assert (await ask(gateway.port, "/upload", "POST", WHOLE)).status == 201
        assert collector.requests == []
        gateway.terminate()
        assert await asyncio.to_thread(gateway.wait, 20) == 0
    names = [name for _, name in collector.spans()]
    assert {name: names.count(name) for name in names} == dict.fromkeys(
        ["POST /upload", "arrival", "sink disk", "commit disk"], 40
    )
    assert len({process for process, _ in collector.spans()}) == workers


async def test_a_collector_that_does_not_answer_holds_up_the_end_for_seconds_only(
    start_destination: StartDestination, tmp_path: Path
) -> None:
    async def hang(request: web.Request) -> web.Response:
        asked.set()
        await asyncio.sleep(60)
        return web.Response()

    asked = asyncio.Event()
    app = web.Application()
    app.router.add_post("/v1/traces", hang)
    to = (await start_destination(app)).url
    config = "[tracing]\nenabled = true\n"
    with await asyncio.to_thread(gateway_process, tmp_path, config, OTEL_EXPORTER_OTLP_ENDPOINT=to) as gateway:
        assert (await ask(gateway.port, "/upload", "POST", WHOLE)).status == 201
        gateway.terminate()
        began = time.monotonic()
        assert await asyncio.to_thread(gateway.wait, 20) == 0
        assert time.monotonic() - began < 8
    assert asked.is_set()
    assert "the last spans were not taken in 3 s" in gateway.log.read_text()


@pytest.mark.sockets
async def test_uploads_know_nothing_of_a_collector_that_is_not_there(tmp_path: Path) -> None:
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}", "OTEL_BSP_SCHEDULE_DELAY": "10"}
    config = "[tracing]\nenabled = true\n"
    with await asyncio.to_thread(gateway_process, tmp_path, config, **variables) as gateway:
        for _ in range(20):
            assert (await ask(gateway.port, "/upload", "POST", WHOLE)).status == 201
        gateway.terminate()
        assert await asyncio.to_thread(gateway.wait, 20) == 0
