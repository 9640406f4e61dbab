"""How bodies get to the destinations of one sink: the connections, the clocks and the files that they all share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, AsyncExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial

from gateway.concurrency.pipe import Progress
from gateway.concurrency.probe import Probe
from gateway.concurrency.threads import PATIENCE_SECONDS, CleanUps, DaemonThreads
from gateway.errors import SinkUnavailable
from gateway.http.forwarding import HeaderRules, outbound_headers
from gateway.http.query import with_query
from gateway.model import Upload
from gateway.sinks import Observer, sink_fault
from gateway.sinks.relay.sending.connect import Connecting
from gateway.sinks.relay.sending.destinations import Destination, Destinations, check_health
from gateway.sinks.relay.sending.exchange import Clocks, Exchange
from gateway.sinks.relay.sending.outbound import Outbound
from gateway.sinks.relay.sending.replayable import Replayable
from gateway.sinks.relay.sending.request import Expecting, RequestHead, StreamingRequest
from gateway.sinks.relay.sending.spool import Region, Spool, try_spool

__all__ = ["Sender", "Sending"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """How a sink sends, as it is configured. Times are in seconds, sizes in bytes."""

    connecting: Connecting
    clocks: Clocks
    expecting: Expecting
    rules: HeaderRules
    replay_bytes: int
    """How much of a body is kept in memory, to be sent again."""
    spool_dir: str
    """Where bodies wait; "" is the system's directory for temporary files."""
    health_path: str
    """What is asked of each destination every `health_seconds`; "" asks nothing."""
    health_seconds: float


class Sender:
    """Entered when the gateway starts, left when it stops."""

    def __init__(self, name: str, destinations: Destinations, sending: Sending) -> None:
        self.destinations = destinations
        self.cleanups = CleanUps()
        """Spooled bodies that hang behind uploads that were answered."""
        self.observer = Observer()
        """Who is told of requests that are made again, and of answers."""
        self._name = name
        self._sending = sending
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Sender:
        sending, stack = self._sending, self._stack
        sending.connecting.warn(self._name)
        self.executor = DaemonThreads(2, name=f"spool-{self._name}")
        stack.callback(self.executor.stop, PATIENCE_SECONDS)
        self._spoolable = Probe(partial(try_spool, sending.spool_dir), name=f"probe-{self._name}")
        stack.callback(self._spoolable.stop)
        self._session = await stack.enter_async_context(sending.connecting.session(request_class=StreamingRequest))
        if sending.health_path:
            # with a pool of their own, so that they never wait for uploads
            connecting = replace(sending.connecting, max_connections=0, keepalive_seconds=0)
            asking = await stack.enter_async_context(connecting.session(headers=sending.rules.headers))
            checks = await stack.enter_async_context(asyncio.TaskGroup())
            checking = check_health(
                self.destinations,
                asking,
                path=sending.health_path,
                every_seconds=sending.health_seconds,
                patience=sending.clocks.connect_seconds or sending.health_seconds,
                server_name=sending.connecting.server_name,
            )
            stack.callback(checks.create_task(checking).cancel)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()

    def spool(self) -> Spool:
        """A file for one body or several, to be closed by whoever asked for it. Raises SinkUnavailable for a disk that
        hangs.
        """
        if self.cleanups.are_many:
            raise SinkUnavailable(f"sink {self._name} cannot spool: its disk hangs", sink=self._name)
        return Spool(self._sending.spool_dir, self.executor, self.cleanups)

    async def check_spool(self) -> None:
        """Raises SinkFull and SinkUnavailable while nothing can be spooled."""
        try:
            answers = await self._spoolable.ask()
        except OSError as error:
            raise sink_fault(self._name, error) from error
        if not answers:
            raise SinkUnavailable(f"sink {self._name} cannot spool: its disk hangs", sink=self._name)

    def outbound(
        self,
        upload: Upload,
        content_type: str,
        length: int | None,
        *,
        is_spooled: bool,
        unchanged: bool = False,
        progress: Progress | None = None,
        region: Region | None = None,
    ) -> Outbound:
        """A body of so many bytes (None: not known). `unchanged`: as the client framed it, which then goes for what the
        client says of it. `region` has all of one that is spooled but its end.
        """
        rules = self._sending.rules
        headers = tuple(outbound_headers(upload, rules, unchanged=unchanged))

        def exchange(destination: Destination, size: int | None, on_new_connection: bool) -> Exchange:
            head = RequestHead(
                method=upload.method if upload.kind in ("relay", "opaque") else "POST",
                url=with_query(destination.url, upload.query, rules.forward_query),
                headers=headers,
                content_type=content_type,
                length=size,
                on_new_connection=on_new_connection,
            )
            return Exchange(
                self._name,
                self._session,
                head,
                self._sending.clocks,
                expecting=self._sending.expecting,
                taught=destination.taught,
                server_name=self._sending.connecting.server_name,
                answered=partial(self.observer.answered, self._name),
            )

        def excused() -> AbstractContextManager[None]:
            return nullcontext() if progress is None else progress.excused()

        spool: Callable[[], Spool | Region] = self.spool if region is None else lambda: region
        return Outbound(
            self._name,
            self.destinations,
            exchange,
            length=length,
            replayable=Replayable(self._sending.replay_bytes, spool, is_spooled=is_spooled),
            excused=excused,
            retried=partial(self.observer.retried, self._name),
        )
