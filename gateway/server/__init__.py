"""What is around the wings: handlers, the application, processes that drain; metrics, and the demo destination."""

from __future__ import annotations

from gateway.server.alive import ask_alive
from gateway.server.logs import LOG_FORMATS, LogFormat, configure_logging
from gateway.server.probing import probe
from gateway.server.reloading import Reloading
from gateway.server.serve import run
from gateway.server.signals import until_signalled
from gateway.server.workers import WorkersFailed, supervise

__all__ = [
    "LOG_FORMATS",
    "LogFormat",
    "Reloading",
    "WorkersFailed",
    "ask_alive",
    "configure_logging",
    "probe",
    "run",
    "supervise",
    "until_signalled",
]
