"""Uploads on a local file system: one directory each, published by one rename."""

from __future__ import annotations

from gateway.sinks.disk.layout import unusable
from gateway.sinks.disk.sink import DiskSink

__all__ = ["DiskSink", "unusable"]
