"""The Content-Type of a multipart body: its boundary, and its other parameters. Pure.

It has one reading only: a parameter that is given twice, or in one of the forms of RFC 2231 (`boundary*=`, `type*0=`),
is refused, for some readers prefer those to the plain one; so is a backslash that is no escape of a quoted-string.
Where it goes on as it came, it also has to be written as RFC 9110 5.6.6 has it, with nothing that needs an escape.
"""

from __future__ import annotations

import re

from gateway.errors import Malformed
from gateway.multipart.headers import MAX_PARAMETERS, MEDIA_TYPE, TOKEN, media_type

__all__ = ["MIXED_TYPES", "boundary_of", "check_nested", "other_parameters"]

MIXED_TYPES = frozenset([b"multipart/mixed", b"multipart/related"])
"""What is relayed part by part beside forms: all headers of a part belong to it, and it has no name."""

_PARAMETER = re.compile(
    rb";[ \t]*(?:(" + TOKEN + rb")[ \t]*=[ \t]*(?:\"((?:[^\"\\]|\\[\"\\])*)\"|([^;\"\\\s]*)))?[ \t]*"
)

# A token ends at other characters for some readers, and for others not.
_PLAIN = re.compile(
    TOKEN + rb"/" + TOKEN + rb"(?:[ \t]*;[ \t]*" + TOKEN + rb"=(?:" + TOKEN + rb"|\"[^\"\\]*\"))*[ \t]*;?[ \t]*"
)
# Python's email parser takes the brackets for quotes, Werkzeug the percents for an escape.
_QUOTED_AGAIN = re.compile(rb"<.*>|.*%22.*")


def boundary_of(content_type: bytes, *, one_reading: bool = False) -> bytes:
    """The boundary parameter: 1 to 70 printable ASCII characters, no space at the end (RFC 2046 5.1.1).

    `one_reading` is for a Content-Type that goes on as it came: what other readers would read otherwise is refused.

    Liberal in one thing: `$` and other printables outside of `bchars` occur in the wild.
    Raises Malformed where it is absent, doubled or bad, or another parameter has two readings.
    """
    boundary = dict(_parameters(content_type)).get(b"boundary")
    if boundary is None:
        raise Malformed("the Content-Type has no boundary")
    if not re.fullmatch(rb"[\x20-\x7e]{0,69}[\x21-\x7e]", boundary):
        raise Malformed("the boundary is not 1 to 70 printable ASCII characters")
    if one_reading and (_QUOTED_AGAIN.fullmatch(boundary) or not _PLAIN.fullmatch(content_type)):
        raise Malformed("the Content-Type, which goes on as it is, has more than one reading")
    return boundary


def other_parameters(content_type: bytes) -> list[tuple[bytes, bytes]]:
    """All parameters of a multipart type but its boundary, in order: `type`, `start`, `start-info` (RFC 2387 3).

    Only RFC quoting is undone: a `start` has to go on meaning the same Content-ID. Raises Malformed.
    """
    found = [(name, value) for name, value in _parameters(content_type) if name != b"boundary"]
    if not all(re.fullmatch(rb"[\x20-\x7e]*", value) for _, value in found):
        raise Malformed("a parameter of the Content-Type is not printable ASCII")
    return found


def check_nested(content_type: bytes) -> None:
    """If the Content-Type of a part, which goes on as it is, is a multipart type, the same holds. Raises Malformed."""
    if media_type(content_type).startswith(b"multipart/"):
        _parameters(content_type)


def _parameters(content_type: bytes) -> list[tuple[bytes, bytes]]:
    match = MEDIA_TYPE.match(content_type)
    assert match is not None  # both ends of the pattern may be empty
    found: dict[bytes, bytes] = {}
    position = match.end()
    count = 0
    while position < len(content_type):
        count += 1
        if count > MAX_PARAMETERS:
            raise Malformed(f"the Content-Type has more than {MAX_PARAMETERS} parameters")
        parameter = _PARAMETER.match(content_type, position)
        if parameter is None:
            raise Malformed("the parameters of the Content-Type are malformed")
        position = parameter.end()
        name, quoted, plain = parameter.groups()
        if name is None:
            continue
        name = name.lower()
        if name in found:
            raise Malformed("a parameter of the Content-Type is given twice")
        if b"*" in name:
            raise Malformed("a parameter of the Content-Type has a star, or is in sections")
        found[name] = plain if quoted is None else re.sub(rb"\\(.)", rb"\1", quoted)
    return list(found.items())
