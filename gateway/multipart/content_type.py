"""The Content-Type of a multipart body: its boundary, and its other parameters. Pure."""

from __future__ import annotations

import re

from gateway.errors import Malformed
from gateway.multipart.headers import MEDIA_TYPE, TOKEN, parameters

__all__ = ["MIXED_TYPES", "boundary_of", "other_parameters"]

MIXED_TYPES = frozenset([b"multipart/mixed", b"multipart/related"])
"""What is relayed part by part beside forms: all headers of a part belong to it, and it has no name."""


def boundary_of(content_type: bytes) -> bytes:
    """The boundary parameter: 1 to 70 printable ASCII characters, no space at the end (RFC 2046 5.1.1).

    Liberal in one thing: `$` and other printables outside of `bchars` occur in the wild.
    Raises Malformed where it is absent, doubled or bad.
    """
    boundary = parameters(content_type)[1].get(b"boundary")
    if boundary is None:
        raise Malformed("the Content-Type has no boundary")
    boundary = re.sub(rb"\\(.)", rb"\1", boundary)
    if not re.fullmatch(rb"[\x20-\x7e]{0,69}[\x21-\x7e]", boundary):
        raise Malformed("the boundary is not 1 to 70 printable ASCII characters")
    return boundary


_QUOTED_PARAMETER = re.compile(
    rb";[ \t]*(?:(" + TOKEN + rb")[ \t]*=[ \t]*(?:\"((?:[^\"\\]|\\.)*)\"|([^;\"\s]*)))?[ \t]*"
)


def other_parameters(content_type: bytes) -> list[tuple[bytes, bytes]]:
    """All parameters of a multipart type but its boundary, in order: `type`, `start`, `start-info` (RFC 2387 3).

    Only RFC quoting is undone: a `start` has to go on meaning the same Content-ID. Raises Malformed.
    """
    match = MEDIA_TYPE.match(content_type)
    assert match is not None  # both ends of the pattern may be empty
    found: list[tuple[bytes, bytes]] = []
    position = match.end()
    while position < len(content_type):
        parameter = _QUOTED_PARAMETER.match(content_type, position)
        if parameter is None:
            raise Malformed("the parameters of the Content-Type are malformed")
        position = parameter.end()
        name, quoted, plain = parameter.groups()
        if name is not None and name.lower() != b"boundary":
            value = plain if quoted is None else re.sub(rb"\\(.)", rb"\1", quoted)
            if not re.fullmatch(rb"[\x20-\x7e]*", value):
                raise Malformed("a parameter of the Content-Type is not printable ASCII")
            found.append((name.lower(), value))
    return found
