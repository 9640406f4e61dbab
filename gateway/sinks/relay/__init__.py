"""Uploads passed on to another API: what a request looks like (`sink` is the door). How it is sent: `sending`."""

from __future__ import annotations

from gateway.sinks.relay.sink import RelaySink

__all__ = ["RelaySink"]
