"""The multipart body that is filled while it is sent: alone, against real servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import BodyPartReader, ClientError, ClientSession, MultipartWriter, TraceConfig, hdrs, web

from gateway.errors import Malformed
from gateway.http.lent_connection import ConnectionLost
from gateway.multipart.reader import StreamingMultipartReader
from gateway.multipart.writer import StreamingMultipartWriter
from tests.conftest import StartDestination
from tests.contract import eventually, nothing_left_running
from tests.support.doubles import DyingUpstream, HonestUpstream, MuteUpstream, Upstream


@pytest.fixture
async def session() -> AsyncIterator[ClientSession]:
    async with ClientSession() as session:
        yield session


async def _stock(request: web.Request) -> web.Response:
    """What aiohttp's own reader makes of a body."""
    parts = []
    async for part in await request.multipart():
        assert isinstance(part, BodyPartReader)
        parts.append([part.headers.get(hdrs.CONTENT_TYPE), part.headers.get("X-Kind"), len(await part.read())])
    return web.json_response({"type": request.content_type, "parts": parts})


async def _ours(request: web.Request) -> web.Response:
    """Names as bytes, in hex, and sizes."""
    parts = []
    reader = StreamingMultipartReader(request.headers, request.content)
    while (part := await reader.next()) is not None:
        filename = part.part.raw_filename
        hexed = None if filename is None else filename.hex()
        parts.append([part.part.raw_name.hex(), hexed, bytes(await part.read()).hex()[:32]])
    return web.json_response(parts)


def _app(handler: Any) -> web.Application:
    app = web.Application(client_max_size=1 << 30)
    app.router.add_post("/", handler)
    return app


async def test_a_form_arrives_as_it_was_fed(session: ClientSession, start_destination: StartDestination) -> None:
    destination = await start_destination(_app(_stock))
    writer = StreamingMultipartWriter("form-data")
    async with asyncio.TaskGroup() as group:
        sending = group.create_task(session.post(destination.url, data=writer))
        await writer.begin_form_part(b"note")
        await writer.feed(b"hello")
        await writer.begin_form_part(b"file", b"a.bin", b"text/plain")
        for _ in range(100):
            await writer.feed(b"x" * 100_000)
        await writer.begin_form_part(b"file", b"empty.bin", b"text/plain")
        await writer.finish()
    async with sending.result() as response:
        assert await response.json() == {
            "type": "multipart/form-data",
            "parts": [[None, None, 5], ["text/plain", None, 10_000_000], ["text/plain", None, 0]],
        }


async def test_other_types_than_forms_can_be_written(
    session: ClientSession, start_destination: StartDestination
) -> None:
    destination = await start_destination(_app(_stock))
    writer = StreamingMultipartWriter("mixed", boundary="a-boundary")
    async with asyncio.TaskGroup() as group:
        sending = group.create_task(session.post(destination.url, data=writer))
        await writer.begin_part({"Content-Type": "application/json", "X-Kind": "first"})
        await writer.feed(b"{}")
        await writer.begin_part({"Content-Type": "image/png"})
        await writer.feed(b"png")
        await writer.finish()
    async with sending.result() as response:
        assert await response.json() == {
            "type": "multipart/mixed",
            "parts": [["application/json", "first", 2], ["image/png", None, 3]],
        }


@pytest.mark.sockets
async def test_a_body_of_no_parts_is_a_closing_delimiter(session: ClientSession) -> None:
    writer = StreamingMultipartWriter("form-data", boundary="b")
    async with HonestUpstream() as upstream, asyncio.TaskGroup() as group:
        sending = group.create_task(session.post(upstream.url, data=writer))
        await writer.finish()
        (await sending).release()
        assert bytes(upstream.exchanges[0].body) == b"--b--\r\n"


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\rb"])
async def test_a_header_with_a_line_break_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="line break"):
        await StreamingMultipartWriter("mixed").begin_part({"X-Kind": value})


@pytest.mark.parametrize(
    ("raw", "wire"),
    [
        (b"plain.txt", b"plain.txt"),
        (b'a"b', b"a%22b"),
        (b"a\r\nb", b"a%0D%0Ab"),
        (b"C:\\dir\\a", b"C:\\dir\\a"),
        (b"a b%20c.txt", b"a b%20c.txt"),
        ("näïve 文件.txt".encode(), "näïve 文件.txt".encode()),
        (b"\xff\xfe", b"\xff\xfe"),
        (b"", b""),
        (b"a;b=c'd", b"a;b=c'd"),
    ],
)
async def test_names_go_as_browsers_send_them(
    session: ClientSession, start_destination: StartDestination, raw: bytes, wire: bytes
) -> None:
    destination = await start_destination(_app(_ours))
    async with HonestUpstream() as upstream:
        for url in (upstream.url, destination.url):
            writer = StreamingMultipartWriter("form-data")
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(session.post(url, data=writer))
                await writer.begin_form_part(raw, raw)
                await writer.feed(b"data")
                await writer.finish()
            async with sending.result() as response:
                answer = await response.read()
        line = b'Content-Disposition: form-data; name="' + wire + b'"; filename="' + wire + b'"\r\n'
        assert line in upstream.exchanges[0].body
    assert answer.decode() == f'[["{raw.hex()}", "{raw.hex()}", "{b"data".hex()}"]]'


# -- writes


async def test_small_pieces_are_joined_and_large_ones_are_not(start_destination: StartDestination) -> None:
    destination = await start_destination(_app(_stock))
    written: list[int] = []

    async def count(_session: ClientSession, _context: SimpleNamespace, params: Any) -> None:
        written.append(len(params.chunk))

    trace = TraceConfig()
    trace.on_request_chunk_sent.append(count)
    async with ClientSession(trace_configs=[trace]) as session:
        writer = StreamingMultipartWriter("form-data")
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(session.post(destination.url, data=writer))
            for _ in range(1000):
                await writer.begin_form_part(b"small")
                await writer.feed(b"x" * 100)
            await writer.flush()
            small = list(written)
            large = b"x" * 300_000
            await writer.begin_form_part(b"large", b"a.bin")
            await writer.feed(large)
            await writer.finish()
        async with sending.result() as response:
            assert len((await response.json())["parts"]) == 1001
    assert len(small) <= 6  # 200 KB in pieces of 64 KiB
    assert 300_000 in written[len(small) :]
    assert len(written) == len(small) + 3  # its head, itself, the end
    assert sum(written) == writer.sent_bytes


@pytest.mark.sockets
async def test_a_flush_sends_what_was_held_back(session: ClientSession) -> None:
    async with MuteUpstream() as upstream, asyncio.TaskGroup() as group:
        writer = StreamingMultipartWriter("form-data")
        sending = group.create_task(_ignored(session, upstream, writer))
        await writer.begin_form_part(b"note")
        await writer.feed(b"hello")
        await writer.flush()
        await eventually(lambda: bool(upstream.exchanges) and upstream.exchanges[0].body.endswith(b"hello"))
        writer.abort()
        await sending


@pytest.mark.sockets
async def test_a_peer_that_reads_slowly_slows_the_feeding_down(session: ClientSession) -> None:
    class Reluctant(HonestUpstream):
        receive_buffer_bytes = 65536

        def connected(self, exchange: Any) -> None:
            exchange.transport.pause_reading()

    async with Reluctant() as upstream, asyncio.TaskGroup() as group:
        writer = StreamingMultipartWriter("form-data")
        sending = group.create_task(session.post(upstream.url, data=writer))

        async def feed() -> None:
            await writer.begin_form_part(b"file", b"a.bin")
            for _ in range(640):
                await writer.feed(b"x" * 102_400)
            await writer.finish()

        feeding = group.create_task(feed())
        await asyncio.sleep(0.5)
        stuck_at = writer.sent_bytes
        await asyncio.sleep(0.3)
        assert writer.sent_bytes == stuck_at < 32 << 20  # what sockets hold, not what was to be sent
        assert not feeding.done()
        upstream.exchanges[0].transport.resume_reading()
        await feeding
        async with await sending as response:
            assert response.status == 200
        assert len(upstream.exchanges[0].body) == writer.sent_bytes > 65_536_000


# -- ends


async def _ignored(session: ClientSession, upstream: Upstream, writer: StreamingMultipartWriter) -> None:
    """A request that is expected to fail."""
    with pytest.raises(ClientError):
        await session.post(upstream.url, data=writer)


@pytest.mark.sockets
@pytest.mark.parametrize("fed", [0, 10, 1_000_000])
async def test_an_abort_breaks_the_request_off_without_its_last_chunk(session: ClientSession, fed: int) -> None:
    async with nothing_left_running(), MuteUpstream() as upstream:
        writer = StreamingMultipartWriter("form-data")
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(_ignored(session, upstream, writer))
            await writer.begin_form_part(b"file", b"a.bin")
            await writer.feed(b"x" * fed)
            await writer.flush()
            writer.abort()
            await sending
        await eventually(lambda: upstream.exchanges[0].lost)
        assert not upstream.saw_a_whole_body
        with pytest.raises(ConnectionLost):
            await writer.feed(b"x" * 100_000)


@pytest.mark.sockets
async def test_an_abort_before_the_connection_is_there_breaks_the_request_off(session: ClientSession) -> None:
    async with nothing_left_running(), MuteUpstream() as upstream:
        writer = StreamingMultipartWriter("form-data")
        writer.abort()
        await _ignored(session, upstream, writer)
        assert not upstream.saw_a_whole_body


@pytest.mark.sockets
async def test_after_the_end_the_request_is_whole_and_an_abort_does_nothing(session: ClientSession) -> None:
    async with HonestUpstream(201) as upstream, asyncio.TaskGroup() as group:
        writer = StreamingMultipartWriter("form-data")
        sending = group.create_task(session.post(upstream.url, data=writer))
        await writer.begin_form_part(b"file", b"a.bin")
        await writer.finish()
        writer.abort()
        async with await sending as response:
            assert response.status == 201
        assert upstream.exchanges[0].complete
        assert upstream.exchanges[0].closing_delimiter_seen
        assert upstream.exchanges[0].body.endswith(b"--\r\n")


@pytest.mark.sockets
async def test_a_connection_that_breaks_is_told_to_whoever_feeds(session: ClientSession) -> None:
    async with nothing_left_running(), DyingUpstream(after=100_000) as upstream:
        writer = StreamingMultipartWriter("form-data")
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(_ignored(session, upstream, writer))

            async def feed() -> None:
                await writer.begin_form_part(b"file", b"a.bin")
                while True:
                    await writer.feed(b"x" * 100_000)

            with pytest.raises(ConnectionLost):
                await feed()
            assert writer.lost
            await sending


@pytest.mark.sockets
async def test_it_cannot_be_sent_twice(session: ClientSession) -> None:
    async with HonestUpstream() as upstream:
        writer = StreamingMultipartWriter("form-data")
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(session.post(upstream.url, data=writer))
            await writer.begin_form_part(b"file", b"a.bin")
            await writer.finish()
        sending.result().release()
        with pytest.raises(ClientError, match="sent already"):
            await session.post(upstream.url, data=writer)
        await eventually(lambda: upstream.exchanges[-1].lost)
        assert sum(exchange.complete for exchange in upstream.exchanges) == 1


async def test_its_length_is_unknown_and_it_cannot_be_read_back() -> None:
    writer = StreamingMultipartWriter("form-data")
    assert writer.size is None
    with pytest.raises(TypeError):
        writer.decode()
    with pytest.raises(TypeError):
        await writer.as_bytes()


async def test_parts_cannot_be_appended_for_they_would_never_be_sent() -> None:
    writer = StreamingMultipartWriter()
    for append in (writer.append, writer.append_json, writer.append_form, writer.append_payload):
        with pytest.raises(TypeError, match="begin_part"):
            append(b"data")  # type: ignore[arg-type]
    assert len(writer) == 0


def test_the_subtype_is_the_stock_one_unless_one_is_given() -> None:
    assert StreamingMultipartWriter(boundary="b").content_type == MultipartWriter(boundary="b").content_type
    assert StreamingMultipartWriter("form-data", "b").content_type == "multipart/form-data; boundary=b"


@pytest.mark.sockets
async def test_text_is_taken_where_a_header_has_it(session: ClientSession) -> None:
    writer = StreamingMultipartWriter("form-data", boundary="b")
    async with HonestUpstream() as upstream, asyncio.TaskGroup() as group:
        sending = group.create_task(session.post(upstream.url, data=writer))
        await writer.begin_form_part("näme", 'a"b.txt', "text/plain")
        await writer.feed(bytearray(b"1"))
        await writer.begin_part({"X-A": "ä", "X-B": b"\xff"})
        await writer.feed(memoryview(b"2"))
        await writer.finish()
        (await sending).release()
        assert bytes(upstream.exchanges[0].body) == (
            '--b\r\nContent-Disposition: form-data; name="näme"; filename="a%22b.txt"\r\n'
            "Content-Type: text/plain\r\n\r\n1\r\n--b\r\nX-A: ä\r\nX-B: ".encode()
            + b"\xff\r\n\r\n2\r\n--b--\r\n"
        )


async def test_bytes_that_change_after_they_were_fed_are_sent_as_they_were() -> None:
    writer = StreamingMultipartWriter("form-data", boundary="b")
    await writer.begin_form_part("n")
    data = bytearray(b"before")
    await writer.feed(data)
    data[:] = b"behind"
    assert writer._pending[-1] == b"before"


async def test_what_is_neither_text_nor_bytes_is_a_type_error_at_the_call() -> None:
    writer = StreamingMultipartWriter("form-data")
    odd: list[Any] = [1, None, ["a"]]
    for value in odd:
        with pytest.raises(TypeError):
            await writer.begin_form_part(value)
        with pytest.raises(TypeError):
            await writer.begin_part({"X": value})
    await writer.begin_form_part("n")
    for value in [*odd, "text"]:
        with pytest.raises(TypeError):
            await writer.feed(value)


@pytest.mark.parametrize("name", ["a b", "a:", "", "ä", "a\r\nb"])
async def test_what_is_no_header_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no header"):
        await StreamingMultipartWriter("mixed").begin_part({name: "x"})


async def test_a_content_type_or_a_digest_with_a_line_break_is_refused() -> None:
    with pytest.raises(ValueError, match="line break"):
        await StreamingMultipartWriter("form-data").begin_form_part("n", None, "a/b\r\nX: y")
    with pytest.raises(ValueError, match="line break"):
        await StreamingMultipartWriter("form-data").begin_form_part("n", content_digest=b"sha-256=::\r\nX: y")


async def test_a_name_that_readers_would_not_agree_about_is_refused() -> None:
    with pytest.raises(Malformed):
        await StreamingMultipartWriter("form-data").begin_form_part("n", "C:\\dir\\")


@pytest.mark.sockets
async def test_data_belongs_into_a_part_and_nothing_comes_after_the_end(session: ClientSession) -> None:
    writer = StreamingMultipartWriter("form-data")
    with pytest.raises(RuntimeError, match="no part"):
        await writer.feed(b"x")
    async with HonestUpstream() as upstream, asyncio.TaskGroup() as group:
        sending = group.create_task(session.post(upstream.url, data=writer))
        await writer.finish()
        for late in (writer.feed(b"x"), writer.begin_part({}), writer.begin_form_part("n"), writer.finish()):
            with pytest.raises(RuntimeError, match="closing delimiter"):
                await late
        (await sending).release()
