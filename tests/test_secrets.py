"""A secret in every place where one can stand: it is in no answer, line of the log, metric or traceback."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from gateway.server.logs import JsonLines, LinesForPeople
from tests.support.certificates import Authority
from tests.support.clients import Answer, Client, ask, file, form
from tests.support.doubles import (
    DyingUpstream,
    EarlyOkUpstream,
    HalfAnswerUpstream,
    HonestUpstream,
    LengthDemandingUpstream,
    LyingUpstream,
    MuteUpstream,
    RefusingUpstream,
    Upstream,
)
from tests.support.ports import closed_port
from tests.support.processes import Process

SECRET = "hunter2"
BODY = form(file(b"data"))
CREDENTIALS: dict[str, str | int] = {
    "authorization": f"Bearer {SECRET}",
    "proxy_authorization": f"Basic {SECRET}",
    "cookie": f"session={SECRET}",
    "x_api_key": SECRET,
    "referer": f"http://h/?token={SECRET}",
}
_REDIRECT = b"HTTP/1.1 302 Found\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n"
UPSTREAMS: dict[str, Upstream] = {
    "honest": HonestUpstream(200, b"{}"),
    "refusing": RefusingUpstream(503),
    "dying": DyingUpstream(),
    "early": EarlyOkUpstream(after=1, complete=True),
    "mute": MuteUpstream(),
    "lying": LyingUpstream(),
    "broken": HalfAnswerUpstream(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
    "garbage": HalfAnswerUpstream(b"hunter2\r\n\r\n"),
    "badfield": HalfAnswerUpstream(b"HTTP/1.1 200 OK\r\nSet-Cookie : hunter2\r\n\r\n"),
    "length": LengthDemandingUpstream(),
}
"""Destinations, by the names of their sinks; below some that nothing answers for."""
DOWNLOADS: dict[str, bytes] = {
    "whole": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
    "there": _REDIRECT % b"/x?sig=hunter2",
    "elsewhere": _REDIRECT % b"https://inside.invalid/x?sig=hunter2",
    "forbidden": _REDIRECT % b"http://169.254.169.254/?sig=hunter2",
    "user": _REDIRECT % b"http://admin:hunter2@127.0.0.1/x",
    "loose": _REDIRECT % b"/a b?sig=hunter2 \\hunter2",
    "garbage": b"hunter2\r\n\r\n",
    "field": b"HTTP/1.1 200 OK\r\nSet-Cookie : hunter2\r\n\r\n",
    "cookie": b"HTTP/1.1 200 OK\r\nSet-Cookie: hunter2\r\nX-Token: hunter2\r\nContent-Length: 1\r\n\r\nx",
    "short": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nx",
    "nothing": b"",
}


@dataclass(frozen=True)
class Running:
    process: Process
    routes: list[str]
    sources: dict[str, str]
    """Urls to be downloaded from, by their names."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return Authority(tmp_path_factory.mktemp("certificates")).issue("server", "DNS:hunter2.inside")


@pytest.fixture
async def running(tmp_path: Path, certificate: tuple[Path, Path]) -> AsyncIterator[Running]:
    """A gateway that logs all it can, whose sinks have a secret in their queries and their headers."""
    async with AsyncExitStack() as stack:
        urls = {name: (await stack.enter_async_context(upstream)).url for name, upstream in UPSTREAMS.items()}
        urls |= {"closed": f"http://127.0.0.1:{closed_port()}/", "unknown": f"https://{SECRET}.invalid/"}
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        distrusted = await somebody(stack, b"", context)
        urls |= {"distrusted": f"https://127.0.0.1:{distrusted}/", "plain": urls["honest"].replace("http:", "https:")}
        sources = {name: f"http://127.0.0.1:{await somebody(stack, answer)}/a" for name, answer in DOWNLOADS.items()}
        allowed = [url.removesuffix("a") + "*" for url in sources.values()] + ["https://inside.invalid/*"]
        lines = [
            '[server]\nport = 0\nhosts = ["*"]',
            "[limits]\nstall_seconds = 1\n[download]",
            f'allow = {json.dumps(allowed)}\nallow_private = ["127.0.0.0/8"]',
        ]
        for name, url in urls.items():
            lines += [
                f'[sinks.{name}]\ntype = "relay"\nurl = "{url}?sig={SECRET}"\nhealth_path = "/h?key={SECRET}"',
                f'headers = {{ "X-Api-Key" = "{SECRET}" }}',
                "health_seconds = 0.2\nconnect_seconds = 1\nfailures_to_open = 2",
                f'[[routes]]\npath = "/{name}"\nkind = "relay"\nparts = [{{ sinks = ["{name}"] }}]',
                f'[[routes]]\npath = "/store/{name}"\nkind = "upload"\nparts = [{{ sinks = ["{name}"] }}]',
            ]
        config = tmp_path / "gateway.toml"
        config.write_text("\n".join(lines))
        arguments = ["--log-level", "DEBUG", "serve", "--config", str(config)]
        with Process(*arguments, log=tmp_path / "gateway.log") as process:
            yield Running(process, [f"{kind}/{name}" for kind in ("", "/store") for name in urls], sources)


async def somebody(stack: AsyncExitStack, answer: bytes, tls: ssl.SSLContext | None = None) -> int:
    """The port of somebody who reads a head, says this, and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
        writer.close()

    server = await stack.enter_async_context(await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls))
    port: int = server.sockets[0].getsockname()[1]
    return port


async def asked(port: int, target: str, method: str = "GET", body: bytes = b"") -> Answer | None:
    """None: the answer broke off, or its server did."""
    with suppress(ConnectionError):
        return await ask(port, target, method, body, **CREDENTIALS)
    return None


@pytest.mark.sockets
async def test_it_is_in_no_answer_line_of_the_log_or_metric(running: Running) -> None:
    port = running.process.port
    answers: dict[str, Answer] = {}
    for number in range(2):  # then circuits open
        async with asyncio.TaskGroup() as group:
            targets = [f"{route}?token={SECRET}" for route in running.routes]
            asking = {target: group.create_task(asked(port, target, "POST", BODY)) for target in targets}
        answers |= {f"{target} {number}": got for target, one in asking.items() if (got := one.result())}
    urls = [f"{url}?sig={SECRET}" for url in running.sources.values()]
    urls += [f"http://admin:{SECRET}@127.0.0.1/x", f"https://inside.invalid/?sig={SECRET}", f"ftp://{SECRET}/"]
    targets = [f"/download/{url}" for one in urls for url in (one, quote(one, safe=""))]
    for target in (*targets, f"/nowhere?sig={SECRET}", f"/uploads/{SECRET}?sig=x", f"/files/x/0/{SECRET}"):
        if got := await asked(port, target):
            answers[target] = got
    async with Client(port) as client:  # and one who goes away
        start = f"POST /honest?sig={SECRET} HTTP/1.1\r\nHost: g\r\nAuthorization: {SECRET}\r\n"
        await client.send(f"{start}Content-Length: 9\r\n\r\nx".encode())
    answers["/metrics"] = await ask(port, "/metrics")
    assert {answer.status for answer in answers.values()} >= {200, 201, 403, 404, 502, 503, 504}
    for target, answer in answers.items():
        said = f"{answer.headers} {answer.body.decode(errors='replace')}"
        assert SECRET not in said, target
        assert "inside" not in said or "inside.invalid" in target, target
    log = running.process.log.read_text()
    assert len([json.loads(line) for line in log.splitlines() if line.startswith("{")]) > len(answers)
    # the log, and nothing else, tells which host was not found, and whom a certificate is for
    assert SECRET not in log.replace(f"{SECRET}.invalid", "").replace(f"{SECRET}.inside", "")


def test_no_url_in_a_line_of_the_log_has_its_user_info_or_its_query() -> None:
    url = f"http://admin:{SECRET}@h/p?sig={SECRET}é\\{SECRET}&x={SECRET}"
    try:
        raise ValueError(f"cannot ask {url} for it")
    except ValueError:
        failure = sys.exc_info()
    record = logging.LogRecord("x", logging.ERROR, "", 0, "told %s and 'more'", (url,), failure)
    record.detail, record.sinks, record.seconds = f"{url}\nnext", [{"url": url, "n": 1}, (url,)], 1.5
    for_people = LinesForPeople().format(record)
    assert SECRET not in for_people
    assert "told http://h/p and 'more'" in for_people
    line = JsonLines().format(record)
    assert SECRET not in line
    shown = json.loads(line)
    assert shown["message"] == "told http://h/p and 'more'"
    assert "cannot ask http://h/p for it" in shown["traceback"]
    assert shown["detail"] == "http://h/p\nnext"
    assert (shown["sinks"], shown["seconds"]) == ([{"url": "http://h/p", "n": 1}, ["http://h/p"]], 1.5)
