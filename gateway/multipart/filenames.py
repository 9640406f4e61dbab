"""File names made fit for a path's last segment. Pure."""

from __future__ import annotations

import re
from urllib.parse import quote as urlquote

__all__ = ["safe_name", "safe_segment"]

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


def safe_segment(filename: str | None) -> str:
    """The safe name as the last segment of a path, percent-encoded."""
    if filename is not None and _PLAIN_NAME.fullmatch(filename):
        return filename
    return urlquote(safe_name(filename), safe="")


def safe_name(filename: str | None) -> str:
    """A file name fit to be a path's last segment: the last segment over both separators, no controls
    (nor marks that turn the reading direction), no dot-names, at most 200 bytes of UTF-8, else `file`.
    """
    if filename is not None and _PLAIN_NAME.fullmatch(filename):
        return filename
    name = re.split(r"[/\\]", filename or "")[-1]
    name = _UNSAFE.sub("", name).strip()
    name = name.encode(errors="replace")[:200].decode(errors="ignore").strip()
    return "file" if name.strip(".") == "" else name
