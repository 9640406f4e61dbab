"""How uploads lie in a bucket: what objects are called and carry, and into how many parts one is cut.

prefix/01JD…/0               the bytes of part 0: names are ours, the client's is an attribute
prefix/01JD…/manifest.json   last of all; empty where another store of the route keeps the manifest
prefix/01JD…/running         it is somebody's: it has run for hours, a client chose its id, or it is being removed
prefix/.sweeps/…             whose turn it is to sweep
prefix/.owners/…/01JD…-7     an upload of somebody's, which has 7 bytes: only where there is a quota of that
"""

from __future__ import annotations

import hashlib
import re

from gateway.errors import SinkFull
from gateway.manifest import HEAD_BYTES, owner_in
from gateway.model import Limits, Part
from gateway.multipart.filenames import attachment, safe_name

__all__ = [
    "MANIFEST",
    "MAX_PARTS",
    "PARTS_IN_FLIGHT",
    "RUNNING",
    "SWEEPS",
    "WRITE_BYTES",
    "attributes_of",
    "counted_key",
    "memory_shares",
    "owners_prefix",
    "part_bytes_for",
    "too_long",
]

MANIFEST = "manifest.json"
RUNNING = "running"
SWEEPS = ".sweeps"
MAX_PARTS = 10_000
"""Of one object, says S3; the others allow more."""
PARTS_IN_FLIGHT = 3
"""Of one file: enough to keep a connection busy while others wait for their answers, and each is memory."""
WRITE_BYTES = 1 << 20
"""Given to the store's client at a time: a call costs a tenth of a millisecond, whatever is in it."""
_FIELD_VALUE = re.compile(r"[\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?")


def owners_prefix(owner: str) -> str:
    """Where the uploads of one identity are counted. A digest: a name may have any characters."""
    return f".owners/{hashlib.sha256(owner.encode()).hexdigest()}/"


def counted_key(upload_id: str, manifest: bytes) -> str | None:
    """The object that counts an upload whose manifest begins so; None for one that is nobody's."""
    try:
        owner, size = owner_in(manifest[:HEAD_BYTES])
    except ValueError:
        return None
    return f"{owners_prefix(owner)}{upload_id}-{size}" if owner else None


def part_bytes_for(length: int | None, *, part_bytes: int, max_part_bytes: int) -> int:
    """How large the parts of an object are, of whose body so many bytes are declared; None: nobody knows."""
    needed = -(-(length or 0) // MAX_PARTS)
    return min(max(part_bytes, needed), max_part_bytes)


def too_long(name: str, *, limit: int, is_declared: bool) -> SinkFull:
    """The error of a file that would take more than MAX_PARTS, and by which key it would fit."""
    key = f"sinks.{name}.{'max_part_bytes' if is_declared else 'part_bytes'}"
    why = "" if is_declared else ", and no length was declared by which they could be larger"
    detail = f"a file in sink {name} has {MAX_PARTS} parts of {limit} bytes at most ({key}){why}"
    return SinkFull(detail, sink=name, limit=limit * MAX_PARTS, key=key)


def attributes_of(part: Part, upload_id: str) -> dict[str, str]:
    """What the object of a file says by itself, to whom it is given without us: its name, its type, where it is from.

    An attachment in any case (RFC 6266): whatever was uploaded is no page of the bucket's.
    """
    content_type = (part.content_type or b"").decode("latin-1")
    return {
        "Content-Type": content_type if _FIELD_VALUE.fullmatch(content_type) else "application/octet-stream",
        "Content-Disposition": attachment(safe_name(part.filename)),
        "upload": upload_id,
    }


def memory_shares(limits: Limits, received: int, *, part_bytes: int, max_part_bytes: int) -> dict[str, int]:
    """What an object sink holds of one upload at most, in bytes: of each open file the parts in flight and the one that
    fills, and what is about to be written into it. They are larger for bodies that are declared to be huge only.
    """
    largest = max_part_bytes
    if limits.max_body_bytes:
        largest = part_bytes_for(limits.max_body_bytes, part_bytes=part_bytes, max_part_bytes=max_part_bytes)
    of_a_file = (PARTS_IN_FLIGHT + 1) * largest + WRITE_BYTES + received
    return {"parts in flight to object storage": limits.parallel_parts * of_a_file}
