"""Uploads passed on to another API: where to, over which connections, and in what shape.

1. `per` says how many requests an upload is: one (perupload.py), or one for each of its files (perpart.py). What they
   are told of the parts: shape.py.
2. `length` says how the destination learns how long a body is; of several ways the first that can be used:
   - `chunked`: it does not, and anything can be sent so;
   - `passthrough`: the client's own bytes under the client's own framing, after each was parsed and checked;
   - `known`: of a raw body with a Content-Length it can be computed, since the form around it is ours; likewise of a
     part that declares one, where each has its own request;
   - `spool`: the body waits in a temporary file until it is whole.
   A body of an opaque route goes as by `passthrough`, whatever it is.
   An upload that no way is left for is LengthRequired, before its body is asked for.
3. Attempts at one of several destinations, what ends them and what is told of that: outbound.py, exchange.py.
4. Redirects are passed back, never followed; cookies, proxies and credentials of ours do not exist.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import replace
from typing import Literal

import aiohttp
from yarl import URL

from gateway.concurrency.pipe import Progress
from gateway.digests import hashing_bytes
from gateway.errors import LengthRequired
from gateway.http.forwarding import HeaderRules, outbound_headers
from gateway.model import Limits, Part, Upload
from gateway.sinks import Sink, Stage
from gateway.sinks.relay.per_part import PartsDelivery
from gateway.sinks.relay.per_upload import RelayDelivery
from gateway.sinks.relay.sending.connect import Connecting
from gateway.sinks.relay.sending.destinations import Destination, Destinations, check_health
from gateway.sinks.relay.sending.exchange import Clocks, Exchange
from gateway.sinks.relay.sending.outbound import Outbound
from gateway.sinks.relay.sending.replayable import Replayable
from gateway.sinks.relay.sending.request import RequestHead, StreamingRequest
from gateway.sinks.relay.sending.spool import BATCH_BYTES, Region, Spool
from gateway.sinks.relay.shape import Shape

__all__ = ["RelaySink", "memory_shares"]


class RelaySink(Sink):
    """One of the `urls` gets the POST. Times are in seconds, 0 = none; docs/configuration.md has each key."""

    stage = Stage.RELAY

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
        expect_continue: bool = False,
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
        self.replay_bytes = replay_bytes
        self._parallel_parts = parallel_parts
        self.destinations = Destinations(
            [url] if url else list(urls), failures_to_open=failures_to_open, open_seconds=open_seconds
        )
        self._spool_dir = spool_dir
        self._health_path = health_path
        self._health_seconds = health_seconds
        self._clocks = Clocks(
            connect_seconds=connect_seconds,
            write_seconds=write_seconds,
            first_byte_seconds=first_byte_seconds,
            total_seconds=total_seconds,
            expect_seconds=expect_seconds if expect_continue else 0,
        )
        self._connecting = connecting
        self._rules = rules
        self._session: aiohttp.ClientSession | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> RelaySink:
        session = self._connecting.session(request_class=StreamingRequest)
        self._connecting.warn(self.name)
        self._executor = ThreadPoolExecutor(2, thread_name_prefix=f"spool-{self.name}")
        self._stack.callback(self._executor.shutdown)
        self._session = await self._stack.enter_async_context(session)
        if self._health_path:
            # with a pool of their own, so that they never wait for uploads
            connecting = replace(self._connecting, max_connections=0, keepalive_seconds=0)
            asking = await self._stack.enter_async_context(connecting.session(headers=self._rules.headers))
            checks = await self._stack.enter_async_context(asyncio.TaskGroup())
            task = checks.create_task(
                check_health(
                    self.destinations,
                    asking,
                    path=self._health_path,
                    every_seconds=self._health_seconds,
                    patience=self._clocks.connect_seconds or self._health_seconds,
                    server_name=self._connecting.server_name,
                )
            )
            self._stack.callback(task.cancel)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    def admit(self, upload: Upload) -> None:
        """Refuse what there is no way to send, on its headers alone. Raises LengthRequired."""
        if not self.can_drop:
            self._way(upload)

    def leaves_out(self, part: Part) -> bool:
        return self.shape.leaves_out(part)

    @asynccontextmanager
    async def open(self, upload: Upload) -> AsyncIterator[RelayDelivery | PartsDelivery]:
        delivery = self._per_part(upload) if self.can_drop else self._per_upload(upload)
        try:
            yield delivery
        finally:
            await delivery.end()

    def _per_upload(self, upload: Upload) -> RelayDelivery:
        return RelayDelivery(
            self.name,
            upload,
            self._outbound,
            way=self._way(upload),
            wired=self.takes_wire or upload.kind == "opaque",
            shape=self.shape,
            read_seconds=self.read_seconds,
        )

    def _per_part(self, upload: Upload) -> PartsDelivery:
        assert self._executor is not None
        return PartsDelivery(
            self.name,
            upload,
            self._outbound,
            lengths=self.lengths,
            shape=self.shape,
            parallel_parts=self._parallel_parts,
            spool=self._spool(),
            executor=self._executor,
        )

    def _way(self, upload: Upload) -> str:
        """Rule 2: the first of the ways that this upload can go."""
        for way in self.lengths:
            declared = upload.content_length is not None
            if way in ("chunked", "spool") or (declared and (way == "passthrough" or not upload.multipart)):
                return way
        if self.takes_wire:
            return "chunked"
        raise LengthRequired(f"sink {self.name} needs to know the length of what it is sent", sink=self.name)

    def _outbound(
        self,
        upload: Upload,
        *,
        content_type: str,
        length: int | None,
        spooled: bool,
        unchanged: bool,
        progress: Progress | None,
        spooled_already: Region | None = None,
    ) -> Outbound:
        """`spooled_already`: the body up to its tail, for one that is `spooled`."""
        headers = tuple(outbound_headers(upload, self._rules, unchanged=unchanged))
        content_type = content_type.encode("utf-8", "replace").decode()

        def exchange(destination: Destination, size: int | None) -> Exchange:
            assert self._session is not None
            head = RequestHead(
                method=upload.method if upload.kind == "opaque" else "POST",
                url=_with_query(destination.url, upload.query),
                headers=headers,
                content_type=content_type,
                length=size,
            )
            clocks = replace(self._clocks, expect_seconds=0) if destination.refuses_expect else self._clocks
            return Exchange(self.name, self._session, head, clocks, server_name=self._connecting.server_name)

        def excused() -> AbstractContextManager[None]:
            return nullcontext() if progress is None else progress.excused()

        spool = self._spool if spooled_already is None else lambda: spooled_already
        return Outbound(
            self.name,
            self.destinations,
            exchange,
            length=length,
            replayable=Replayable(self.replay_bytes, spool, is_spooled=spooled),
            excused=excused,
        )

    def _spool(self) -> Spool:
        assert self._executor is not None
        return Spool(self._spool_dir, self._executor)


def memory_shares(
    limits: Limits, received: int, *, per: str, replay_bytes: int, fields_first_bytes: int
) -> dict[str, int]:
    """What a relay holds of one upload at most, in bytes, by what; `received` is what may come at a time."""
    each = per == "part"
    requests = limits.parallel_parts if each else 1
    return {
        "buffers towards destinations": requests * 2 * received,
        "prefixes kept for another destination": requests * replay_bytes,
        "batches being spooled": requests * (BATCH_BYTES + received),
        "files that wait for fields": fields_first_bytes,
        "fields for the requests of later parts": each * limits.max_fields_bytes,
        "batches being hashed for destinations": each * limits.parallel_parts * hashing_bytes(received),
    }


def _with_query(url: str, query: str) -> str:
    if not query:
        return url
    joint = "&" if URL(url, encoded=True).raw_query_string else "?"
    return f"{url}{joint}{query}"
