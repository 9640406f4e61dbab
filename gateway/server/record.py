"""What is kept of every upload, whatever becomes of it: an identifier, counts, and one line in the log."""

from __future__ import annotations

import asyncio
import io
import logging
import secrets
import time

from aiohttp import web

from gateway.errors import Draining, GatewayError
from gateway.intake.body import Intake
from gateway.model import Upload
from gateway.server.metrics import Metrics
from gateway.server.services import SENT_REQUEST_ID
from gateway.upload.dispatch import Outcome

__all__ = ["UploadRecord", "log_refused", "log_untaken", "log_upload", "new_ulid"]

log = logging.getLogger("gateway.uploads")

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_CROCKFORD_TWICE = [first + second for first in _CROCKFORD for second in _CROCKFORD]
"""Ten bits at a time."""


class UploadRecord:
    """Counts one upload, and writes its line into the log when it ends."""

    def __init__(self, metrics: Metrics, upload: Upload, intake: Intake) -> None:
        self._metrics = metrics
        self._upload = upload
        self._intake = intake
        self._began = time.monotonic()
        self.outcome: Outcome | None = None
        self.excluded: dict[str, str] = {}
        """Best-effort sinks that were excluded, and why; also where the upload failed afterwards."""

    def __enter__(self) -> UploadRecord:
        self._metrics.upload_began()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        done = self.outcome
        if done is not None and isinstance(error, ConnectionError):
            error = None  # the upload is done: it is the answer that nobody took
        if isinstance(error, GatewayError):
            outcome = error.slug()
        elif isinstance(error, asyncio.CancelledError):
            outcome = Draining.slug()  # nobody else cancels an upload
        elif error is not None:
            outcome = "client-gone" if isinstance(error, ConnectionError) else "internal-error"
        elif done is not None and done.manifest.partial:
            outcome = "partial"
        else:
            outcome = "ok" if done is None or done.answer is None or done.answer.status < 400 else "answered"
        seconds = time.monotonic() - self._began
        sink_bytes = (done.sink_bytes if done else None) or {}
        self._metrics.upload_ended(
            route=self._upload.route,
            outcome=outcome,
            received_bytes=self._intake.received_bytes,
            sink_bytes=sink_bytes,
            seconds=seconds,
            dropped=self.excluded,
        )
        log_upload(
            self._upload.id,
            self._upload.request_id,
            self._upload.route,
            outcome,
            error=error,
            parts=len(done.manifest.entries) if done else None,
            received_bytes=self._intake.received_bytes,
            seconds=round(seconds, 3),
            dropped=self.excluded or None,
        )


def log_upload(
    upload_id: str, request_id: str, route: str, outcome: str, *, error: BaseException | None, **more: object
) -> None:
    """The one line that each upload gets, refused ones among them."""
    ours = error if isinstance(error, GatewayError) else None
    extra = {
        "upload": upload_id,
        "request_id": request_id,
        "route": route,
        "outcome": outcome,
        "detail": ours.detail if ours else None,
        "sink": ours.members.get("sink") if ours else None,
        **{name: ours.members[name] for name in ("sent_bytes", "replay_bytes") if ours and name in ours.members},
        **more,
    }
    log.info("upload %s", outcome, extra=extra)


def log_untaken(request: web.BaseRequest) -> None:
    """The line of an answer that its client was no longer there for: what was asked for is done all the same."""
    path, _, _ = request.path.partition(":")
    if path.startswith("/download/"):
        path = "/download/"  # what follows is a remote URL, however it is written, and may hold secrets
    extra = {"path": path, "request_id": request.get(SENT_REQUEST_ID)}
    log.info("nobody took the answer", extra=extra)


def log_refused(error: GatewayError, identity: str) -> None:
    """The line of a request that has no head to speak of, and no route."""
    log.info("request refused", extra={"request_id": identity, "outcome": error.slug(), "detail": error.detail})


def new_ulid() -> str:
    """48 bits of milliseconds, 80 random bits, in Crockford's base 32: sorts by time, cannot be guessed."""
    milliseconds, number = time.time_ns() // 1_000_000, int.from_bytes(_random_bytes(10))
    tens = [milliseconds >> shift & 1023 for shift in (40, 30, 20, 10, 0)]
    tens += [number >> shift & 1023 for shift in (70, 60, 50, 40, 30, 20, 10, 0)]
    return "".join([_CROCKFORD_TWICE[ten] for ten in tens])


_random = io.BytesIO()


def _random_bytes(size: int) -> bytes:
    """The system's, fetched many at a time: each call costs as much as a third of a form's parsing."""
    global _random
    if len(found := _random.read(size)) < size:
        _random = io.BytesIO(secrets.token_bytes(4096))
        found = _random.read(size)
    return found
