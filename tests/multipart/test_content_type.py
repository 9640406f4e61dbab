"""The Content-Type of a multipart body."""

from __future__ import annotations

import pytest

from gateway.errors import Malformed
from gateway.multipart.content_type import boundary_of


@pytest.mark.parametrize(
    ("parameter", "boundary"),
    [
        (b"b", b"b"),
        (b'"a b:c"', b"a b:c"),
        (rb'"a\"b"', b'a"b'),
        (b"$" * 70, b"$" * 70),
        (b"----x'()+_,-./:=?", b"----x'()+_,-./:=?"),
    ],
)
def test_a_boundary_of_1_to_70_printables_is_taken(parameter: bytes, boundary: bytes) -> None:
    assert boundary_of(b"multipart/form-data; charset=utf-8; Boundary=" + parameter) == boundary


@pytest.mark.parametrize("parameter", [b"", b'""', b'"a "', b"$" * 71, b"\xe4", b'"a\tb"', b"a; boundary=a", b'"a'])
def test_a_boundary_that_is_doubled_or_bad_is_refused(parameter: bytes) -> None:
    with pytest.raises(Malformed):
        boundary_of(b"multipart/form-data; boundary=" + parameter)
    with pytest.raises(Malformed):
        boundary_of(b"multipart/form-data")
