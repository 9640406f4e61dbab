"""Where an encoded part may be cut, so that each piece can be decoded alone (RFC 2045 6.7, 6.8). Pure."""

from __future__ import annotations

import re

__all__ = ["CUTTABLE", "decodable", "padding_apart"]

CUTTABLE = frozenset(["base64", "quoted-printable"])
"""The mechanisms whose pieces depend on one another; those of all others may be cut anywhere."""

_NOT_BASE64 = bytes(byte for byte in range(256) if not re.match(rb"[A-Za-z0-9+/=]", bytes([byte])))
_BASE64 = frozenset(range(256)) - frozenset(_NOT_BASE64)


def decodable(mechanism: str, data: bytes) -> int:
    """How many of these bytes can be decoded without those that follow: all quartets, or all escapes."""
    if mechanism == "quoted-printable":
        escape = data.find(b"=", max(0, len(data) - 2))
        return len(data) if escape < 0 else escape
    left = len(data.translate(None, _NOT_BASE64)) % 4
    cut = len(data)
    while left:
        cut -= 1
        left -= data[cut] in _BASE64
    return cut


def padding_apart(mechanism: str, data: bytes) -> tuple[bytes, bytes]:
    """(bytes that mean nothing, the rest): where there is no quartet, the former may go ahead of it."""
    if mechanism == "quoted-printable":
        return b"", data
    rest = data.translate(None, _NOT_BASE64)
    return data.translate(None, bytes(_BASE64)), rest
