"""The other stories, each short, and which handler a path has."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import ExitStack

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from gateway.access import ANYBODY
from gateway.downloads.locations import ARCHIVE_PATH, FILE_PATHS, UPLOAD_PATH
from gateway.downloads.stored import OUTCOME, READER, STORES, delete_upload, get_archive, get_file, get_upload
from gateway.errors import (
    LEAVES,
    Draining,
    GatewayError,
    InternalError,
    MethodNotAllowed,
    NotFound,
)
from gateway.http.answers import SENT_BYTES
from gateway.http.prefix import PREFIX, prefixed
from gateway.intake.admission import check_headers
from gateway.server.access import for_downloaders, for_readers
from gateway.server.browsers import answer_preflight
from gateway.server.middleware import problem_of
from gateway.server.page_handlers import LINK_PATH, get_asset, get_link, get_page, get_root
from gateway.server.record import log_told, told
from gateway.server.selftest import answer_buffering
from gateway.server.services import CLIENT, SERVICES, begins_late
from gateway.server.uploads import UploadHandler
from gateway.server.watching import PROGRESS_PATH, get_progress

__all__ = ["add_routes"]

# -- what lies elsewhere


async def get_download(request: web.Request) -> web.StreamResponse:
    """A remote URL, streamed."""
    services = request.app[SERVICES]
    outcome = InternalError.slug()
    try:
        held = ExitStack()
        _take_slot_of_read(request, held)
    except GatewayError as error:
        log_told(request, "download", error.slug(), error=error, status=error.status)
        services.metrics.download_ended(error.slug(), 0)
        raise
    try:
        with held:
            response = await services.downloader.respond(request, close=services.gate.is_ending)
        outcome = response.get(OUTCOME, "ok")
        return response
    except GatewayError as error:
        outcome = error.slug()
        raise
    finally:
        services.metrics.download_ended(outcome, request.get(SENT_BYTES, 0))


def _take_slot_of_read(request: web.Request, held: ExitStack) -> None:
    """Until `held` is left. Raises Draining, Busy, TooManyRequests."""
    if request.app[SERVICES].gate.draining and not begins_late(request):
        raise Draining
    _share_reads(request, held)


def _share_reads(request: web.Request, held: ExitStack) -> None:
    services = request.app[SERVICES]
    held.enter_context(services.quotas.share_of_reads(request.get(READER, ANYBODY), request[CLIENT]))
    try:
        held.enter_context(services.gate.reads.slot())
    except BaseException:
        held.close()
        raise


def _reading(handler: Handler) -> Handler:
    """A handler that works in one of the slots of reads."""

    async def read(request: web.Request) -> web.StreamResponse:
        with ExitStack() as held:
            _share_reads(request, held)
            return await handler(request)

    return read


def _told(handler: Handler, verb: str, what: str | None = None) -> Handler:
    """A handler whose requests have a line in the log each."""

    async def tell(request: web.Request) -> web.StreamResponse:
        return await told(request, handler, verb, what)

    return tell


# -- the gateway itself


async def selftest_buffering(request: web.Request) -> web.StreamResponse:
    """Whether a proxy in front holds bodies back."""
    services = request.app[SERVICES]
    if services.gate.draining:
        raise Draining
    check_headers(request, services.limits, kind="opaque")
    return await answer_buffering(request, services.limits)


async def healthz(request: web.Request) -> web.Response:
    """200 while the process runs."""
    return web.Response(text="ok\n")


async def readyz(request: web.Request) -> web.Response:
    """200, or 503 with the reason: whether new uploads should be sent here."""
    reason = await request.app[SERVICES].unreadiness()
    return web.Response(status=503 if reason else 200, text=f"{reason or 'ok'}\n")


async def metrics(request: web.Request) -> web.Response:
    """The counts, as Prometheus reads them."""
    return web.Response(
        body=request.app[SERVICES].metrics.text(),
        headers={hdrs.CONTENT_TYPE: "text/plain; version=0.0.4; charset=utf-8"},
    )


async def get_openapi(request: web.Request) -> web.Response:
    """What can be asked here, for programs."""
    document = {**request.app[SERVICES].description, "servers": [{"url": request[PREFIX] or "/"}]}
    return web.json_response(document)


async def get_problem(request: web.Request) -> web.Response:
    """What a problem's type says: where it leads (RFC 9457 3.1.1 would have it be found)."""
    slug = request.match_info["slug"]
    for leaf in LEAVES:
        if leaf.slug() == slug:
            document = {"type": f"/problems/{slug}", "title": leaf.title, "status": leaf.status}
            body = prefixed(json.dumps(document).encode() + b"\n", request[PREFIX])
            return web.Response(body=body, content_type="application/json")
    raise NotFound("there is no such problem")


# -- the map


_OWN: dict[str, list[tuple[str, dict[str, Handler]]]] = {
    "/uploads": [
        (
            UPLOAD_PATH,
            {
                "GET": _told(for_readers(_reading(get_upload)), "read", "manifest"),
                "DELETE": _told(for_readers(delete_upload, "delete"), "delete"),
            },
        ),
        (PROGRESS_PATH, {"GET": _told(for_readers(get_progress), "read", "progress")}),
        (ARCHIVE_PATH, {"GET": _told(for_readers(_reading(get_archive)), "read", "archive")}),
    ],
    "/files": [(path, {"GET": _told(for_readers(_reading(get_file)), "read", "file")}) for path in FILE_PATHS],
    # (?s: so that %0a is refused there and not lost here
    "/download": [("/download/{url:(?s:.*)}", {"GET": for_downloaders(get_download)})],
    "/selftest": [
        ("/selftest/buffering", dict.fromkeys(("POST", "PUT"), _told(_reading(selftest_buffering), "selftest")))
    ],
    "/page": [
        ("/", {"GET": get_root}),
        ("/page/{asset:page\\.js|page\\.css}", {"GET": get_asset}),
        ("/page/{route:.+}", {"GET": get_page}),
        (LINK_PATH, {"GET": _told(for_readers(get_link), "read", "link")}),
    ],
    "/healthz": [("/healthz", {"GET": healthz})],
    "/readyz": [("/readyz", {"GET": readyz})],
    "/metrics": [("/metrics", {"GET": metrics})],
    "/openapi.json": [("/openapi.json", {"GET": get_openapi})],
}
"""What is below each of the gateway's own paths."""


def add_routes(app: web.Application) -> None:
    """Every path that is served; last, one for all others, which is a 404 of ours."""
    services = app[SERVICES]
    app[STORES] = services.stores
    for route in services.routes:
        if route.path not in services.served:
            continue
        uploads = UploadHandler(route, services)
        _add(app, route.path, dict.fromkeys(route.methods, uploads.upload))
        if route.kind not in ("relay", "opaque"):
            _add(app, route.path + "/{filename:[^/]*}", {"PUT": uploads.upload})
    for own in services.served:
        for path, handlers in _OWN.get(own, ()):
            _add(app, path, handlers)
    _add(app, "/problems/{slug:[a-z-]+}", {"GET": get_problem})
    app.router.add_resource("/{anything:(?s:.*)}").add_route("*", _not_found, expect_handler=_expect)


def _add(app: web.Application, path: str, handlers: Mapping[str, Handler]) -> None:
    """A resource. Our own 404 and 405, because aiohttp's come after it has told the client to go on."""
    if "GET" in handlers:
        handlers = {**handlers, "HEAD": handlers["GET"]}
    resource = app.router.add_resource(path)
    for method, handler in handlers.items():
        resource.add_route(method, handler, expect_handler=_expect)
    allow = ", ".join(sorted(handlers))

    async def not_allowed(request: web.Request) -> web.StreamResponse:
        if request.match_info.get("filename") == "":  # a slash too much, unless it is PUT there
            raise _not_found_at(request)
        if (preflight := answer_preflight(request, allow)) is not None:
            return preflight
        response = await problem_of(request, MethodNotAllowed(f"{request.method} is not one of {allow}"))
        response.headers[hdrs.ALLOW] = allow
        return response

    resource.add_route("*", not_allowed, expect_handler=_expect)


async def _expect(request: web.Request) -> None:
    """Say nothing yet: who may go on is told so by accept_body, after all that refuses on headers."""


async def _not_found(request: web.Request) -> web.Response:
    raise _not_found_at(request)


def _not_found_at(request: web.Request) -> NotFound:
    """The 404, which names what was meant by a path with a slash too much. One path, one meaning: it is not served,
    for a proxy in front may have rules for the other.
    """
    plain = re.sub("/{2,}", "/", request.path).rstrip("/")
    served = request.app[SERVICES].served
    meant = [path for path in served if plain != request.path and (plain == path or plain.startswith(path + "/"))]
    if not meant:
        return NotFound("there is nothing at this path")
    meant_path = request[PREFIX] + meant[0]
    return NotFound(f"there is nothing at this path, but at {meant_path}, without a doubled slash or one at the end")
