"""What can be configured of listening: where, to whom, how much at a time, by which certificate; and for operators."""

from __future__ import annotations

import importlib.util
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from gateway.config.access import HostNames
from gateway.config.addresses import Address, Inherited, TcpAddress, checked_host, parsed_address
from gateway.config.sinks import FileName, Table, matching, octal_mode
from gateway.http.origin import Family, TrustedNetworks
from gateway.http.prefix import is_prefix
from gateway.model import Count, Seconds

__all__ = ["ListeningTlsSettings", "ManagementSettings", "ServerSettings"]

_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}"


def _installed(event_loop: str) -> str:
    if event_loop == "uvloop" and importlib.util.find_spec("uvloop") is None:
        raise ValueError("uvloop needs the package of that name")
    return event_loop


def _addresses(listen: tuple[str, ...] | None) -> tuple[str, ...] | None:
    for text in listen or ():
        parsed_address(text)
    return listen


def _networks(networks: tuple[str, ...]) -> tuple[str, ...]:
    TrustedNetworks(networks)  # its ValueError names the range
    return networks


def _base_path(path: str) -> str:
    if not is_prefix(path):
        raise ValueError(
            "not a path such as /gw: a slash ahead of each segment, none at the end; letters, digits, and . _ ~ - in "
            "between, others percent-encoded; 128 characters at most"
        )
    return path


class ServerSettings(Table):
    """`[server]`: where it listens, and how many uploads it takes."""

    host: Annotated[str, AfterValidator(checked_host)] = "127.0.0.1"
    """Loopback: what listens on a network is somebody's decision."""
    port: Annotated[Count, Field(le=65535)] = 8080
    listen: Annotated[tuple[str, ...] | None, Field(min_length=1), AfterValidator(_addresses)] = None
    """The one of `host` and `port`: more are for proxies on this machine, and for restarts that refuse nobody."""
    socket_mode: Annotated[str, octal_mode("0660")] = "0660"
    """A proxy has the group; nobody else gets past it."""
    name: Annotated[str, matching(_NAME, "should be 1 to 64 letters, digits, and characters such as - . _")] | None = (
        None
    )
    """A random one: two instances with one name would take each other for a loop, and it tells nothing."""
    workers: Annotated[Count, Field(ge=1, le=64)] = 1
    """More are for more cores, and whoever has those knows how many to give."""
    event_loop: Annotated[Literal["asyncio", "uvloop"], AfterValidator(_installed)] = "asyncio"
    """What every Python has. uvloop answers more small requests per second, and is no faster with large ones."""
    max_uploads: Count = 64
    """With the per-upload bound it makes the memory bound that `gateway check` prints."""
    max_uploads_per_address: Count | None = None
    """A quarter of max_uploads: one address, slow or many, cannot take what others need."""
    max_reads: Count = 256
    """More than uploads, since one holds less: see the bound that `gateway check` prints."""
    max_connections: Count = 1000
    """Fifteen for each upload. One that is idle costs some 10 KiB and a descriptor, and not all systems give many."""
    drain_delay_seconds: Seconds = 0
    """Who stops it has taken it out of the balancer before, or there is none."""
    drain_seconds: Seconds = 60
    """What orchestrators commonly wait for, or can be told to."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """A line for each upload, which is what an operator looks for first."""
    read_buffer_bytes: Annotated[Count, Field(ge=4096, le=16 << 20)] = 256 << 10
    """Half of what is received in one call, and of what waits to be parsed; smaller ones cost a wake-up each."""
    max_head_bytes: Annotated[Count, Field(ge=4096, le=1 << 20)] = 64 << 10
    """A request's line and fields. Tickets and cookies make 16 KiB; nginx and Apache take 32 KiB and more in all."""
    head_seconds: Annotated[Seconds, Field(gt=0)] = 30
    """A head is one packet or a few; who takes longer is far away, or keeps connections busy on purpose."""
    keepalive_seconds: Annotated[Seconds, Field(gt=0)] = 75
    """Longer than balancers keep an idle connection, which is 60 commonly: it is they who should close it."""
    base_path: Annotated[str, AfterValidator(_base_path)] = ""
    """None: a proxy that has us below a path of its own is configured, and so is this."""
    hosts: HostNames = ()
    """Any: what it is called, only whoever runs it knows."""
    trusted_networks: Annotated[tuple[str, ...], AfterValidator(_networks)] = ()
    """None: anybody can write into a header where they come from."""
    trusted_header: Family = "x-forwarded"
    """What nearly every proxy writes."""

    @property
    def addresses(self) -> list[Address]:
        """Where it listens."""
        return [TcpAddress(self.host, self.port)] if self.listen is None else [*map(parsed_address, self.listen)]

    @property
    def hands_over(self) -> bool:
        """Whether its listeners stay open when it has ended, for the next process."""
        return Inherited() in self.addresses

    @property
    def effective_max_connections(self) -> int:
        """As configured; else no fewer than uploads and reads may have, and a few for health. 0 is unlimited."""
        if "max_connections" in self.model_fields_set:
            return self.max_connections
        return max(self.max_connections, self.max_uploads + self.max_reads + 100)

    @property
    def effective_uploads_per_address(self) -> int:
        """As configured, or a quarter of all; 0 is unlimited."""
        most = self.max_uploads_per_address
        return (self.max_uploads + 3) // 4 if most is None else most

    @property
    def effective_reads_per_address(self) -> int:
        """A quarter of all, as for uploads, where those have a limit; 0 is unlimited."""
        return (self.max_reads + 3) // 4 if self.effective_uploads_per_address else 0


class ManagementSettings(Table):
    """`[management]`: what is for operators, and a listener of its own for that."""

    host: Annotated[str, AfterValidator(checked_host)] = "127.0.0.1"
    """Loopback: there is no password."""
    port: Annotated[Count, Field(le=65535)] | None = None
    """None: there is no such listener, and all is served where uploads are."""
    metrics: bool = True
    selftest: bool = True
    readyz: bool = True


class ListeningTlsSettings(Table):
    """`[tls]`: the listener speaks TLS, and shows this certificate; paths are of PEM files."""

    cert: FileName
    key: FileName | None = None
    """Left out: in the file of the certificate."""
    ca: FileName | None = None
    """No client is asked for one."""
