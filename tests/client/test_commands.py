"""The command line of both: what is printed, and where; exit codes; what is told of each upload."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from gateway.access import new_key, read_secrets, signed_url
from gateway.client import outcomes
from gateway.client.commands import add_arguments, ended_by_signals, get, send
from gateway.client.outcomes import Code, Failed
from tests.conftest import StartDestination, StartGateway
from tests.support.ports import closed_port

SEND_MEMBERS = [
    *("source", "upload", "state", "exit_code", "status", "url", "seconds", "tries", "files", "problem", "answer"),
]
FILE_MEMBERS = ["name", "size", "sha256", "verified", "url"]
GET_MEMBERS = [
    *("url", "path", "state", "exit_code", "size", "sha256", "verified", "resumed_from", "seconds", "problem"),
]
DOCS = (Path(__file__).resolve().parent.parent.parent / "docs" / "send.md").read_text("utf-8")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "_FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GATEWAY_KEY", raising=False)
    monkeypatch.delenv("GATEWAY_URL", raising=False)


async def run(*arguments: str) -> int:
    command, *rest = arguments
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_arguments(parser, command)
    return await (send if command == "send" else get)(parser.parse_args(rest), [])


async def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """The exit code, and each line of JSON."""
    code = await run(*arguments, "--json")
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


async def test_where_the_output_is_no_terminal_it_is_quiet(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    gateway = await start_gateway()
    monkeypatch.setenv("GATEWAY_URL", gateway.url)
    Path("a").write_bytes(b"x")
    assert await run("send", "a") == Code.DONE
    assert capfd.readouterr() == ("", "")
    assert await run("send", "a", "b\x1b[31m") == Code.LOCAL
    out, err = capfd.readouterr()
    assert (out, err) == ("", "gateway: b\N{REPLACEMENT CHARACTER}[31m: No such file or directory\n")


async def test_every_line_of_json_has_all_members_in_their_order(
    start_gateway: StartGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway = await start_gateway()
    Path("a").write_bytes(b"x")
    Path("empty").mkdir()
    code, lines = await told(capsys, "send", "a", "missing", "empty", "--recursive", "--to", gateway.url)
    assert code == Code.LOCAL
    assert {line["source"]: line["state"] for line in lines} == {"a": "kept", "missing": "failed", "empty": "failed"}
    for line in lines:
        assert list(line) == SEND_MEMBERS
        assert all(list(one) == FILE_MEMBERS for one in line["files"])
    (kept,) = (line for line in lines if line["source"] == "a")
    assert (kept["url"], kept["status"], kept["exit_code"]) == (f"{gateway.url}/uploads/{kept['upload']}", 201, 0)
    assert kept["files"][0]["verified"] is True
    code, lines = await told(capsys, "get", kept["files"][0]["url"], "-o", "b")
    assert (code, [list(line) for line in lines]) == (0, [GET_MEMBERS])
    assert Path("b").read_bytes() == b"x"
    shown = re.search(r"```json\n(\{\"source.*?)```", DOCS, re.DOTALL)
    assert shown is not None
    assert list(json.loads(shown[1])) == SEND_MEMBERS


def test_the_page_has_every_exit_code() -> None:
    rows = re.findall(r"^\| (\d+) \| ", DOCS, re.MULTILINE)
    assert [int(row) for row in rows if int(row) < 128] == list(map(int, Code))
    assert set(re.findall(r"`(\w+)`", re.search(r"^- `state`: (.*?)^-", DOCS, re.MULTILINE | re.DOTALL)[1])) == {  # type: ignore[index]
        *("kept", "failed", "partly", "differs", "unknown", "interrupted"),
    }


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("send", "a", "--to", "127.0.0.1:8080"), Code.USAGE),
        (("send", "a", "--to", "http://user:secret@127.0.0.1/"), Code.USAGE),
        (("send", "a", "--to", f"http://{'a' * 64}.example.org/"), Code.USAGE),
        (("send", "-", "-"), Code.USAGE),
        (("send", "a", "--key-file", "nowhere"), Code.USAGE),
        (("send", "a", "--key-file", os.devnull), Code.USAGE),
        (("get", "01ARZ"), Code.USAGE),
    ],
)
async def test_a_wrong_command_line_is_told_before_anything_is_sent(arguments: tuple[str, ...], code: Code) -> None:
    with pytest.raises(Failed) as raised:
        await run(*arguments)
    assert raised.value.code == code
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("arguments", [("--field", "x"), ("--field", "=x"), ("--parallel", "0"), ("--key", "gw_x")])
async def test_arguments_that_are_none_exit_2(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        await run("send", "a", *arguments)


async def test_each_kind_of_failure_has_its_exit_code(
    start_gateway: StartGateway, start_destination: StartDestination, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(request: web.Request) -> web.Response:
        return web.Response(status=500)

    app = web.Application()
    app.router.add_post("/upload", fail)
    destination = await start_destination(app)
    routes = [
        {"path": "/small", "kind": "upload", "parts": [{"match": {"content_type": "image/*"}, "sinks": ["disk"]}]},
        {"path": "/both", "parts": [{"sinks": ["api", "disk"]}]},
        {"path": "/each", "keep": "each", "parts": [{"match": {"filename": "*.txt"}, "sinks": ["disk"]}]},
    ]
    gateway = await start_gateway(api=f"{destination.url}/upload", routes=routes)
    Path("a").write_bytes(b"x")
    Path("b.txt").write_bytes(b"x")
    found = {}
    for path in ("/small", "/nowhere", "/both", "/each"):
        code, (line,) = await told(capsys, "send", "a", "--to", gateway.url + path)
        found[path] = (code, line["exit_code"], line["state"], line["problem"]["type"])
    assert found == {
        "/small": (Code.REFUSED, 3, "failed", "/problems/no-route"),
        "/nowhere": (Code.REFUSED, 3, "failed", "/problems/not-found"),
        "/both": (Code.FAILED, 5, "failed", "/problems/sink-refused"),
        "/each": (Code.PARTLY, 9, "partly", "/problems/no-route"),
    }
    assert not list(gateway.root.glob("[0-9]*/[0-9]*"))
    nobody = f"http://127.0.0.1:{closed_port()}"
    code, lines = await told(capsys, "send", "a", "b.txt", "--to", nobody)
    assert code == Code.LATER
    assert [(line["source"], line["upload"], line["exit_code"]) for line in lines] == [
        ("a", None, 6),
        ("b.txt", None, 6),
    ]
    with pytest.raises(Failed) as raised:
        await run("get", "--json", f"{nobody}/uploads/01ARZ3NDEKTSV4RRFFQ69G5FAV")
    assert raised.value.code is Code.LATER
    line = json.loads(capsys.readouterr().out)
    assert list(line) == GET_MEMBERS
    assert (line["path"], line["exit_code"]) == (None, 6)


async def test_the_key_comes_from_the_environment_or_a_file(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key, line = new_key("ci", ("upload", "read"), None)
    Path("keys").write_text(line)
    Path("key").write_text(key + "\n")
    Path("a").write_bytes(b"x")
    routes = [{"path": "/upload", "access": ["keys"], "parts": [{"sinks": ["disk"]}]}]
    gateway = await start_gateway(routes=routes, access={"keys": {"file": "keys"}})
    to = ("--to", f"{gateway.url}/upload")
    assert (await told(capsys, "send", "a", *to))[0] == Code.ACCESS
    code, (kept,) = await told(capsys, "send", "a", *to, "--key-file", "key")
    assert (code, kept["answer"]["identity"]) == (0, "key:ci")
    monkeypatch.setenv("GATEWAY_KEY", key)
    assert (await told(capsys, "send", "a", *to))[0] == 0
    monkeypatch.setenv("GATEWAY_URL", gateway.url)
    assert (await told(capsys, "get", kept["upload"], "-o", "b"))[0] == 0
    monkeypatch.setenv("GATEWAY_KEY", "gw_\nx")
    with pytest.raises(Failed):
        await run("send", "a", *to)


async def test_all_files_of_an_upload_are_fetched_under_names_that_are_safe(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway = await start_gateway()
    monkeypatch.setenv("GATEWAY_URL", gateway.url)
    for number, name in enumerate(["top/..evil", "top/a.txt", "top/sub/a.txt", "top/sub/.part"]):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"x" * number)
    code, (line,) = await told(capsys, "send", "top", "--recursive")
    assert code == 0
    Path("got").mkdir()
    code, lines = await told(capsys, "get", line["upload"], "-o", "got")
    assert (code, [one["verified"] for one in lines]) == (0, [True] * 4)
    assert sorted(os.listdir("got")) == ["__evil", "_part", "a (2).txt", "a.txt"]
    os.unlink("got/a.txt")
    Path("got/a (2).txt").write_bytes(b"mine")
    code, lines = await told(capsys, "get", f"{gateway.url}/uploads/{line['upload']}", "-o", "got")
    assert code == Code.LOCAL  # what is there already, and the same, is fine
    assert [one["exit_code"] for one in lines] == [0, 0, 0, 1]
    assert Path("got/a (2).txt").read_bytes() == b"mine"


async def test_a_signed_url_is_a_place_to_send_to(
    start_gateway: StartGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("secrets").write_text("0" * 64)
    Path("a").write_bytes(b"x")
    routes = [{"path": "/mine", "access": ["signed"], "parts": [{"sinks": ["disk"]}]}]
    gateway = await start_gateway(routes=routes, access={"signed": {"secrets_file": "secrets"}})
    url = gateway.url + signed_url(read_secrets("secrets"), "/mine", expires_seconds=60, count=1)
    assert (await told(capsys, "send", "a", "--to", url))[0] == Code.DONE
    assert (await told(capsys, "send", "a", "--to", url))[0] == Code.ACCESS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_ends_it_and_says_so(number: signal.Signals) -> None:
    hung_up = []

    async def work(at_signal: list[Callable[[], None]]) -> int:
        at_signal.append(lambda: hung_up.append(True))
        os.kill(os.getpid(), number)
        await asyncio.sleep(60)
        return 0

    before = signal.getsignal(number)
    async with asyncio.TaskGroup() as group:
        working = group.create_task(ended_by_signals(work))
    assert (working.result(), hung_up) == (128 + number, [True])
    signal.signal(number, before)


async def test_many_are_sent_a_few_at_a_time(
    start_destination: StartDestination, capsys: pytest.CaptureFixture[str]
) -> None:
    running, most = 0, 0

    async def take(request: web.Request) -> web.Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        async for _ in request.content.iter_any():
            pass
        await asyncio.sleep(0.2)
        running -= 1
        return web.Response(status=201)

    app = web.Application()
    app.router.add_post("/upload", take)
    server = await start_destination(app)
    names = [f"{number}" for number in range(12)]
    for name in names:
        Path(name).write_bytes(b"x" * 300_000)
    code, lines = await told(capsys, "send", *names, "--parallel", "3", "--to", server.url)
    assert (code, sorted(line["source"] for line in lines)) == (0, sorted(names))
    assert most == 3
