"""The Content-Type of a multipart body."""

from __future__ import annotations

import pytest

from gateway.errors import Malformed
from gateway.multipart.codec import Decoder
from gateway.multipart.content_type import boundary_of, other_parameters
from tests.conftest import StartGateway
from tests.support.clients import ask
from tests.support.doubles import HonestUpstream


@pytest.mark.parametrize(
    ("parameter", "boundary"),
    [
        (b"b", b"b"),
        (b'"a b:c"', b"a b:c"),
        (rb'"a\"b"', b'a"b'),
        (rb'"a\\\"b"', rb"a\"b"),
        (b"$" * 70, b"$" * 70),
        (b"----x'()+_,-./:=?", b"----x'()+_,-./:=?"),
    ],
)
def test_a_boundary_of_1_to_70_printables_is_taken(parameter: bytes, boundary: bytes) -> None:
    assert boundary_of(b"multipart/form-data; charset=utf-8; Boundary=" + parameter) == boundary


@pytest.mark.parametrize(
    "parameter",
    [b"", b'""', b'"a "', b"$" * 71, b"\xe4", b'"a\tb"', b"a; boundary=a", b'"a', rb'"a\b"', rb"a\b", b"a b"],
)
def test_a_boundary_that_is_doubled_or_bad_is_refused(parameter: bytes) -> None:
    with pytest.raises(Malformed):
        boundary_of(b"multipart/form-data; boundary=" + parameter)
    with pytest.raises(Malformed):
        boundary_of(b"multipart/form-data")


@pytest.mark.parametrize(
    "parameters",
    [
        b"boundary*=UTF-8''b; boundary=b",
        b"boundary=b; boundary*0=c",
        b"boundary=b; boundary*0*=c",
        b"boundary=b; type*=UTF-8''a%2Fb",
        b"boundary=b; x*1=y",
        b"boundary=b; type=a; TYPE=b",
        b"boundary=b; *=x",
        b'boundary=b; start="a\\b"',
    ],
)
def test_a_parameter_that_some_readers_prefer_to_the_plain_one_is_refused(parameters: bytes) -> None:
    for kind in (b"multipart/form-data; ", b"multipart/related; "):
        with pytest.raises(Malformed):
            boundary_of(kind + parameters)
        with pytest.raises(Malformed):
            other_parameters(kind + parameters)


@pytest.mark.parametrize(
    "parameters",
    [
        b"boundary=a=b",
        b"boundary=<b>",
        b'boundary="<b>"',
        b'boundary="a%22b"',
        b'boundary="a\\"b"',
        b"boundary = b",
        b"boundary=b;; x=y",
        b"boundary=b; x=a/b",
        b'boundary=b; x="\\\\"',
    ],
)
def test_one_that_goes_on_as_it_came_is_written_by_the_book(parameters: bytes) -> None:
    content_type = b"multipart/form-data; " + parameters
    assert boundary_of(content_type)
    with pytest.raises(Malformed, match="more than one reading"):
        boundary_of(content_type, one_reading=True)


@pytest.mark.parametrize(
    "parameters", [b"; boundary=----x'_", b';boundary="=_a b:/?"', b" ; charset=utf-8; Boundary=b", b"; boundary=b; "]
)
def test_what_is_written_by_the_book_goes_on(parameters: bytes) -> None:
    content_type = b"Multipart/Form-Data" + parameters
    assert boundary_of(content_type, one_reading=True) == boundary_of(content_type)


@pytest.mark.parametrize("form", [True, False])
@pytest.mark.parametrize(
    "content_type", ["multipart/mixed; boundary=x; boundary*=y", "Multipart/Related;boundary*0=x", "multipart/x; *=y"]
)
def test_what_is_nested_in_a_part_is_held_to_the_same(content_type: str, form: bool) -> None:
    head = f'Content-Disposition: form-data; name="a"\r\nContent-Type: {content_type}'
    with pytest.raises(Malformed) as caught:
        Decoder(b"b", form=form).receive(b"--b\r\n" + head.encode() + b"\r\n\r\nx\r\n--b--\r\n")
    assert caught.value.members == {"part": 0}


@pytest.mark.parametrize("content_type", ["a/b; c*=d", "*/*", 'multipart/mixed; boundary="x*y"', "text/x; a=*"])
def test_a_star_elsewhere_is_none_of_its_business(content_type: str) -> None:
    head = f'Content-Disposition: form-data; name="a"\r\nContent-Type: {content_type}'
    events = Decoder(b"b").receive(b"--b\r\n" + head.encode() + b"\r\n\r\nx\r\n--b--\r\n")
    assert [event.part.content_type for event in events if event.part is not None] == [content_type.encode()]


@pytest.mark.parametrize("length", ["chunked", "passthrough"])
@pytest.mark.parametrize("kind", ["form-data", "related"])
async def test_no_route_passes_one_on(start_gateway: StartGateway, kind: str, length: str) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n--b--\r\n'
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await start_gateway(sinks={"api": {"url": upstream.url, "length": length}})
        for parameters in ("boundary=b; boundary*=UTF-8''c", "boundary=b; boundary*0=c", "boundary=b; type*=x"):
            answer = await ask(gateway.port, "/proxy", "POST", body, content_type=f"multipart/{kind}; {parameters}")
            assert (answer.status, answer.json()["type"]) == (400, "/problems/malformed")
        assert upstream.exchanges == []
