r"""Part headers and their parameters, read; pure functions over bytes.

Reading is where multipart parsers disagree, and a disagreement between two of them is an exploit. The
rules, and where they come from:

1. A header block is lines of `name: value`, ended by CRLF each. Names are tokens (RFC 9110 5.1), no
   space before the colon; values hold no control character but TAB. Bare CR, bare LF and NUL are
   refused. A folded line (RFC 5322 2.2.3; MIME still allows it) is joined with one space.
2. A Content-Disposition or Content-Type that occurs twice, or a parameter that does, is refused:
   of two readers one would take the first, and one the last.
3. Quoted values come in two dialects. RFC quoted-string escapes `"` as `\"` and `\` as `\\`; browsers,
   curl and most libraries (the WHATWG form encoding) write `%22`, `%0D`, `%0A` and leave a backslash
   alone. `\"` and `\\` are undone wherever they are, as they are by readers that know nothing else;
   the three others in a value without `\"`, save where everything is percent-encoded (aiohttp, needle):
   undone by halves it would be neither what was sent nor what was meant, and undone wholly it would
   turn `%2e%2e%2f` into a path.
4. `filename*` (RFC 8187) wins over `filename` where it can be decoded; forms should not send it
   (RFC 7578 4.2), but some clients do. RFC 2231 continuations are joined where there is nothing else.
5. Names stay bytes. A name with a control character other than TAB, CR, LF is refused: no sink could
   show or send it. So is one with a backslash at its end, or before anything but a letter or a digit:
   in quotes again it would be an escape for some readers. (Before a letter or a digit only a few drop
   it, and `C:\x\y.txt` is a name that people have. One before a dot or a quote can be kept, but not sent on.)
6. A file that is named in its Content-Type only (`name=`, as mail has it) is named for some readers, and not for
   others. A form does not need that, and it is refused; a part of another multipart type takes the name from there.
7. Bytes that go on as they came (`has_one_reading`) may have nothing that any of those rules is for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes

from gateway.errors import Malformed, TooLarge
from gateway.model import text

__all__ = [
    "MAX_PARAMETERS",
    "MEDIA_TYPE",
    "TOKEN",
    "USUAL_HEAD",
    "checked_name",
    "filename_of",
    "form_fields",
    "has_one_reading",
    "is_file",
    "media_type",
    "mixed_fields",
    "only",
    "parameters",
    "parse_header_block",
    "reads_in_two_ways",
]

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_VALUE = rb"[^\x00-\x08\x0a-\x1f\x7f]*+"
_HEADERS = re.compile(TOKEN + b"+:" + _VALUE + rb"(?:\r\n" + TOKEN + b"+:" + _VALUE + b")*+")
_HEADER = re.compile(rb"(" + TOKEN + rb"+):[ \t]*+(" + _VALUE + rb")")
MAX_PARAMETERS = 32
"""Of one header: forms have two, and what has more is meant to be read for long."""
_FOLD = re.compile(rb"\r\n[ \t]+")
MEDIA_TYPE = re.compile(rb"[ \t]*([^;\s]*)[ \t]*")
# One parameter. The unquoted form is wider than a token (people write `filename=a b.txt`), but has no quote.
_PARAMETER = re.compile(rb";[ \t]*(?:(" + TOKEN + rb")[ \t]*=[ \t]*(?:\"((?:[^\"\\]|\\.)*)\"|([^;\"]*)))?[ \t]*")
# No star in names, no white space before `=`, and no escaped backslash at an end, where Python's email parser overlooks
# the quote behind it.
_PLAIN_QUOTED = rb"\"(?:[^\"\\]|\\[\"\\0-9A-Za-z\x80-\xff])*(?<!\\)\""
_PLAIN_DISPOSITION = re.compile(
    TOKEN + rb"(?:;[ \t]*" + TOKEN.replace(b"*", b"") + rb"=(?:" + TOKEN + rb"|" + _PLAIN_QUOTED + rb"))*"
)
_NAMING_TYPE = re.compile(rb"(?i:(?:\A|;)[ \t]*name[ \t]*(?:[*=;]|\Z))")
_NAME_OF_TYPE = re.compile(rb"name(?=\*|\Z)")
_ENCODED_ONLY = re.compile(rb"(?:[A-Za-z0-9._~-]|%[0-9A-Fa-f]{2})*")
_OTHER_ESCAPE = re.compile(rb"%(?!22|0D|0A)[0-9A-Fa-f]{2}")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_CONTINUATION = re.compile(rb"filename\*(0|[1-9][0-9]?)(\*?)")
_ESCAPING = re.compile(r"\\(?![^\W_])")
_SURELY_ESCAPING = re.compile(r"\\(?![^\W_]|[\".])")

# RFC 8187 knows UTF-8 only; RFC 5987 knew latin-1, and Windows programs write their own.
_EXTENDED_CHARSETS = {
    "utf-8": "utf-8",
    "us-ascii": "ascii",
    "ascii": "ascii",
    "iso-8859-1": "latin-1",
    "windows-1252": "cp1252",
}
# Where it does not match, there is a media type other than these.
_TEXTUAL = re.compile(
    rb"(?i:[ \t]*(?:text/|application/(?:json|x-www-form-urlencoded)[ \t]*(?:;|\Z)|[^;]*\+json[ \t]*(?:;|\Z))"
    rb"|(?![ \t]*" + TOKEN + rb"/" + TOKEN + rb"[ \t]*(?:;|\Z)))"
)


USUAL_HEAD = re.compile(
    rb'Content-Disposition: form-data; name="([^"\\%\x00-\x1f\x7f]*)"(?:; filename="([^"\\%\x00-\x1f\x7f]*)")?'
    rb"(?:\r\nContent-Type: (?(2)|(?![^\r]*(?i:name)))([!-)+-~]+(?: [!-)+-~]+)*))?"
)
"""The header block that nearly every part has, letter for letter: nothing in it needs any of the rules.
Groups: name, file name, Content-Type (which does not speak of names where there is no file name). What does not match
is not wrong.
"""


def parse_header_block(block: bytes, *, max_headers: int) -> list[tuple[bytes, bytes]]:
    """The headers of a part in order, names in lower case. Raises Malformed, TooLarge."""
    if not block:
        return []
    if b"\r\n " in block or b"\r\n\t" in block:
        block = _FOLD.sub(b" ", block)
    if not _HEADERS.fullmatch(block):
        raise Malformed("a part has a malformed header line")
    if max_headers and block.count(b"\r\n") >= max_headers:
        raise TooLarge(f"a part has more than {max_headers} headers", limit=max_headers)
    return [(name.lower(), value.rstrip(b" \t")) for name, value in _HEADER.findall(block)]


def parameters(value: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """`form-data; name="a"` -> (b"form-data", {b"name": b"a"}), rule 3. Raises Malformed."""
    match = MEDIA_TYPE.match(value)
    assert match is not None  # both ends of the pattern may be empty
    kind, position = match[1].lower(), match.end()
    found: list[tuple[bytes, bytes]] = []
    count = 0
    while position < len(value) and (match := _PARAMETER.match(value, position)):
        position, count = match.end(), count + 1
        if count > MAX_PARAMETERS:
            raise Malformed(f"a header has more than {MAX_PARAMETERS} parameters")
        name, quoted, plain = match.groups()
        if name is not None:
            found.append((name.lower(), plain.rstrip(b" \t") if quoted is None else _unquote(quoted)))
    if position < len(value):
        raise Malformed("header parameters are malformed")
    by_name = dict(found)
    if len(by_name) != len(found):
        raise Malformed("a header parameter is given twice")
    return kind, by_name


def _unquote(quoted: bytes) -> bytes:
    wholly_encoded = _OTHER_ESCAPE.search(quoted) and _ENCODED_ONLY.fullmatch(quoted)
    has_percents = b"%" in quoted and b'\\"' not in quoted and not wholly_encoded
    if b"\\" in quoted:
        quoted = b"\\".join([piece.replace(b'\\"', b'"') for piece in quoted.split(b"\\\\")])
    if has_percents:
        quoted = quoted.replace(b"%22", b'"').replace(b"%0D", b"\r").replace(b"%0A", b"\n")
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


def reads_in_two_ways(name: bytes) -> bool:
    """Whether some readers would take a backslash in a name for an escape, once it is in quotes (rule 5)."""
    return b"\\" in name and _ESCAPING.search(text(name)) is not None


def checked_name(name: bytes) -> bytes:
    """The name, unless no sink could show or send it, or not as what it is (rule 5). Raises Malformed."""
    if _CONTROL.search(name):
        raise Malformed("a name holds control characters")
    if b"\\" in name and _SURELY_ESCAPING.search(text(name)):
        raise Malformed("a name has a backslash at its end, or before what is no letter or digit")
    return name


def _filename(parameters: dict[bytes, bytes]) -> bytes | None:
    extended = _extended(parameters.get(b"filename*"))
    if extended is not None:
        return checked_name(extended)
    plain = parameters.get(b"filename")
    if plain is None:
        plain = _continued(parameters)
    if plain is None and any(key.startswith(b"filename*") for key in parameters):
        # Dropping it would turn a file into a field.
        raise Malformed("filename* cannot be decoded, and there is no filename beside it")
    return None if plain is None else checked_name(plain)


def media_type(content_type: bytes) -> bytes:
    """`Multipart/Form-Data; boundary=x` -> b"multipart/form-data"."""
    match = MEDIA_TYPE.match(content_type)
    return match[1].lower() if match else b""


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
    kind, given = parameters(disposition)
    if kind != b"form-data":
        raise Malformed("a part's Content-Disposition is not form-data")
    name = given.get(b"name")
    if name is None:
        name = _extended(given.get(b"name*"))
    if name is None:
        raise Malformed("a part has no name")
    filename, content_type = _filename(given), only(headers, b"content-type") or None
    if filename is None and _names_file(content_type):
        raise Malformed("a part has a name in its Content-Type, and no filename in its Content-Disposition")
    return checked_name(name), filename, content_type


def _names_file(content_type: bytes | None) -> bool:
    """Whether some readers would find a file name in a Content-Type (rule 6)."""
    return content_type is not None and _NAMING_TYPE.search(content_type) is not None


def is_file(name: bytes, filename: bytes | None, content_type: bytes | None) -> bool:
    """Whether a part of a form is a file, and not a field: it has a file name, or a type other than text.

    A file need not be named (RFC 7578 4.2). Text is also what programs write into fields: JSON, and forms within forms.
    What is no media type says nothing, so text/plain holds (RFC 2045 5.2), as it does for `_charset_` (RFC 7578 4.6).
    """
    if filename is not None:
        return True
    return content_type is not None and not _TEXTUAL.match(content_type) and name != b"_charset_"


def mixed_fields(headers: Sequence[tuple[bytes, bytes]]) -> tuple[bytes | None, bytes | None]:
    """(file name or None, Content-Type or None) of a part of multipart/mixed or related. Raises Malformed.

    Nobody needs two forms of a parameter there, so all that gives readers a choice is refused.
    """
    disposition, content_type = only(headers, b"content-disposition"), only(headers, b"content-type")
    filename = _mixed_filename(disposition) if disposition else None
    if filename is None and content_type is not None and _names_file(content_type):
        named = parameters(content_type)[1]
        filename = _only_filename({_NAME_OF_TYPE.sub(b"filename", key): value for key, value in named.items()})
        if filename is None:
            raise Malformed("a part's Content-Type is malformed, or has a parameter that looks like another")
    return filename, content_type


def _mixed_filename(disposition: bytes) -> bytes | None:
    kind, given = parameters(disposition)
    if not re.fullmatch(TOKEN, kind) or kind in (b"name", b"filename"):
        raise Malformed("a part's Content-Disposition is malformed")
    for value in given.values():
        checked_name(value)
    return _only_filename(given)


def _only_filename(given: dict[bytes, bytes]) -> bytes | None:
    if any(b"*" in name and name != b"filename*" for name in given):
        raise Malformed("a part has parameters in sections")
    filename = _filename(given)
    if filename != given.get(b"filename", filename):
        raise Malformed("a part's filename* is another one than its filename")
    return filename


def has_one_reading(block: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether every reader sees in a header block what is seen here (rule 7): nothing folded, no `filename*`, quotes
    and escapes as in RFC 9110 5.6.4, and no file name in the Content-Type alone.
    """
    disposition = only(headers, b"content-disposition")
    if _FOLD.search(block) or (disposition and not _PLAIN_DISPOSITION.fullmatch(disposition)):
        return False
    return not _names_file(only(headers, b"content-type")) or b"filename" in parameters(disposition or b"")[1]


def filename_of(disposition: bytes) -> bytes | None:
    """The file name in a Content-Disposition of any kind (a raw body's, a mixed part's). Raises Malformed."""
    return _filename(parameters(disposition)[1])
