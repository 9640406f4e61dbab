"""Headers and the names in them: RFC 5322 and 9110 for lines, RFC 2045, 2231, 5987 and 8187 for parameters, and how
browsers write them (the WHATWG's multipart/form-data encoding).
"""

from __future__ import annotations

from tests.multipart.cases.case import Case, body, disposition, field, file, named, refused, taken

__all__ = ["CASES"]

_A = b'Content-Disposition: form-data; name="a"'


def _line(title: str, source: str, line: bytes) -> Case:
    """A header line that no part may have, before its Content-Disposition and after it."""
    return refused(title, source, body(line + b"\r\n" + _A + b"\r\n\r\nx"))


LINES = [
    named("a line folded at a space", "RFC 5322 2.2.3", b'form-data;\r\n name="a"; filename="f"', b"a", b"f"),
    named("a line folded at tabs", "RFC 5322 2.2.3", b'form-data;\r\n\t\tname="a";\r\n\tfilename="f"', b"a", b"f"),
    named("a fold within a quoted string is a space", "RFC 5322 2.2.3", b'form-data; name="a\r\n b"', b"a b"),
    _line("a space before the colon", "RFC 9112 5.1", b"X-Other : y"),
    _line("a tab before the colon", "RFC 9112 5.1", b"X-Other\t: y"),
    _line("no colon", "RFC 9112 5", b"X-Other"),
    _line("no name before the colon", "RFC 9110 5.1", b": y"),
    _line("a name of two words", "RFC 9110 5.1", b"X Other: y"),
    _line("a name in brackets", "RFC 9110 5.1", b"[X]: y"),
    _line("a name of other than ASCII", "RFC 9110 5.1", b"X-\xc3\xa4: y"),
    _line("a NUL in a value", "RFC 9110 5.5", b"X: y\x00z"),
    _line("a bare CR in a value", "RFC 9110 5.5", b"X: y\rz"),
    _line("a bare LF in a value", "RFC 9110 5.5", b"X: y\nY: z"),
    _line("a control character in a value", "RFC 9110 5.5", b"X: y\x1bz"),
    _line("a folded line that continues none", "RFC 5322 2.2.3", b" x"),
    refused("a file name with a NUL", "RFC 9110 5.5", disposition(b'form-data; name="a"; filename="f\x00.txt"')),
]

PARAMETERS = [
    named("a quoted pair for a quote", "RFC 2045 5.1", rb'form-data; name="a"; filename="\"f\".txt"', b"a", b'"f".txt'),
    named(
        "quoted pairs for a backslash before a quote",
        "RFC 2045 5.1",
        rb'form-data; name="a"; filename="f\\\"g"',
        b"a",
        b'f\\"g',
    ),
    named(
        "quoted pairs for a backslash alone",
        "RFC 2045 5.1",
        rb'form-data; name="a"; filename="\\host\\f"',
        b"a",
        b"\\host\\f",
    ),
    refused(
        "a quoted pair for a backslash at the end, which other readers take for the end of nothing",
        "RFC 2045 5.1",
        disposition(rb'form-data; name="a"; filename="\"\\"'),
    ),
    named(
        "separators within quotes",
        "RFC 2045 5.1",
        b'form-data; name="a;b=c, d"; filename="; name=x"',
        b"a;b=c, d",
        b"; name=x",
    ),
    named("single quotes are none", "RFC 2045 5.1", b"form-data; name='a'; filename='f g'", b"'a'", b"'f g'"),
    named("a tab in a file name", "RFC 2045 5.1", b'form-data; name="a"; filename="f\tg"', b"a", b"f\tg"),
    named("nothing after the last semicolon", "RFC 2045 5.1", b'form-data; name="a";', b"a"),
    named("nothing between two semicolons", "RFC 2045 5.1", b'form-data;; name="a"', b"a"),
    refused(
        "a quote that is never closed",
        "RFC 2045 5.1",
        disposition(b'form-data; name="a'),
    ),
    refused("words after a quoted string", "RFC 2045 5.1", disposition(b'form-data; name="a" b')),
    refused("a parameter without a name", "RFC 2045 5.1", disposition(b'form-data; name="a"; ="f"')),
    refused("commas between parameters", "RFC 2045 5.1", disposition(b'form-data; name="a", filename="f"')),
]

_NAMED = b'form-data; name="a"; '

EXTENDED = [
    named(
        "a euro sign",
        "RFC 5987 3.2.2",
        _NAMED + b"filename*=UTF-8''%c2%a3%20and%20%e2%82%ac%20rates",
        b"a",
        "£ and € rates".encode(),
    ),
    named(
        "a pound sign in latin-1, and a language",
        "RFC 5987 3.2.2",
        _NAMED + b"filename*=iso-8859-1'en'%A3%20rates",
        b"a",
        "£ rates".encode(),
    ),
    named(
        "the extended one wins, though it comes first",
        "RFC 6266 4.3",
        _NAMED + b"filename*=utf-8''%E2%82%AC; filename=\"EUR\"",
        b"a",
        "€".encode(),
    ),
    named(
        "the extended one wins, though it comes last",
        "RFC 6266 4.3",
        _NAMED + b"filename=\"EUR\"; filename*=utf-8''%E2%82%AC",
        b"a",
        "€".encode(),
    ),
    named(
        "characters that need no escape",
        "RFC 8187 3.2.1",
        _NAMED + b"filename*=UTF-8''a!#$&+-.^_`|~b",
        b"a",
        b"a!#$&+-.^_`|~b",
    ),
    named(
        "an unknown charset gives way to the plain one",
        "RFC 6266 4.3",
        _NAMED + b"filename=\"f\"; filename*=klingon''%41",
        b"a",
        b"f",
    ),
    named(
        "bytes that are no UTF-8 give way to the plain one",
        "RFC 6266 4.3",
        _NAMED + b"filename=\"f\"; filename*=UTF-8''%ff",
        b"a",
        b"f",
    ),
    named(
        "a value without quotes gives way to the plain one",
        "RFC 8187 3.2.1",
        _NAMED + b'filename="f"; filename*=g',
        b"a",
        b"f",
    ),
    named(
        "a plain name is not decoded like an extended one",
        "RFC 7578 4.2",
        _NAMED + b"filename=\"UTF-8''%41\"",
        b"a",
        b"UTF-8''%41",
    ),
    refused(
        "an unknown charset, and nothing beside it", "RFC 8187 3.2.1", disposition(_NAMED + b"filename*=klingon''%41")
    ),
    refused(
        "bytes that are no UTF-8, and nothing beside them",
        "RFC 8187 3.2.1",
        disposition(_NAMED + b"filename*=UTF-8''%ff"),
    ),
    refused("a control character behind an escape", "RFC 8187 3.2.1", disposition(_NAMED + b"filename*=UTF-8''f%00")),
]

CONTINUED = [
    named(
        "a file name in pieces",
        "RFC 2231 3",
        _NAMED + b'filename*0="one "; filename*1=two; filename*2=".txt"',
        b"a",
        b"one two.txt",
    ),
    named("pieces in another order", "RFC 2231 3", _NAMED + b"filename*2=c; filename*0=a; filename*1=b", b"a", b"abc"),
    named(
        "pieces with a charset and a language",
        "RFC 2231 4.1",
        _NAMED + b"filename*0*=us-ascii'en'This%20is; filename*1*=%20%2A; filename*2=\"%2A!\"",
        b"a",
        b"This is *%2A!",
    ),
    named(
        "a character in two pieces",
        "RFC 2231 4.1",
        _NAMED + b"filename*0*=UTF-8''%e2%82; filename*1*=%ac",
        b"a",
        "€".encode(),
    ),
    named("a plain name beside pieces", "RFC 2231 3", _NAMED + b'filename="f"; filename*0=g', b"a", b"f"),
    refused("pieces with a gap", "RFC 2231 3", disposition(_NAMED + b"filename*0=a; filename*2=c")),
    refused("pieces without a first", "RFC 2231 3", disposition(_NAMED + b"filename*1=b")),
    refused("a piece twice", "RFC 2231 3", disposition(_NAMED + b"filename*0=a; filename*0=b")),
]

_BINARY = b"application/octet-stream"
BROWSERS = "WHATWG HTML, multipart/form-data encoding algorithm"
DIALECTS = [
    named(
        "quotes as browsers write them",
        BROWSERS,
        b'form-data; name="a%22b"; filename="%22f%22.txt"',
        b'a"b',
        b'"f".txt',
    ),
    named(
        "line ends as browsers write them",
        BROWSERS,
        b'form-data; name="a%0D%0Ab"; filename="f%0Ag"',
        b"a\r\nb",
        b"f\ng",
    ),
    named(
        "other percent signs are literal",
        BROWSERS,
        b'form-data; name="100%"; filename="%41%2e%00 %.txt"',
        b"100%",
        b"%41%2e%00 %.txt",
    ),
    named(
        "a backslash is literal",
        BROWSERS,
        rb'form-data; name="a\b"; filename="C:\dir\f.txt"',
        b"a\\b",
        b"C:\\dir\\f.txt",
    ),
    refused(
        "a backslash before the last quote, which for other readers is none",
        BROWSERS,
        disposition(b'form-data; name="a\\"; filename="C:\\dir\\"'),
    ),
    refused(
        "a backslash before a separator",
        BROWSERS,
        disposition(rb'form-data; name="a"; filename="f\;g"'),
    ),
    named(
        "all of it at once",
        BROWSERS,
        'form-data; name="a"; filename="nä%22v;1\\2 %41.txt"'.encode(),
        b"a",
        'nä"v;1\\2 %41.txt'.encode(),
    ),
    named("a form in windows-1252", BROWSERS, b'form-data; name="a"; filename="n\xe4%22v.txt"', b"a", b'n\xe4"v.txt'),
    named(
        "a name that is percent-encoded as a whole stays so",
        "aiohttp and needle",
        b'form-data; name="a"; filename="n%C3%A4%22v%3B1.txt"',
        b"a",
        b"n%C3%A4%22v%3B1.txt",
    ),
    taken(
        "a file input that nobody filled in",
        BROWSERS,
        body(_A + b'; filename=""\r\nContent-Type: application/octet-stream\r\n\r\n'),
        (b"a", b"", _BINARY, b""),
    ),
    taken(
        "a form as Chromium sends it",
        BROWSERS,
        body(
            field("välue".encode(), b"field1"),
            file(b"one\r\n", b"a.txt", b"files"),
            file(b"", b"", b"files", _BINARY),
            boundary=b"----WebKitFormBoundaryAbCdEf0123456789",
        ),
        (b"field1", None, None, "välue".encode()),
        (b"files", b"a.txt", b"text/plain", b"one\r\n"),
        (b"files", b"", _BINARY, b""),
        as_=b"multipart/form-data; boundary=----WebKitFormBoundaryAbCdEf0123456789",
    ),
    taken(
        "a form as Firefox sends it",
        BROWSERS,
        body(
            field(b"", b"field1"),
            file(b"\x00\r\n--", b"a b.bin", b"files", _BINARY),
            boundary=b"----geckoformboundary" + b"0123456789abcdef" * 2,
        ),
        (b"field1", None, None, b""),
        (b"files", b"a b.bin", _BINARY, b"\x00\r\n--"),
        as_=b"multipart/form-data; boundary=----geckoformboundary" + b"0123456789abcdef" * 2,
    ),
]

CASES = [*LINES, *PARAMETERS, *EXTENDED, *CONTINUED, *DIALECTS]
