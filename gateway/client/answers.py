"""What is read of answers: manifests, results and progress. A destination behind a relay answers what it likes, so that
what has not the shape that is needed counts as not said.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from yarl import URL

__all__ = ["PartTold", "is_http", "is_progress", "joined", "parts_of", "sinks_of"]


@dataclass(frozen=True, slots=True)
class PartTold:
    """What is said of one part; None where it is not."""

    sha256: str | None = None
    size: int | None = None
    is_verified: bool = False
    """By the digest that was declared."""
    problem: dict[str, Any] | None = None
    location: str | None = None
    """Of the file, below the gateway's own address."""
    sinks: dict[str, bool] = field(default_factory=dict)
    """Whether each has dropped it, by name."""


def parts_of(document: Any, upload_id: str) -> dict[int, PartTold]:
    """Those of the manifest, or of what a route converted, by index; none of what a destination has answered."""
    listed: Any = None
    if isinstance(document, dict) and document.get("upload") == upload_id:
        listed = document.get("parts")
    elif isinstance(document, list) and all(isinstance(one, dict) and "input" in one for one in document):
        listed = document
    return {one["index"]: _part(one) for one in _dicts(listed) if _is_count(one.get("index"))}


def _part(part: dict[str, Any]) -> PartTold:
    told, output, problem = part.get("input", part), part.get("output"), part.get("problem")
    told = told if isinstance(told, dict) else {}
    receipts = list(_dicts(part.get("receipts")))
    places = [output.get("location") if isinstance(output, dict) else None, *(one.get("location") for one in receipts)]
    sha256, size, verified = told.get("sha256"), told.get("size"), told.get("verified")
    return PartTold(
        sha256=sha256 if isinstance(sha256, str) else None,
        size=size if _is_count(size) else None,
        is_verified=isinstance(verified, list) and "sha256" in verified,
        problem=problem if isinstance(problem, dict) else None,
        location=next((place for place in places if isinstance(place, str) and place.startswith("/")), None),
        sinks={str(one["sink"]): bool(one.get("dropped")) for one in receipts if "sink" in one},
    )


def sinks_of(parts: dict[int, PartTold]) -> list[dict[str, str]]:
    """As progress has them."""
    sinks = {name: is_dropped for part in parts.values() for name, is_dropped in part.sinks.items()}
    return [{"sink": name, "state": "dropped" if is_dropped else "kept"} for name, is_dropped in sinks.items()]


def is_progress(told: Any) -> bool:
    """Whether it is what `GET /uploads/{id}/progress` tells, as far as anything is made of it."""
    if not isinstance(told, dict):
        return False
    parts, sinks, expected = told.get("parts"), told.get("sinks"), told.get("expected")
    if not (isinstance(parts, list) and isinstance(sinks, list) and (expected is None or _is_count(expected))):
        return False
    of_parts = [one.get("sinks") if isinstance(one, dict) else None for one in parts]
    return (
        all(isinstance(one, list) for one in of_parts)
        and all(_is_count(one.get("received")) for one in parts)
        and all(_is_sink(sink) for one in (sinks, *of_parts) for sink in one or ())
    )


def joined(base: URL, location: str) -> URL | None:
    """Where a Location leads; None for what is no URL of HTTP."""
    try:
        led = base.join(URL(location, encoded=True))
    except ValueError:
        return None
    return led if is_http(led) else None


def is_http(url: URL) -> bool:
    """Whether it is one of HTTP, with a host that a resolver could be asked for."""
    try:
        return url.scheme in ("http", "https") and bool((url.raw_host or "").encode("idna")) and bool(url.origin())
    except ValueError:
        return False


def _is_sink(one: Any) -> bool:
    return (
        isinstance(one, dict)
        and isinstance(one.get("sink"), str)
        and isinstance(one.get("state"), str)
        and _is_count(one.get("delivered"))
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 1 << 63


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    return (one for one in value if isinstance(one, dict)) if isinstance(value, list) else iter(())
