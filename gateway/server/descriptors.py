"""How many descriptors the process may have, and how many connections these allow."""

from __future__ import annotations

import logging
import math
import resource
from contextlib import suppress

from gateway.config.settings import Settings

__all__ = ["within_descriptors"]

log = logging.getLogger("gateway.server")

_OWN = 64
"""Its listeners, libraries and log, and connections beyond the limit, which are told so."""
_LEAST_SHARE = 4
"""Of the descriptors at least one in so many is for clients, however many the uploads might need at worst."""


def within_descriptors(settings: Settings) -> Settings:
    """The same, with as many connections as there can be. One warning if these are fewer than it says.

    The limit is raised to what the process may have (RLIMIT_NOFILE): the usual 1,024 are for programs that select.
    """
    descriptors = _raised()
    server = settings.server
    left = max(descriptors - _OWN - _held_at_most(settings), descriptors // _LEAST_SHARE)
    wanted = server.effective_max_connections
    if wanted <= left * server.workers:  # or unlimited, which is for whoever knows better
        return settings
    allowed = int(left) * server.workers
    log.warning(
        "server.max_connections is %d instead of %d: a process may have %d descriptors (RLIMIT_NOFILE)",
        allowed,
        wanted,
        descriptors,
    )
    return settings.model_copy(update={"server": server.model_copy(update={"max_connections": allowed})})


def _raised() -> float:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # where "unlimited" is more than the system takes
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if limit == resource.RLIM_INFINITY else limit


def _held_at_most(settings: Settings) -> int:
    """Descriptors of all uploads and reads that there may be, beside those of their clients, in each process."""
    server, limits = settings.server, settings.limits
    of_sink = 1 + limits.parallel_parts  # a lock or a connection, and what it has open of each part
    of_upload = max((len(route.sinks) * of_sink for route in settings.as_routes()), default=0)
    return server.max_uploads * of_upload + server.max_reads
