"""The reader, in a real aiohttp server over a real socket: aiohttp's whole public face, and beside its stock reader."""

from __future__ import annotations

import asyncio
import base64
import binascii
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Protocol, TypeVar

import aiohttp
import pytest
from aiohttp import web
from multipart import PushMultipartParser  # type: ignore[import-untyped]
from pytest_aiohttp import AiohttpClient, AiohttpServer

from gateway.errors import LEAVES, GatewayError, Malformed, TooLarge, TooManyParts, Truncated
from gateway.model import Part
from gateway.multipart.codec import Kind
from gateway.multipart.encoder import Encoder
from gateway.multipart.part_reader import StreamingBodyPartReader
from gateway.multipart.reader import StreamingMultipartReader, raw_body_events, raw_part

FORM = "multipart/form-data; boundary=b"
T = TypeVar("T")


def part(data: bytes, *headers: str, name: str = "a") -> bytes:
    lines = [f'Content-Disposition: form-data; name="{name}"', *headers]
    return b"--b\r\n" + "\r\n".join(lines).encode() + b"\r\n\r\n" + data + b"\r\n"


CLOSE = b"--b--\r\n"


class Reads(Protocol):
    async def __call__(
        self,
        read: Callable[[StreamingMultipartReader], Awaitable[T]],
        *pieces: bytes,
        content_type: str = ...,
        **options: Any,
    ) -> T: ...


async def slowly(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
        await asyncio.sleep(0)


@pytest.fixture
def served(aiohttp_client: AiohttpClient) -> Reads:
    """What `read` makes of a body that a client sends in these pieces; raises what it raised in the server."""

    async def go(
        read: Callable[[StreamingMultipartReader], Awaitable[T]],
        *pieces: bytes,
        content_type: str = FORM,
        **options: Any,
    ) -> T:
        answers: list[T | Exception] = []

        async def handler(request: web.Request) -> web.Response:
            try:
                answers.append(await read(StreamingMultipartReader(request.headers, request.content, **options)))
            except Exception as error:
                answers.append(error)
            return web.Response()

        app = web.Application()
        app.router.add_post("/", handler)
        client = await aiohttp_client(app)
        async with client.post("/", data=slowly(pieces), headers={"Content-Type": content_type}) as response:
            assert response.status == 200
        [answer] = answers
        if isinstance(answer, Exception):
            raise answer
        return answer

    return go


class Pieces:
    """A byte source without a socket, where the very pieces matter."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)

    async def readany(self) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""


def reader_of(*pieces: bytes, **options: Any) -> StreamingMultipartReader:
    return StreamingMultipartReader({"Content-Type": FORM}, Pieces(*pieces), **options)


async def first(reader: StreamingMultipartReader) -> StreamingBodyPartReader:
    part = await reader.next()
    assert part is not None
    return part


async def read_all(reader: StreamingMultipartReader) -> list[tuple[str | None, bytes]]:
    parts = []
    while (part := await reader.next()) is not None:
        parts.append((part.name, bytes(await part.read())))
    return parts


# -- the reader's face


@pytest.mark.sockets
async def test_async_for_gives_the_parts_in_order_with_their_names_and_headers(served: Reads) -> None:
    async def read(reader: StreamingMultipartReader) -> list[tuple[str | None, str | None, str | None, bytes]]:
        seen = []
        async for part in reader:
            assert isinstance(part, StreamingBodyPartReader)
            seen.append((part.name, part.filename, part.headers.get("content-TYPE"), bytes(await part.read())))
        return seen

    disposition = 'Content-Disposition: form-data; name="f"; filename="nä%22.txt"'.encode()
    file = b"--b\r\nContent-Type: text/x\r\n" + disposition + b"\r\n\r\n2\r\n"
    assert await served(read, part(b"1"), file, part(b"", name=""), CLOSE) == [
        ("a", None, None, b"1"),
        ("f", 'nä".txt', "text/x", b"2"),
        ("", None, None, b""),
    ]


@pytest.mark.sockets
async def test_next_gives_none_after_the_last_part_and_at_eof_tells(served: Reads) -> None:
    async def read(reader: StreamingMultipartReader) -> list[bool]:
        seen = [reader.at_eof()]
        part = await first(reader)
        seen += [reader.at_eof(), part.at_eof()]
        assert await part.read() == b"1"
        seen += [reader.at_eof(), part.at_eof()]
        assert await reader.next() is None
        assert await reader.next() is None
        return [*seen, reader.at_eof()]

    assert await served(read, part(b"1"), CLOSE) == [False, False, False, False, True, True]


@pytest.mark.sockets
async def test_release_reads_and_drops_all_that_is_left(served: Reads) -> None:
    async def read(reader: StreamingMultipartReader) -> bool:
        await first(reader)
        await reader.release()
        return reader.at_eof() and await reader.next() is None

    assert await served(read, part(b"1" * 100_000), part(b"2"), CLOSE)


@pytest.mark.sockets
async def test_a_part_can_be_skipped_unread_or_half_read(served: Reads) -> None:
    async def read(reader: StreamingMultipartReader) -> bytes:
        await first(reader)
        half = await first(reader)
        assert await half.read_chunk(2) == b"xx"
        last = await first(reader)
        assert half.at_eof()
        return bytes(await last.read())

    assert await served(read, part(b"1" * 300_000), part(b"x" * 300_000), part(b"3"), CLOSE) == b"3"


@pytest.mark.sockets
async def test_a_part_that_is_fetched_beyond_the_last_is_an_eof_error(served: Reads) -> None:
    async def read(reader: StreamingMultipartReader) -> None:
        assert (await reader.fetch_next_part()).name == "a"
        with pytest.raises(EOFError):
            await reader.fetch_next_part()

    await served(read, part(b"1"), CLOSE)


@pytest.mark.sockets
async def test_from_response_reads_what_a_server_answers(aiohttp_server: AiohttpServer) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=part(b"1") + part(b"2") + CLOSE, headers={"Content-Type": FORM})

    app = web.Application()
    app.router.add_get("/", handler)
    server = await aiohttp_server(app)
    async with aiohttp.ClientSession() as session, session.get(server.make_url("/")) as response:
        wrapper = StreamingMultipartReader.from_response(response)
        seen = []
        async for each in wrapper:
            assert isinstance(each, StreamingBodyPartReader)
            seen.append(bytes(await each.read()))
        assert seen == [b"1", b"2"]
        assert wrapper.at_eof()


@pytest.mark.sockets
async def test_a_part_can_be_sent_on_as_an_aiohttp_payload(aiohttp_client: AiohttpClient) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=await first(StreamingMultipartReader(request.headers, request.content)))

    app = web.Application()
    app.router.add_post("/", handler)
    client = await aiohttp_client(app)
    body = part(b"x" * 200_000) + CLOSE
    async with client.post("/", data=body, headers={"Content-Type": FORM}) as response:
        assert await response.read() == b"x" * 200_000


@pytest.mark.sockets
@pytest.mark.parametrize("subtype", ["mixed", "related; type=text/html", "x-mixed-replace"])
async def test_other_subtypes_are_read_and_nested_multiparts_are_opaque(served: Reads, subtype: str) -> None:
    async def read(reader: StreamingMultipartReader) -> list[tuple[str | None, str | None, bytes]]:
        parts = []
        while (part := await reader.next()) is not None:
            parts.append((part.name, part.filename, bytes(await part.read())))
        return parts

    nested = b"--n\r\n\r\ninner\r\n--n--"
    body = [
        b"a preamble\r\n--b\r\n\r\nno headers\r\n",
        b'--b\r\nContent-Disposition: attachment; name=n; filename="x.txt"\r\n\r\n\r\n',
        b"--b\r\nContent-Type: multipart/mixed; boundary=n\r\nContent-Length: 3\r\n\r\n"
        + nested
        + b"\r\n--b-- epilogue",
    ]
    assert await served(read, *body, content_type=f'Multipart/{subtype}; boundary="b"') == [
        (None, None, b"no headers"),
        ("n", "x.txt", b""),
        (None, None, nested),
    ]


@pytest.mark.sockets
async def test_a_nested_multipart_in_a_form_is_a_part_like_others(served: Reads) -> None:
    nested = b"--n\r\n\r\ninner\r\n--n--\r\n"
    assert await served(read_all, part(nested, "Content-Type: multipart/mixed; boundary=n"), CLOSE) == [("a", nested)]


@pytest.mark.sockets
async def test_a_lying_header_of_a_part_changes_nothing(served: Reads) -> None:
    body = [
        part(b"\xc3\xa4", "Content-Length: 1", "Content-Encoding: gzip"),
        part(b"", "Content-Length: x", "Content-Transfer-Encoding: nonsense"),
    ]
    assert await served(read_all, *body, CLOSE) == [("a", b"\xc3\xa4"), ("a", b"")]


@pytest.mark.sockets
async def test_a_charset_field_is_the_default_for_the_texts_that_follow_and_no_part(served: Reads) -> None:
    async def read(reader: StreamingMultipartReader) -> list[str]:
        return [await part.text() async for part in reader]

    body = [
        part("ä".encode()),
        part(b" windows-1252\r\n", name="_charset_"),
        part(b"\xe4"),
        part("ä".encode(), "Content-Type: text/plain; charset=utf-8"),
        part(b"", name="_charset_"),
        part("ä".encode()),
    ]
    assert await served(read, *body, CLOSE) == ["ä"] * 4
    whole = b"".join([*body, CLOSE])
    assert await served(read, *(whole[place : place + 1] for place in range(len(whole)))) == ["ä"] * 4
    in_mixed = b"--b\r\nContent-Disposition: form-data; name=_charset_\r\n\r\nx\r\n" + CLOSE
    assert await served(read, in_mixed, content_type="multipart/mixed; boundary=b") == ["x"]


@pytest.mark.sockets
@pytest.mark.parametrize("charset", [b"none-such", b"hex", b"undefined", b"x" * 32, b"\xff", b"y" * 100_000])
async def test_a_charset_field_that_names_none_is_malformed(served: Reads, charset: bytes) -> None:
    with pytest.raises(Malformed) as caught:
        await served(read_all, part(b"first"), part(charset, name="_charset_"), part(b"x"), CLOSE)
    assert caught.value.members == {"part": 1}


@pytest.mark.sockets
@pytest.mark.parametrize("cut", [1, 7, 1000])
async def test_what_is_nested_in_a_part_can_be_read_with_a_reader_of_its_own(served: Reads, cut: int) -> None:
    async def read(reader: StreamingMultipartReader) -> list[Any]:
        found: list[Any] = []
        async for part in reader:
            if part.headers.get("Content-Type", "").startswith("multipart/"):
                found.append(await read(StreamingMultipartReader(part.headers, part)))
                assert part.at_eof()
            else:
                found.append((part.filename, bytes(await part.read())))
        return found

    innermost = b"--i\r\n\r\ndeep\r\n--i--"
    nested = (
        b'preamble\r\n--n\r\nContent-Disposition: file; filename="1"\r\n\r\none\r\n--n\r\n'
        b"Content-Type: multipart/related; boundary=i\r\n\r\n" + innermost + b"\r\n--n--\r\nepilogue"
    )
    whole = part(b"before") + part(nested, "Content-Type: multipart/mixed; boundary=n") + part(b"after") + CLOSE
    pieces = [whole[place : place + cut] for place in range(0, len(whole), cut)]
    assert await served(read, *pieces) == [(None, b"before"), [("1", b"one"), [(None, b"deep")]], (None, b"after")]


@pytest.mark.sockets
async def test_what_is_nested_and_breaks_off_is_truncated(served: Reads) -> None:
    async def read(reader: StreamingMultipartReader) -> list[bytes]:
        outer = await first(reader)
        return [bytes(await part.read()) async for part in StreamingMultipartReader(outer.headers, outer)]

    nested = b"--n\r\n\r\none\r\n--n"
    with pytest.raises(Truncated):
        await served(read, part(nested, "Content-Type: multipart/mixed; boundary=n"), CLOSE)


ENCODED: dict[str, Callable[[bytes], bytes]] = {
    "base64": lambda data: base64.encodebytes(data).replace(b"\n", b"\r\n"),
    "BASE64": base64.b64encode,
    "quoted-printable": lambda data: binascii.b2a_qp(data, istext=False).replace(b"=\n", b"=\r\n"),
}


@pytest.mark.sockets
@pytest.mark.parametrize("mechanism", ENCODED)
@pytest.mark.parametrize(("cut", "size"), [(1, 0), (3, 0), (1000, 0), (7, 5), (1000, 1), (1000, 64), (1, 8192)])
async def test_each_chunk_of_an_encoded_part_can_be_decoded_alone(
    served: Reads, mechanism: str, cut: int, size: int
) -> None:
    data = bytes(range(256)) * 4

    async def read(reader: StreamingMultipartReader) -> tuple[bytes, bytes, bytes]:
        part = await first(reader)
        chunks, decoded = [], b""
        while chunk := await part.read_chunk(size):
            assert not size or len(chunk) <= size + 8
            chunks.append(chunk)
            decoded += b"".join([bytes(piece) async for piece in part.decode_iter(chunk)])
        assert part.at_eof()
        return b"".join(chunks), decoded, b"".join(bytes(part.decode(chunk)) for chunk in chunks)

    encoded = ENCODED[mechanism](data)
    whole = part(encoded, f"Content-Transfer-Encoding: {mechanism}") + part(b"next") + CLOSE
    raw, decoded, again = await served(read, *(whole[place : place + cut] for place in range(0, len(whole), cut)))
    assert raw == encoded
    assert decoded == again == data


@pytest.mark.sockets
@pytest.mark.parametrize("mechanism", ["base64", "quoted-printable"])
async def test_an_encoded_part_is_sent_on_decoded_as_an_aiohttp_payload(
    aiohttp_client: AiohttpClient, mechanism: str
) -> None:
    data = bytes(range(256)) * 10_000

    async def sent_on(request: web.Request) -> web.StreamResponse:
        part = await first(StreamingMultipartReader(request.headers, request.content))
        return web.Response(body=aiohttp.get_payload(part))

    app = web.Application()
    app.router.add_post("/", sent_on)
    client = await aiohttp_client(app)
    whole = part(ENCODED[mechanism](data), f"Content-Transfer-Encoding: {mechanism}") + CLOSE
    pieces = slowly(whole[place : place + 10_001] for place in range(0, len(whole), 10_001))
    async with client.post("/", data=pieces, headers={"Content-Type": FORM}) as response:
        assert await response.read() == data


@pytest.mark.sockets
@pytest.mark.parametrize("size", [0, 64, 8192])
async def test_white_space_without_end_in_base64_is_neither_joined_nor_lost(served: Reads, size: int) -> None:
    async def read(reader: StreamingMultipartReader) -> tuple[int, bytes]:
        part = await first(reader)
        chunks = []
        while not part.at_eof():
            chunks.append(await part.read_chunk(size))
            assert chunks[-1]
        return max(map(len, chunks)), b"".join(bytes(part.decode(chunk)) for chunk in chunks)

    body = b"A" + b" " * 300_000 + b"BBB"
    longest, decoded = await served(read, part(body, "Content-Transfer-Encoding: base64") + CLOSE)
    assert decoded == base64.b64decode(b"ABBB")
    assert longest <= (size or 1 << 19)


@pytest.mark.sockets
async def test_lines_can_be_read_after_a_chunk_of_an_encoded_part(served: Reads) -> None:
    async def read(reader: StreamingMultipartReader) -> list[bytes]:
        part = await first(reader)
        return [await part.read_chunk(6), await part.readline(), await part.readline(), await part.readline()]

    whole = part(b"QUJDRA==\r\nQUJD", "Content-Transfer-Encoding: base64") + CLOSE
    assert await served(read, whole) == [b"QUJD", b"RA==\r\n", b"QUJD", b""]


@pytest.mark.sockets
async def test_a_header_over_max_field_size_is_refused(served: Reads) -> None:
    long = part(b"x", "X-Long: " + "y" * 92)
    assert await served(read_all, long, CLOSE, max_field_size=100) == [("a", b"x")]
    with pytest.raises(TooLarge) as caught:
        await served(read_all, part(b"first"), long, CLOSE, max_field_size=99)
    assert caught.value.members == {"limit": 99, "part": 1}
    with pytest.raises(TooLarge):
        await served(read_all, part(b"x", "X-Long: " + "y" * 8190), CLOSE)
    assert await served(read_all, part(b"x", "X-Long: " + "y" * 8190), CLOSE, max_field_size=0) == [("a", b"x")]


def test_the_classes_of_parts_cannot_be_replaced() -> None:
    reader = StreamingMultipartReader({"Content-Type": FORM}, aiohttp.StreamReader.__new__(aiohttp.StreamReader))
    parts: list[type] = [reader.part_reader_cls, StreamingMultipartReader.part_reader_cls]
    assert parts == [StreamingBodyPartReader] * 2
    with pytest.raises(TypeError):
        reader.part_reader_cls = aiohttp.BodyPartReader
    with pytest.raises(TypeError):
        reader.multipart_reader_cls = aiohttp.MultipartReader
    for name in ("part_reader_cls", "multipart_reader_cls"):
        with pytest.raises(TypeError):
            type("Other", (StreamingMultipartReader,), {name: StreamingBodyPartReader})
    assert issubclass(type("Other", (StreamingMultipartReader,), {}), StreamingMultipartReader)


@pytest.mark.parametrize("error", [Malformed, Truncated, TooLarge, TooManyParts])
def test_what_a_reader_raises_is_a_value_error_as_the_stock_one_does(error: type[GatewayError]) -> None:
    assert issubclass(error, ValueError)
    assert error in LEAVES


# -- a part's face


@pytest.mark.sockets
@pytest.mark.parametrize("size", [0, 1, 7, 8192, 1 << 20])
async def test_read_chunk_gives_at_most_the_size_asked_for_and_loses_nothing(served: Reads, size: int) -> None:
    async def read(reader: StreamingMultipartReader) -> bytes:
        part = await first(reader)
        chunks = []
        while chunk := await part.read_chunk(size):
            assert not size or len(chunk) <= size
            chunks.append(chunk)
        assert part.at_eof()
        assert await part.read_chunk(size) == b""
        return b"".join(chunks)

    data = random.Random(size).randbytes(20_000 if size < 8192 else 500_000)
    assert await served(read, part(data), CLOSE) == data


async def test_a_chunk_is_the_very_object_that_was_received() -> None:
    middle = b"x" * 100_000
    reading = await first(reader_of(part(b"begin")[:-2], middle, b"\r\n" + CLOSE))
    assert await reading.read_chunk() == b"begin"
    assert await reading.read_chunk() is middle
    assert await reading.read_chunk() == b""


@pytest.mark.sockets
async def test_a_part_is_read_as_text_json_or_form_by_its_type(served: Reads) -> None:
    async def read(reader: StreamingMultipartReader) -> list[object]:
        return [
            await (await first(reader)).text(),
            await (await first(reader)).text(),
            await (await first(reader)).text(encoding="latin-1"),
            await (await first(reader)).json(),
            await (await first(reader)).json(),
            await (await first(reader)).form(),
            bytes(await (await first(reader)).read(decode=True)),
        ]

    utf8, latin = "ä".encode(), "ä".encode("latin-1")
    body = [part(utf8), part(latin, "Content-Type: text/plain; charset=latin-1"), part(latin)]
    body += [part(b'{"a": [1]}'), part(b""), part(b"a=1&b=%20&c="), part(b"eA==", "Content-Transfer-Encoding: base64")]
    expected = ["ä", "ä", "ä", {"a": [1]}, None, [("a", "1"), ("b", " "), ("c", "")], b"x"]
    assert await served(read, *body, CLOSE) == expected


@pytest.mark.parametrize("data", [b"", b"one", b"one\n", b"one\r\n\n\r\ntwo\rthree", b"\n" * 50, b"x" * 9000 + b"\ny"])
@pytest.mark.parametrize("size", [1, 5, 1 << 20])
async def test_readline_gives_the_lines_with_their_ends(data: bytes, size: int) -> None:
    body = part(data) + CLOSE
    part_reader = await first(reader_of(*(body[i : i + size] for i in range(0, len(body), size))))
    lines = []
    while line := await part_reader.readline():
        lines.append(line)
    assert lines == re.findall(rb"[^\n]*\n|[^\n]+", data)
    assert part_reader.at_eof()


@pytest.mark.sockets
async def test_a_part_larger_than_client_max_size_is_not_read_whole(served: Reads) -> None:
    body = [part(b"x" * 1000), CLOSE]
    assert await served(read_all, *body, client_max_size=1000) == [("a", b"x" * 1000)]
    with pytest.raises(OverflowError):
        await served(read_all, *body, client_max_size=999, max_size_error_cls=OverflowError)


# -- what is refused


async def test_a_body_cut_anywhere_raises_truncated_and_is_never_taken_for_a_whole_one() -> None:
    body = part(b"one") + part(b"two\r\n--") + b"--b--"
    assert await read_all(reader_of(body)) == [("a", b"one"), ("a", b"two\r\n--")]
    for end in range(len(body)):
        with pytest.raises(Truncated):
            await read_all(reader_of(body[:end]))
        with pytest.raises(Truncated):
            await reader_of(*(body[i : i + 1] for i in range(end))).release()


@pytest.mark.sockets
async def test_truncated_is_raised_by_the_very_read_that_met_the_end(served: Reads) -> None:
    async def read(reader: StreamingMultipartReader) -> bytes:
        assert await (await first(reader)).read() == b"one"
        part, chunks = await first(reader), b""
        while len(chunks) < 5:
            chunks += await part.read_chunk()
        for again in (part.read_chunk, part.read, part.readline, part.text, part.release, reader.next, reader.release):
            with pytest.raises(Truncated):
                await again()
        assert not part.at_eof()
        assert not reader.at_eof()
        return chunks

    assert await served(read, part(b"one"), part(b"begin")[:-2]) == b"begin"


@pytest.mark.sockets
@pytest.mark.parametrize(
    ("content_type", "options", "error"),
    [
        ("text/plain; boundary=b", {}, Malformed),
        ("multipart/form-data", {}, Malformed),
        ("multipart/form-data; boundary=b; boundary=b", {}, Malformed),
        (FORM, {"max_parts": 1}, TooManyParts),
        (FORM, {"max_headers": 1}, TooLarge),
        (FORM, {"max_header_bytes": 20}, TooLarge),
        ("multipart/form-data; boundary=other", {}, Truncated),
    ],
)
async def test_what_cannot_be_taken_is_a_gateway_error(
    served: Reads, content_type: str, options: dict[str, int], error: type[GatewayError]
) -> None:
    with pytest.raises(error):
        await served(read_all, part(b"1", "X: y"), part(b"2"), CLOSE, content_type=content_type, **options)


async def test_a_body_that_was_found_malformed_never_ends_cleanly() -> None:
    reader = reader_of(part(b"one")[:-2], b"\r\n--b\nbare line feed", b"\r\n" + CLOSE)
    reading = await first(reader)
    with pytest.raises(Malformed):
        await reading.read()
    with pytest.raises(GatewayError):
        await reader.next()


@pytest.mark.parametrize("boundary", ['"a b"', r'"a\"b"', "$x", '"=;,"', '"' + "-" * 70 + '"'])
async def test_any_boundary_that_the_codec_takes_the_reader_takes(boundary: str) -> None:
    plain = boundary.strip('"').replace("\\", "").encode()
    body = part(b"1").replace(b"--b", b"--" + plain) + b"--" + plain + b"--"
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    assert await read_all(StreamingMultipartReader(headers, Pieces(body))) == [("a", b"1")]


# -- the gateway's own way


async def test_events_come_in_one_batch_per_received_buffer() -> None:
    body = [part(b"1") + part(b"2"), part(b"3") + CLOSE]
    batches = [[event.kind for event in batch] async for batch in reader_of(*body).events()]
    assert batches == [[Kind.WHOLE, Kind.BEGIN, Kind.DATA], [Kind.END, Kind.WHOLE, Kind.CLOSE]]
    with pytest.raises(Truncated):
        [batch async for batch in reader_of(body[0]).events()]


@pytest.mark.sockets
async def test_events_carry_the_wire_bytes_where_they_are_asked_for(served: Reads) -> None:
    async def read(reader: StreamingMultipartReader) -> bytes:
        return b"".join([event.raw async for batch in reader.events() for event in batch])

    body = [b"pre\r\n", part(b"1"), part(b"x" * 100_000), CLOSE, b"epilogue"]
    assert await served(read, *body, keep_raw=True) == b"".join(body)


async def test_a_raw_body_is_a_form_with_one_file() -> None:
    source = Pieces(b"one", b"two")
    events = [e async for batch in raw_body_events(source, raw_part(b"f", b"text/x")) for e in batch]
    assert [event.kind for event in events] == [Kind.BEGIN, Kind.DATA, Kind.DATA, Kind.END, Kind.CLOSE]
    assert events[0].part == Part(0, b"file", b"f", b"text/x", is_file=True)
    assert b"".join(event.data for event in events) == b"onetwo"


# -- beside the others

Parts = list[tuple[str | None, str | None, bytes]]


async def ours(request: web.Request) -> Parts:
    reader = StreamingMultipartReader(request.headers, request.content)
    parts: Parts = []
    while (each := await reader.next()) is not None:
        parts.append((each.name, each.filename, bytes(await each.read())))
    return parts


async def stock(request: web.Request) -> Parts:
    parts: Parts = []
    async for each in aiohttp.MultipartReader(request.headers, request.content):
        assert isinstance(each, aiohttp.BodyPartReader)
        parts.append((each.name, each.filename, bytes(await each.read())))
    return parts


async def library(request: web.Request) -> Parts:
    parts: Parts = []
    async for event in PushMultipartParser("boundary").parse_async(request.content.read):
        if isinstance(event, bytes):
            name, filename, data = parts[-1]
            parts[-1] = (name, filename, data + event)
        elif event is not None:
            parts.append((event.name, event.filename, b""))
    return parts


def random_parts(rnd: random.Random) -> Parts:
    """Parts about which all three ought to agree: names that every dialect writes alike, data without look-alikes."""
    names = ["", "a", "file", "a b", "nä", "日本.txt", "it's", "x=y,z", "(1).tar.gz"]
    dense = [b"\r", b"\n", b"-", b"\r\n", b"\r\n--", b"\r\n--bound", b"--boundary", b"\x00", b"text"]
    parts: Parts = []
    for _ in range(rnd.randint(1, 6)):
        text = b"." + b"".join(rnd.choices(dense, k=rnd.randint(1, 4000)))
        data = rnd.choice([b"", rnd.randbytes(40_000), text.replace(b"\r\n--boundary", b"\r\n--boundry")])
        parts.append((rnd.choice(names), rnd.choice([None, *names]), data))
    return parts


@pytest.mark.sockets
@pytest.mark.parametrize("seed", range(15))
async def test_our_reader_the_stock_one_and_the_library_read_the_same_parts(
    aiohttp_client: AiohttpClient, seed: int
) -> None:
    answers: dict[str, Parts] = {}

    async def handler(request: web.Request) -> web.Response:
        read = {"ours": ours, "stock": stock, "library": library}[request.match_info["who"]]
        answers[request.match_info["who"]] = await read(request)
        return web.Response()

    app = web.Application()
    app.router.add_post("/{who}", handler)
    client = await aiohttp_client(app)
    rnd = random.Random(seed)
    for _ in range(4):
        parts = random_parts(rnd)
        encoder, body = Encoder(b"boundary"), b""
        for index, (name, filename, data) in enumerate(parts):
            assert name is not None
            raw_filename = None if filename is None else filename.encode()
            body += encoder.begin_form_part(Part(index, name.encode(), raw_filename, None)) + data
        body += encoder.close()
        size = rnd.choice([13, 1000, 8192, len(body)]) if len(body) < 10_000 else rnd.choice([1000, 8192, len(body)])
        for who in ("ours", "stock", "library"):
            pieces = [body[i : i + size] for i in range(0, len(body), size)]
            headers = {"Content-Type": "multipart/form-data; boundary=boundary"}
            async with client.post(f"/{who}", data=slowly(pieces), headers=headers) as response:
                assert response.status == 200, who
            assert answers[who] == parts, who
