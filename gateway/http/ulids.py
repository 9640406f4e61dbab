"""Identifiers of requests, and of the uploads that they are: ULIDs."""

from __future__ import annotations

import io
import re
import secrets
import time

__all__ = ["ULID", "began_at", "new_ulid"]

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
ULID = re.compile(f"[0-7][{_CROCKFORD}]{{25}}")
"""One that is spelt as we spell it."""
_CROCKFORD_TWICE = [first + second for first in _CROCKFORD for second in _CROCKFORD]
"""Ten bits at a time."""
_DIGITS = {digit: value for value, digit in enumerate(_CROCKFORD)}


def new_ulid() -> str:
    """48 bits of milliseconds, 80 random bits, in Crockford's base 32: sorts by time, cannot be guessed."""
    milliseconds, number = time.time_ns() // 1_000_000, int.from_bytes(_random_bytes(10))
    tens = [milliseconds >> shift & 1023 for shift in (40, 30, 20, 10, 0)]
    tens += [number >> shift & 1023 for shift in (70, 60, 50, 40, 30, 20, 10, 0)]
    return "".join([_CROCKFORD_TWICE[ten] for ten in tens])


def began_at(upload_id: str) -> float:
    """When the upload began, which its identifier says, in seconds since the epoch."""
    milliseconds = 0
    for digit in upload_id[:10]:
        milliseconds = milliseconds * 32 + _DIGITS[digit]
    return milliseconds / 1000


_random = io.BytesIO()


def _random_bytes(size: int) -> bytes:
    """The system's, fetched many at a time: each call costs as much as a third of a form's parsing."""
    global _random
    if len(found := _random.read(size)) < size:
        _random = io.BytesIO(secrets.token_bytes(4096))
        found = _random.read(size)
    return found
