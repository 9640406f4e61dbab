"""What can be configured: settings, what of them contradicts, how they are loaded, and what memory they allow."""

from __future__ import annotations

from gateway.config.addresses import Address, Inherited, TcpAddress, UnixAddress
from gateway.config.environment import unknown_variables
from gateway.config.listening import ServerSettings
from gateway.config.make import make_sinks_and_flows, make_tls
from gateway.config.memory import connection_bound_bytes, memory_bound_bytes, read_bound_bytes, unlimited_keys
from gateway.config.messages import ConfigError
from gateway.config.policies import Policies, make_browsers, make_management_browsers, make_policies, open_to_others
from gateway.config.settings import HEALTH_PATHS, OWN_PATHS, RouteSettings, Settings
from gateway.config.sinks import RelaySettings
from gateway.config.tracing import TracingSettings

__all__ = [
    "HEALTH_PATHS",
    "OWN_PATHS",
    "Address",
    "ConfigError",
    "Inherited",
    "Policies",
    "RelaySettings",
    "RouteSettings",
    "ServerSettings",
    "Settings",
    "TcpAddress",
    "TracingSettings",
    "UnixAddress",
    "connection_bound_bytes",
    "make_browsers",
    "make_management_browsers",
    "make_policies",
    "make_sinks_and_flows",
    "make_tls",
    "memory_bound_bytes",
    "open_to_others",
    "read_bound_bytes",
    "unknown_variables",
    "unlimited_keys",
]
