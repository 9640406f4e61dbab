"""Where parts begin and end: RFC 2046 5.1."""

from __future__ import annotations

from gateway.errors import Truncated
from tests.multipart.cases.case import FORM, MIXED, Case, body, field, file, refused, taken

__all__ = ["CASES"]

RFC = "RFC 2046 5.1.1"
A = b"a", None, None
"""The name, no file name and no type of what `field` makes."""

# The example of RFC 2046 5.1.1, with the lines that it describes.
_PREAMBLE = (
    b"This is the preamble.  It is to be ignored, though it\r\n"
    b"is a handy place for composition agents to include an\r\n"
    b"explanatory note to non-MIME conformant readers.\r\n\r\n"
)
_EPILOGUE = b"\r\n\r\nThis is the epilogue.  It is also to be ignored.\r\n"
_IMPLICIT = b"This is implicitly typed plain US-ASCII text.\r\nIt does NOT end with a linebreak."
_EXPLICIT = b"This is explicitly typed plain US-ASCII text.\r\nIt DOES end with a linebreak.\r\n"

EXAMPLES = [
    taken(
        "the example of the standard",
        RFC,
        _PREAMBLE
        + b"--simple boundary\r\n\r\n"
        + _IMPLICIT
        + b"\r\n--simple boundary\r\nContent-type: text/plain; charset=us-ascii\r\n\r\n"
        + _EXPLICIT
        + b"\r\n--simple boundary--"
        + _EPILOGUE,
        (b"", None, None, _IMPLICIT),
        (b"", None, b"text/plain; charset=us-ascii", _EXPLICIT),
        as_=b'multipart/mixed; boundary="simple boundary"',
    ),
    taken(
        "the example of the standard as a form",
        RFC,
        _PREAMBLE + body(field(_IMPLICIT), field(_EXPLICIT, b"b"), boundary=b"simple boundary")[:-2] + _EPILOGUE,
        (*A, _IMPLICIT),
        (b"b", None, None, _EXPLICIT),
        as_=b'multipart/form-data; boundary="simple boundary"',
    ),
]


def _boundary(title: str, boundary: bytes, parameter: bytes) -> Case:
    """What follows a delimiter's beginning, and what is one but for its last character, is data."""
    data = b"\r\n--" + boundary[:-1] + b"\r\n--" + boundary + b"+\r\n"
    text = body(field(data), field(b"", b"b"), boundary=boundary)
    as_ = b"multipart/form-data; boundary=" + parameter
    return taken(f"a boundary {title}", RFC, text, (*A, data), (b"b", None, None, b""), as_=as_)


BOUNDARIES = [
    _boundary("of one character", b"b", b"b"),
    _boundary("of one hyphen", b"-", b"-"),
    _boundary("of hyphens only", b"-" * 8, b"-" * 8),
    _boundary("that ends in hyphens", b"b--", b"b--"),
    _boundary("of 70 characters", b"0123456789" * 7, b"0123456789" * 7),
    _boundary("with a colon, in quotes", b"gc0pJq0M:08jU534c0p", b'"gc0pJq0M:08jU534c0p"'),
    _boundary("of escapes, longer than 70 as it is written", b"\\" * 36, b'"' + b"\\" * 72 + b'"'),
    _boundary("of every character that is allowed", b"a'()+_,-./:=? z", b'"a\'()+_,-./:=? z"'),
    taken(
        "the boundary parameter after another, its name in capitals",
        "RFC 2045 5.1",
        body(field(b"x")),
        (*A, b"x"),
        as_=b"Multipart/Form-Data; charset=utf-8; BOUNDARY=b0undary",
    ),
    refused("a boundary of 71 characters", RFC, body(field(b"x"), boundary=b"b" * 71), as_=FORM[:30] + b"b" * 71),
    refused("a boundary of none", RFC, body(field(b"x"), boundary=b""), as_=FORM[:30] + b'""'),
    refused("a boundary that ends in a space", RFC, body(field(b"x"), boundary=b"b "), as_=FORM[:30] + b'"b "'),
    refused(
        "a boundary of other than ASCII", RFC, body(field(b"x"), boundary=b"\xc3\xa4"), as_=FORM[:30] + b"\xc3\xa4"
    ),
    refused("no boundary parameter", RFC, body(field(b"x")), as_=b"multipart/form-data"),
    refused("two boundary parameters", "RFC 2045 5.1", body(field(b"x")), as_=FORM + b"; boundary=other"),
]

_D = b"--b0undary"
_HEAD = b'Content-Disposition: form-data; name="a"\r\n\r\n'

DELIMITERS = [
    taken("no line end after the closing delimiter", RFC, body(field(b"x"))[:-2], (*A, b"x")),
    taken("spaces and tabs after delimiters", RFC, body(field(b"x")).replace(_D + b"\r", _D + b" \t \r"), (*A, b"x")),
    taken("a space after the closing delimiter", RFC, body(field(b"x"))[:-2] + b" \r\n", (*A, b"x")),
    taken("an empty line before the first delimiter", RFC, b"\r\n" + body(field(b"x")), (*A, b"x")),
    taken("a preamble with a line that almost is a delimiter", RFC, b"--b0undar\r\n" + body(field(b"x")), (*A, b"x")),
    taken("a preamble that names the boundary", RFC, b"see --b0undary\r\n" + body(field(b"x")), (*A, b"x")),
    taken("an epilogue that looks like more parts", RFC, body(field(b"x")) + body(field(b"y")), (*A, b"x")),
    taken(
        "the boundary in other letters is data", RFC, body(field(b"x\r\n--B0UNDARY\r\n")), (*A, b"x\r\n--B0UNDARY\r\n")
    ),
    taken("a delimiter within a line is data", RFC, body(field(b"x--b0undary--")), (*A, b"x--b0undary--")),
    taken(
        "a longer boundary than the delimiter's is data",
        RFC,
        body(field(b"\r\n--b0undary1\r\n")),
        (*A, b"\r\n--b0undary1\r\n"),
    ),
    taken("a delimiter with one hyphen is data", RFC, body(field(b"\r\n-b0undary\r\n")), (*A, b"\r\n-b0undary\r\n")),
    taken(
        "a delimiter with three hyphens is data", RFC, body(field(b"\r\n---b0undary\r\n")), (*A, b"\r\n---b0undary\r\n")
    ),
    taken("a delimiter behind a bare LF is data", RFC, body(field(b"x\n--b0undary\r\n.")), (*A, b"x\n--b0undary\r\n.")),
    taken("a delimiter behind a bare CR is data", RFC, body(field(b"x\r--b0undary\r\n.")), (*A, b"x\r--b0undary\r\n.")),
    taken("half a delimiter before the delimiter", RFC, body(field(b"x\r\n--b0un")), (*A, b"x\r\n--b0un")),
    taken("CRs before the delimiter", RFC, body(field(b"x\r\r\r")), (*A, b"x\r\r\r")),
    taken("the line end before a delimiter is the delimiter's", RFC, body(field(b"\r\n\r\n")), (*A, b"\r\n\r\n")),
    taken(
        "an empty part, its blank line's end being the delimiter's", RFC, body(field(b""))[:-16] + _D + b"--", (*A, b"")
    ),
    taken("no parts at all", RFC, b"--b0undary--\r\n"),
    refused("a delimiter line that ends in a bare LF", RFC, body(field(b"x")).replace(_D + b"\r\n", _D + b"\n")),
    refused("nothing but bare LFs", RFC, body(field(b"x")).replace(b"\r\n", b"\n")),
    refused("text and no part before the closing delimiter", RFC, b"text\r\n--b0undary--\r\n"),
    refused("parts behind another boundary", RFC, body(field(b"x"), boundary=b"other")[:-11] + b"--b0undary--\r\n"),
]

ENDS = [
    refused("nothing", RFC, b"", Truncated),
    refused("a line end", RFC, b"\r\n", Truncated),
    refused("a preamble", RFC, b"text\r\n", Truncated),
    refused("bare CRs for line ends", RFC, body(field(b"x")).replace(b"\r\n", b"\r"), Truncated),
    refused("a delimiter", RFC, _D, Truncated),
    refused("a delimiter and its line end", RFC, _D + b"\r\n", Truncated),
    refused("headers", RFC, _D + b"\r\n" + _HEAD[:-2], Truncated),
    refused("headers and a blank line", RFC, _D + b"\r\n" + _HEAD, Truncated),
    refused("data", RFC, _D + b"\r\n" + _HEAD + b"x", Truncated),
    refused("parts without a closing delimiter", RFC, body(field(b"x"), field(b"y"))[:-14] + b"\r\n", Truncated),
    refused("a closing delimiter with one hyphen", RFC, body(field(b"x"))[:-3], Truncated),
    refused("a closing delimiter with a space before its hyphens", RFC, body(field(b"x"))[:-4] + b" --\r\n", Truncated),
    refused("another boundary's closing delimiter", RFC, body(field(b"x"))[:-4] + b"1--\r\n", Truncated),
]

_INNER = (
    b'Content-Type: text/plain\r\nContent-Disposition: attachment; filename="1.txt"\r\n\r\none\r\n'
    b'--b0undary2\r\nContent-Disposition: attachment; filename="2.txt"\r\n\r\ntwo\r\n--b0undary2--'
)
_NESTED = b"--b0undary2\r\n" + _INNER

PARTS = [
    taken(
        "a part without headers",
        RFC,
        body(b"\r\nx", b"\r\n"),
        (b"", None, None, b"x"),
        (b"", None, None, b""),
        as_=MIXED,
    ),
    taken(
        "a multipart within a part is its data, though its boundary begins like the outer one",
        "RFC 2046 5.1.2",
        body(
            b'Content-Disposition: form-data; name="files"\r\nContent-Type: multipart/mixed; boundary=b0undary2\r\n\r\n'
            + _NESTED,
            field(b"x"),
        ),
        (b"files", None, b"multipart/mixed; boundary=b0undary2", _NESTED),
        (*A, b"x"),
    ),
    taken(
        "a message within a part is its data",
        "RFC 2046 5.2.1",
        body(b"Content-Type: message/rfc822\r\n\r\nSubject: x\r\n\r\ntext\r\n"),
        (b"", None, b"message/rfc822", b"Subject: x\r\n\r\ntext\r\n"),
        as_=MIXED,
    ),
    taken(
        "bytes of every value", RFC, body(file(bytes(range(256)))), (b"a", b"f.txt", b"text/plain", bytes(range(256)))
    ),
    taken(
        "many parts, empty ones among them",
        RFC,
        body(*(field(b"x" * (number % 3), b"%d" % number) for number in range(30))),
        *((b"%d" % number, None, None, b"x" * (number % 3)) for number in range(30)),
    ),
]

CASES = [*EXAMPLES, *BOUNDARIES, *DELIMITERS, *ENDS, *PARTS]
