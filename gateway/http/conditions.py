"""Conditional requests and ranges (RFC 9110 13 and 14.2): which answer a request for a stored file gets. Pure.

The validators are strong: stored bytes never change. Names of header fields are written out here, since a
room without I/O knows no aiohttp.
"""

from __future__ import annotations

import calendar
import re
import time
from contextlib import suppress

from multidict import MultiMapping

__all__ = ["chosen"]

_ENTITY_TAG = re.compile('(W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_RANGE = re.compile(r"bytes=([^,]*)", re.IGNORECASE)
_RANGE_SPEC = re.compile("([0-9]{1,30})-([0-9]{0,30})|-([0-9]{1,30})")
_DATES = "%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y"


def chosen(headers: MultiMapping[str], *, etag: str, modified: int, size: int) -> tuple[int, int, int]:
    """(200, 206, 304, 412 or 416; of the first two: where the bytes begin, and end). RFC 9110 13.2.2, 14.2."""
    since = _date(headers.get("If-Modified-Since"))
    unmodified_since = _date(headers.get("If-Unmodified-Since"))
    if "If-Match" in headers:
        if not _matches(headers.getall("If-Match"), etag, weak=False):
            return 412, 0, 0
    elif unmodified_since is not None and modified > unmodified_since:
        return 412, 0, 0
    if "If-None-Match" in headers:
        if _matches(headers.getall("If-None-Match"), etag, weak=True):
            return 304, 0, 0
    elif since is not None and modified <= since:
        return 304, 0, 0
    wanted = headers.getall("Range", [])
    if len(wanted) == 1 and _in_range_of(headers.get("If-Range"), etag, modified):
        return _range(wanted[0], size)
    return 200, 0, size


def _matches(fields: list[str], etag: str, *, weak: bool) -> bool:
    field = ", ".join(fields)
    if field.strip() == "*":
        return True
    return any(tag == etag and (weak or not is_weak) for is_weak, tag in _ENTITY_TAG.findall(field))


def _in_range_of(if_range: str | None, etag: str, modified: int) -> bool:
    """Whether the client's beginning is of the same file; only strong validators say so."""
    return if_range is None or if_range == etag or _date(if_range) == modified


def _range(wanted: str, size: int) -> tuple[int, int, int]:
    whole = 200, 0, size
    match = _RANGE.fullmatch(wanted)
    spec = _RANGE_SPEC.fullmatch(match[1].strip(" \t")) if match else None
    if spec is None:
        return whole
    first, last, suffix = spec.groups()
    if suffix is not None:
        start, stop = max(0, size - int(suffix)), size
    else:
        start, stop = int(first), int(last) + 1 if last else size
        if last and int(last) < start:
            return whole  # invalid, 14.1.1
    if start < min(stop, size):
        return 206, start, min(stop, size)
    # an empty file has no range that could be named: all of it is the truest answer
    return (416, 0, 0) if start or size else whole


def _date(value: str | None) -> int | None:
    """An HTTP-date in any of its three forms; None for anything else, which counts as not given (13.1.3)."""
    for form in _DATES:
        with suppress(ValueError):
            return calendar.timegm(time.strptime(value or "", form))
    return None
