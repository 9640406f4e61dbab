"""How a line of the log is written, and whose it says it is. What it must not tell is tested in test_secrets."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import pytest

from gateway.server.logs import JsonLines, LinesForPeople, LogFormat, about, configure_logging, tell_also
from tests.conftest import StartDestination, StartGateway
from tests.support.clients import Client, ask, eventually, file, form

Lines = Callable[[], list[dict[str, Any]]]
FORM = form(file(b"hello", filename="a.txt"), file(b"again", filename="b.txt"))


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Lines:
    """What was written to the log of this process, as a gateway configures it."""
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    configure_logging("INFO", log_format="json")
    return lambda: [json.loads(line) for line in written.getvalue().splitlines()]


def test_a_line_without_a_url_is_as_it_was_said() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, 'is it? "a@b" \\ ü', (), None)
    record.filename_ = "what?.txt"
    shown = json.loads(JsonLines().format(record))
    assert (shown["message"], shown["filename_"]) == ('is it? "a@b" \\ ü', "what?.txt")


def test_a_line_for_people_has_its_members_behind_it_and_a_traceback_below() -> None:
    try:
        raise ValueError("no\x1b[2J")
    except ValueError:
        record = logging.LogRecord("gateway.x", logging.ERROR, "", 0, "it %s", ("failed",), sys.exc_info())
    record.detail, record.parts, record.sink, record.sizes = "two words", 2, None, {"a": 1}
    first, *rest = LinesForPeople().format(record).split("\n")
    assert first[8:] == " ERROR   gateway.x: it failed detail='two words' parts=2 sizes='{\"a\": 1}'"
    assert rest[0] == "Traceback (most recent call last):"
    assert rest[-1] == "ValueError: no\\x1b[2J"


def test_nothing_that_a_client_wrote_begins_a_line_for_people_or_moves_the_cursor() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "a\nb\x1b[2K\u202e", (), None)
    record.detail = "c\r\nd\x9b"
    line = LinesForPeople().format(record)
    assert line.isprintable()
    assert "a\\nb\\x1b[2K" in line


@pytest.mark.parametrize(
    ("log_format", "on_terminal", "is_json"),
    [("auto", True, False), ("auto", False, True), ("json", True, True), ("people", False, False)],
)
def test_lines_are_for_people_on_a_terminal_and_json_elsewhere_unless_it_is_said(
    monkeypatch: pytest.MonkeyPatch, log_format: LogFormat, on_terminal: bool, is_json: bool
) -> None:
    reading, writing = os.openpty() if on_terminal else os.pipe()
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        configure_logging("INFO", log_format=log_format)
        logging.getLogger("gateway.x").info("hello")
        line = os.read(reading, 1000).decode()
    os.close(reading)
    assert line.startswith("{") is is_json
    assert "hello" in line


async def test_what_is_logged_for_a_request_says_whose_it_is_and_what_lives_longer_does_not(lines: Lines) -> None:
    log = logging.getLogger("gateway.x")
    go_on = asyncio.Event()

    async def later() -> None:
        await go_on.wait()
        log.info("later")

    async def within() -> None:
        log.info("in a task")

    async with asyncio.TaskGroup() as longer:
        with about(client="192.0.2.1"):
            tell_also(upload="U")
            log.info("now")
            async with asyncio.TaskGroup() as group:
                group.create_task(within())
            log.info("its own", extra={"upload": "V"})
            longer.create_task(later())
            await asyncio.sleep(0)
        log.info("after")
        go_on.set()
    members = {line["message"]: (line.get("client"), line.get("upload")) for line in lines()}
    assert members == {
        "now": ("192.0.2.1", "U"),
        "in a task": ("192.0.2.1", "U"),
        "its own": ("192.0.2.1", "V"),
        "after": (None, None),
        "later": (None, None),
    }


async def test_reads_downloads_and_removals_have_a_line_each_with_client_and_request_id(
    start_gateway: StartGateway, start_destination: StartDestination, lines: Lines
) -> None:
    destination = await start_destination()
    gateway = await start_gateway(
        server={"trusted_networks": ["127.0.0.0/8", "10.0.0.0/8"]},
        download={"allow": [f"{destination.url}/*"], "allow_private": ["127.0.0.0/8"]},
    )
    upload = json.loads((await ask(gateway.port, "/upload", "POST", FORM)).body)["upload"]
    asked = [
        ("GET", f"/uploads/{upload}", "read ok", 200),
        ("GET", f"/uploads/{upload}/archive.zip", "read ok", 200),
        ("GET", f"/files/{upload}/1/b.txt", "read ok", 200),
        ("GET", f"/files/{upload}/7/secret", "read not-found", 404),
        ("GET", "/uploads/secret", "read not-found", 404),
        ("DELETE", f"/uploads/{upload}", "delete ok", 204),
        ("GET", f"/download/{destination.url}/healthz", "download ok", 200),
    ]
    for number, (method, target, _, status) in enumerate(asked):
        answer = await ask(
            gateway.port, target, method, x_request_id=f"r{number}", x_forwarded_for="192.0.2.9, 10.1.1.1"
        )
        assert (answer.status, answer.headers["x-request-id"]) == (status, f"r{number}")
    told = [line for line in lines() if line.get("request_id", "").startswith("r")]
    assert [(line["message"], line["client"]) for line in told] == [(message, "192.0.2.9") for *_, message, _ in asked]
    assert [line.get("what") for line in told] == ["manifest", "archive", "file", "file", "manifest", None, None]
    assert [line.get("upload") == upload for line in told] == [True, True, True, True, False, True, False]
    assert [line.get("part") for line in told] == [None, None, 1, 7, None, None, None]
    assert "secret" not in json.dumps(told)
    assert {line["level"] for line in told} == {"INFO"}


async def test_a_read_that_nobody_takes_to_its_end_says_so(start_gateway: StartGateway, lines: Lines) -> None:
    gateway = await start_gateway()
    big = form(file(bytes(20 << 20)))
    upload = json.loads((await ask(gateway.port, "/upload", "POST", big)).body)["upload"]
    async with Client(gateway.port, receive_buffer_bytes=4096) as client:
        await client.send(f"GET /files/{upload}/0/a HTTP/1.1\r\nHost: g\r\n\r\n".encode())
        await asyncio.sleep(0.1)
        client.reset()
    await eventually(lambda: any(line["message"] == "read client-gone" for line in lines()), 10)


@pytest.mark.tracebacks
@pytest.mark.parametrize("flow", ["failing", "finding_nan"])
async def test_a_flows_traceback_says_which_upload_part_and_request_it_was(
    start_gateway: StartGateway, lines: Lines, flow: str
) -> None:
    rules = [{"match": {"filename": "b.txt"}, "flows": ["bad"], "sinks": ["none"]}, {"sinks": ["none"]}]
    gateway = await start_gateway(
        flows={"bad": {"use": f"tests.support.flows_of_ours:{flow}"}}, routes=[{"path": "/x", "parts": rules}]
    )
    answer = await ask(gateway.port, "/x", "POST", FORM, x_request_id="mine")
    assert answer.status == 500
    (line,) = [line for line in lines() if "traceback" in line]
    upload = json.loads(answer.body)["instance"].rpartition("/")[2]
    assert (line["flow"], line["part"], line["upload"], line["request_id"]) == ("bad", 1, upload, "mine")
    assert (line["level"], line["client"]) == ("ERROR", "127.0.0.1")


@pytest.mark.parametrize(
    ("target", "slots", "level"),
    [
        ("/upload", {"max_uploads": 0}, "INFO"),
        ("/proxy", {}, "WARNING"),
        ("/nowhere", {}, None),
    ],
)
async def test_a_5xx_of_ours_is_a_warning(
    start_gateway: StartGateway, lines: Lines, target: str, slots: dict[str, int], level: str | None
) -> None:
    gateway = await start_gateway(api="http://127.0.0.1:1/", server=slots)
    answer = await ask(gateway.port, target, "POST", FORM, x_request_id="mine")
    told = [line["level"] for line in lines() if line["message"].startswith("upload ")]
    assert told == ([] if level is None else [level])
    assert (answer.status >= 500) is (level == "WARNING")
