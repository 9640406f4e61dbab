"""Connections to a destination: TLS, pool, sockets; and what aiohttp says of one that failed, in our words."""

from __future__ import annotations

import errno
import logging
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import hdrs

from gateway.errors import SinkFault, SinkRefused, SinkUnavailable
from gateway.http.answering import HEAD_LIMITS, AnswerConnector
from gateway.http.sockets import destination_socket
from gateway.http.tls import TlsFileError, check_readable, load_pair
from gateway.sinks import no_descriptors

__all__ = ["Connecting", "connection_fault", "tls_context"]

log = logging.getLogger("gateway.connect")


@dataclass(frozen=True, slots=True, kw_only=True)
class Connecting:
    """How one destination is connected to. 0 is: without limit, and a new connection for each request."""

    max_connections: int = 0
    keepalive_seconds: float = 0
    """How long a connection whose exchange was complete waits for the next one. One that its peer closed meanwhile
    fails when it is used: whoever pools must be able to send what was lost once more, or to do without.
    """
    tls: ssl.SSLContext | None = None
    """None: the system's authorities, no certificate of ours."""
    server_name: str | None = None
    """What the destination's certificate is checked against, and SNI, instead of the host of its URL."""

    def session(self, **options: Any) -> aiohttp.ClientSession:
        """To be closed by whoever asked for it; `options` are aiohttp's. Each request of it wants our server_name."""
        kept = self.keepalive_seconds > 0
        return aiohttp.ClientSession(
            connector=AnswerConnector(
                limit=0,
                limit_per_host=self.max_connections,
                force_close=not kept,
                keepalive_timeout=self.keepalive_seconds if kept else None,
                ssl=True if self.tls is None else self.tls,
                socket_factory=destination_socket,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            **HEAD_LIMITS,
            skip_auto_headers=(hdrs.USER_AGENT, hdrs.ACCEPT, hdrs.ACCEPT_ENCODING),
            **options,
        )

    def warn(self, name: str) -> None:
        """Say of the sink `name` what nobody should leave as it is."""
        if self.tls is not None and self.tls.verify_mode is not ssl.CERT_REQUIRED:
            log.warning(
                "sink %s: tls.verify is off, so anybody on the way can read and change what is sent to it", name
            )


def tls_context(
    *, ca: str | None = None, cert: str | None = None, key: str | None = None, verify: bool = True
) -> ssl.SSLContext:
    """`ca` instead of the system's authorities; `cert` (with `key`, unless that is in it) shown to the destination.

    Raises TlsFileError.
    """
    for which, path in (("ca", ca), ("cert", cert), ("key", key)):
        if path is not None:
            check_readable(which, path)
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ValueError) as error:
        raise TlsFileError("ca", "it holds no certificates") from error
    context.set_alpn_protocols(["http/1.1"])
    if cert is not None:
        load_pair(context, cert, key)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def connection_fault(name: str, error: Exception, *, sent_bytes: int = 0, may_have_acted: bool = False) -> SinkFault:
    """What the request to sink `name` raised (an aiohttp.ClientError or an OSError) as ours.

    `sent_bytes` of the body were sent; `may_have_acted`: all of them, so that whoever sends them again may do so twice,
    and is told so, by a member of the problem that is there only then.

    `reason` is RFC 9209's word for it. What a certificate, a resolver or the system says of where the sink is goes into
    the log: the client is told the sink's name. aiohttp's own TLS errors are ssl.SSLErrors, too, but empty ones.
    """
    members: dict[str, object] = {"may_have_acted": True} if may_have_acted else {}
    causes = [cause for cause in _causes(error) if not isinstance(cause, aiohttp.ClientError)]
    if words := next((str(cause) for cause in causes if str(cause)), ""):
        log.info("sink %s: %s", name, words)
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE):
            return no_descriptors(name)
        if isinstance(cause, ssl.SSLCertVerificationError):
            return SinkUnavailable(
                f"the certificate of sink {name} is not trusted",
                sink=name,
                reason="tls_certificate_error",
            )
        if isinstance(cause, ssl.SSLError):
            return _tls_fault(name, cause, **members)
    if isinstance(error, aiohttp.ClientConnectorError):
        reason = "destination_unavailable"
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            reason = "dns_error"
        elif any(isinstance(cause, ConnectionRefusedError) for cause in causes):
            reason = "connection_refused"
        return SinkUnavailable(f"sink {name} cannot be reached", sink=name, reason=reason)
    acted = ": it had the whole body, and may have acted on it" if may_have_acted else ""
    if isinstance(error, (aiohttp.ClientConnectionError, OSError)):
        detail = f"sink {name} closed the connection after {sent_bytes} bytes{acted}"
        return SinkRefused(detail, sink=name, sent_bytes=sent_bytes, reason="connection_terminated", **members)
    detail = f"sink {name} gave no valid answer{acted}"
    return SinkRefused(detail, sink=name, sent_bytes=sent_bytes, reason="http_protocol_error", **members)


def _tls_fault(name: str, error: ssl.SSLError, **members: object) -> SinkFault:
    """TLS failed: an alert is the destination's word, `certificate required` and the like."""
    said = (error.reason or "it does not speak TLS").replace("_", " ").lower()
    alert = "alert" in said
    return SinkUnavailable(
        f"TLS with sink {name} failed: {said}",
        sink=name,
        reason="tls_alert_received" if alert else "tls_protocol_error",
        **members,
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        if isinstance(error, aiohttp.ClientConnectorError):
            yield error.os_error
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            yield error.certificate_error
        error = error.__cause__ or error.__context__
