"""Around every handler: each request gets its id, errors leave as problems, and every answer's head is completed."""

from __future__ import annotations

import asyncio
import logging

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

from gateway.downloads.locations import upload_location
from gateway.errors import (
    AccessUnavailable,
    ClientGone,
    Forbidden,
    GatewayError,
    InternalError,
    LoopDetected,
    Malformed,
    MisdirectedRequest,
    NotFound,
    RefusedByHook,
    SinkFault,
    TooManyRequests,
    Unauthenticated,
)
from gateway.http.answers import UNREAD, strip_aiohttp_headers
from gateway.http.forwarding import REQUEST_ID, proxy_status, request_id
from gateway.http.origin import client_address
from gateway.http.prefix import PREFIX
from gateway.http.problems import CHALLENGE, problem
from gateway.http.target import requested_host
from gateway.http.ulids import new_ulid
from gateway.server.browsers import check_host, tell_browsers
from gateway.server.logs import about
from gateway.server.record import log_refused, log_untaken
from gateway.server.services import (
    BODY_READ,
    CLIENT,
    HOST,
    OWN_ID,
    PROBLEM,
    SENT_REQUEST_ID,
    SERVICES,
    UPLOAD_ID,
    Services,
    peer_of,
)
from gateway.server.watching import chosen_id
from gateway.sinks import Stage

__all__ = ["complete_head", "problem_of", "problems"]

log = logging.getLogger("gateway.uploads")

_MAY_NOT = (Unauthenticated, Forbidden, TooManyRequests, AccessUnavailable)
"""Nothing is taken of who may not: they are told, and that is all."""


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever goes wrong leaves as problem+json; who went away leaves without a traceback."""
    services, task = request.app[SERVICES], asyncio.current_task()
    assert task is not None
    services.requests.add(task)
    _identify(request, services)
    with about(client=request[CLIENT], request_id=request[SENT_REQUEST_ID]):
        try:
            request[PREFIX] = services.prefix_of(request)
            request[HOST] = requested_host(request.raw_path, request.headers.getall(hdrs.HOST, ()))
            check_host(request)
            response = await handler(request)
        except Exception as error:
            return await _answer_to(request, error)
        finally:
            services.requests.discard(task)
    if services.gate.is_ending and not response.prepared:
        response.force_close()
    return response


def _identify(request: web.Request, services: Services) -> None:
    own_id = request[OWN_ID] = chosen_id(request) or new_ulid()
    request[SENT_REQUEST_ID] = request_id(request.headers.getall(REQUEST_ID, ()), own_id)
    request[CLIENT] = client_address(
        request.headers.items(), peer_of(request), trusted=services.trusted, family=services.trusted_header
    )


async def _answer_to(request: web.Request, error: Exception) -> web.Response:
    """The problem that an error is. Raises it where it is a failing connection that still stands."""
    if isinstance(error, GatewayError):
        if isinstance(error, MisdirectedRequest):
            log_refused(error, request[SENT_REQUEST_ID], request[CLIENT])
        return await problem_of(request, error)
    if isinstance(error, ConnectionError):
        if request.transport is not None and not request.transport.is_closing():
            raise error
        log_untaken(request)
        return await problem_of(request, ClientGone())  # nobody reads it; aiohttp wants something to send
    if isinstance(
        error, web.HTTPException
    ):  # of the router, for targets that are no paths: `OPTIONS *`, `CONNECT host`
        return await problem_of(request, NotFound() if error.status == 404 else Malformed(error.reason))
    log.error("a request failed", exc_info=error)
    return await problem_of(request, InternalError())


async def problem_of(request: web.Request, error: GatewayError) -> web.Response:
    """What the client is told of an error: a problem, or in its place a page, or what the application has answered.
    A refusal is counted.
    """
    request.app[SERVICES].metrics.refused(error)
    request[PROBLEM] = error.slug()
    # Even a body that was small enough to have arrived whole was not read: who is refused must not go on.
    close = request.can_read_body and not request.get(BODY_READ, False)
    if isinstance(error, RefusedByHook):
        return _of_hook(error, close=close)
    upload_id, page = request.get(UPLOAD_ID), request.app[SERVICES].page
    sink = request.app[SERVICES].sinks.get(str(error.members.get("sink")))
    is_of_relay = isinstance(error, SinkFault) and sink is not None and sink.stage is Stage.RELAY
    response = problem(
        error,
        instance=upload_location(upload_id) if upload_id else None,
        prefix=request.get(PREFIX, ""),
        close=close,
        proxy_status=proxy_status(error) if is_of_relay or isinstance(error, LoopDetected) else None,
    )
    if page is not None and upload_id is not None:
        response = await page.in_place_of(request, response)
    response[UNREAD] = isinstance(error, _MAY_NOT)
    return response


def _of_hook(error: RefusedByHook, *, close: bool) -> web.Response:
    headers = {hdrs.CONTENT_TYPE: error.content_type or "application/octet-stream", "X-Content-Type-Options": "nosniff"}
    if error.answer_status == 401:  # RFC 9110 15.5.2: it has to say how
        headers[hdrs.WWW_AUTHENTICATE] = error.challenge or CHALLENGE
    response = web.Response(status=error.answer_status, body=error.answer, headers=headers)
    response[UNREAD] = True
    if close:
        response.force_close()
    return response


async def complete_head(request: web.Request, response: web.StreamResponse) -> None:
    """A signal handler: what every answer says, a destination's, too. Whoever asked can tell by the id which line of
    the log is theirs.
    """
    strip_aiohttp_headers(response)
    if identity := request.get(SENT_REQUEST_ID):
        response.headers[REQUEST_ID] = identity
    tell_browsers(request, response)
