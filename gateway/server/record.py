"""What is kept of every request, whatever becomes of it: an identifier, one line in the log, and for uploads counts."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import cast

from aiohttp import web
from aiohttp.typedefs import Handler

from gateway.downloads.locations import upload_location
from gateway.downloads.stored import OUTCOME
from gateway.errors import ClientGone, Draining, GatewayError, InternalError, RangeNotSatisfiable, SinkRefused
from gateway.http.answers import SENT_BYTES
from gateway.http.problems import problem_document, severity
from gateway.http.ulids import ULID
from gateway.intake.body import Intake
from gateway.model import Upload
from gateway.server.services import CLIENT, SENT_REQUEST_ID, SERVICES, Services
from gateway.upload.dispatch import Outcome
from gateway.upload.progress import UploadProgress
from gateway.upload.timeline import Timeline

__all__ = ["UploadRecord", "log_refused", "log_told", "log_untaken", "log_upload", "outcome_of", "told"]

log = logging.getLogger("gateway.uploads")
_LOGS = {
    "read": logging.getLogger("gateway.read"),
    "delete": logging.getLogger("gateway.delete"),
    "download": logging.getLogger("gateway.download"),
    "selftest": logging.getLogger("gateway.selftest"),
}

_ERRORS = {leaf.slug(): leaf for leaf in (ClientGone, Draining)}
"""What an error is that is none of ours, by what is told of it."""


class UploadRecord:
    """Counts one upload, and writes its line into the log when it ends."""

    def __init__(self, services: Services, upload: Upload, intake: Intake, *, is_asked: bool) -> None:
        """`is_asked`: whether the client has chosen its id, so that somebody is going to watch it."""
        self._metrics = services.metrics
        self._board = services.board
        self._upload = upload
        self._intake = intake
        self._began = time.monotonic()
        self.outcome: Outcome | None = None
        self.timeline = Timeline(self._began)
        self.progress = UploadProgress(upload, intake, is_asked=is_asked)

    def __enter__(self) -> UploadRecord:
        self._metrics.upload_began(self.progress)
        self._board.begin(self.progress)
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        done = self.outcome
        if done is not None and isinstance(error, ConnectionError):
            error = None  # the upload is done: it is the answer that nobody took
        if error is not None:
            outcome = outcome_of(error)
        elif done is not None and done.manifest.partial:
            outcome = "partial"
        else:
            outcome = "ok" if done is None or done.answer is None or done.answer.status < 400 else "answered"
        dropped = self.progress.excluded
        seconds = time.monotonic() - self._began
        self._metrics.upload_ended(self.progress, outcome=outcome, seconds=seconds, dropped=dropped)
        self.timeline.end(
            outcome,
            received_bytes=self._intake.received_bytes,
            given=[(name, given) for name, given, _ in self.progress.at_sinks()],
            failed=self._failed_sink(error),
            dropped=dropped,
        )
        self._board.end(self.progress, self._problem(error))
        log_upload(
            self._upload.id,
            self._upload.request_id,
            self._upload.route,
            outcome,
            error=error,
            parts=len(done.manifest.entries) if done else None,
            received_bytes=self._intake.received_bytes,
            seconds=round(seconds, 3),
            dropped=dropped or None,
        )

    def _failed_sink(self, error: BaseException | None) -> str | None:
        if isinstance(error, GatewayError):
            return cast("str | None", error.members.get("sink"))
        is_no = self.outcome is not None and self.outcome.answer is not None and self.outcome.answer.status >= 400
        return self.timeline.answered if is_no else None

    def _problem(self, error: BaseException | None) -> dict[str, object] | None:
        """What whoever watches is told of the error, or of a destination's no."""
        if error is not None:
            told = error if isinstance(error, GatewayError) else _ERRORS.get(outcome_of(error), InternalError)()
            return problem_document(told, instance=upload_location(self._upload.id))
        if self.outcome is None or self.outcome.answer is None or self.outcome.answer.status < 400:
            return None
        status = self.outcome.answer.status
        told = SinkRefused(f"the destination answered {status}", sink_status=status)
        return problem_document(told, instance=upload_location(self._upload.id))


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
    log.log(severity(error), "upload %s", outcome, extra=extra)


def log_untaken(request: web.BaseRequest) -> None:
    """The line of an answer that its client was no longer there for: what was asked for is done all the same."""
    path, _, _ = request.path.partition(":")
    if path.startswith("/download/"):
        path = "/download/"  # what follows is a remote URL, however it is written, and may hold secrets
    extra = {"path": path, "request_id": request.get(SENT_REQUEST_ID), "client": request.get(CLIENT)}
    log.info("nobody took the answer", extra=extra)


def log_refused(error: GatewayError, identity: str, peer: str | None) -> None:
    """The line of a request that has no head to speak of, and no route."""
    extra = {"request_id": identity, "client": peer, "outcome": error.slug(), "detail": error.detail}
    log.log(severity(error), "request refused", extra=extra)


async def told(request: web.Request, handler: Handler, verb: str, what: str | None = None) -> web.StreamResponse:
    """The handler's answer, and the line of that request: one about what is kept here.

    Paths have what clients wrote, so of theirs only the upload's id and the part's index are told.
    """
    began = time.monotonic()
    try:
        response = await handler(request)
    except BaseException as error:
        status = error.status if isinstance(error, GatewayError) else None
        outcome = outcome_of(error)
        _count(request, verb, outcome, what)
        log_told(request, verb, outcome, error=error, status=status, seconds=_since(began), what=what)
        raise
    outcome = response.get(OUTCOME, "ok")
    _count(request, verb, outcome, what)
    log_told(request, verb, outcome, status=response.status, seconds=_since(began), what=what)
    return response


def _count(request: web.Request, verb: str, outcome: str, what: str | None) -> None:
    metrics = request.app[SERVICES].metrics
    if verb == "read" and what is not None:
        metrics.read_ended(what, outcome, request.get(SENT_BYTES, 0))
        if outcome == RangeNotSatisfiable.slug():  # an answer, and no error, where it is found out
            metrics.refused(RangeNotSatisfiable())
    elif verb == "delete":
        metrics.delete_ended(outcome)


def log_told(
    request: web.Request, verb: str, outcome: str, *, error: BaseException | None = None, **more: object
) -> None:
    """That line."""
    upload_id, index = request.match_info.get("id", ""), request.match_info.get("index", "")
    extra = {
        "request_id": request[SENT_REQUEST_ID],
        "client": request[CLIENT],
        "upload": upload_id if ULID.fullmatch(upload_id) else None,
        "part": int(index) if index.isdecimal() and len(index) < 10 else None,
        "outcome": outcome,
        "detail": error.detail if isinstance(error, GatewayError) else None,
        **more,
    }
    _LOGS[verb].log(severity(error), "%s %s", verb, outcome, extra=extra)


def outcome_of(error: BaseException) -> str:
    """What a request that ended with it came to, in one word."""
    if isinstance(error, GatewayError):
        return error.slug()
    if isinstance(error, asyncio.CancelledError):
        return Draining.slug()  # nobody else cancels a request
    return ClientGone.slug() if isinstance(error, ConnectionError) else InternalError.slug()


def _since(began: float) -> float:
    return round(time.monotonic() - began, 3)
