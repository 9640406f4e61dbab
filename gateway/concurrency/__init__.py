"""Bytes and work in progress: pipes whose windows are in bytes, jobs in threads, work that somebody else may end."""

from __future__ import annotations

from gateway.concurrency.groups import Call, JobGroups
from gateway.concurrency.pipe import Pipe, Progress, Window, add_chunk, batches, gathered
from gateway.concurrency.probe import Probe
from gateway.concurrency.scope import Scope
from gateway.concurrency.tasks import OwnTasks, start
from gateway.concurrency.threads import PATIENCE_SECONDS, CleanUps, DaemonThreads, TrackedExecutor, settled
from gateway.concurrency.timer import RearmingTimer

__all__ = [
    "PATIENCE_SECONDS",
    "Call",
    "CleanUps",
    "DaemonThreads",
    "JobGroups",
    "OwnTasks",
    "Pipe",
    "Probe",
    "Progress",
    "RearmingTimer",
    "Scope",
    "TrackedExecutor",
    "Window",
    "add_chunk",
    "batches",
    "gathered",
    "settled",
    "start",
]
