"""The stories, each short: a request comes in, the rooms are called in order, an answer goes out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from aiohttp import ClientResponse, hdrs, web
from aiohttp.typedefs import Handler

from gateway.digests import declared_digests
from gateway.downloads.remote import Downloader
from gateway.downloads.stored import DISKS, delete_upload, get_archive, get_file, get_upload
from gateway.errors import (
    ClientGone,
    GatewayError,
    InternalError,
    Malformed,
    MethodNotAllowed,
    NotFound,
    SinkFault,
)
from gateway.flows import Flow
from gateway.http.answers import delivered, passed_through
from gateway.http.forwarding import REQUEST_ID, TrustedNetworks, believed, proxy_status, request_id
from gateway.http.problems import problem
from gateway.intake.admission import Gate, accept_body, check_headers
from gateway.intake.body import Intake
from gateway.model import Limits, Upload
from gateway.multipart.codec import Event
from gateway.multipart.headers import filename_of, reject_controls
from gateway.multipart.reader import StreamingMultipartReader, raw_body_events
from gateway.server.metrics import Metrics
from gateway.server.record import Record, log_upload, new_ulid
from gateway.server.results import converted, created
from gateway.server.selftest import answer_buffering
from gateway.sinks import Sink
from gateway.sinks.disk.sink import DiskSink
from gateway.sinks.relay.sink import RelaySink
from gateway.upload.dispatch import Outcome, dispatch, refuse_on_headers, takes_wire
from gateway.upload.routes import Route

__all__ = ["SERVICES", "Services", "add_request_id", "add_routes", "problems"]

log = logging.getLogger("gateway.uploads")


@dataclass
class Services:
    """What the handlers share."""

    limits: Limits
    gate: Gate
    sinks: Mapping[str, Sink]
    routes: list[Route]
    flows: Mapping[str, Flow]
    executor: Executor
    """For hashing."""
    downloader: Downloader
    metrics: Metrics
    trusted: TrustedNetworks = field(default_factory=TrustedNetworks)
    """Who may say where a request came from."""
    requests: set[asyncio.Task[object]] = field(default_factory=set)
    """What is in progress, for the drain."""

    @property
    def disks(self) -> list[DiskSink]:
        return [sink for sink in self.sinks.values() if isinstance(sink, DiskSink)]


SERVICES: web.AppKey[Services] = web.AppKey("services", Services)
UPLOAD_ID = web.RequestKey("upload_id", str)
SENT_REQUEST_ID = web.RequestKey("request_id", str)
BODY_READ = web.RequestKey("body_read", bool)


# -- uploads


class UploadHandler:
    """POST, PUT and PATCH on one route, whatever its kind."""

    def __init__(self, route: Route) -> None:
        self._route = route

    async def post(self, request: web.Request) -> web.StreamResponse:
        return await self._upload(request, raw=False)

    async def put(self, request: web.Request) -> web.StreamResponse:
        return await self._upload(request, raw=True)

    async def _upload(self, request: web.Request, *, raw: bool) -> web.StreamResponse:
        services, route = request.app[SERVICES], self._route
        upload_id = request[UPLOAD_ID] = new_ulid()
        identity = request[SENT_REQUEST_ID] = request_id(request.headers.items(), upload_id)
        request[BODY_READ] = False
        try:
            mixed, opaque = route.kind == "relay", route.kind == "opaque"
            multipart = check_headers(request, services.limits, raw=raw, mixed=mixed, encoded=opaque)
            upload = self._described(request, services, multipart=multipart)
            slot = services.gate.slot()
        except GatewayError as error:
            services.metrics.upload_refused(route=route.path, outcome=error.slug())
            log_upload(upload_id, identity, route.path, error.slug(), error=error)
            raise
        with slot, Intake(request, services.limits) as intake, Record(services.metrics, upload, intake) as record:
            try:
                keep_raw = takes_wire(route, services.sinks)
                events = self._events(
                    request, intake, services.limits, multipart=multipart, keep_raw=keep_raw, opaque=opaque
                )
                refuse_on_headers(upload, route, services.sinks)
                await accept_body(request)
                async with AsyncExitStack() as stack:
                    outcome = record.outcome = await dispatch(
                        upload,
                        events,
                        route,
                        services.sinks,
                        services.flows,
                        services.limits,
                        services.executor,
                        stack,
                        record.dropped,
                    )
                    close = services.gate.draining or not intake.ended
                    if outcome.answer is not None:
                        return await self._pass_through(request, services.limits, outcome, outcome.answer, close=close)
                # Only now, for what is stored stays locked until the sinks are left: who has read its manifest may
                # delete it at once.
                return await self._answer(request, services.limits, outcome, close=close)
            finally:
                request[BODY_READ] = intake.ended

    def _described(self, request: web.Request, services: Services, *, multipart: bool) -> Upload:
        peer, length = request.remote or "", request.content_length
        if length is None and hdrs.TRANSFER_ENCODING not in request.headers:
            length = 0  # RFC 9112 6.3
        return Upload(
            request[UPLOAD_ID],
            self._route.path,
            self._route.kind,
            request.method,
            query=request.raw_path.partition("?")[2],
            headers=believed(request.headers.items(), trusted=peer in services.trusted),
            content_type=request.headers.get(hdrs.CONTENT_TYPE, ""),
            content_length=length,
            multipart=multipart,
            request_id=request[SENT_REQUEST_ID],
            peer=peer,
            scheme=request.scheme,
            host=request.headers.get(hdrs.HOST, ""),
            protocol=f"{request.version.major}.{request.version.minor}",
            parts_alone=self._route.keep_each,
        )

    @staticmethod
    def _events(
        request: web.Request, intake: Intake, limits: Limits, *, multipart: bool, keep_raw: bool, opaque: bool
    ) -> AsyncIterator[list[Event]]:
        if multipart:
            return StreamingMultipartReader(
                request.headers,
                intake,
                max_parts=limits.max_parts,
                max_headers=limits.max_headers,
                max_header_bytes=limits.max_header_bytes,
                keep_raw=keep_raw,
            ).events()
        content_type = request.headers.get(hdrs.CONTENT_TYPE)
        headers = [(name.lower(), value) for name, value in request.raw_headers]
        if opaque:  # with Content-Range or PATCH that is not about these bytes
            headers = [(name, value) for name, value in headers if name != b"repr-digest"]
        declared_digests(headers)  # one that cannot be read is refused before the body is asked for
        return raw_body_events(
            intake,
            filename=None if opaque else _raw_filename(request),
            content_type=content_type.encode("utf-8", "surrogateescape") if content_type else None,
            headers=headers,
            keep_raw=keep_raw,
        )

    @staticmethod
    async def _pass_through(
        request: web.Request, limits: Limits, outcome: Outcome, answer: ClientResponse, *, close: bool
    ) -> web.StreamResponse:
        return await passed_through(
            request,
            answer,
            stall_seconds=limits.stall_seconds if outcome.read_seconds is None else outcome.read_seconds,
            idle_seconds=limits.idle_seconds,
            close=close,
            location=outcome.location,
        )

    async def _answer(
        self, request: web.Request, limits: Limits, outcome: Outcome, *, close: bool
    ) -> web.StreamResponse:
        respond = converted if self._route.kind == "convert" else created
        response = respond(outcome.manifest, outcome.kept)
        if close:
            response.force_close()
        return await delivered(request, response, idle_seconds=limits.idle_seconds)


def _raw_filename(request: web.Request) -> bytes | None:
    """A raw body's file name: from the path, else from Content-Disposition, else none."""
    if "filename" in request.match_info:
        last = request.raw_path.partition("?")[0].rpartition("/")[2]
        filename = unquote_to_bytes(last)
        if filename:
            return reject_controls(filename)
    disposition = request.headers.get(hdrs.CONTENT_DISPOSITION)
    return (filename_of(disposition.encode("utf-8", "surrogateescape")) if disposition else None) or None


# -- what lies elsewhere


async def get_download(request: web.Request) -> web.StreamResponse:
    """A remote URL, streamed. It takes a slot as an upload does: it may hold as much."""
    services = request.app[SERVICES]
    outcome = InternalError.slug()
    try:
        with services.gate.slot():
            response = await services.downloader.respond(request, close=services.gate.draining)
        outcome = "ok"
        return response
    except GatewayError as error:
        outcome = error.slug()
        raise
    finally:
        services.metrics.download_ended(outcome)


# -- the services itself


async def selftest_buffering(request: web.Request) -> web.StreamResponse:
    services = request.app[SERVICES]
    check_headers(request, services.limits, raw=True)
    with services.gate.slot():
        return await answer_buffering(request, services.limits)


async def healthz(request: web.Request) -> web.Response:
    return web.Response(text="ok\n")


async def readyz(request: web.Request) -> web.Response:
    draining = request.app[SERVICES].gate.draining
    return web.Response(status=503 if draining else 200, text="draining\n" if draining else "ok\n")


async def metrics(request: web.Request) -> web.Response:
    return web.Response(
        body=request.app[SERVICES].metrics.text(),
        headers={hdrs.CONTENT_TYPE: "text/plain; version=0.0.4; charset=utf-8"},
    )


# -- the map


def add_routes(app: web.Application) -> None:
    services = app[SERVICES]
    app[DISKS] = services.disks
    for route in services.routes:
        uploads = UploadHandler(route)
        if route.kind == "opaque":
            _add(app, route.path, identified=True, POST=uploads.put, PUT=uploads.put, PATCH=uploads.put)
        elif route.kind != "relay":
            _add(app, route.path, identified=True, POST=uploads.post, PUT=uploads.put)
            _add(app, route.path + "/{filename:[^/]*}", identified=True, PUT=uploads.put)
        else:
            _add(app, route.path, identified=True, POST=uploads.post)
    _add(app, "/uploads/{id}", GET=get_upload, DELETE=delete_upload)
    _add(app, "/uploads/{id}/archive.zip", GET=get_archive)
    _add(app, "/files/{id}/{index}/{filename}", GET=get_file)
    _add(app, "/download/{url:(?s:.*)}", GET=get_download)  # (?s: so that %0a is refused there and not lost here
    _add(app, "/selftest/buffering", POST=selftest_buffering, PUT=selftest_buffering)
    _add(app, "/healthz", GET=healthz)
    _add(app, "/readyz", GET=readyz)
    _add(app, "/metrics", GET=metrics)
    app.router.add_resource("/{anything:(?s:.*)}").add_route("*", _not_found, expect_handler=_expect)


def _add(app: web.Application, path: str, *, identified: bool = False, **handlers: Handler) -> None:
    """A resource. Our own 404 and 405, because aiohttp's come after it has told the client to go on.

    `identified`: its requests have an identity, those that nobody takes among them.
    """
    if "GET" in handlers:
        handlers["HEAD"] = handlers["GET"]
    resource = app.router.add_resource(path)
    for method, handler in handlers.items():
        resource.add_route(method, handler, expect_handler=_expect)
    allow = ", ".join(sorted(handlers))

    async def not_allowed(request: web.Request) -> web.StreamResponse:
        if identified:
            request[SENT_REQUEST_ID] = request_id(request.headers.items(), new_ulid())
        response = _problem(request, MethodNotAllowed(f"{request.method} is not one of {allow}"))
        response.headers[hdrs.ALLOW] = allow
        return response

    resource.add_route("*", not_allowed, expect_handler=_expect)


async def _expect(request: web.Request) -> None:
    """Say nothing yet: who may go on is told so by accept_body, after all that refuses on headers."""


async def _not_found(request: web.Request) -> web.Response:
    raise NotFound("there is nothing at this path")


# -- errors


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever goes wrong leaves as problem+json; who went away leaves without a traceback."""
    services, task = request.app[SERVICES], asyncio.current_task()
    assert task is not None
    services.requests.add(task)
    try:
        response = await handler(request)
        if services.gate.draining and not response.prepared:
            response.force_close()
        return response
    except GatewayError as error:
        return _problem(request, error)
    except ConnectionError:
        if request.transport is not None:
            raise
        return _problem(request, ClientGone())  # nobody reads it; aiohttp wants something to send
    except web.HTTPException as error:  # of the router, for targets that are no paths: `OPTIONS *`, `CONNECT host`
        return _problem(request, NotFound() if error.status == 404 else Malformed(error.reason))
    except Exception:
        log.exception("a request failed")
        return _problem(request, InternalError())
    finally:
        services.requests.discard(task)


def _problem(request: web.Request, error: GatewayError) -> web.Response:
    upload_id = request.get(UPLOAD_ID)
    sink = request.app[SERVICES].sinks.get(str(error.members.get("sink")))
    return problem(
        error,
        instance=f"/uploads/{upload_id}" if upload_id else None,
        # Even a body that was small enough to have arrived whole was not read: who is refused must not go on.
        close=request.can_read_body and not request.get(BODY_READ, False),
        proxy_status=proxy_status(error) if isinstance(error, SinkFault) and isinstance(sink, RelaySink) else None,
    )


async def add_request_id(request: web.Request, response: web.StreamResponse) -> None:
    """A signal handler: whoever asked can tell which line of the log is theirs. It replaces a destination's own."""
    if identity := request.get(SENT_REQUEST_ID):
        response.headers[REQUEST_ID] = identity
