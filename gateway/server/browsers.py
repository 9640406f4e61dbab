"""What other people's pages may have browsers do, asked of each request and told in each answer."""

from __future__ import annotations

from aiohttp import hdrs, web

from gateway.access import head_origin, is_cross_site
from gateway.config.settings import HEALTH_PATHS
from gateway.errors import Forbidden, MisdirectedRequest
from gateway.server.services import HOST, SERVICES

__all__ = ["answer_preflight", "check_host", "is_foreign", "tell_browsers"]

_METHODS = web.RequestKey("methods", str)
"""Of the resource that a preflight asks about."""


def check_host(request: web.Request) -> None:
    """Raises MisdirectedRequest (RFC 9110 15.5.20) for a host that is not this gateway's. Whoever asks for its health
    may know an address only.
    """
    if request.path not in HEALTH_PATHS and not request.app[SERVICES].browsers.takes(request[HOST]):
        raise MisdirectedRequest("this gateway does not answer for the host that was asked for (server.hosts)")


def answer_preflight(request: web.Request, methods: str) -> web.Response | None:
    """The answer to what a browser asks before a page's request; None where it is no such question, or nobody's pages
    may ask. Raises Forbidden for another origin.
    """
    origin = head_origin(request.headers)
    asks = request.method == hdrs.METH_OPTIONS and origin and "Access-Control-Request-Method" in request.headers
    cors = request.app[SERVICES].browsers.cors_of(request.rel_url.raw_path)
    if cors is None or not asks:
        return None
    if not cors.allows(origin):
        raise Forbidden("pages of this origin may not use this: it is not one of cors.origins")
    request[_METHODS] = methods
    response = web.Response(status=204)
    if request.can_read_body:
        response.force_close()
    return response


def is_foreign(request: web.Request, scope: str) -> bool:
    """Whether a page of another site asks, and not one whose origin is allowed."""
    if not is_cross_site(request.headers, request.method, scope):
        return False
    cors = request.app[SERVICES].browsers.cors_of(request.rel_url.raw_path)
    return cors is None or not cors.allows(head_origin(request.headers))


def tell_browsers(request: web.Request, response: web.StreamResponse) -> None:
    """Of an answer about to be sent: whichever it is, it says whose pages may read it."""
    browsers = request.app[SERVICES].browsers
    browsers.tell(response.headers, request.rel_url.raw_path, head_origin(request.headers), request.get(_METHODS, ""))
