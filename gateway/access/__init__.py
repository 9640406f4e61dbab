"""Who may: a request's head becomes an identity, or is refused, before a byte of its body is asked for (G5)."""

from __future__ import annotations

from gateway.access.asked import ANYBODY, SCOPES, Asked, Caps, Identity, is_loopback
from gateway.access.browsers import (
    ANY,
    Browsers,
    Cors,
    check_host,
    check_origin,
    head_origin,
    is_cross_site,
    refused_origin,
)
from gateway.access.certificates import ClientCertificates
from gateway.access.counts import Counts, FileCounts, MemoryCounts
from gateway.access.hook import Hook
from gateway.access.keys import ApiKeys, new_key
from gateway.access.policy import AnyPolicy, Kind, Policy
from gateway.access.postgres import PostgresCounts
from gateway.access.quotas import QUOTAS, Holders, Meter, Quotas, SharedHolders
from gateway.access.signed import SignedUrls, read_secrets, signed_url
from gateway.access.tokens import JwksKeys, KeySource, Tokens, fixed_key
from gateway.access.units import seconds_of, size_of

__all__ = [
    "ANY",
    "ANYBODY",
    "QUOTAS",
    "SCOPES",
    "AnyPolicy",
    "ApiKeys",
    "Asked",
    "Browsers",
    "Caps",
    "ClientCertificates",
    "Cors",
    "Counts",
    "FileCounts",
    "Holders",
    "Hook",
    "Identity",
    "JwksKeys",
    "KeySource",
    "Kind",
    "MemoryCounts",
    "Meter",
    "Policy",
    "PostgresCounts",
    "Quotas",
    "SharedHolders",
    "SignedUrls",
    "Tokens",
    "check_host",
    "check_origin",
    "fixed_key",
    "head_origin",
    "is_cross_site",
    "is_loopback",
    "new_key",
    "read_secrets",
    "refused_origin",
    "seconds_of",
    "signed_url",
    "size_of",
]
