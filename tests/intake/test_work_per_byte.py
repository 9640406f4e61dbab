"""What a byte may cost: bodies of nothing but what is dear to read are refused, or cost little of the processor."""

from __future__ import annotations

import io
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import GatewayError, Malformed
from gateway.flows import FlowFile
from gateway.flows.compress import unzstd
from gateway.flows.lines import lines
from gateway.multipart.codec import Decoder, Kind
from tests.conftest import RunningGateway, StartGateway
from tests.support.clients import BOUNDARY, Client, chunked, file, form, head, random_bytes

SECONDS = 0.05
"""Of the loop's own time, at most, for what comes in one call."""
BUFFER = 256 << 10
NAMED = b'Content-Disposition: form-data; name="f"; filename="'


@pytest.fixture
async def gateway(start_gateway: StartGateway) -> RunningGateway:
    return await start_gateway()


def part(header_block: bytes, data: bytes = b"x") -> bytes:
    return b"--%b\r\n%b\r\n\r\n%b\r\n" % (BOUNDARY, header_block, data)


NASTY = {
    "escaped quotes": part(NAMED + b'\\"' * 7900 + b'"') * 20,
    "percent-encoded quotes": part(NAMED + b"%22" * 5200 + b'"') * 20,
    "empty parameters": part(NAMED + b'a"' + b"; " * 7900) * 20,
    "parameters": part(NAMED + b'a"' + b"".join(b"; a%d=b" % number for number in range(1400))) * 20,
    "look-alikes": part(NAMED + b'a"', (b"\r\n--" + BOUNDARY + b"x") * 25_000),
    "look-alikes with blanks": part(NAMED + b'a"', (b"\r\n--" + BOUNDARY + b"   x") * 20_000),
    "line ends": part(NAMED + b'a"', b"\r\n" * 150_000),
    "headers": part(NAMED + b'a"\r\n' + b"\r\n".join(b"x-%d: y" % number for number in range(60))) * 500,
}


@pytest.mark.parametrize("kind", NASTY)
def test_no_buffer_of_a_form_takes_the_loop_for_long(kind: str) -> None:
    body, steps = NASTY[kind], []
    decoder = Decoder(BOUNDARY)
    with suppress(GatewayError):
        for start in range(0, len(body), BUFFER):
            began = time.thread_time()
            try:
                decoder.receive(body[start : start + BUFFER])
            finally:
                steps.append(time.thread_time() - began)
    assert min(steps) < SECONDS if len(steps) > 1 else steps[0] < SECONDS


@pytest.mark.parametrize(("count", "is_taken"), [(31, True), (32, False), (33, False)])
def test_a_header_has_so_many_parameters_and_no_more(count: int, is_taken: bool) -> None:
    more = b"".join(b"; a%d=b" % number for number in range(count - 1))
    body = part(b'Content-Disposition: form-data; name="f"' + more + (b"" if is_taken else b"; z=1"))
    if is_taken:
        assert Decoder(BOUNDARY).receive(body + b"--%b--\r\n" % BOUNDARY)[0].kind is Kind.WHOLE
    else:
        with pytest.raises(Malformed):
            Decoder(BOUNDARY).receive(body)


PIECES = [b"\r\n--" + BOUNDARY, b"x", b"--", b"-", b" ", b"\t", b"\r", b"\n", b"\r\n", BOUNDARY[:3]]


@settings(deadline=None, max_examples=400)
@given(st.lists(st.sampled_from(PIECES), max_size=14), st.integers(0, 60))
def test_look_alikes_are_read_the_same_however_they_are_cut(pieces: list[bytes], cut: int) -> None:
    body = part(NAMED + b'a"', b"".join(pieces)) + b"--%b--\r\n" % BOUNDARY

    def read(*buffers: bytes) -> tuple[object, ...]:
        decoder, data = Decoder(BOUNDARY), b""
        try:
            for buffer in buffers:
                data += b"".join(event.data for event in decoder.receive(buffer))
            decoder.finish()
        except GatewayError as error:
            return (type(error),)
        return (data,)

    whole = read(body)
    at = max(0, len(body) - cut)
    assert read(body[:at], body[at:]) == whole
    assert read(*(body[place : place + 1] for place in range(len(body)))) == whole


@pytest.mark.parametrize("size", [1, 10, 63])
async def test_a_body_of_tiny_chunks_is_refused_when_256_kib_have_come(gateway: RunningGateway, size: int) -> None:
    body = form(file(random_bytes(300_000)))
    async with Client(gateway.port) as client:
        with suppress(ConnectionError):
            await client.send(head("/upload", transfer_encoding="chunked") + chunked(body, size))
        answer = await client.answer()
    assert (answer.status, answer.json()["type"]) == (400, "/problems/malformed")
    assert "chunks" in answer.json()["detail"]
    assert gateway.stored() == []


@pytest.mark.parametrize(("size", "length"), [(1, 200_000), (65, 400_000), (100, 2_000_000)])
async def test_a_small_body_of_tiny_chunks_and_a_large_one_of_small_ones_are_taken(
    gateway: RunningGateway, size: int, length: int
) -> None:
    body = form(file(random_bytes(length)))
    async with Client(gateway.port) as client:
        await client.send(head("/upload", transfer_encoding="chunked") + chunked(body, size))
        assert (await client.answer()).status == 201


# -- flows


async def _through(flow: object, data: bytes) -> bytes:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(data), BUFFER):
            yield data[start : start + BUFFER]

    output = io.BytesIO()
    async for chunk in flow(FlowFile(index=0, name="f", filename="a", content_type=None), chunks()):  # type: ignore[operator]
        output.write(chunk)
    return output.getvalue()


ZSTD_EMPTY = bytes.fromhex("28b52ffd2000010000")
ZSTD_DATA = bytes.fromhex("28b52ffd200421000064617461")
SKIPPABLE = b"\x50\x2a\x4d\x18\x00\x00\x00\x00"


@pytest.mark.parametrize("frame", [ZSTD_EMPTY, SKIPPABLE], ids=["empty", "skippable"])
async def test_a_thousand_frames_are_taken_and_no_more_of_tiny_ones(frame: bytes) -> None:
    last = ZSTD_DATA
    assert await _through(unzstd, frame * 999 + last) == b"data"
    with pytest.raises(Malformed):
        await _through(unzstd, frame * 1000 + last)
    began = time.process_time()
    with pytest.raises(Malformed):
        await _through(unzstd, frame * 1_000_000)
    assert time.process_time() - began < 2


async def test_of_frames_of_a_kib_there_may_be_more() -> None:
    data = random_bytes(3000)
    frame = b"\x28\xb5\x2f\xfd\x60\xb8\x0a" + (len(data) << 3 | 1).to_bytes(3, "little") + data  # RFC 8878: a raw block
    assert await _through(unzstd, frame * 1500) == data * 1500


@pytest.mark.parametrize("ends", [b"\r", b"\n", b"\r\n", b"\n\r"])
async def test_megabytes_of_line_ends_take_the_loop_for_little(ends: bytes) -> None:
    data = ends * ((4 << 20) // len(ends))
    began = time.thread_time()
    assert set(await _through(lines, data)) == {10}
    assert time.thread_time() - began < 16 * SECONDS  # sixteen buffers
