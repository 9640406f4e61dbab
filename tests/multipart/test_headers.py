"""Part headers, rule by rule as `gateway.multipart.headers` numbers them, in both quoting dialects, both ways."""

from __future__ import annotations

import pytest

from gateway.errors import GatewayError, Malformed, TooLarge
from gateway.model import text
from gateway.multipart.headers import (
    USUAL_HEAD,
    filename_of,
    form_fields,
    has_one_reading,
    is_file,
    media_type,
    mixed_fields,
    parse_header_block,
)


def parse(block: bytes, max_headers: int = 64) -> list[tuple[bytes, bytes]]:
    return parse_header_block(block, max_headers=max_headers)


def fields(disposition: bytes, *more: tuple[bytes, bytes]) -> tuple[bytes, bytes | None, bytes | None]:
    return form_fields([(b"content-disposition", disposition), *more])


def filename(parameters: bytes) -> bytes | None:
    return fields(b'form-data; name="n"; ' + parameters)[1]


# -- rule 1: lines


def test_header_names_are_lowered_and_values_are_stripped_of_outer_white_space() -> None:
    assert parse(b"X-One: \t a b\t \r\nx-TWO:\r\nX-Three:c") == [
        (b"x-one", b"a b"),
        (b"x-two", b""),
        (b"x-three", b"c"),
    ]


def test_an_empty_block_has_no_headers() -> None:
    assert parse(b"") == []


def test_every_token_character_may_be_in_a_header_name() -> None:
    assert parse(b"!#$%&'*+-.^_`|~09azAZ: x") == [(b"!#$%&'*+-.^_`|~09azaz", b"x")]


@pytest.mark.parametrize("fold", [b"\r\n ", b"\r\n\t", b"\r\n \t  "])
def test_a_folded_line_is_joined_with_one_space(fold: bytes) -> None:
    assert parse(b"X-A: one" + fold + b"two\r\nX-B: c") == [(b"x-a", b"one two"), (b"x-b", b"c")]


def test_a_tab_and_every_byte_from_0x80_on_may_be_in_a_value() -> None:
    value = b"a\tb" + bytes(range(0x80, 0x100))
    assert parse(b"X: " + value) == [(b"x", value)]


@pytest.mark.parametrize("control", [bytes([c]) for c in (*range(0x20), 0x7F) if c != 0x09])
def test_a_control_character_in_a_value_is_refused(control: bytes) -> None:
    with pytest.raises(Malformed):
        parse(b"X: a" + control + b"b")


@pytest.mark.parametrize(
    "line",
    [
        b"no colon",
        b": no name",
        b"space before : x",
        b"in name: x",
        b" folded: first",
        b"n\xc3\xa4me: x",
        b"a(b): x",
    ],
)
def test_a_line_that_is_no_header_is_refused(line: bytes) -> None:
    with pytest.raises(Malformed):
        parse(line)


def test_one_header_more_than_allowed_is_refused_and_0_allows_any_number() -> None:
    block = b"\r\n".join([b"X: 1"] * 3)
    assert len(parse(block, 3)) == len(parse(block, 0)) == 3
    with pytest.raises(TooLarge) as caught:
        parse(block, 2)
    assert caught.value.members == {"limit": 2}


# -- rule 2: nothing that matters occurs twice


@pytest.mark.parametrize("name", [b"content-disposition", b"content-type"])
def test_a_header_that_matters_is_refused_when_it_occurs_twice(name: bytes) -> None:
    once = [(b"content-disposition", b"form-data; name=a"), (b"content-type", b"text/plain")]
    assert form_fields(once) == (b"a", None, b"text/plain")
    with pytest.raises(Malformed, match="twice"):
        form_fields([*once, (name, dict(once)[name])])


@pytest.mark.parametrize("twice", [b"name=a; name=a", b'name="a"; NAME="b"', b"name=a; filename=b; filename=c"])
def test_a_parameter_that_occurs_twice_is_refused(twice: bytes) -> None:
    with pytest.raises(Malformed, match="twice"):
        fields(b"form-data; " + twice)


# -- rule 3: two dialects of quoting


@pytest.mark.parametrize(
    ("wire", "meant"),
    [
        (rb'"plain"', b"plain"),
        (rb'""', b""),
        (rb'"a;b=c, d"', b"a;b=c, d"),
        (rb'"C:\dir\a.txt"', rb"C:\dir\a.txt"),
        (rb'"\\server\share"', rb"\server\share"),
        (rb'"C:\\dir\\a.txt"', rb"C:\dir\a.txt"),
        (rb'"..\a.txt"', rb"..\a.txt"),
        (rb'"..\..\a.txt"', rb"..\..\a.txt"),
        (rb'"a\\\"b"', rb"a\"b"),
        (rb'"a\\b%22c"', rb'a\b"c'),
        ('"a\\ä"'.encode(), "a\\ä".encode()),
        (rb'"say \"hi\""', b'say "hi"'),
        (rb'"a\"b\\c"', b'a"b\\c'),
        (rb'"a\"b\c"', b'a"b\\c'),
        (rb'"a\"b%22c"', b'a"b%22c'),
        (b'"a%22b%0Dc%0Ad"', b'a"b\rc\nd'),
        (b'"a b%0db%0a"', b"a b%0db%0a"),
        (b'"50% off %41"', b"50% off %41"),
        (b'"%22%41"', b"%22%41"),
        (b'"%22 %41"', b'" %41'),
        (b'"%2e%2e%2fpasswd"', b"%2e%2e%2fpasswd"),
        (b"token", b"token"),
        (b"a b.txt", b"a b.txt"),
        (b"a%22b", b"a%22b"),
    ],
)
def test_a_file_name_means_what_its_dialect_says(wire: bytes, meant: bytes) -> None:
    assert filename(b"filename=" + wire) == meant
    assert filename(b"filename = " + wire + b" ; x=y") == meant


@pytest.mark.parametrize(
    "wire",
    [
        rb'"C:\dir\"',
        rb'"C:\dir\\"',
        rb'"a\;b"',
        rb'"a\ b"',
        rb'"a\/b"',
        rb'"a\%22b\"',
        rb'"a\_b"',
        rb'"\\\\server"',
        '"a\\€"'.encode(),
        rb"a\;",
        b"UTF-8''a%5C",
        b"UTF-8''a%5C%3B",
    ],
)
def test_a_backslash_that_other_readers_take_for_an_escape_is_refused(wire: bytes) -> None:
    key = b"filename*=" if wire.startswith(b"UTF-8") else b"filename="
    with pytest.raises(Malformed):
        filename(key + wire)


@pytest.mark.parametrize(
    "disposition",
    [
        rb'form-data; name="a\"; filename="; filename=evil.php; x=.txt"',
        rb'form-data; name="a\"; filename="C:\"',
        rb'form-data; name="\"',
    ],
)
def test_a_backslash_before_the_last_quote_swallows_it_and_is_refused(disposition: bytes) -> None:
    with pytest.raises(Malformed):
        fields(disposition)


@pytest.mark.parametrize(
    "broken", [b'name="a', b'name=a"', b'name="a"b', b'name="a"; filename="b', b'name="a" x', rb'name="a\"b', b"name"]
)
def test_parameters_that_come_out_even_in_no_dialect_are_refused(broken: bytes) -> None:
    with pytest.raises(Malformed):
        fields(b"form-data; " + broken)


ORIGINAL = 'nä"v;1\\2 %41.txt'


@pytest.mark.parametrize(
    ("clients", "wire", "shown"),
    [
        ("browsers, curl, requests, urllib3, axios, undici", "nä%22v;1\\2 %41.txt".encode(), ORIGINAL),
        ("Go, curl --form-escape, LWP, HttpMime", 'nä\\"v;1\\\\2 %41.txt'.encode(), ORIGINAL),
        ("httpx, which escapes by halves", "nä%22v;1\\\\2 %41.txt".encode(), ORIGINAL),
        ("aiohttp, needle", b"n%C3%A4%22v%3B1%5C2%20%2541.txt", "n%C3%A4%22v%3B1%5C2%20%2541.txt"),
        ("forms in windows-1252", b"n\xe4%22v;1\\2 %41.txt", ORIGINAL),
        ("HttpMime STRICT, which loses", b'n?\\"v;1\\\\2 %41.txt', 'n?"v;1\\2 %41.txt'),
    ],
)
def test_the_file_names_of_real_clients_are_shown_as_they_were_meant(clients: str, wire: bytes, shown: str) -> None:
    name = filename(b'filename="' + wire + b'"')
    assert name is not None, clients
    assert text(name) == shown, clients


# -- rule 4: filename*


@pytest.mark.parametrize(
    ("parameters", "meant"),
    [
        (b"filename*=UTF-8''n%C3%A4.txt", "nä.txt".encode()),
        (b"filename*=utf-8'de'a%20b", b"a b"),
        (b"filename=plain; filename*=UTF-8''ext", b"ext"),
        (b"filename*=UTF-8''ext; filename=plain", b"ext"),
        (b"filename*=iso-8859-1''%E4", "ä".encode()),
        (b"filename*=windows-1252''%80", "€".encode()),
        (b"filename*=koi8-r''%C1; filename=plain", b"plain"),
        (b"filename*=UTF-8''%FF; filename=plain", b"plain"),
        (b"filename*=no-quotes; filename=plain", b"plain"),
        (b"filename*=UTF-8''", b""),
        (b'filename*0="a"; filename*1="b.txt"', b"ab.txt"),
        (b'filename*1="b.txt"; filename*0="a"', b"ab.txt"),
        (b"filename*0*=UTF-8''n%C3%A4; filename*1=\".txt\"", "nä.txt".encode()),
        (b'filename=plain; filename*0="a"', b"plain"),
    ],
)
def test_the_extended_file_name_wins_where_it_can_be_decoded(parameters: bytes, meant: bytes) -> None:
    assert filename(parameters) == meant


@pytest.mark.parametrize(
    "parameters",
    [
        b"filename*=koi8-r''%C1",
        b"filename*=UTF-8''%FF",
        b"filename*=no-quotes",
        b'filename*1="there is no 0"',
        b'filename*0="a"; filename*2="there is no 1"',
        b"filename*0*=koi8-r''%C1",
    ],
)
def test_a_file_whose_only_name_cannot_be_decoded_is_refused_and_not_taken_for_a_field(parameters: bytes) -> None:
    with pytest.raises(Malformed):
        filename(parameters)


# -- rule 5: names are bytes without controls


@pytest.mark.parametrize("control", [bytes([c]) for c in (*range(0x20), 0x7F) if c not in b"\t\r\n"])
def test_a_name_or_file_name_with_a_control_character_is_refused(control: bytes) -> None:
    for disposition in (b'form-data; name="a%b"', b'form-data; name=n; filename="a%b"'):
        with pytest.raises(Malformed):
            fields(disposition.replace(b"%", control))
    with pytest.raises(Malformed):
        filename(b"filename*=UTF-8''a%" + control.hex().encode())


def test_names_are_never_transcoded() -> None:
    raw = b"\xff\xfe \xc3\xa4\t"
    assert fields(b'form-data; name="' + raw + b'"; filename="' + raw + b'"')[:2] == (raw, raw)


# -- what is a file


@pytest.mark.parametrize(
    "kind", [None, b"text/x", b"TEXT/plain; a=b", b"application/json", b"a/b+JSON ;c=d", b"x", b"a/b c"]
)
def test_a_part_of_text_is_a_field(kind: bytes | None) -> None:
    assert not is_file(b"n", None, kind)
    assert is_file(b"n", b"", kind)


@pytest.mark.parametrize(
    "kind", [b"image/png", b" a/b ; c=text/plain", b"application/jsonx", b"a/b; c=+json", b"textual/x"]
)
def test_a_part_of_another_type_is_a_file(kind: bytes) -> None:
    assert is_file(b"n", None, kind)
    assert not is_file(b"_charset_", None, kind)


# -- rule 6: bytes that go on as they came


@pytest.mark.parametrize(
    "parameters",
    [
        b'name="a"',
        b"name=a",
        b';name="a;b=c";\tfilename="x"',
        rb'name="C:\x\y"',
        rb'name="a\"b"',
        rb'name="a\\b"',
        'name=\'a\'; filename="ä%22"; x=""'.encode(),
    ],
)
def test_what_other_readers_read_alike_may_go_on(parameters: bytes) -> None:
    headers = [(b"content-disposition", b"form-data; " + parameters.removeprefix(b";")), (b"x", b"y")]
    assert has_one_reading(b"", headers)
    assert has_one_reading(b"", [(b"x", b"y")])


@pytest.mark.parametrize(
    "parameters",
    [
        b"name*=UTF-8''a",
        b'name="a"; filename*=x',
        b'name="a"; filename*0="x"',
        b'name ="a"',
        b'name= "a"',
        b'name="a" ; x=y',
        b'name="a";',
        b';;name="a"',
        b"name=a b",
        b"name=",
        rb'name="a\;b"',
        rb'name="a"; x="b\\"',
    ],
)
def test_what_some_reader_reads_otherwise_may_not_go_on(parameters: bytes) -> None:
    assert not has_one_reading(b"", [(b"content-disposition", b"form-data; " + parameters)])


def test_folded_headers_may_not_go_on_as_they_are() -> None:
    assert not has_one_reading(b"X: a\r\n b", [])


# -- rule 6: names in a Content-Type

NAMING_TYPES = [
    *(b"a/b; name=x", b'a/b; charset=y; Name = "x"', b"a/b;name", b"a/b; name*=utf-8''x", b"a/b; name*0=x", b"name=x"),
    *(b'a/b; y="; name=x"', b'a/b; y="\\"; name=x'),
]
OTHER_TYPES = [b"a/b", b"a/b; filename=x", b"a/b; names=x", b"a/b; xname=x", b"a/name", b"a/b; x=name", b"a/b; x=y"]


@pytest.mark.parametrize("kind", NAMING_TYPES)
def test_a_part_of_a_form_that_only_its_type_names_is_refused(kind: bytes) -> None:
    with pytest.raises(Malformed, match="name in its Content-Type"):
        fields(b"form-data; name=n", (b"content-type", kind))
    assert fields(b"form-data; name=n; filename=f", (b"content-type", kind)) == (b"n", b"f", kind)
    usual = b'Content-Disposition: form-data; name="n"%b\r\nContent-Type: ' + kind
    assert not USUAL_HEAD.fullmatch(usual % b"")
    assert USUAL_HEAD.fullmatch(usual % b'; filename="f"') or b"*" in kind


@pytest.mark.parametrize("kind", OTHER_TYPES)
def test_a_type_that_names_nothing_names_nothing(kind: bytes) -> None:
    assert fields(b"form-data; name=n", (b"content-type", kind)) == (b"n", None, kind)
    assert mixed_fields([(b"content-type", kind)]) == (None, kind)
    assert has_one_reading(b"", [(b"content-type", kind)])


@pytest.mark.parametrize(
    ("kind", "name"),
    [(b"a/b; name=x", b"x"), (b'a/b; c=d; NAME="x y"', b"x y"), (b"a/b; name*=utf-8''%c3%a4", "ä".encode())],
)
@pytest.mark.parametrize("disposition", [[], [(b"content-disposition", b"")], [(b"content-disposition", b"inline")]])
def test_a_mixed_part_may_be_named_by_its_type(
    kind: bytes, name: bytes, disposition: list[tuple[bytes, bytes]]
) -> None:
    headers = [*disposition, (b"content-type", kind)]
    assert mixed_fields(headers) == (name, kind)
    assert not has_one_reading(b"", headers)


@pytest.mark.parametrize("kind", [b"name=x", b"a/b; name*0=x", b"a/b; name=x; name*=utf-8''y", b'a/b; y="; name=x"'])
def test_a_mixed_part_whose_type_may_or_may_not_name_it_is_refused(kind: bytes) -> None:
    with pytest.raises(Malformed):
        mixed_fields([(b"content-type", kind)])
    named = [(b"content-disposition", b"inline; filename=f"), (b"content-type", kind)]
    assert mixed_fields(named) == (b"f", kind)
    assert has_one_reading(b"", named)


# -- what parts of other types than forms demand


def test_a_mixed_part_need_not_have_anything() -> None:
    assert mixed_fields([]) == (None, None)
    assert mixed_fields([(b"content-disposition", b""), (b"content-type", b"a/b")]) == (None, b"a/b")
    assert mixed_fields([(b"content-disposition", b"inline")]) == (None, None)


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        (b"filename=a", b"a"),
        (b"filename*=UTF-8''%C3%A4", "ä".encode()),
        (b"filename*=UTF-8''a; filename=a", b"a"),
        (b'size=3; filename="a%22b"', b'a"b'),
    ],
)
def test_a_mixed_part_may_have_a_file_name(parameters: bytes, name: bytes) -> None:
    assert mixed_fields([(b"content-disposition", b"attachment; " + parameters)]) == (name, None)


@pytest.mark.parametrize(
    "disposition",
    [
        b"attachment; filename=a; filename*=UTF-8''b",
        b"attachment; filename*=UTF-8''b; filename=a",
        b"attachment; filename=a; filename=a",
        b"attachment; filename*0=a; filename*1=b",
        b"attachment; filename=ab; filename*0=a; filename*1=b",
        b"attachment; filename=a; name*=UTF-8''b",
        b"attachment; filename=a; x*0=b",
        b'attachment; filename=a; x="b\\\\"',
        b'"attachment"; filename=a',
        b"; filename=a",
        b"a b; filename=a",
        b"filename; filename=a",
        b"name; filename=a",
    ],
)
def test_a_mixed_part_with_two_readings_is_refused(disposition: bytes) -> None:
    with pytest.raises(Malformed):
        mixed_fields([(b"content-disposition", disposition)])


# -- what a form demands


def test_the_empty_name_and_the_empty_file_name_are_names() -> None:
    assert fields(b'form-data; name=""; filename=""') == (b"", b"", None)


def test_the_disposition_type_and_parameter_names_know_no_case() -> None:
    assert fields(b'Form-DATA;NAME="a" ;FileName=b;') == (b"a", b"b", None)


@pytest.mark.parametrize("disposition", [b"form-data", b"form-data; filename=a", b"attachment; name=a", b"name=a", b""])
def test_a_part_that_is_no_form_field_is_refused(disposition: bytes) -> None:
    with pytest.raises(Malformed):
        fields(disposition)
    with pytest.raises(Malformed):
        form_fields([(b"content-type", b"text/plain")])


def test_a_content_type_is_verbatim_and_an_empty_one_is_none() -> None:
    assert fields(b"form-data; name=a", (b"content-type", b"Text/X; A=\xe4"))[2] == b"Text/X; A=\xe4"
    assert fields(b"form-data; name=a", (b"content-type", b""))[2] is None


def test_the_file_name_of_any_disposition_can_be_asked_for() -> None:
    assert filename_of(b'attachment; filename="a%22b"') == b'a"b'
    assert filename_of(b"inline") is None


def test_media_types_are_lowered_and_cut_at_their_parameters() -> None:
    assert media_type(b" Multipart/Form-Data ; boundary=x") == b"multipart/form-data"
    assert media_type(b"") == b""


HOSTILE = {
    "open quote": (b'"', b"x", b""),
    "quotes": (b"", b'"', b""),
    "backslashes": (b'"', b"\\", b""),
    "escaped quotes": (b'"', b'\\"', b'"'),
    "semicolons": (b"", b";", b""),
    "spaced semicolons": (b"", b"; ", b"x"),
    "spaces": (b"", b" ", b'"'),
    "open parameters": (b"", b';a="', b""),
    "tokens": (b";", b"a", b""),
    "percents": (b'"', b"%", b'"'),
    "escapes": (b'"', b"%41%22", b'"'),
    "folds": (b"", b"\r\n ", b""),
    "continuations": (b"", b'; filename*1="a"', b""),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_header_of_16_kib_is_answered(kind: str) -> None:
    before, again, after = HOSTILE[kind]
    start = b"Content-Disposition: form-data; name=n; filename=" + before
    block = (start + again * (16384 // len(again)))[: 16384 - len(after)] + after
    try:
        answer: bytes | type[GatewayError] = form_fields(parse(block))[0]
    except GatewayError as error:
        answer = type(error)
    assert answer in (b"n", Malformed)
