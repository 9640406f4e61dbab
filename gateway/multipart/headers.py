r"""Part headers and their parameters, both ways; pure functions over bytes.

Reading is where multipart parsers disagree, and a disagreement between two of them is an exploit. The
rules, and where they come from:

1. A header block is lines of `name: value`, ended by CRLF each. Names are tokens (RFC 9110 5.1), no
   space before the colon; values hold no control character but TAB. Bare CR, bare LF and NUL are
   refused. A folded line (RFC 5322 2.2.3; MIME still allows it) is joined with one space.
2. A Content-Disposition or Content-Type that occurs twice, or a parameter that does, is refused:
   of two readers one would take the first, and one the last.
3. Quoted values come in two dialects (clients.md has the captures). RFC quoted-string escapes `"` as
   `\"` and `\` as `\\`; browsers, curl and most libraries (the WHATWG form encoding) write `%22`,
   `%0D`, `%0A` and leave a backslash alone, so that `filename="C:\dir\"` is a whole value. The header
   is read as quoted-strings first; where that does not come out even, every quote is taken as an end.
   In a value that holds `\"`, `\"` and `\\` are undone; in any other a backslash is a backslash and
   the three WHATWG escapes are undone, save where everything is percent-encoded (aiohttp, needle):
   undone by halves it would be neither what was sent nor what was meant, and undone wholly it would
   turn `%2e%2e%2f` into a path.
4. `filename*` (RFC 8187) wins over `filename` where it can be decoded; forms should not send it
   (RFC 7578 4.2), but some clients do. RFC 2231 continuations are joined where there is nothing else.
5. Names stay bytes. A name with a control character other than TAB, CR, LF is refused: no sink could
   show or send it.

Writing knows one form only: the WHATWG one, raw bytes, never `filename*`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import quote as urlquote
from urllib.parse import unquote_to_bytes

from gateway.errors import Malformed, TooLarge
from gateway.model import Part

__all__ = [
    "USUAL_HEAD",
    "boundary_of",
    "filename_of",
    "form_fields",
    "has_controls",
    "media_type",
    "only",
    "other_parameters",
    "parse_header_block",
    "quote",
    "reject_controls",
    "render_head",
    "render_headers",
    "render_parameter",
    "safe_name",
    "safe_segment",
]

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_HEADER = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_FOLD = re.compile(rb"\r\n[ \t]+")
_MEDIA_TYPE = re.compile(rb"[ \t]*([^;\s]*)[ \t]*")
# One parameter. The unquoted form is wider than a token (people write `filename=a b.txt`), but has no quote.
_RFC_QUOTED, _WHATWG_QUOTED = rb'(?:[^"\\]|\\.)*', rb'[^"]*'
_RFC_PARAMETER, _WHATWG_PARAMETER = (
    re.compile(rb";[ \t]*(?:(" + _TOKEN + rb")[ \t]*=[ \t]*(?:\"(" + quoted + rb")\"|([^;\"]*)))?[ \t]*")
    for quoted in (_RFC_QUOTED, _WHATWG_QUOTED)
)
_BACKSLASH_ESCAPE = re.compile(rb'\\(["\\])')
_PERCENT_ESCAPE = re.compile(rb"%(?:22|0D|0A)")
_ENCODED_ONLY = re.compile(rb"(?:[A-Za-z0-9._~-]|%[0-9A-Fa-f]{2})*")
_OTHER_ESCAPE = re.compile(rb"%(?!22|0D|0A)[0-9A-Fa-f]{2}")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_CONTINUATION = re.compile(rb"filename\*(0|[1-9][0-9]?)(\*?)")

# RFC 8187 knows UTF-8 only; RFC 5987 knew latin-1, and Windows programs write their own.
_EXTENDED_CHARSETS = {
    "utf-8": "utf-8",
    "us-ascii": "ascii",
    "ascii": "ascii",
    "iso-8859-1": "latin-1",
    "windows-1252": "cp1252",
}
_WHATWG = {b"%22": b'"', b"%0D": b"\r", b"%0A": b"\n"}


USUAL_HEAD = re.compile(
    rb'Content-Disposition: form-data; name="([^"\\%\x00-\x1f\x7f]*)"(?:; filename="([^"\\%\x00-\x1f\x7f]*)")?'
    rb"(?:\r\nContent-Type: ([!-~]+(?: [!-~]+)*))?"
)
"""The header block that nearly every part has, letter for letter: nothing in it needs any of the rules.
Groups: name, file name, Content-Type. What does not match is not wrong.
"""


def parse_header_block(block: bytes, *, max_headers: int) -> list[tuple[bytes, bytes]]:
    """The headers of a part in order, names in lower case. Raises Malformed, TooLarge."""
    if not block:
        return []
    if b"\r\n " in block or b"\r\n\t" in block:
        block = _FOLD.sub(b" ", block)
    headers = []
    for line in block.split(b"\r\n"):
        match = _HEADER.fullmatch(line)
        if match is None:
            raise Malformed("a part has a malformed header line")
        name, value = match.groups()
        headers.append((name.lower(), value.rstrip(b" \t")))
    if max_headers and len(headers) > max_headers:
        raise TooLarge(f"a part has more than {max_headers} headers", limit=max_headers)
    return headers


def _parameters(value: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """`form-data; name="a"` -> (b"form-data", {b"name": b"a"}), rule 3. Raises Malformed."""
    match = _MEDIA_TYPE.match(value)
    assert match is not None  # both ends of the pattern may be empty
    kind, start = match[1].lower(), match.end()
    for pattern in (_RFC_PARAMETER, _WHATWG_PARAMETER):
        found: list[tuple[bytes, bytes]] = []
        position = start
        while position < len(value) and (match := pattern.match(value, position)):
            position = match.end()
            name, quoted, plain = match.groups()
            if name is not None:
                found.append((name.lower(), plain.rstrip(b" \t") if quoted is None else _unquote(quoted)))
        if position == len(value):
            parameters = dict(found)
            if len(parameters) != len(found):
                raise Malformed("a header parameter is given twice")
            return kind, parameters
        if b"\\" not in value:
            break  # both dialects read it alike
    raise Malformed("header parameters are malformed")


def _unquote(quoted: bytes) -> bytes:
    if b'\\"' in quoted:
        return _BACKSLASH_ESCAPE.sub(rb"\1", quoted)
    if b"%" in quoted and not (_OTHER_ESCAPE.search(quoted) and _ENCODED_ONLY.fullmatch(quoted)):
        return _PERCENT_ESCAPE.sub(lambda match: _WHATWG[match[0]], quoted)
    return quoted


def _extended(value: bytes | None) -> bytes | None:
    """An RFC 8187 ext-value as UTF-8 bytes; None where it cannot be decoded."""
    if value is None or value.count(b"'") < 2:
        return None
    charset, _, encoded = value.split(b"'", 2)
    codec = _EXTENDED_CHARSETS.get(charset.decode("latin-1").lower())
    if codec is None:
        return None
    try:
        return unquote_to_bytes(encoded).decode(codec).encode()
    except UnicodeDecodeError:
        return None


def _continued(parameters: dict[bytes, bytes]) -> bytes | None:
    """RFC 2231 3: `filename*0="a"; filename*1="b"` -> b"ab"; None where there are none, or a gap."""
    pieces: dict[int, bytes] = {}
    charset = b""
    for key, value in parameters.items():
        match = _CONTINUATION.fullmatch(key)
        if match is None:
            continue
        index, piece = int(match[1]), value
        if match[2]:
            if index == 0:
                if piece.count(b"'") < 2:
                    return None
                charset, _, piece = piece.split(b"'", 2)
            piece = unquote_to_bytes(piece)
        pieces[index] = piece
    if not pieces or sorted(pieces) != list(range(len(pieces))):
        return None
    joined = b"".join(pieces[index] for index in range(len(pieces)))
    codec = _EXTENDED_CHARSETS.get(charset.decode("latin-1").lower() or "utf-8")
    try:
        return joined.decode(codec).encode() if codec else None
    except UnicodeDecodeError:
        return joined if not charset else None


def has_controls(name: bytes) -> bool:
    """Whether a name holds a control character other than TAB, CR, LF (rule 5)."""
    return _CONTROL.search(name) is not None


def reject_controls(name: bytes) -> bytes:
    """The name, unless it holds a control character that no sink could show or send (rule 5). Raises Malformed."""
    if has_controls(name):
        raise Malformed("a name holds control characters")
    return name


def _filename(parameters: dict[bytes, bytes]) -> bytes | None:
    extended = _extended(parameters.get(b"filename*"))
    if extended is not None:
        return reject_controls(extended)
    plain = parameters.get(b"filename")
    if plain is None:
        plain = _continued(parameters)
    if plain is None and any(key.startswith(b"filename*") for key in parameters):
        # Dropping it would turn a file into a field.
        raise Malformed("filename* cannot be decoded, and there is no filename beside it")
    return None if plain is None else reject_controls(plain)


def only(headers: Sequence[tuple[bytes, bytes]], wanted: bytes) -> bytes | None:
    """The value of a header that may occur once (rule 2)."""
    values = [value for name, value in headers if name == wanted]
    if len(values) > 1:
        raise Malformed(f"a part has {wanted.decode()} twice")
    return values[0] if values else None


def form_fields(headers: Sequence[tuple[bytes, bytes]]) -> tuple[bytes, bytes | None, bytes | None]:
    """(name, file name or None, Content-Type or None) of a part of a form, RFC 7578 4.2. Raises Malformed."""
    disposition = only(headers, b"content-disposition")
    if disposition is None:
        raise Malformed("a part has no Content-Disposition")
    kind, parameters = _parameters(disposition)
    if kind != b"form-data":
        raise Malformed("a part's Content-Disposition is not form-data")
    name = parameters.get(b"name")
    if name is None:
        name = _extended(parameters.get(b"name*"))
    if name is None:
        raise Malformed("a part has no name")
    return reject_controls(name), _filename(parameters), only(headers, b"content-type") or None


def filename_of(disposition: bytes) -> bytes | None:
    """The file name in a Content-Disposition of any kind (a raw body's, a mixed part's). Raises Malformed."""
    return _filename(_parameters(disposition)[1])


def media_type(content_type: bytes) -> bytes:
    """`Multipart/Form-Data; boundary=x` -> b"multipart/form-data"."""
    match = _MEDIA_TYPE.match(content_type)
    return match[1].lower() if match else b""


def boundary_of(content_type: bytes) -> bytes:
    """The boundary parameter: 1 to 70 printable ASCII characters, no space at the end (RFC 2046 5.1.1).

    Liberal in one thing: `$` and other printables outside of `bchars` occur in the wild.
    Raises Malformed where it is absent, doubled or bad.
    """
    boundary = _parameters(content_type)[1].get(b"boundary")
    if boundary is None:
        raise Malformed("the Content-Type has no boundary")
    boundary = re.sub(rb"\\(.)", rb"\1", boundary)
    if not re.fullmatch(rb"[\x20-\x7e]{0,69}[\x21-\x7e]", boundary):
        raise Malformed("the boundary is not 1 to 70 printable ASCII characters")
    return boundary


_QUOTED_PARAMETER = re.compile(
    rb";[ \t]*(?:(" + _TOKEN + rb")[ \t]*=[ \t]*(?:\"((?:[^\"\\]|\\.)*)\"|([^;\"\s]*)))?[ \t]*"
)


def other_parameters(content_type: bytes) -> list[tuple[bytes, bytes]]:
    """All parameters of a multipart type but its boundary, in order: `type`, `start`, `start-info` (RFC 2387 3).

    Only RFC quoting is undone: a `start` has to go on meaning the same Content-ID. Raises Malformed.
    """
    match = _MEDIA_TYPE.match(content_type)
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


def render_parameter(name: bytes, value: bytes) -> bytes:
    """`; name=value`, as a quoted-string where it is no token (RFC 2045 5.1)."""
    if not re.fullmatch(_TOKEN, value):
        value = b'"' + value.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
    return b"; " + name + b"=" + value


def render_headers(part: Part) -> bytes:
    """The header block of a part that is none of a form: its headers as they came, in order, blank line included.

    What flows made of its type and file name goes in their places.
    """
    head, names = b"", {name for name, _ in part.headers}
    headers = list(part.headers)
    if part.raw_filename is not None and b"content-disposition" not in names:
        headers.append((b"content-disposition", b"attachment"))
    if part.content_type is not None and b"content-type" not in names:
        headers.append((b"content-type", part.content_type))
    for name, value in headers:
        if name == b"content-type" and part.content_type is not None:
            value = part.content_type
        elif name == b"content-disposition" and filename_of(value) != part.raw_filename:
            kind = _parameters(value)[0]
            value = kind + (b'; filename="' + quote(part.raw_filename) + b'"' if part.raw_filename is not None else b"")
        head += name.title() + b": " + value + b"\r\n"
    return head + b"\r\n"


def quote(value: bytes) -> bytes:
    """A name for a quoted parameter, the WHATWG way: bytes as they are, `"`, CR and LF escaped."""
    return value.replace(b'"', b"%22").replace(b"\r", b"%0D").replace(b"\n", b"%0A")


def render_head(
    name: bytes,
    filename: bytes | None,
    content_type: bytes | None,
    extra: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """The header block of a part of a form in its one canonical form, blank line included."""
    head = b'Content-Disposition: form-data; name="' + quote(name) + b'"'
    if filename is not None:
        head += b'; filename="' + quote(filename) + b'"'
    if content_type is not None:
        head += b"\r\nContent-Type: " + content_type
    for key, value in extra:
        head += b"\r\n" + key + b": " + value
    return head + b"\r\n\r\n"


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
