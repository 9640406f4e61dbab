"""Errors as problem documents (RFC 9457)."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import hdrs, web

from gateway.errors import GatewayError, InternalError, TooManyRequests, Unauthenticated
from gateway.http.prefix import prefixed

__all__ = ["problem", "problem_document", "problem_middleware", "severity"]

CHALLENGE = 'Bearer realm="gateway"'
"""RFC 6750 3; a signature or a certificate has no scheme of its own."""
_PROBLEM = "application/problem+json"


def problem_document(error: GatewayError, *, instance: str | None = None) -> dict[str, object]:
    """The members of a problem (RFC 9457)."""
    document: dict[str, object] = {"type": f"/problems/{error.slug()}", "title": error.title, "status": error.status}
    if error.detail:
        document["detail"] = error.detail
    if instance is not None:
        document["instance"] = instance
    return document | error.members


def problem(
    error: GatewayError,
    *,
    instance: str | None = None,
    prefix: str = "",
    close: bool = False,
    proxy_status: str | None = None,
) -> web.Response:
    """An error as problem+json (RFC 9457), with a prefix before its addresses. `close` ends the connection with it: its
    body was not read.
    """
    document = json.dumps(problem_document(error, instance=instance)).encode() + b"\n"
    response = web.Response(status=error.status, body=prefixed(document, prefix), content_type=_PROBLEM)
    if isinstance(error, Unauthenticated):
        response.headers[hdrs.WWW_AUTHENTICATE] = CHALLENGE
    if error.retry_after_seconds is not None:
        response.headers[hdrs.RETRY_AFTER] = str(error.retry_after_seconds)
    if isinstance(error, TooManyRequests):
        response.headers.update(_rate_limit(error.members))
    if coding := error.members.get("accept_encoding"):
        response.headers[hdrs.ACCEPT_ENCODING] = str(coding)  # RFC 9110 15.5.16: and only where a coding is the reason
    if proxy_status is not None:
        response.headers["Proxy-Status"] = proxy_status
    if close:
        response.force_close()
    return response


def severity(error: BaseException | None) -> int:
    """The level of the line about a request that ended with it: what is a 5xx of ours somebody should look at."""
    if isinstance(error, GatewayError) and not isinstance(error, InternalError):
        return logging.INFO if error.status < 500 else logging.WARNING
    is_of_client_or_drain = error is None or isinstance(error, ConnectionError | asyncio.CancelledError)
    return logging.INFO if is_of_client_or_drain else logging.ERROR


def _rate_limit(members: Mapping[str, object]) -> dict[str, str]:
    """Retry-After, and the fields of draft-ietf-httpapi-ratelimit-headers where it is a quota."""
    seconds = members.get("retry_after", 1)
    fields: dict[str, str] = {hdrs.RETRY_AFTER: str(seconds)}
    if quota := members.get("quota"):
        window = f";w={members['window_seconds']}" if "window_seconds" in members else ""
        fields["RateLimit-Policy"] = f'"{quota}";q={members["limit"]}{window}'
        fields["RateLimit"] = f'"{quota}";r=0;t={seconds}' if window else f'"{quota}";r=0'
    return fields


@web.middleware
async def problem_middleware(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """For any aiohttp application: an error of the multipart reader is answered as a problem with its status.

    The connection is closed if there is more of the body, for nobody reads it.
    """
    try:
        return await handler(request)
    except GatewayError as error:
        return problem(error, close=not request.content.at_eof())
