"""Where encoded data may be cut."""

from __future__ import annotations

import base64
import binascii

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.multipart.transfer_encoding import decodable, padding_apart


@pytest.mark.parametrize(
    ("data", "cut"),
    [
        (b"", 0),
        (b"QUJ", 0),
        (b"QUJD", 4),
        (b"QUJDR", 4),
        (b"QUJD\r\n", 6),
        (b"Q U\r\nJ DR A", 8),
        (b"QQ==QQ", 4),
        (b" \r\n", 3),
    ],
)
def test_base64_is_cut_after_a_quartet(data: bytes, cut: int) -> None:
    assert decodable("base64", data) == cut


@pytest.mark.parametrize(
    ("data", "cut"), [(b"", 0), (b"abc", 3), (b"a=", 1), (b"a=3", 1), (b"a=3D", 4), (b"a=\r", 1), (b"a=\r\n", 4)]
)
def test_quoted_printable_is_not_cut_within_an_escape(data: bytes, cut: int) -> None:
    assert decodable("quoted-printable", data) == cut


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(0, 200))
def test_what_is_cut_there_decodes_to_the_same(data: bytes, place: int) -> None:
    for mechanism, encoded, decode in (
        ("base64", base64.encodebytes(data), base64.b64decode),
        ("quoted-printable", binascii.b2a_qp(data, istext=False), binascii.a2b_qp),
    ):
        cut = decodable(mechanism, encoded[:place])
        assert decode(encoded[:cut]) + decode(encoded[cut:]) == data


def test_what_means_nothing_can_go_ahead_of_what_is_not_whole() -> None:
    assert padding_apart("base64", b"A  \r\nB ") == (b"  \r\n ", b"AB")
    assert padding_apart("quoted-printable", b"=") == (b"", b"=")
