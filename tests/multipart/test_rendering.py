"""Part headers on their way out: what is written is read back as what it was."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from gateway.errors import Malformed
from gateway.model import Part
from gateway.multipart.headers import form_fields, parse_header_block, reads_in_two_ways
from gateway.multipart.rendering import quote, render_head, render_headers


def test_a_head_is_written_in_one_canonical_form() -> None:
    disposition = b'Content-Disposition: form-data; name="n%22"; filename="\xe4\\x%0D%0A"'
    head = render_head(b'n"', b"\xe4\\x\r\n", b"text/plain", [(b"X-A", b"b")])
    assert head == disposition + b"\r\nContent-Type: text/plain\r\nX-A: b\r\n\r\n"
    assert render_head(b"n", None, None) == b'Content-Disposition: form-data; name="n"\r\n\r\n'


names = st.one_of(
    st.binary(max_size=40).map(lambda raw: re.sub(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", b"", raw)),
    st.lists(st.sampled_from(list(b'"\\%;=\r\n\t ab\xe4')), max_size=20).map(bytes),
    st.lists(st.sampled_from([b"%41", b'"', b"\\", b"\\\\", b";", b"filename=", b"a"]), max_size=8).map(b"".join),
)


@pytest.mark.parametrize("name", [b"a\\", b'a\\"', b"a\\;b", b"..\\..", b"a\\\\b", b"\\\r\n", "a\\€".encode()])
def test_a_name_that_readers_would_not_agree_about_is_not_written(name: bytes) -> None:
    with pytest.raises(Malformed):
        render_head(name, None, None)
    with pytest.raises(Malformed):
        render_head(b"n", name, None)
    with pytest.raises(Malformed):
        render_headers(Part(0, b"", name, None))


def ambiguous(name: bytes) -> bool:
    """The names that the WHATWG form cannot carry: a literal escape reads like what it stands for, and what
    looks percent-encoded throughout (another escape beside it, all else unreserved) is left as it is.
    """
    if re.search(rb"%(?:22|0D|0A)", name) or reads_in_two_ways(name):
        return True
    wholly_encoded = re.fullmatch(rb"(?:[A-Za-z0-9._~-]|%[0-9A-Fa-f]{2})*", quote(name)) is not None
    return wholly_encoded and quote(name) != name and b"%" in name


@settings(deadline=None, max_examples=300)
@given(names, st.none() | names, st.none() | st.just(b"text/plain; charset=x"))
@example(b"a\\x", b"\\x", None)
@example(b'"', b'; name="', None)
@example(b"a\\x", b"; x=\\x", None)
def test_what_is_written_is_read_back_as_the_same_bytes(
    name: bytes, filename: bytes | None, kind: bytes | None
) -> None:
    assume(not ambiguous(name) and not ambiguous(filename or b""))
    head = render_head(name, filename, kind)
    assert head.endswith(b"\r\n\r\n")
    assert form_fields(parse_header_block(head[:-4], max_headers=64)) == (name, filename, kind)


@settings(deadline=None)
@given(names)
def test_a_quoted_name_can_end_neither_its_quotes_nor_its_line(name: bytes) -> None:
    assume(not reads_in_two_ways(name))
    assert not set(quote(name)) & set(b'"\r\n')
