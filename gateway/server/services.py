"""What the handlers share, and what they write on a request for each other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from gateway.access import Browsers, Quotas
from gateway.config.policies import Policies
from gateway.downloads.remote import Downloader
from gateway.errors import SinkFault
from gateway.flows import Flow
from gateway.http.origin import Family, TrustedNetworks
from gateway.http.prefix import forwarded_prefix
from gateway.intake.admission import Gate
from gateway.model import Limits
from gateway.server.board import Board
from gateway.server.metrics import Metrics
from gateway.server.page import Page
from gateway.sinks import Sink
from gateway.sinks.store import Store
from gateway.upload.routes import Route
from gateway.upload.timeline import Timeline

__all__ = [
    "ACCESS_TIMES",
    "BODY_READ",
    "CLIENT",
    "HOST",
    "OWN_ID",
    "PROBLEM",
    "SENT_REQUEST_ID",
    "SERVICES",
    "TIMELINE",
    "TRACEPARENT",
    "UPLOAD_ID",
    "Services",
    "begins_late",
    "peer_of",
]


@dataclass
class Services:
    """What the handlers share."""

    limits: Limits
    name: str
    """Of this instance, in Via."""
    gate: Gate
    sinks: Mapping[str, Sink]
    routes: list[Route]
    served: Collection[str]
    """The paths of these, and the gateway's own that are served beside them."""
    flows: Mapping[str, Flow]
    executor: Executor
    """For hashing."""
    downloader: Downloader
    metrics: Metrics
    quotas: Quotas
    board: Board
    """Which uploads can be watched."""
    policies: Policies
    """Who may do what."""
    read_policies: Callable[[Policies], Policies]
    """The same, with the keys and secrets that the files have now. Raises ConfigError."""
    page: Page | None = None
    """None where there is none."""
    description: Mapping[str, Any] = field(default_factory=dict)
    """Of the API, for programs."""
    browsers: Browsers = field(default_factory=Browsers)
    """What other people's pages may have them do."""
    trusted: TrustedNetworks = field(default_factory=TrustedNetworks)
    """Who may say where a request came from."""
    trusted_header: Family = "x-forwarded"
    """In which headers they do."""
    base_path: str = ""
    """The prefix of whom nobody trusted says another one of."""
    requests: set[asyncio.Task[object]] = field(default_factory=set)
    """What is in progress, for the drain."""

    @property
    def stores(self) -> list[Store]:
        """The sinks whose uploads can be fetched again."""
        return [sink for sink in self.sinks.values() if isinstance(sink, Store)]

    def prefix_of(self, request: web.Request) -> str:
        """The prefix that its client sees us behind."""
        told = None
        if self.trusted_header == "x-forwarded" and peer_of(request) in self.trusted:
            told = forwarded_prefix(request.headers.getall("X-Forwarded-Prefix", ()))
        return self.base_path if told is None else told

    async def unreadiness(self) -> str | None:
        """Why new uploads should go elsewhere: it drains, or a sink that a route requires can take none."""
        if self.gate.draining:
            return "draining"
        if self.gate.leaving:
            return "draining soon: it still takes what comes"
        for name in dict.fromkeys(name for route in self.routes for name in route.required):
            try:
                await self.sinks[name].check()
            except SinkFault as error:
                return str(error)
        return None


SERVICES: web.AppKey[Services] = web.AppKey("services", Services)
HOST = web.RequestKey("host", str)
"""The host that was asked for, of the target or of Host; empty where neither names one."""
UPLOAD_ID = web.RequestKey("upload_id", str)
OWN_ID = web.RequestKey("own_id", str)
"""What is made for each request; an upload has it for its own."""
SENT_REQUEST_ID = web.RequestKey("request_id", str)
"""The client's own, or that one."""
CLIENT = web.RequestKey("client", str)
"""The address that it comes from, as far as those who say so are believed."""
BODY_READ = web.RequestKey("body_read", bool)
"""Whether the body was read to its end: only then the connection can go on."""
TIMELINE = web.RequestKey("timeline", Timeline)
"""Of an upload that was let in: when it did what."""
TRACEPARENT = web.RequestKey("traceparent", str)
"""What destinations are told of the trace that this request is in; missing where no traces are made."""
PROBLEM = web.RequestKey("problem", str)
"""The error that it is answered with, in one word."""
ACCESS_TIMES: web.RequestKey[tuple[float, float]] = web.RequestKey("access_times", tuple)
"""When it was asked who that is, and may, and when that was known; by `time.monotonic`. Missing where anybody may."""


def peer_of(request: web.Request) -> str:
    """The address that it came from; `unix:` of all that came by a socket of this machine."""
    return str(getattr(request.protocol, "peer", None) or request.remote or "")


def begins_late(request: web.Request) -> bool:
    """Whether it was let begin although the gateway drains."""
    return bool(getattr(request.protocol, "begins_late", False))
