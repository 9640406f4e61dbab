"""Who may come in: refused on headers alone, before a byte of the body and before `100 Continue` (G5)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest

from gateway.errors import Busy, Draining
from gateway.intake.admission import Gate, Slots
from tests.conftest import RunningGateway, StartGateway
from tests.support.clients import FORM_TYPE, Answer, Client, ask, eventually, file, form, head

BODY = form(file(b"abc"))
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HEALTHZ = b"GET /healthz HTTP/1.1\r\nHost: gateway\r\n\r\n"


@pytest.fixture
async def gateway(start_gateway: StartGateway) -> RunningGateway:
    return await start_gateway(limits={"max_body_bytes": 10_000, "max_file_bytes": 5_000})


def _raw_head(request_line: str, *lines: str) -> bytes:
    return "\r\n".join([request_line, "Host: gateway", *lines, "", ""]).encode("latin-1")


def _post_head(*lines: str) -> bytes:
    return _raw_head("POST /upload HTTP/1.1", *lines)


LENGTH = f"Content-Length: {len(BODY)}"
WEB_FORM = "Content-Type: application/x-www-form-urlencoded"
FORM = f"Content-Type: {FORM_TYPE}"

REFUSED: dict[str, tuple[bytes, int]] = {
    **{
        f"multipart/{subtype}": (_post_head(f"Content-Type: multipart/{subtype}; boundary=b0undary", LENGTH), 415)
        for subtype in ("mixed", "related", "byteranges", "x-form-data", "FORM-DATA2")
    },
    **{
        f"Content-Encoding {coding}": (_post_head(FORM, LENGTH, f"Content-Encoding: {coding}"), 415)
        for coding in ("gzip", "deflate", "br", "zstd", "identity, gzip", "x")
    },
    "Content-Encoding of a raw body": (_post_head("Content-Type: a/b", LENGTH, "Content-Encoding: gzip"), 415),
    "a body declared too large": (_post_head(FORM, "Content-Length: 10001"), 413),
    "a raw body declared larger than a file": (_post_head("Content-Type: a/b", "Content-Length: 5001"), 413),
    "a PUT declared larger than a file": (_raw_head("PUT /upload/x HTTP/1.1", "Content-Length: 5001"), 413),
    "no boundary": (_post_head("Content-Type: multipart/form-data", LENGTH), 400),
    "an empty boundary": (_post_head("Content-Type: multipart/form-data; boundary=", LENGTH), 400),
    "a quoted empty boundary": (_post_head('Content-Type: multipart/form-data; boundary=""', LENGTH), 400),
    "a boundary of 71": (_post_head("Content-Type: multipart/form-data; boundary=" + "b" * 71, LENGTH), 400),
    "a boundary with a space at its end": (_post_head('Content-Type: multipart/form-data; boundary="b "', LENGTH), 400),
    "a boundary that is no ASCII": (_post_head("Content-Type: multipart/form-data; boundary=b\xe9", LENGTH), 400),
    "two boundaries": (_post_head(f"{FORM}; boundary=other", LENGTH), 400),
    "two equal boundaries": (_post_head(f"{FORM}; boundary=b0undary", LENGTH), 400),
    "a second Content-Encoding": (
        _post_head(FORM, LENGTH, "Content-Encoding: identity", "Content-Encoding: gzip"),
        415,
    ),
    **{
        f"{method} {target} in the chunks of {coding}": (_raw_head(f"{method} {target} HTTP/1.1", LENGTH, coding), 415)
        for method, target in (("PUT", "/upload/x"), ("POST", "/upload"), ("PUT", "/convert/x"), ("PATCH", "/proxy"))
        for coding in (
            "x-amz-content-sha256: STREAMING-UNSIGNED-PAYLOAD-TRAILER",
            "X-Amz-Content-SHA256: streaming-aws4-hmac-sha256-payload",
            "x-amz-decoded-content-length: 5",
            "Content-Encoding: AWS-Chunked",
        )
    },
    **{
        f"{method} {target} of a range": (
            _raw_head(f"{method} {target} HTTP/1.1", LENGTH, "Content-Range: bytes 4-9/10"),
            400,
        )
        for method, target in (("PUT", "/upload/x"), ("POST", "/upload"), ("PUT", "/convert"), ("PUT", "/proxy"))
    },
    "a form of a range": (_post_head(FORM, LENGTH, "Content-Range: bytes */10"), 400),
    **{
        f"PUT {target} of a form": (_raw_head(f"PUT {target} HTTP/1.1", content_type, LENGTH), 415)
        for target in ("/upload", "/upload/", "/upload/x", "/convert", "/convert/x")
        for content_type in (FORM, "Content-Type: Multipart/Form-Data")
    },
    **{
        f"POST {target} of a web form": (_raw_head(f"POST {target} HTTP/1.1", WEB_FORM, LENGTH, *more), 415)
        for target in ("/upload", "/convert", "/proxy")
        for more in ([], ["Content-Disposition: attachment"], ["Content-Disposition: "])
    },
    "PATCH of a web form": (_raw_head("PATCH /proxy HTTP/1.1", f"{WEB_FORM}; charset=UTF-8", LENGTH), 415),
    **{
        f"{target} with a fragment": (_raw_head(f"{method} {target} HTTP/1.1", LENGTH), 400)
        for method, target in (
            ("POST", "/proxy?a=1#z"),
            ("POST", "/upload#z"),
            ("PUT", "/upload/a#b?c"),
            ("POST", "http://gateway/proxy?a=1#z"),
        )
    },
    **{
        f"{name} twice, of a raw body": (_post_head("Content-Type: image/png", LENGTH, f"{name}: a", f"{name}: b"), 400)
        for name in ("Content-Disposition", "Content-Transfer-Encoding")
    },
    **{
        f"a Content-Type that is none: {written}": (_post_head(f"Content-Type: {written}", LENGTH), 415)
        for written in (
            "multipart /form-data; boundary=b0undary",
            '"multipart/form-data"; boundary=b0undary',
            "text/plain, multipart/form-data; boundary=b0undary",
            "application /x-www-form-urlencoded",
        )
    },
    "gzip, chunked": (_post_head(FORM, "Transfer-Encoding: gzip, chunked"), 501),
    "no path of ours": (_raw_head("POST /nowhere HTTP/1.1", FORM, LENGTH), 404),
    "the root": (_raw_head("POST / HTTP/1.1", FORM, LENGTH), 405),
    "an upload that is not there": (_raw_head("DELETE /uploads/nope HTTP/1.1", LENGTH), 404),
    "PATCH": (_raw_head("PATCH /upload HTTP/1.1", FORM, LENGTH), 405),
    "DELETE on a relay route": (_raw_head("DELETE /proxy HTTP/1.1", FORM, LENGTH), 405),
    "POST on the health check": (_raw_head("POST /healthz HTTP/1.1", FORM, LENGTH), 405),
}

each_refused = pytest.mark.parametrize(("request_head", "status"), REFUSED.values(), ids=REFUSED.keys())


def _is_problem(answer: Answer, status: int) -> dict[str, Any]:
    assert answer.status == status
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["status"] == status
    return document


def _body_for(request_head: bytes) -> bytes:
    """As many bytes as it declares, for those who send them although nobody told them to."""
    length = re.search(rb"Content-Length: (\d+)", request_head)
    return b"x" * int(length[1]) if length else b"0\r\n\r\n"


async def _is_over(client: Client, rest: bytes) -> None:
    """What follows a refusal is neither read as a body nor taken for another request."""
    try:
        await client.send(rest + HEALTHZ)
    except ConnectionError:
        return
    assert await client.ended() == b""


@each_refused
async def test_what_its_headers_refuse_is_a_problem_and_ends_the_connection(
    gateway: RunningGateway, request_head: bytes, status: int
) -> None:
    async with Client(gateway.port) as client:
        await client.send(request_head)
        answer = await client.answer()
        _is_problem(answer, status)
        assert answer.headers["connection"] == "close"
        await _is_over(client, _body_for(request_head))
    assert gateway.stored() == []


@each_refused
async def test_what_its_headers_refuse_is_never_told_to_continue(
    gateway: RunningGateway, request_head: bytes, status: int
) -> None:
    async with Client(gateway.port) as client:
        await client.send(request_head[:-2] + b"Expect: 100-continue\r\n\r\n")
        answer = await client.answer()
        _is_problem(answer, status)
        assert answer.headers["connection"] == "close"
        await _is_over(client, _body_for(request_head))


async def test_a_body_that_came_along_with_its_refusal_ends_the_connection_too(gateway: RunningGateway) -> None:
    async with Client(gateway.port) as client:
        await client.send(_post_head(FORM, LENGTH, "Content-Encoding: gzip") + BODY)
        assert (await client.answer()).headers["connection"] == "close"
        await _is_over(client, b"")


@pytest.mark.parametrize(
    "lines",
    [
        [LENGTH, "Content-Type: text/plain"],
        [LENGTH, "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", LENGTH],
        [LENGTH, "Content-Length: 1"],
        ["Transfer-Encoding: chunked, chunked"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
        ["Content-Length: +3"],
        ["Content-Length: -1"],
        ["Content-Length: 0x3"],
        ["Content-Length : 3"],
    ],
    ids=str,
)
async def test_headers_that_two_servers_could_read_differently_are_refused(
    gateway: RunningGateway, lines: list[str]
) -> None:
    async with Client(gateway.port) as client:
        await client.send(_post_head(FORM, *lines, "Expect: 100-continue"))
        assert (await client.answer()).status in (400, 501)
        await _is_over(client, BODY)
    assert gateway.stored() == []


async def test_both_a_length_and_a_transfer_coding_are_a_400(gateway: RunningGateway) -> None:
    async with Client(gateway.port) as client:
        await client.send(_post_head(FORM, LENGTH, "Transfer-Encoding: chunked", "Expect: 100-continue"))
        assert (await client.answer()).status == 400


@pytest.mark.parametrize("coding", ["chunked", "Chunked", "gzip, chunked"])
async def test_http_1_0_has_no_transfer_coding(gateway: RunningGateway, coding: str) -> None:
    async with Client(gateway.port) as client:
        await client.send(_raw_head("POST /upload HTTP/1.0", FORM, f"Transfer-Encoding: {coding}"))
        _is_problem(await client.answer(), 400)


@pytest.mark.parametrize("coding", ["gzip", "identity", "x-chunked"])
async def test_a_transfer_coding_that_does_not_end_with_chunked_is_not_read(
    gateway: RunningGateway, coding: str
) -> None:
    async with Client(gateway.port) as client:
        await client.send(_post_head(FORM, f"Transfer-Encoding: {coding}", "Expect: 100-continue"))
        assert (await client.answer()).status in (400, 501)
        await _is_over(client, BODY)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PATCH", "/upload", "POST, PUT"),
        ("GET", "/upload", "POST, PUT"),
        ("POST", "/upload/a.bin", "PUT"),
        ("DELETE", "/proxy", "PATCH, POST, PUT"),
        ("POST", "/uploads/x", "DELETE, GET, HEAD"),
        ("DELETE", "/files/x/0/a", "GET, HEAD"),
        ("POST", "/metrics", "GET, HEAD"),
        ("MKCOL", "/healthz", "GET, HEAD"),
    ],
)
async def test_a_405_names_what_is_allowed(gateway: RunningGateway, method: str, path: str, allowed: str) -> None:
    async with Client(gateway.port) as client:
        await client.send(_raw_head(f"{method} {path} HTTP/1.1"))
        answer = await client.answer()
        assert _is_problem(answer, 405)["type"] == "/problems/method-not-allowed"
        assert answer.headers["allow"] == allowed


async def test_a_refusal_of_a_request_without_a_body_leaves_the_connection_open(gateway: RunningGateway) -> None:
    async with Client(gateway.port) as client:
        await client.send(_raw_head("GET /nowhere HTTP/1.1") + HEALTHZ)
        _is_problem(await client.answer(), 404)
        assert (await client.answer()).status == 200


# -- 100 Continue


@pytest.mark.parametrize("expect", ["100-continue", "100-Continue", "100-CONTINUE"])
@pytest.mark.parametrize("request_line", ["POST /upload", "PUT /upload/a.bin"])
async def test_who_may_come_in_is_told_so_exactly_once(gateway: RunningGateway, request_line: str, expect: str) -> None:
    async with Client(gateway.port) as client:
        content_type = FORM if request_line.startswith("POST") else "Content-Type: text/plain"
        await client.send(_raw_head(f"{request_line} HTTP/1.1", content_type, LENGTH, f"Expect: {expect}"))
        assert (await client.answer()).status == 100
        await client.send(BODY)
        assert (await client.answer()).status == 201
        await client.send(HEALTHZ)
        assert (await client.answer()).status == 200


async def test_who_does_not_ask_is_not_told(gateway: RunningGateway) -> None:
    async with Client(gateway.port) as client:
        await client.send(_post_head(FORM, LENGTH, "Connection: close"))
        await asyncio.sleep(0.1)
        await client.send(BODY)
        assert (await client.ended()).startswith(b"HTTP/1.1 201 ")


async def test_http_1_0_knows_no_continue(gateway: RunningGateway) -> None:
    async with Client(gateway.port) as client:
        await client.send(_raw_head("POST /upload HTTP/1.0", FORM, LENGTH, "Expect: 100-continue"))
        await asyncio.sleep(0.1)
        await client.send(BODY)
        received = await client.ended()
    assert received.startswith(b"HTTP/1.0 201 ")
    assert CONTINUE not in received


async def test_a_body_that_fails_after_the_continue_is_answered_once(gateway: RunningGateway) -> None:
    async with Client(gateway.port) as client:
        await client.send(_post_head(FORM, "Content-Length: 50", "Connection: close", "Expect: 100-continue"))
        assert (await client.answer()).status == 100
        await client.send(b"x" * 50)
        _is_problem(await client.answer(), 400)
        assert await client.ended() == b""


# -- what comes in


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Type: MultiPart/Form-Data; Boundary=b0undary"],
        ['Content-Type: multipart/form-data; charset=utf-8; boundary="b0undary"'],
        [FORM, "Content-Encoding: identity"],
        [FORM, "Content-Encoding: Identity"],
        [FORM, "Content-Encoding: identity", "Content-Encoding: identity"],
        *([FORM, f"Content-Encoding: {nothing}"] for nothing in ("", ",", "identity, identity", " Identity ,,")),
        [FORM, "Content-MD5: "],
        ["Content-MD5: "],
        [FORM, "Content-Range: "],
        ["x-amz-content-sha256: UNSIGNED-PAYLOAD"],
        [],
        [WEB_FORM, 'Content-Disposition: attachment; filename="f"'],
        ["Content-Type: not a type at all"],
    ],
    ids=str,
)
async def test_what_is_allowed_comes_in(gateway: RunningGateway, lines: list[str]) -> None:
    async with Client(gateway.port) as client:
        await client.send(_post_head(*lines, LENGTH) + BODY)
        answer = await client.answer()
        assert answer.status == 201, answer.body
        multipart = any("ultipart" in line.lower() for line in lines)
        assert answer.json()["parts"][0]["size"] == (3 if multipart else len(BODY))


async def test_a_put_is_raw_whatever_its_type_but_a_form(gateway: RunningGateway) -> None:
    async with Client(gateway.port) as client:
        for content_type in ("multipart/mixed", "application/x-www-form-urlencoded", "message/rfc822"):
            await client.send(_raw_head("PUT /upload/x HTTP/1.1", f"Content-Type: {content_type}", LENGTH) + BODY)
            (part,) = (await client.answer()).json()["parts"]
            assert (part["filename"], part["content_type"], part["size"]) == ("x", content_type, len(BODY))


async def test_an_empty_content_md5_of_a_part_declares_nothing(gateway: RunningGateway) -> None:
    body = form(file(b"abc").replace(b"Content-Type: text/x-test", b"Content-Type: text/x-test\r\nContent-MD5: "))
    async with Client(gateway.port) as client:
        await client.send(head(content_length=len(body)) + body)
        answer = await client.answer()
        assert answer.status == 201
        assert "verified" not in answer.json()["parts"][0]


@pytest.mark.parametrize("target", ["/upload", "/convert", "/proxy"])
async def test_a_web_form_is_told_what_to_change(gateway: RunningGateway, target: str) -> None:
    answer = await ask(gateway.port, target, "POST", b"file=big.bin", content_type=WEB_FORM.partition(": ")[2])
    detail = _is_problem(answer, 415)["detail"]
    for hint in ('enctype="multipart/form-data"', "-T", "-H 'Content-Type: …'", "Content-Disposition"):
        assert hint in detail
    assert "accept-encoding" not in answer.headers  # RFC 9110 12.5.3: not for other reasons than codings


@pytest.mark.parametrize("target", ["/upload", "/convert", "/proxy"])
@pytest.mark.parametrize(
    "coding",
    [{"content_encoding": "gzip"}, {"content_encoding": "identity, br"}, {"x_amz_content_sha256": "STREAMING-X"}],
    ids=str,
)
async def test_a_415_because_of_a_coding_says_which_one_is_taken(
    gateway: RunningGateway, target: str, coding: dict[str, str]
) -> None:
    answer = await ask(gateway.port, target, "POST", BODY, **coding)
    _is_problem(answer, 415)
    assert answer.headers["accept-encoding"] == "identity"


async def test_a_self_test_takes_what_curl_sends(gateway: RunningGateway) -> None:
    target, web_form = "/selftest/buffering", WEB_FORM.partition(": ")[2]
    assert (await ask(gateway.port, target, "POST", b"a=1", content_type=web_form)).status == 200


async def test_a_form_may_be_larger_than_one_file_of_it(gateway: RunningGateway) -> None:
    body = form(*[file(bytes(4000))] * 2)
    async with Client(gateway.port) as client:
        await client.send(head(content_length=len(body)) + body)
        assert (await client.answer()).status == 201


# -- slots, and the drain


@pytest.mark.parametrize("expect", [[], ["Expect: 100-continue"]], ids=["plain", "expect"])
async def test_one_upload_too_many_is_refused_until_a_slot_is_free(
    start_gateway: StartGateway, expect: list[str]
) -> None:
    gateway = await start_gateway(server={"max_uploads": 1})
    async with Client(gateway.port) as holder, Client(gateway.port) as other:
        await holder.send(_post_head(FORM, LENGTH) + BODY[:20])
        await eventually(lambda: gateway.services.gate.in_flight == 1)
        await other.send(_post_head(FORM, LENGTH, *expect))
        answer = await other.answer()
        document = _is_problem(answer, 503)
        assert (document["type"], document["limit"]) == ("/problems/busy", 1)
        assert int(answer.headers["retry-after"]) > 0
        assert answer.headers["connection"] == "close"
        await _is_over(other, BODY)
        await holder.send(BODY[20:])
        assert (await holder.answer()).status == 201
        await holder.send(_post_head(FORM, LENGTH) + BODY)
        assert (await holder.answer()).status == 201


async def test_what_is_wrong_with_a_request_is_told_before_that_there_is_no_slot(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(server={"max_uploads": 1})
    async with Client(gateway.port) as holder, Client(gateway.port) as other:
        await holder.send(_post_head(FORM, LENGTH) + BODY[:20])
        await eventually(lambda: gateway.services.gate.in_flight == 1)
        await other.send(_post_head("Content-Type: multipart/mixed; boundary=x", LENGTH))
        _is_problem(await other.answer(), 415)


@pytest.mark.parametrize("expect", [[], ["Expect: 100-continue"]], ids=["plain", "expect"])
async def test_a_draining_gateway_refuses_uploads_on_open_connections_and_finishes_its_own(
    start_gateway: StartGateway, expect: list[str]
) -> None:
    gateway = await start_gateway(server={"drain_seconds": 30})
    async with Client(gateway.port) as holder, Client(gateway.port) as other:
        await holder.send(_post_head(FORM, LENGTH) + BODY[:20])
        await other.send(HEALTHZ)
        assert (await other.answer()).status == 200
        await eventually(lambda: gateway.services.gate.in_flight == 1)
        async with asyncio.TaskGroup() as group:
            group.create_task(gateway.runner.cleanup())
            await eventually(lambda: gateway.services.gate.draining)
            await other.send(_post_head(FORM, LENGTH, *expect))
            answer = await other.answer()
            assert _is_problem(answer, 503)["type"] == "/problems/draining"
            assert int(answer.headers["retry-after"]) > 0
            assert answer.headers["connection"] == "close"
            await _is_over(other, BODY)
            await holder.send(BODY[20:])
            assert (await holder.answer()).status == 201


def _slots(gate: Gate, count: int) -> list[Callable[[], object]]:
    exits: list[Callable[[], object]] = []
    for _ in range(count):
        slot = gate.slot()
        slot.__enter__()
        exits.append(lambda slot=slot: slot.__exit__(None, None, None))  # type: ignore[misc]
    return exits


def test_a_gate_counts_its_slots_and_gets_them_back_from_failures_too() -> None:
    gate = Gate(Slots("uploads", 2), Slots("reads", 1))
    first, second = _slots(gate, 2)
    with pytest.raises(Busy):
        gate.slot()
    first()
    assert gate.in_flight == 1
    with pytest.raises(KeyError), gate.slot():
        raise KeyError
    second()
    assert gate.in_flight == 0


def test_a_gate_of_0_slots_is_unlimited_and_a_draining_one_is_shut() -> None:
    gate = Gate(Slots("uploads", 0), Slots("reads", 0))
    for leave in _slots(gate, 1000):
        leave()
    gate.draining = True
    with pytest.raises(Draining):
        gate.slot()
    with gate.reads.slot():
        assert gate.in_flight == 0


def test_reads_and_uploads_take_no_slots_from_each_other() -> None:
    gate = Gate(Slots("uploads", 1), Slots("reads", 1))
    with gate.slot(), gate.reads.slot():
        with pytest.raises(Busy, match="1 uploads are in progress"):
            gate.slot()
        with pytest.raises(Busy, match="1 reads are in progress"):
            gate.reads.slot()
    with gate.slot(), gate.reads.slot():
        pass
