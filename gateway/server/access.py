"""Who may do what is asked for here: a request's head is shown to the policy of what it is for, and the decision is
written down, whatever it is.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, TypeVar

from aiohttp import hdrs, web

from gateway.access import ANYBODY, AnyPolicy, Asked, ClientCertificates, Identity, Policy, Quotas
from gateway.downloads.stored import READER
from gateway.errors import AccessUnavailable, Forbidden, GatewayError, InternalError, TooManyRequests
from gateway.http.problems import severity
from gateway.server.browsers import is_foreign
from gateway.server.services import ACCESS_TIMES, CLIENT, OWN_ID, SENT_REQUEST_ID, SERVICES, TRACEPARENT, UPLOAD_ID

__all__ = ["Charge", "admitted", "for_downloaders", "for_readers"]

log = logging.getLogger("gateway.access")

_BY_THEMSELVES = (ANYBODY.by, ClientCertificates.kind)
"""What browsers send along whichever page asks, so that it does not show that somebody meant this request."""

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def admitted(
    request: web.Request,
    policy: Policy | AnyPolicy,
    *,
    scope: str,
    route: str,
    then: Callable[[Identity], Awaitable[T]],
    called: str = "",
) -> T:
    """What is made `then` of who asks, and may; it finds out whether that one has had as much as one may have.

    Raises what the policy and `then` do, and Forbidden for another site's page without a credential. `called` is the
    route in the log, where that is not what the client has written.
    """
    foreign = is_foreign(request, scope)
    if policy.is_open and not foreign:
        return await then(ANYBODY)
    asked = Asked(
        scope,
        route,
        request.method,
        request.raw_path.partition("?")[2],
        request.headers,
        request.get(UPLOAD_ID) or request[OWN_ID],
        request[SENT_REQUEST_ID],
        request[CLIENT],
        request.headers.get(hdrs.CONTENT_TYPE, ""),
        request.content_length,
        request.get_extra_info("peercert"),
        request.get(TRACEPARENT, ""),
    )
    identity: Identity | None = None
    began = monotonic()
    try:
        try:
            identity = await policy.admit(asked)
        finally:
            request[ACCESS_TIMES] = began, monotonic()
        if foreign and identity.by in _BY_THEMSELVES:
            raise Forbidden("another site's page may not do this without credentials (Sec-Fetch-Site, cors.origins)")
        result = await then(identity)
    except Exception as error:
        if identity is not None and not isinstance(error, Forbidden | TooManyRequests):
            _log(asked, called, "allowed", identity=identity.name or None, by=identity.by)  # refused for something else
            raise
        slug = error.slug() if isinstance(error, GatewayError) else InternalError.slug()
        name = identity.name if identity is not None else getattr(error, "identity", "")
        told = {"identity": name or None, "detail": getattr(error, "detail", None) or None}
        _log(asked, called, slug, severity(error), **told)
        raise
    _log(asked, called, "allowed", identity=identity.name or None, by=identity.by)
    return result


def _log(asked: Asked, called: str, decision: str, level: int = logging.INFO, **more: Any) -> None:
    """One line for each decision; never a credential."""
    extra = {
        "decision": decision,
        "request_id": asked.request_id,
        "scope": asked.scope,
        "route": called or asked.route,
        "method": asked.method,
        **more,
    }
    log.log(level, "access %s", decision, extra=extra)


class Charge:
    """What one upload counts for, of what its client may have: settled when it has ended, well or not."""

    def __init__(self, who: Identity, policy: Policy, quotas: Quotas, *, is_stored: bool) -> None:
        self.who = who
        self._policy = policy
        self._quotas = quotas
        self.meter = quotas.meter(who, is_stored=is_stored)
        self.is_used = False
        """Whether something came of it."""
        self.received_bytes = 0

    @property
    def is_due(self) -> bool:
        """Whether there is anything to settle."""
        return self.meter is not None or bool(self.who.use)

    async def begin(self, length: int | None) -> None:
        """Count the request, and the bytes that it declares. Raises TooManyRequests."""
        await self._quotas.count_request(self.who)
        if self.meter is not None and length:
            await self.meter.expect(length)

    async def settle(self) -> None:
        """Give back what was counted and did not come, or came to nothing. What cannot be given back now is lost to its
        client, for a day or so: the upload has ended as it has.
        """
        if not self.is_used:
            await self._policy.give_back(self.who)
        try:
            if self.meter is not None:
                await self.meter.end(self.received_bytes)
        except AccessUnavailable as error:
            log.warning("a quota was not given back: %s", error)


def for_readers(handler: Handler, scope: str = "read") -> Handler:
    """The handler, for those who may read, or remove, what was stored."""

    async def ask(request: web.Request) -> web.StreamResponse:
        services, called = request.app[SERVICES], request.match_info.route.resource
        return await _asked(
            handler,
            request,
            services.policies.reading,
            scope,
            _stored(request),
            called="" if called is None else called.canonical,
        )

    return ask


def for_downloaders(handler: Handler) -> Handler:
    """The handler, for those who may download from elsewhere."""

    async def ask(request: web.Request) -> web.StreamResponse:
        return await _asked(handler, request, request.app[SERVICES].policies.downloading, "download", "/download")

    return ask


async def _asked(
    handler: Handler, request: web.Request, policy: Policy | AnyPolicy, scope: str, route: str, called: str = ""
) -> web.StreamResponse:
    async def counted(who: Identity) -> Identity:
        try:
            await request.app[SERVICES].quotas.count_request(who)
        except BaseException:
            await policy.give_back(who)
            raise
        return who

    who = await admitted(request, policy, scope=scope, route=route, called=called, then=counted)
    if policy.is_open:
        return await handler(request)
    request[READER] = who
    is_used = False
    try:
        response = await handler(request)
        is_used = response.status < 300 and request.method != hdrs.METH_HEAD
        return response
    finally:
        if not is_used:
            await policy.give_back(who)


def _stored(request: web.Request) -> str:
    """The path, of a file without the name that it has for people."""
    index = request.match_info.get("index")
    return request.path if index is None else f"/files/{request.match_info['id']}/{index}"
