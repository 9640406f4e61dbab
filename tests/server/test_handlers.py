"""The handlers over real sockets: what can be fetched, removed, and put, and what is not there."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
import time
from typing import Any

import pytest
from aiohttp import ClientSession

from gateway.errors import LEAVES, GatewayError
from gateway.http.ulids import new_ulid
from gateway.sinks.disk.delivery import DiskDelivery
from tests.conftest import RunningGateway, StartGateway
from tests.support.clients import Answer, Client, ask, chunked, eventually, file, form, head, random_bytes

UNKNOWN = "01JD0000000000000000000000"


@pytest.fixture
async def gateway(start_gateway: StartGateway) -> RunningGateway:
    return await start_gateway()


async def _upload(gateway: RunningGateway, *parts: bytes) -> Any:
    answer = await ask(gateway.port, "/upload", "POST", form(*parts))
    assert answer.status == 201, answer.body
    return answer.json()


async def _put(gateway: RunningGateway, target: str, body: bytes, **headers: str | int) -> Any:
    answer = await ask(gateway.port, target, "PUT", body, **{"content_type": "", **headers})
    assert answer.status == 201, answer.body
    (part,) = answer.json()["parts"]
    return part


def _is_problem(answer: Answer, status: int, slug: str) -> None:
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
    document = answer.json()
    assert (document["status"], document["type"]) == (status, f"/problems/{slug}")


class TestUploads:
    async def test_the_manifest_has_every_member_in_the_documented_order(self, gateway: RunningGateway) -> None:
        field = b'--b0undary\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello'
        answer = await ask(gateway.port, "/upload", "POST", form(file(b"abc"), field))
        manifest = answer.json()
        upload = manifest["upload"]
        assert manifest == {
            "upload": upload,
            "parts": [
                {
                    "index": 0,
                    "name": "file",
                    "filename": "a.bin",
                    "content_type": "text/x-test",
                    "size": 3,
                    "sha256": hashlib.sha256(b"abc").hexdigest(),
                    "receipts": [{"sink": "disk", "location": f"/files/{upload}/0/a.bin"}],
                },
                {
                    "index": 1,
                    "name": "note",
                    "filename": None,
                    "content_type": None,
                    "size": 5,
                    "sha256": hashlib.sha256(b"hello").hexdigest(),
                    "value": "hello",
                    "receipts": [],
                },
            ],
        }
        members = ["index", "name", "filename", "content_type", "size", "sha256", "value", "receipts"]
        assert list(manifest["parts"][1]) == members
        assert answer.headers["location"] == f"/uploads/{upload}"

    async def test_the_manifest_can_be_fetched_again_as_it_was_answered(self, gateway: RunningGateway) -> None:
        answer = await ask(gateway.port, "/upload", "POST", form(file(b"abc"), file(b"", "b")))
        fetched = await ask(gateway.port, answer.headers["location"])
        assert (fetched.status, fetched.body) == (200, answer.body)
        assert fetched.headers["content-type"].startswith("application/json")

    async def test_a_form_without_parts_is_an_upload_without_parts(self, gateway: RunningGateway) -> None:
        answer = await ask(gateway.port, "/upload", "POST", form())
        assert (answer.status, answer.json()["parts"]) == (201, [])
        assert (await ask(gateway.port, answer.headers["location"])).body == answer.body

    async def test_a_deleted_upload_is_gone_with_its_files(self, gateway: RunningGateway) -> None:
        kept, removed = await _upload(gateway, file(b"kept")), await _upload(gateway, file(b"removed"))
        target = f"/uploads/{removed['upload']}"
        answer = await ask(gateway.port, target, "DELETE")
        assert (answer.status, answer.body) == (204, b"")
        for method in ("GET", "DELETE"):
            _is_problem(await ask(gateway.port, target, method), 404, "not-found")
        _is_problem(await ask(gateway.port, removed["parts"][0]["receipts"][0]["location"]), 404, "not-found")
        assert [path.name for path in gateway.root.iterdir()] == [kept["upload"]]

    @pytest.mark.parametrize(
        "identifier",
        ["..", "%2e%2e", "..%2f..%2fetc", "01jd0000000000000000000000", UNKNOWN, "x" * 300, f"{UNKNOWN}%00", "%0a"],
    )
    @pytest.mark.parametrize("method", ["GET", "DELETE"])
    async def test_an_identifier_that_is_none_of_ours_is_not_found(
        self, gateway: RunningGateway, identifier: str, method: str
    ) -> None:
        await _upload(gateway, file(b"abc"))
        before = gateway.stored()
        _is_problem(await ask(gateway.port, f"/uploads/{identifier}", method), 404, "not-found")
        assert gateway.stored() == before

    async def test_a_temporary_directory_cannot_be_fetched_or_removed(self, gateway: RunningGateway) -> None:
        async with Client(gateway.port) as client:
            await client.send(head(content_length=1000) + file(b"abc"))
            await eventually(gateway.stored)
            incoming = gateway.stored()[0]
            assert incoming.name.endswith(".incoming")
            for method in ("GET", "DELETE"):
                for name in (incoming.name, incoming.name.strip(".").partition(".")[0]):
                    _is_problem(await ask(gateway.port, f"/uploads/{name}", method), 404, "not-found")
            assert incoming.exists()

    async def test_another_method_is_a_problem_that_names_those_allowed(self, gateway: RunningGateway) -> None:
        for target, allow in (
            ("/upload", "POST, PUT"),
            ("/upload/a.bin", "PUT"),
            ("/uploads/x/archive.zip", "GET, HEAD"),
            (f"/uploads/{UNKNOWN}", "DELETE, GET, HEAD"),
            ("/metrics", "GET, HEAD"),
        ):
            answer = await ask(gateway.port, target, "PATCH")
            _is_problem(answer, 405, "method-not-allowed")
            assert answer.headers["allow"] == allow

    @pytest.mark.parametrize("target", ["/page/nothing", "/nothing", "/upload/a/b", "/files", "/UPLOAD", "//upload"])
    async def test_any_other_path_is_not_found(self, gateway: RunningGateway, target: str) -> None:
        _is_problem(await ask(gateway.port, target), 404, "not-found")


class TestFiles:
    async def test_a_stored_file_comes_back_as_an_attachment_that_nobody_sniffs(self, gateway: RunningGateway) -> None:
        data = random_bytes(300_000)
        (part,) = (await _upload(gateway, file(data, "ä.html")))["parts"]
        answer = await ask(gateway.port, part["receipts"][0]["location"])
        assert (answer.status, answer.body) == (200, data)
        assert answer.headers["content-disposition"] == "attachment; filename=\"_.html\"; filename*=UTF-8''%C3%A4.html"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-type"] == "text/x-test"

    async def test_head_tells_the_size_and_sends_nothing(self, gateway: RunningGateway) -> None:
        (part,) = (await _upload(gateway, file(b"x" * 70_000)))["parts"]
        answer = await ask(gateway.port, part["receipts"][0]["location"], "HEAD")
        assert (answer.status, answer.headers["content-length"], answer.body) == (200, "70000", b"")

    async def test_identifier_and_index_decide_and_the_last_segment_is_for_people(
        self, gateway: RunningGateway
    ) -> None:
        upload = (await _upload(gateway, file(b"first"), file(b"second", "b")))["upload"]
        for name in ("b", "anything", "%2e%2e", "%E2%98%83"):
            answer = await ask(gateway.port, f"/files/{upload}/1/{name}")
            assert (answer.status, answer.body) == (200, b"second")
            assert answer.headers["content-disposition"] == "attachment; filename=\"b\"; filename*=UTF-8''b"

    async def test_an_empty_file_can_be_fetched_and_a_field_cannot(self, gateway: RunningGateway) -> None:
        field = b'--b0undary\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello'
        upload = (await _upload(gateway, file(b""), field, file(b"", filename="")))["upload"]
        answer = await ask(gateway.port, f"/files/{upload}/0/a.bin")
        assert (answer.status, answer.body) == (200, b"")
        for index in (1, 2):  # nor can an empty file input
            _is_problem(await ask(gateway.port, f"/files/{upload}/{index}/x"), 404, "not-found")

    @pytest.mark.parametrize(
        "index", ["1", "-1", "00", "+0", "0x0", "%30%00", "manifest.json", "..", "%2e%2e", "..%2f0", "%D9%A0", "9" * 99]
    )
    async def test_an_index_that_is_none_of_ours_is_not_found(self, gateway: RunningGateway, index: str) -> None:
        upload = (await _upload(gateway, file(b"abc")))["upload"]
        _is_problem(await ask(gateway.port, f"/files/{upload}/{index}/a.bin"), 404, "not-found")

    @pytest.mark.parametrize("identifier", ["..", "%2e", "%2e%2e", UNKNOWN, "..%2fuploads-0"])
    async def test_a_file_of_an_unknown_upload_is_not_found(self, gateway: RunningGateway, identifier: str) -> None:
        _is_problem(await ask(gateway.port, f"/files/{identifier}/0/a.bin"), 404, "not-found")


class TestRawBodies:
    @pytest.mark.parametrize(
        ("last", "filename", "safe"),
        [
            ("a.bin", "a.bin", "a.bin"),
            ("na%C3%AFve%20%E2%98%83.txt", "naïve ☃.txt", "na%C3%AFve%20%E2%98%83.txt"),
            ("a%2Fb%5Cc.txt", "a/b\\c.txt", "c.txt"),
            ("%2e%2e", "..", "file"),
            ("a+b;c=d", "a+b;c=d", "a%2Bb%3Bc%3Dd"),
            ("%FF", "ÿ", "%C3%BF"),
            ("100%25", "100%", "100%25"),
            ("a?b=c", "a", "a"),
        ],
    )
    async def test_the_last_segment_of_the_path_names_the_file(
        self, gateway: RunningGateway, last: str, filename: str, safe: str
    ) -> None:
        part = await _put(gateway, f"/upload/{last}", b"abc")
        assert (part["name"], part["filename"]) == ("file", filename)
        (receipt,) = part["receipts"]
        assert receipt["location"].endswith(f"/0/{safe}")
        assert (await ask(gateway.port, receipt["location"])).body == b"abc"

    @pytest.mark.parametrize(("method", "target"), [("PUT", "/upload/"), ("PUT", "/upload"), ("POST", "/upload")])
    async def test_else_content_disposition_names_it_else_nobody(
        self, gateway: RunningGateway, method: str, target: str
    ) -> None:
        for disposition, filename in (
            ('attachment; filename="a.bin"', "a.bin"),
            ("attachment; filename*=UTF-8''%E2%98%83.txt", "☃.txt"),
            ("attachment", None),
            ("", None),
        ):
            kind = {"content_type": "application/pdf", "content_disposition": disposition}
            answer = await ask(gateway.port, target, method, b"abc", **kind)
            (part,) = answer.json()["parts"]
            assert (answer.status, part["name"], part["filename"]) == (201, "file", filename)

    async def test_the_path_goes_before_content_disposition(self, gateway: RunningGateway) -> None:
        part = await _put(gateway, "/upload/path.txt", b"abc", content_disposition="attachment; filename=header.txt")
        assert part["filename"] == "path.txt"

    @pytest.mark.parametrize("last", ["a%00b", "%1B", "%7F"])
    async def test_controls_in_a_file_name_are_refused(self, gateway: RunningGateway, last: str) -> None:
        answer = await ask(gateway.port, f"/upload/{last}", "PUT", b"abc", content_type="text/plain")
        _is_problem(answer, 400, "malformed")
        assert gateway.stored() == []

    @pytest.mark.parametrize(
        "content_type",
        ["", "application/x-www-form-urlencoded", "application/json", "text/plain; charset=utf-8", "nonsense", "a/b;c"],
    )
    @pytest.mark.parametrize("method", ["PUT", "POST"])
    @pytest.mark.parametrize("framing", ["length", "chunked"])
    async def test_a_raw_body_of_any_type_is_one_file(
        self, gateway: RunningGateway, content_type: str, method: str, framing: str
    ) -> None:
        named = {}
        if (method, content_type) == ("POST", "application/x-www-form-urlencoded"):  # without a name it may be a form
            named = {"content_disposition": "attachment; filename=f"}
        data = b"a=1&b=2" * 30_000
        async with Client(gateway.port) as client:
            if framing == "chunked":
                request = head("/upload", method, content_type=content_type, transfer_encoding="chunked", **named)
                await client.send(request + chunked(data, 9_999))
            else:
                request = head("/upload", method, content_type=content_type, content_length=len(data), **named)
                await client.send(request + data)
            answer = await client.answer()
        (part,) = answer.json()["parts"]
        assert (answer.status, part["filename"], part["size"]) == (201, "f" if named else None, len(data))
        assert part["sha256"] == hashlib.sha256(data).hexdigest()
        assert part["content_type"] == (content_type or None)
        assert (await ask(gateway.port, part["receipts"][0]["location"])).body == data

    async def test_a_form_by_put_is_refused_and_other_multipart_types_are_one_file(
        self, gateway: RunningGateway
    ) -> None:
        body = form(file(b"abc"))
        for target in ("/upload/form", "/upload", "/convert/form"):
            _is_problem(await ask(gateway.port, target, "PUT", body), 415, "not-multipart")
        assert gateway.stored() == []
        part = await _put(gateway, "/upload/form", body, content_type="multipart/mixed; boundary=b0undary")
        assert (part["filename"], part["size"]) == ("form", len(body))

    @pytest.mark.parametrize("framing", [{"content_length": 0}, {"transfer_encoding": "chunked"}, {}])
    async def test_a_body_of_no_bytes_is_a_file_of_no_bytes(
        self, gateway: RunningGateway, framing: dict[str, str | int]
    ) -> None:
        async with Client(gateway.port) as client:
            request = head("/upload/empty", "PUT", content_type="", **framing)
            await client.send(request + (b"0\r\n\r\n" if "transfer_encoding" in framing else b""))
            answer = await client.answer()
        (part,) = answer.json()["parts"]
        assert (answer.status, part["size"], part["filename"]) == (201, 0, "empty")
        assert (await ask(gateway.port, part["receipts"][0]["location"])).body == b""

    async def test_a_compressed_body_is_refused_and_not_inflated(self, gateway: RunningGateway) -> None:
        for kind in ({"content_type": "text/plain"}, {}):
            answer = await ask(gateway.port, "/upload", "POST", b"\x1f\x8b", content_encoding="gzip", **kind)
            _is_problem(answer, 415, "not-multipart")


class TestHouse:
    async def test_it_says_that_it_lives_and_is_ready(self, gateway: RunningGateway) -> None:
        for target in ("/healthz", "/readyz"):
            answer = await ask(gateway.port, target)
            assert (answer.status, answer.body) == (200, b"ok\n")
            assert (await ask(gateway.port, target, "HEAD")).status == 200

    async def test_while_draining_it_lives_but_is_not_ready(self, gateway: RunningGateway) -> None:
        gateway.services.gate.draining = True
        assert (await ask(gateway.port, "/healthz")).status == 200
        assert (await ask(gateway.port, "/readyz")).status == 503
        answer = await ask(gateway.port, "/upload", "POST", form(file(b"abc")))
        _is_problem(answer, 503, "draining")
        assert "retry-after" in answer.headers

    async def test_several_uploads_can_share_a_connection(self, gateway: RunningGateway) -> None:
        body = form(file(b"abc"))
        async with Client(gateway.port) as client:
            for _ in range(3):
                await client.send(head(content_length=len(body)) + body)
                assert (await client.answer()).status == 201
            await client.send((head(content_length=len(body)) + body) * 2)  # pipelined
            assert [(await client.answer()).status for _ in range(2)] == [201, 201]

    async def test_a_body_that_was_not_read_ends_its_connection(self, gateway: RunningGateway) -> None:
        body = form(file(b"abc"))
        async with Client(gateway.port) as client:
            await client.send(head("/nothing", content_length=len(body)) + body)
            answer = await client.answer()
            assert (answer.status, answer.headers["connection"]) == (404, "close")
            assert await client.ended() == b""


@pytest.mark.parametrize(
    ("method", "typed", "meant"),
    [
        *(("POST", f"/upload{more}", "/upload") for more in ("/", "//")),
        *(("POST", typed, "/proxy") for typed in ("/proxy/", "//proxy", "/proxy//")),
        ("GET", "/healthz/", "/healthz"),
        ("GET", f"/uploads/{UNKNOWN}/", "/uploads"),
        ("GET", f"//files/{UNKNOWN}/0", "/files"),
    ],
)
async def test_a_path_with_a_slash_too_much_is_told_what_was_meant(
    gateway: RunningGateway, method: str, typed: str, meant: str
) -> None:
    answer = await ask(gateway.port, typed, method, form(file(b"x")) if method == "POST" else b"")
    _is_problem(answer, 404, "not-found")
    assert f"but at {meant}, without" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["//", "/pages", "/nothing/", "/uploadx/", "/proxy/x", "/proxyx//"])
async def test_any_other_path_is_told_nothing(gateway: RunningGateway, path: str) -> None:
    assert (await ask(gateway.port, path)).json()["detail"] == "there is nothing at this path"


async def test_a_file_is_found_without_a_name(gateway: RunningGateway) -> None:
    upload = (await _upload(gateway, file(b"abc")))["upload"]
    answer = await ask(gateway.port, f"/files/{upload}/0")
    assert (answer.status, answer.body) == (200, b"abc")
    assert (await ask(gateway.port, f"/files/{upload}/1")).status == 404


async def test_every_answer_says_who_answers_and_no_version(gateway: RunningGateway) -> None:
    answers = [await ask(gateway.port, path) for path in ("/healthz", "/nothing", f"/uploads/{UNKNOWN}")]
    answers.append(await ask(gateway.port, "/upload", "POST", form(file(b"x"))))
    for refused in (b"NO HTTP\r\n\r\n", b"GET / HTTP/1.1\r\nHost: g\r\nA B: c\r\n\r\n"):
        async with Client(gateway.port) as client:
            await client.send(refused)
            answers.append(await client.answer())
    assert [answer.headers["server"] for answer in answers] == ["gateway"] * 6


async def test_json_ends_in_a_newline_for_who_reads_it_on_a_terminal(gateway: RunningGateway) -> None:
    for path, status in (("/upload", 201), ("/convert", 200), ("/nothing", 404), ("/selftest/buffering", 200)):
        answer = await ask(gateway.port, path, "POST", form(file(b"x")))
        assert answer.status == status
        assert answer.json()
        assert answer.body.endswith(b"\n")


def test_upload_identifiers_sort_by_time_and_differ() -> None:
    identifiers = []
    for _ in range(20):
        identifiers.append(new_ulid())
        time.sleep(0.002)
    assert identifiers == sorted(identifiers)
    assert len({new_ulid() for _ in range(10_000)}) == 10_000
    assert all(len(identifier) == 26 for identifier in identifiers)


class TestTargetsThatAreNoPaths:
    @pytest.mark.parametrize("line", [b"OPTIONS * HTTP/1.1", b"CONNECT a:1 HTTP/1.1"])
    async def test_they_are_problems_of_their_sender(
        self, gateway: RunningGateway, caplog: pytest.LogCaptureFixture, line: bytes
    ) -> None:
        reader, writer = await asyncio.open_connection(gateway.host, gateway.port)
        writer.write(line + b"\r\nHost: a\r\nConnection: close\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        assert answer.split()[1] in (b"400", b"404", b"405")
        assert not [record for record in caplog.records if record.exc_info]


async def test_a_refused_upload_has_its_line_in_the_log_too(
    gateway: RunningGateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with (
        ClientSession() as session,
        session.post(gateway.url + "/upload", data=b"x", headers={"Content-Encoding": "gzip"}) as response,
    ):
        assert response.status == 415
        instance = (await response.json(content_type=None))["instance"]
    (line,) = [vars(record) for record in caplog.records if record.name == "gateway.uploads"]
    assert (line["upload"], line["outcome"]) == (instance.rpartition("/")[2], "not-multipart")


async def test_a_client_that_never_reads_a_large_manifest_is_cut_off(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(limits={"idle_seconds": 0.5, "max_fields_bytes": 0, "max_field_bytes": 0})
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, (gateway.host, gateway.port))
    _, writer = await asyncio.open_connection(sock=connection, limit=2)
    body = b"".join(
        b'--b\r\nContent-Disposition: form-data; name="n"\r\n\r\n' + b"v" * 20_000 + b"\r\n" for _ in range(600)
    )
    writer.write(b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=b\r\n")
    writer.write(b"Content-Length: %d\r\n\r\n" % (len(body) + 7) + body + b"--b--\r\n")
    await writer.drain()
    await eventually(lambda: not gateway.services.requests and b'outcome="ok"' in gateway.services.metrics.text())
    assert gateway.services.gate.in_flight == 0
    writer.transport.abort()


async def test_an_upload_whose_large_manifest_was_read_can_be_deleted_at_once(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave = DiskDelivery.end

    async def leave_slowly(self: DiskDelivery) -> None:
        await asyncio.sleep(0.3)
        await leave(self)

    monkeypatch.setattr(DiskDelivery, "end", leave_slowly)
    gateway = await start_gateway()
    body = form(*(file(b"x", filename=f"{number}-{'n' * 100}") for number in range(600)))
    answer = await ask(gateway.port, "/upload", "POST", body)
    assert len(answer.body) > 1 << 16
    assert (await ask(gateway.port, answer.headers["location"], "DELETE")).status == 204


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.__name__)
async def test_the_type_of_a_problem_leads_to_what_it_is(start_gateway: StartGateway, leaf: type[GatewayError]) -> None:
    gateway = await start_gateway()
    answer = await ask(gateway.port, f"/problems/{leaf.slug()}")
    assert answer.status == 200
    assert answer.json() == {"type": f"/problems/{leaf.slug()}", "title": leaf.title, "status": leaf.status}


async def test_a_problem_that_there_is_not_is_a_404(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    for path in ("/problems/of-others", "/problems/", "/problems", "/problems/busy/x"):
        assert (await ask(gateway.port, path)).status == 404
    assert (await ask(gateway.port, "/problems/busy", "POST")).status == 405
