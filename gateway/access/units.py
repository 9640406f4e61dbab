"""Times and sizes as people write them: `90s`, `1h`, `7d`; `500k`, `1G`."""

from __future__ import annotations

import re

__all__ = ["seconds_of", "size_of"]

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST_SECONDS = 100 * 366 * 86400
_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def seconds_of(text: str) -> float:
    """Seconds. Raises ValueError."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd])", text)
    if found is None:
        raise ValueError(f"{text} is no time: 90s, 30m, 1h or 7d")
    seconds = float(found[1]) * _SECONDS[found[2]]
    if not 0 < seconds <= _LONGEST_SECONDS:
        raise ValueError(f"{text} is no time between a moment and a hundred years")
    return seconds


def size_of(text: str) -> int:
    """Bytes; k, M, G and T are 1024 of each other. Raises ValueError."""
    found = re.fullmatch(r"([0-9]+)([kmgt]?)(?:i?b)?", text.lower())
    if found is None:
        raise ValueError(f"{text} is no size: 1000, 500k, 20M or 1G")
    if not (size := int(found[1]) * _BYTES[found[2]]):
        raise ValueError("no body is that small")
    return size
