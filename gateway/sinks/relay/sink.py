"""Uploads passed on to another API: where to, over which connections, and in what shape.

1. `per` says how many requests an upload is: one (per_upload.py), or one for each of its files (per_part.py). What they
   are told of the parts: shape.py.
2. `length` says how the destination learns how long a body is; of several modes the first that can be used:
   - `chunked`: it does not, and anything can be sent so;
   - `passthrough`: the client's own bytes under the client's own framing, after each was parsed and checked;
   - `known`: of a raw body with a Content-Length it can be computed, since the form around it is ours; likewise of a
     part that declares one, where each has its own request;
   - `spool`: the body waits in a temporary file until it is whole.
   A body of an opaque route goes as by `passthrough`, whatever it is.
   An upload that no mode is left for is LengthRequired, before its body is asked for.
3. How it is sent, to one of several destinations, and what ends the attempts at that: sending/.
4. Redirects are passed back, never followed; cookies, proxies and credentials of ours do not exist.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Literal

from gateway.digests import hashing_bytes
from gateway.errors import AccessUnavailable, LengthRequired
from gateway.http.answering import HELD_HEAD_BYTES
from gateway.http.forwarding import HeaderRules
from gateway.model import Limits, Part, Upload
from gateway.sinks import Sink, Stage
from gateway.sinks.relay.per_part import PartsDelivery
from gateway.sinks.relay.per_upload import FormDelivery, RelayDelivery, WireDelivery
from gateway.sinks.relay.sending.connect import Connecting
from gateway.sinks.relay.sending.destinations import Destination, Destinations
from gateway.sinks.relay.sending.exchange import Clocks
from gateway.sinks.relay.sending.request import Expecting
from gateway.sinks.relay.sending.sender import Sender, Sending
from gateway.sinks.relay.sending.spool import BATCH_BYTES
from gateway.sinks.relay.shape import Shape

__all__ = ["RelaySink", "memory_shares"]


class RelaySink(Sink):
    """One of the `urls` gets the POST. Times are in seconds, 0 = none; the README has the meaning of each key."""

    stage = Stage.RELAY
    opens_at_once = True

    def __init__(
        self,
        *,
        name: str,
        url: str = "",
        urls: Sequence[str] = (),
        length: str | Sequence[str] = "chunked",
        spool_dir: str = "",
        replay_bytes: int = 1 << 20,
        failures_to_open: int = 3,
        open_seconds: float = 10,
        health_path: str = "",
        health_seconds: float = 10,
        expect_continue: bool | Literal["reused"] = "reused",
        expect_seconds: float = 1,
        connect_seconds: float = 10,
        write_seconds: float = 0,
        first_byte_seconds: float = 0,
        read_seconds: float | None = None,
        total_seconds: float = 0,
        per: Literal["upload", "part"] = "upload",
        parallel_parts: int = 4,
        rename: Mapping[str, str] | None = None,
        drop: Sequence[str] = (),
        add_before: Mapping[str, str] | None = None,
        add_after: Mapping[str, str] | None = None,
        fields_first_bytes: int = 0,
        max_outbound_ratio: int = 0,
        connecting: Connecting = Connecting(),  # noqa: B008 - frozen
        rules: HeaderRules = HeaderRules(),  # noqa: B008 - frozen
    ) -> None:
        self.name = name
        self.lengths = (length,) if isinstance(length, str) else tuple(length)
        self.takes_wire = "passthrough" in self.lengths
        self.read_seconds = read_seconds
        """Between bytes of the answer; None is for whoever reads it to decide."""
        self.can_drop = per == "part"
        self.shape = Shape(
            rename=rename,
            drop=drop,
            add_before=add_before,
            add_after=add_after,
            fields_first_bytes=fields_first_bytes,
        )
        self.sender = Sender(
            name,
            Destinations([url] if url else list(urls), failures_to_open=failures_to_open, open_seconds=open_seconds),
            Sending(
                connecting=connecting,
                clocks=Clocks(
                    connect_seconds=connect_seconds,
                    write_seconds=write_seconds,
                    first_byte_seconds=first_byte_seconds,
                    total_seconds=total_seconds,
                ),
                expecting=Expecting(when=expect_continue, seconds=expect_seconds),
                rules=rules,
                replay_bytes=replay_bytes,
                spool_dir=spool_dir,
                health_path=health_path,
                health_seconds=health_seconds,
            ),
        )
        self._parallel_parts = parallel_parts
        self._max_outbound_ratio = max_outbound_ratio

    async def __aenter__(self) -> RelaySink:
        self.sender.observer = self.observer
        self._report_destinations()
        await self.sender.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.sender.__aexit__(*exc_info)

    async def cleaned_up(self) -> None:
        await self.sender.cleanups.finished()

    async def check(self) -> None:
        """Where bodies wait on this machine; destinations have circuits."""
        if "spool" in self.lengths:
            await self.sender.check_spool()

    def _report_destinations(self) -> None:
        """Have the observer told of each destination, now and when that changes."""
        for number, one in enumerate(self.sender.destinations.all):

            def changed(number: int = number, one: Destination = one) -> None:
                self.observer.destination_is(self.name, number, one.is_up, bool(one.open_until))

            one.changed = changed
            changed()

    def admit(self, upload: Upload) -> None:
        """Refuse what there is no way to send, on its headers alone. Raises LengthRequired, AccessUnavailable."""
        if upload.fields and (self.takes_wire or upload.kind == "opaque"):
            detail = f"fields are to be sent along, and sink {self.name} passes a body on as it is"
            raise AccessUnavailable(detail, sink=self.name)
        if not self.can_drop:
            self._length_mode(upload)

    def leaves_out(self, part: Part) -> bool:
        """By its name, as `drop` says."""
        return self.shape.leaves_out(part)

    @asynccontextmanager
    async def open(self, upload: Upload) -> AsyncIterator[RelayDelivery | PartsDelivery]:
        """One request or several; leaving breaks off those that were not completed."""
        delivery = self._delivery(upload)
        try:
            yield delivery
        finally:
            await delivery.end()

    def _delivery(self, upload: Upload) -> RelayDelivery | PartsDelivery:
        if self.can_drop:
            return PartsDelivery(
                self.name,
                upload,
                self.sender,
                lengths=self.lengths,
                shape=self.shape,
                parallel_parts=self._parallel_parts,
                max_outbound_ratio=self._max_outbound_ratio,
            )
        length_mode = self._length_mode(upload)
        if self.takes_wire or upload.kind == "opaque":
            return WireDelivery(self.name, upload, self.sender, length_mode=length_mode, read_seconds=self.read_seconds)
        return FormDelivery(
            self.name,
            upload,
            self.sender,
            length_mode=length_mode,
            read_seconds=self.read_seconds,
            shape=self.shape,
        )

    def _length_mode(self, upload: Upload) -> str:
        """Rule 2: the first of the modes that this upload can go by."""
        for mode in self.lengths:
            declared = upload.content_length is not None
            if mode in ("chunked", "spool") or (declared and (mode == "passthrough" or not upload.multipart)):
                return mode
        if self.takes_wire:
            return "chunked"
        raise LengthRequired(f"sink {self.name} needs to know the length of what it is sent", sink=self.name)


def memory_shares(
    limits: Limits, received: int, *, per: str, replay_bytes: int, fields_first_bytes: int, hashes: bool
) -> dict[str, int]:
    """What a relay holds of one upload at most, in bytes, by what; `received` is what may come at a time. `hashes`:
    whether it tells destinations the digest of each file.
    """
    each = per == "part"
    requests = limits.parallel_parts if each else 1
    return {
        "buffers towards destinations": requests * 2 * received,
        "heads of answers": requests * HELD_HEAD_BYTES,
        "prefixes kept for another destination": requests * replay_bytes,
        "batches being spooled": requests * (BATCH_BYTES + received),
        "files that wait for fields": fields_first_bytes,
        "fields for the requests of later parts": each * limits.max_fields_bytes,
        "batches being hashed for destinations": each * hashes * limits.parallel_parts * hashing_bytes(received),
    }
