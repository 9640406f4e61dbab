"""The life of one upload: its parts go through flows to sinks, concurrently, and all or nothing is kept."""

from __future__ import annotations

from gateway.upload.dispatch import Dispatcher, Outcome
from gateway.upload.progress import UploadProgress
from gateway.upload.routes import BestEffort, Match, Route, Rule
from gateway.upload.timeline import SinkTimes, Timeline

__all__ = ["BestEffort", "Dispatcher", "Match", "Outcome", "Route", "Rule", "SinkTimes", "Timeline", "UploadProgress"]
