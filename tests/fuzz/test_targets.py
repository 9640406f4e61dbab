"""The small form of `make fuzz`: each target with what hypothesis makes up, and with all that was found before."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
WORDS = [
    *(b"--b", b"--b--", b"\r\n", b"\n", b"\r", b": ", b'"', b"\\", b"%22", b";", b"=", b"*", b"'", b" ", b"\t", b"\0"),
    *(b'Content-Disposition: form-data; name="a"', b"; filename=", b"Content-Type: text/plain", b"multipart/form-data"),
    *(b"POST /upload HTTP/1.1\r\n", b"Host: a\r\n", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n"),
    *(b"3\r\nabc\r\n", b"0\r\n\r\n", b"ffffffff", b";x=y", b"eyJhbGciOiJIUzI1NiJ9", b".", b"e30", b"&", b"signature="),
    *(b"[server]\n", b"[[routes]]\n", b"port = ", b"path = '/x'\n", b"[sinks.a]\n", b"type = 'disk'\n", b"1", b"{}"),
]
DATA = st.lists(st.one_of(st.sampled_from(WORDS), st.binary(max_size=4)), max_size=30).map(b"".join)


@pytest.mark.parametrize("target", TARGETS)
def test_whatever_comes(target: str) -> None:
    @settings(max_examples=300, deadline=None)
    @given(DATA)
    def check(data: bytes) -> None:
        TARGETS[target](data)

    check()


@pytest.mark.parametrize("target", TARGETS)
def test_what_was_found_before(target: str) -> None:
    kept = sorted((CORPUS / target).iterdir())
    assert kept
    for path in kept:
        TARGETS[target](path.read_bytes())
