"""Who may do what is asked for here: a request's head is shown to the policy of what it is for, and the decision is
written down, whatever it is.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import hdrs, web

from gateway.access import ANYBODY, Asked, Identity, Policy
from gateway.downloads.stored import READER
from gateway.errors import GatewayError
from gateway.server.services import SENT_REQUEST_ID, SERVICES

__all__ = ["admitted", "for_downloaders", "for_readers"]

log = logging.getLogger("gateway.access")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def admitted(request: web.Request, policy: Policy, *, scope: str, route: str) -> Identity:
    """Who asks, and may. Raises what the policy does."""
    if policy.is_open:
        return ANYBODY
    asked = Asked(
        scope,
        route,
        request.method,
        request.raw_path.partition("?")[2],
        request.headers,
        request[SENT_REQUEST_ID],
        request.remote or "",
        request.headers.get(hdrs.CONTENT_TYPE, ""),
        request.content_length,
        request.get_extra_info("peercert"),
    )
    try:
        identity = await policy.admit(asked)
    except GatewayError as error:
        _log(asked, error.slug(), detail=error.detail or None)
        raise
    _log(asked, "allowed", identity=identity.name or None, by=identity.by)
    return identity


def _log(asked: Asked, decision: str, **more: Any) -> None:
    """One line for each decision; never a credential."""
    extra = {
        "decision": decision,
        "request_id": asked.identity,
        "scope": asked.scope,
        "route": asked.route,
        "method": asked.method,
        "address": asked.peer,
        **more,
    }
    log.info("access %s", decision, extra=extra)


def for_readers(handler: Handler, scope: str = "read") -> Handler:
    """The handler, for those who may read, or remove, what was stored."""

    async def ask(request: web.Request) -> web.StreamResponse:
        return await _asked(handler, request, request.app[SERVICES].reading, scope, _stored(request))

    return ask


def for_downloaders(handler: Handler) -> Handler:
    """The handler, for those who may download from elsewhere."""

    async def ask(request: web.Request) -> web.StreamResponse:
        return await _asked(handler, request, request.app[SERVICES].downloading, "download", "/download")

    return ask


async def _asked(handler: Handler, request: web.Request, policy: Policy, scope: str, route: str) -> web.StreamResponse:
    if not policy.is_open:
        request[READER] = await admitted(request, policy, scope=scope, route=route)
    return await handler(request)


def _stored(request: web.Request) -> str:
    """The path, of a file without the name that it has for people."""
    index = request.match_info.get("index")
    return request.path if index is None else f"/files/{request.match_info['id']}/{index}"
