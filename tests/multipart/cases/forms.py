"""What the parts of a form are: RFC 7578."""

from __future__ import annotations

from tests.multipart.cases.case import FORM, Case, body, disposition, field, file, named, refused, taken

__all__ = ["CASES"]

_A = b'Content-Disposition: form-data; name="a"'

DISPOSITIONS = [
    named("a field", "RFC 7578 4.2", b'form-data; name="a"', b"a"),
    named("a name in UTF-8", "RFC 7578 5.1.2", b'form-data; name="\xc3\xa4"', b"\xc3\xa4"),
    named("a name in another charset stays its bytes", "RFC 7578 5.1", b'form-data; name="\xe4"', b"\xe4"),
    named("an empty name", "RFC 7578 4.2", b'form-data; name=""', b""),
    named("a file", "RFC 7578 4.2", b'form-data; name="a"; filename="f.txt"', b"a", b"f.txt"),
    named("an empty file name is a file's", "RFC 7578 4.2", b'form-data; name="a"; filename=""', b"a", b""),
    named(
        "a path for a file name stays as it is",
        "RFC 7578 4.2",
        b'form-data; name="a"; filename="../x/f"',
        b"a",
        b"../x/f",
    ),
    named("parameters that mean nothing here", "RFC 7578 4.2", b'form-data; size=3; name="a"; x="y"', b"a"),
    named("the file name before the name", "RFC 2183 2", b'form-data; filename="f"; name="a"', b"a", b"f"),
    named("capitals where they do not count", "RFC 2183 2", b'Form-Data; NAME="a"; FileName="F"', b"a", b"F"),
    named("tokens instead of quoted strings", "RFC 2183 2", b"form-data; name=a; filename=f.txt", b"a", b"f.txt"),
    named("no white space", "RFC 2183 2", b'form-data;name="a";filename="f"', b"a", b"f"),
    named(
        "white space and tabs wherever they may be",
        "RFC 2183 2",
        b' form-data \t; \tname = "a" ; filename = "f" ',
        b"a",
        b"f",
    ),
    refused("no Content-Disposition", "RFC 7578 4.2", body(b"Content-Type: text/plain\r\n\r\nx")),
    refused("no headers", "RFC 7578 4.2", body(b"\r\nx")),
    refused("no name", "RFC 7578 4.2", disposition(b'form-data; filename="f"')),
    refused("another disposition than form-data", "RFC 7578 4.2", disposition(b'attachment; name="a"')),
    refused("two Content-Dispositions", "RFC 7578 4.2", body(_A + b"\r\n" + _A.replace(b'"a"', b'"b"') + b"\r\n\r\nx")),
    refused("two names", "RFC 2183 2", disposition(b'form-data; name="a"; name="b"')),
    refused("two file names", "RFC 2183 2", disposition(b'form-data; name="a"; filename="f"; filename="g"')),
    refused("two Content-Types", "RFC 2045 5", body(_A + b"\r\nContent-Type: a/b\r\nContent-Type: c/d\r\n\r\nx")),
    refused("the second of two parts is none of a form's", "RFC 7578 4.2", body(field(b"x"), b"X: y\r\n\r\nz")),
]


def _with(title: str, source: str, header: bytes, data: bytes, content_type: bytes | None = None) -> Case:
    """A field with another header beside its Content-Disposition, before and after it."""
    text = body(header + b"\r\n" + _A + b"\r\n\r\n" + data, _A + b"\r\n" + header + b"\r\n\r\n" + data)
    return taken(title, source, text, *[(b"a", None, content_type, data)] * 2)


HEADERS = [
    _with("a type", "RFC 7578 4.4", b"Content-Type: text/plain;charset=UTF-8", b"x", b"text/plain;charset=UTF-8"),
    _with("a type of a name in other letters", "RFC 9110 5.1", b"content-TYPE:text/html", b"x", b"text/html"),
    _with("a base64 that is not undone", "RFC 7578 4.7", b"Content-Transfer-Encoding: base64", b"eHk=\r\n"),
    _with(
        "a quoted-printable that is not undone",
        "RFC 7578 4.7",
        b"Content-Transfer-Encoding: quoted-printable",
        b"=\r\n=3D",
    ),
    _with("a length that is too short is not believed", "RFC 7578 4.8", b"Content-Length: 1", b"xyz"),
    _with("a length that is too long is not believed", "RFC 7578 4.8", b"Content-Length: 1000000", b"xyz"),
    _with("a header that nobody knows", "RFC 7578 4.8", b"X-Anything: !\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", b"x"),
    _with("a header with nothing in it", "RFC 9110 5.5", b"X-Empty:", b"x"),
    _with("white space around a value", "RFC 9110 5.5", b"Content-Type: \t text/plain \t ", b"x", b"text/plain"),
    _with("bytes above ASCII in a header", "RFC 9110 5.5", b"X-Other: \xc3\xa4\xff", b"x"),
]

MEANING = [
    taken(
        "several files of one name, in order",
        "RFC 7578 4.3",
        body(*(file(b"%d" % number, b"%d.txt" % number) for number in range(4))),
        *((b"a", b"%d.txt" % number, b"text/plain", b"%d" % number) for number in range(4)),
    ),
    taken(
        "files and fields of one name, in order",
        "RFC 7578 5.2",
        body(field(b"1"), file(b"2"), field(b"3", b"b"), field(b"4")),
        (b"a", None, None, b"1"),
        (b"a", b"f.txt", b"text/plain", b"2"),
        (b"b", None, None, b"3"),
        (b"a", None, None, b"4"),
    ),
    taken(
        "a field that names a charset is a field",
        "RFC 7578 4.6",
        body(field(b"iso-8859-1", b"_charset_"), field(b"\xe4")),
        (b"_charset_", None, None, b"iso-8859-1"),
        (b"a", None, None, b"\xe4"),
    ),
    taken("a file of no bytes", "RFC 7578 4.2", body(file(b"", b"f")), (b"a", b"f", b"text/plain", b"")),
    taken(
        "parameters of the form's type that mean nothing",
        "RFC 7578 4.1",
        body(field(b"x")),
        (b"a", None, None, b"x"),
        as_=FORM + b"; charset=UTF-8",
    ),
]

CASES = [*DISPOSITIONS, *HEADERS, *MEANING]
