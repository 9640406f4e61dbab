"""The story of an upload: a request comes in, the rooms are called in order, an answer goes out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial

from aiohttp import hdrs, web

from gateway.access import Caps, Identity, Meter
from gateway.digests import declared_digests
from gateway.downloads.locations import file_location, upload_location
from gateway.errors import Forbidden, GatewayError, Incomplete
from gateway.http.answers import delivered, passed_through
from gateway.http.forwarding import believed, check_loop
from gateway.http.prefix import PREFIX
from gateway.intake.admission import Form, accept_body, check_headers, raw_filename
from gateway.intake.body import Intake
from gateway.model import Limits, Part, Upload
from gateway.multipart import boundary_of
from gateway.multipart.codec import Decoder, Event
from gateway.multipart.reader import decoded, raw_body_events, raw_part
from gateway.server.access import Charge, admitted
from gateway.server.logs import tell_also
from gateway.server.record import UploadRecord, log_upload
from gateway.server.results import converted, created
from gateway.server.services import (
    BODY_READ,
    CLIENT,
    HOST,
    OWN_ID,
    SENT_REQUEST_ID,
    SERVICES,
    TIMELINE,
    TRACEPARENT,
    UPLOAD_ID,
    Services,
    begins_late,
    peer_of,
)
from gateway.server.watching import CHOSEN_ID, check_chosen_id
from gateway.sinks.store import manifest_keeper
from gateway.upload.dispatch import Dispatcher, Outcome
from gateway.upload.routes import Route

__all__ = ["UploadHandler"]


class UploadHandler:
    """What comes in on one route, whatever its kind and by which method."""

    def __init__(self, route: Route, services: Services) -> None:
        self._route = route
        self._is_stored = manifest_keeper(route.required, services.sinks) is not None
        self._dispatcher = Dispatcher(
            route,
            sinks=services.sinks,
            flows=services.flows,
            limits=services.limits,
            executor=services.executor,
            locate=file_location,
        )

    async def upload(self, request: web.Request) -> web.StreamResponse:
        """Take the body of a request to its end, and answer it. Raises the GatewayError that the client is told."""
        services, route = request.app[SERVICES], self._route
        upload_id = request[UPLOAD_ID] = request[OWN_ID]
        tell_also(upload=upload_id)
        request[BODY_READ] = False
        async with AsyncExitStack() as held:
            try:
                check_loop(request.headers.items(), services.name)
                charge, limits, form, upload = await admitted(
                    request,
                    services.policies.routes[route.path],
                    scope="upload",
                    route=route.path,
                    then=partial(self._counted, request, services, held),
                )
                held.enter_context(services.gate.slot(begins_late=begins_late(request)))
            except GatewayError as error:
                services.metrics.upload_refused(route=route.path, outcome=error.slug())
                log_upload(upload_id, request[SENT_REQUEST_ID], route.path, error.slug(), error=error)
                raise
            intake = held.enter_context(Intake(request, limits))
            try:
                with UploadRecord(services, upload, intake, is_asked=CHOSEN_ID in request.headers) as record:
                    request[TIMELINE] = record.timeline
                    return await self._taken(request, services, upload, form, intake, record, charge)
            finally:
                request[BODY_READ] = intake.ended
                charge.received_bytes = intake.received_bytes

    async def _counted(
        self, request: web.Request, services: Services, held: AsyncExitStack, who: Identity
    ) -> tuple[Charge, Limits, Form | None, Upload]:
        """What is to come, and counted, of one who may upload, until `held` is left. Raises what refuses it."""
        policy = services.policies.routes[self._route.path]
        charge = Charge(who, policy, services.quotas, is_stored=self._is_stored)
        if charge.is_due:
            held.push_async_callback(charge.settle)
        if CHOSEN_ID in request.headers:
            await held.enter_async_context(services.board.claimed(check_chosen_id(request), services.stores))
        limits = who.caps.applied(services.limits)
        form = check_headers(request, limits, kind=self._route.kind)
        upload = self._described(request, services, who, multipart=form is not None)
        who.caps.check_length(upload.content_length)
        await charge.begin(upload.content_length)
        held.enter_context(services.quotas.share(who, request[CLIENT]))
        return charge, limits, form, upload

    async def _taken(
        self,
        request: web.Request,
        services: Services,
        upload: Upload,
        form: Form | None,
        intake: Intake,
        record: UploadRecord,
        charge: Charge,
    ) -> web.StreamResponse:
        """Take an upload that may come in to its end, and answer it."""
        caps, part = charge.who.caps, self._raw_part(request) if form is None else None
        if part is not None:
            caps.check(part)
        self._dispatcher.admit(upload, part)
        events = self._events(upload, intake, services.limits, form, part)
        if caps.are_of_files or upload.fields:
            events = _allowed(events, caps, frozenset(name.encode() for name, _ in upload.fields))
        if charge.meter is not None:
            events = _metered(events, intake, charge.meter)
        await accept_body(request)
        async with AsyncExitStack() as stack:
            try:
                outcome = record.outcome = await self._dispatcher.dispatch(
                    upload, events, stack, record.progress, is_here=intake.is_here, timeline=record.timeline
                )
            except Incomplete:
                charge.is_used = True  # some of it is kept
                raise
            # Whether its client gets to read that or not.
            charge.is_used = outcome.answer is None or outcome.answer.status < 400
            close = services.gate.is_ending or not intake.ended
            if outcome.answer is not None:
                limits = services.limits
                return await passed_through(
                    request,
                    outcome.answer,
                    stall_seconds=limits.stall_seconds if outcome.read_seconds is None else outcome.read_seconds,
                    close=close,
                    gateway=services.name,
                    location=request[PREFIX] + upload_location(upload.id) if outcome.is_stored else None,
                )
        # Only now, for what is stored stays locked until the sinks are left: who has read its manifest may
        # delete it at once.
        return await self._answer(request, outcome, close=close)

    def _described(self, request: web.Request, services: Services, who: Identity, *, multipart: bool) -> Upload:
        peer, length = peer_of(request), request.content_length
        if length is None and hdrs.TRANSFER_ENCODING not in request.headers:
            length = 0  # RFC 9112 6.3
        headers = believed(request.headers.items(), trusted=peer in services.trusted, family=services.trusted_header)
        query = request.raw_path.partition("?")[2]
        policy = services.policies.routes[self._route.path]
        return Upload(
            request[UPLOAD_ID],
            self._route.path,
            self._route.kind,
            request.method,
            query=policy.without_signature(query),
            headers=policy.without_keys(headers),
            content_type=request.headers.get(hdrs.CONTENT_TYPE, ""),
            content_length=length,
            multipart=multipart,
            request_id=request[SENT_REQUEST_ID],
            peer=peer,
            scheme=request.scheme,
            host=request[HOST],
            protocol=f"{request.version.major}.{request.version.minor}",
            gateway=services.name,
            identity=who.name,
            metadata=who.metadata,
            fields=who.fields,
            id_chosen=CHOSEN_ID in request.headers,
            parts_alone=self._route.keep_each,
            traceparent=request.get(TRACEPARENT, ""),
        )

    def _raw_part(self, request: web.Request) -> Part:
        opaque = self._route.kind == "opaque"
        content_type = request.headers.get(hdrs.CONTENT_TYPE)
        headers = [(name.lower(), value) for name, value in request.raw_headers]
        if opaque:  # with Content-Range or PATCH that is not about these bytes
            headers = [(name, value) for name, value in headers if name != b"repr-digest"]
        declared_digests(headers)  # one that cannot be read is refused before the body is asked for
        return raw_part(
            None if opaque else raw_filename(request),
            content_type.encode("utf-8", "surrogateescape") if content_type else None,
            headers,
        )

    def _events(
        self, upload: Upload, intake: Intake, limits: Limits, form: Form | None, part: Part | None
    ) -> AsyncIterator[list[Event]]:
        """Of a form, or of a body that is this part."""
        keep_raw = self._dispatcher.takes_wire
        if form is None:
            assert part is not None
            return raw_body_events(intake, part, keep_raw=keep_raw)
        if keep_raw:
            boundary_of(upload.content_type.encode("utf-8", "surrogateescape"), one_reading=True)
        decoder = Decoder(
            form.boundary,
            form=form.is_form_data,
            max_parts=limits.max_parts,
            max_headers=limits.max_headers,
            max_header_bytes=limits.max_header_bytes,
            keep_raw=keep_raw,
            one_reading=keep_raw,
        )
        return decoded(intake, decoder)

    async def _answer(self, request: web.Request, outcome: Outcome, *, close: bool) -> web.StreamResponse:
        respond = converted if self._route.kind == "convert" else created
        response = await respond(outcome, request[PREFIX])
        if (page := request.app[SERVICES].page) is not None:
            response = await page.in_place_of(request, response)
        if close:
            response.force_close()
        return await delivered(request, response, prefix=request[PREFIX])


async def _allowed(
    events: AsyncIterator[list[Event]], caps: Caps, given: frozenset[bytes]
) -> AsyncIterator[list[Event]]:
    """The same, as far as the caps allow each file, and no part says in its own way what fields are `given`."""
    async for batch in events:
        for event in batch:
            if event.part is not None:  # it begins
                caps.check(event.part)
                if event.part.raw_name in given:
                    raise Forbidden(f"the field {event.part.name} is not the client's to send here")
        yield batch


async def _metered(events: AsyncIterator[list[Event]], intake: Intake, meter: Meter) -> AsyncIterator[list[Event]]:
    """The same, as far as there is a quota for the bytes."""
    async for batch in events:
        await meter.came(intake.received_bytes)
        yield batch
