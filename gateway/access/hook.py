"""An application of one's own decides: before the body it is told of the request, and what it answers is obeyed.

1. The hook is sent a POST with what is asked for, in JSON: `id` (of the upload), `request_id`, `route`, `method`,
   `scope`, `identity` so far, `headers` of those that are configured, `content_type`, `content_length`, `address`.
2. 2xx allows. A JSON object there may say who it is (`identity`), what is allowed at most (`limits`: `max_bytes`,
   `types`, `filename`), what the manifest is to have (`metadata`), and what relays are to send along (`fields`).
3. 4xx is the client's answer: the status, and up to 64 KiB of the body.
4. Anything else, and a time-out, refuses with 503; or lets in, where that is configured.
5. Where it could not be reached, or did not answer, some times in a row it is left alone for a while: what it would
   have been asked is answered as in 4. An answer, even a 5xx, is about one request.
6. So many are asked at a time. Who waits for that has not begun to wait for the hook.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from types import TracebackType
from typing import Annotated, Self

import aiohttp
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from gateway.access.asked import ANYBODY, Asked, Caps, Identity
from gateway.errors import AccessUnavailable, Malformed, RefusedByHook
from gateway.http import TRACEPARENT
from gateway.multipart.headers import checked_name
from gateway.multipart.rendering import quote

__all__ = ["Hook"]

log = logging.getLogger("gateway.access")

_MAX_ANSWER_BYTES = 64 << 10
_MAX_CONNECTIONS = 100
_FAILURES_TO_OPEN, _OPEN_SECONDS = 5, 10.0


def _sendable(name: str) -> str:
    if not name:
        raise ValueError("a field has a name")
    try:
        quote(checked_name(name.encode()))
    except Malformed as error:
        raise ValueError(error.detail) from None
    return name


def _refused_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")  # NaN and Infinity, which only Python reads and writes


class _Limits(BaseModel):
    model_config = ConfigDict(extra="forbid")
    max_bytes: Annotated[int, Field(ge=0)] | None = None
    types: tuple[str, ...] = ()
    filename: str | None = None


class _Allowed(BaseModel):
    model_config = ConfigDict(extra="ignore")
    identity: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    limits: _Limits = Field(default_factory=_Limits)
    metadata: dict[str, JsonValue] = Field(default_factory=dict)
    fields: dict[Annotated[str, AfterValidator(_sendable)], str] = Field(default_factory=dict)


class Hook:
    """`async with` it: it has connections of its own."""

    def __init__(self, url: str, *, timeout_seconds: float, lets_in_on_error: bool, forward: Sequence[str]) -> None:
        self._url = url
        self._timeout_seconds = timeout_seconds
        self._lets_in_on_error = lets_in_on_error
        self._forward = forward
        self._session: aiohttp.ClientSession | None = None
        self._failures = 0
        self._open_until = 0.0
        self._asking = asyncio.Semaphore(_MAX_CONNECTIONS)

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=self._timeout_seconds),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def ask(self, asked: Asked, identity: Identity | None) -> Identity:
        """Who that is, as it says. Raises RefusedByHook, AccessUnavailable."""
        loop = asyncio.get_running_loop()
        async with self._asking:
            if loop.time() < self._open_until:
                return self._without(identity)
            try:
                allowed = await self._answer(asked, identity)
            except ValueError as error:
                log.warning("the hook failed: %s", error)
                return self._without(identity)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                self._failed(error, loop.time())
                return self._without(identity)
        self._failures = 0
        known = identity or ANYBODY
        limits = allowed.limits
        return Identity(
            known.name if allowed.identity is None else f"hook:{allowed.identity}",
            known.by if identity is not None and allowed.identity is None else "hook",
            known.scopes,
            known.caps.and_also(Caps.of(max_bytes=limits.max_bytes, types=limits.types, filename=limits.filename)),
            allowed.metadata,
            tuple(allowed.fields.items()),
            known.use,
        )

    def _without(self, identity: Identity | None) -> Identity:
        if self._lets_in_on_error:
            return identity or ANYBODY
        raise AccessUnavailable("who may do this cannot be found out now")

    def _failed(self, error: Exception, now: float) -> None:
        self._failures += 1
        log.warning("the hook cannot be asked: %s", type(error).__name__)
        if self._failures >= _FAILURES_TO_OPEN:
            self._open_until = now + _OPEN_SECONDS

    async def _answer(self, asked: Asked, identity: Identity | None) -> _Allowed:
        assert self._session is not None
        told = {
            "id": asked.upload,
            "request_id": asked.request_id,
            "route": asked.route,
            "method": asked.method,
            "scope": asked.scope,
            "identity": identity.name if identity else None,
            "headers": {name: ", ".join(asked.headers.getall(name)) for name in self._forward if name in asked.headers},
            "content_type": asked.content_type or None,
            "content_length": asked.content_length,
            "address": asked.peer,
        }
        headers = {TRACEPARENT: asked.traceparent} if asked.traceparent else None
        async with self._session.post(self._url, json=told, headers=headers, allow_redirects=False) as response:
            body, is_whole = await _body(response)
            if 400 <= response.status < 500:
                refused = RefusedByHook(f"the application answered {response.status}")
                refused.answer_status, refused.answer = response.status, body
                refused.content_type = response.headers.get("Content-Type", "")
                refused.challenge = response.headers.get("WWW-Authenticate", "")
                raise refused
            if not 200 <= response.status < 300:
                raise ValueError(f"it answered {response.status}")
            if not is_whole:
                raise ValueError("its answer is longer than 64 KiB")
            if not body.strip() or response.content_type.rpartition("+")[2].rpartition("/")[2] != "json":
                return _Allowed()
            try:
                return _Allowed.model_validate(json.loads(body, parse_constant=_refused_constant))
            except (ValidationError, RecursionError, ValueError):
                raise ValueError("its answer says nothing that can be obeyed") from None


async def _body(response: aiohttp.ClientResponse) -> tuple[bytes, bool]:
    """(the first 64 KiB, whether that is all of it)."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > _MAX_ANSWER_BYTES:
            response.close()
            break
    return bytes(body[:_MAX_ANSWER_BYTES]), len(body) <= _MAX_ANSWER_BYTES
