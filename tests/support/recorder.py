"""Records what real clients send, for tests/multipart/cases: `python -m tests.support.recorder`.

Each client that is present here sends a few small forms to a server that keeps their bodies. A boundary that a
client makes up anew each time is replaced by one of the same form, so that a recording made again is the same.
What a form means is what was to be sent, put in the client's own dialect (`tests/support/senders`).
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from tests.support.senders import SENDERS, File, field

__all__ = ["CLIENTS", "FORMS", "Client", "Recording", "record"]

DIRECTORY = Path(__file__).resolve().parents[1] / "multipart" / "cases" / "recorded"
_TYPE = "application/octet-stream"
FORMS: dict[str, Sequence[File]] = {
    "names": [
        File('na"me', 'a "quoted" name.txt', b"1"),
        File("файл", "näïve 文件 🎉.txt", b"2"),
        File("100%", "%41 100%.txt", b"3"),
        File("file", "back\\slash.txt", b"4"),
        File("a[b].c", " semi;colon='x', y=z .txt", b"5"),
        field('fi"eld', "välue"),
    ],
    "contents": [
        File("file", "delimiters.bin", b"\r\n--\r\n--x\r\n\0\xff--\r\n"),
        File("file", "every.bin", bytes(range(256))),
        File("file", "empty.txt", b""),
        field("note", ""),
        field("text", "two\r\nlines\r\n"),
        File("file", "ends.txt", b"\r\n\r\n"),
    ],
    "fields": [
        part for number in range(6) for part in (field(f"n{number}", "x" * number), File("f", f"{number}", b"y"))
    ],
}


@dataclass(frozen=True)
class Client:
    """`send(url, form, directory)` sends a form, and may write to the directory."""

    name: str
    send: Callable[[str, Sequence[File], Path], object]
    version: Callable[[], str]
    means: Callable[[str], str] = str
    """What its dialect makes of a file name."""
    means_name: Callable[[str], str] | None = None
    """The same for a field's name, where that is another."""
    field_type: str | None = None
    """The Content-Type that it gives to a field."""
    is_pinned: bool = True
    """Whether tests/requirements.txt says which version of it there is."""


@dataclass(frozen=True)
class Recording:
    """A body as it was sent, and what it means, as in recorded.json."""

    body: bytes
    told: dict[str, Any]


# -- the clients


def _as_senders_do(name: str) -> Callable[[str, Sequence[File], Path], object]:
    sender = next(sender for sender in SENDERS if sender.name == name)
    return lambda url, parts, directory: sender.send(url, [parts], directory)


def _aiohttp(url: str, parts: Sequence[File], directory: Path) -> None:
    async def send() -> None:
        form = aiohttp.FormData()
        for name, filename, data in parts:
            if filename is None:
                form.add_field(name, data.decode())
            else:
                form.add_field(name, data, filename=filename, content_type=_TYPE)
        async with aiohttp.ClientSession() as session, session.post(url, data=form) as answer:
            await answer.read()

    asyncio.run(send())


def _escaping_curl(url: str, parts: Sequence[File], directory: Path) -> None:
    arguments: list[str] = []
    for number, (name, filename, data) in enumerate(parts):
        if filename is None:
            arguments += ["--form-string", f"{name}={data.decode()}"]
        else:
            (directory / f"{number}").write_bytes(data)
            quoted = filename.replace("\\", "\\\\").replace('"', '\\"')
            arguments += ["-F", f'{name}=@{directory / str(number)};filename="{quoted}";type={_TYPE}']
    subprocess.run(
        ["curl", "-sS", "--noproxy", "*", "--form-escape", *arguments, url], capture_output=True, timeout=60, check=True
    )


def _says(*command: str) -> Callable[[], str]:
    def version() -> str:
        said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        match = re.search(r"\d+\.[\w.]+", said)
        return match[0] if match else said.strip()

    return version


def _encoded(name: str) -> str:
    """Everything percent-encoded, which nobody undoes; where there is nothing to encode it is itself."""
    return quote(name, safe="")


CLIENTS = [
    Client("aiohttp", _aiohttp, lambda: version("aiohttp"), _encoded, str, "text/plain; charset=utf-8"),
    Client("httpx", _as_senders_do("httpx"), lambda: version("httpx")),
    Client("requests", _as_senders_do("requests"), lambda: version("requests")),
    Client("curl", _as_senders_do("curl"), _says("curl", "--version"), is_pinned=False),
    Client("curl-form-escape", _escaping_curl, _says("curl", "--version"), is_pinned=False),
    Client("go", _as_senders_do("go"), _says("go", "version"), is_pinned=False),
    Client("node", _as_senders_do("node"), _says("node", "--version"), is_pinned=False),
]

# -- the recorder


@contextmanager
def _keeping() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """(URL, the Content-Type and the body of each POST that came there)."""
    kept: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers["Content-Length"]))
            kept.append((self.headers["Content-Type"], body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", kept
        finally:
            server.shutdown()
            thread.join()


def _settled(content_type: str, body: bytes) -> tuple[str, bytes]:
    """Both with the random half of the boundary, its letters and digits at the end, replaced."""
    match = re.search(r'boundary="?([^";]+)', content_type)
    assert match is not None
    boundary = match[1]
    random = re.search(r"[0-9A-Za-z]*$", boundary)
    assert random is not None
    fixed = boundary[: random.start()] + ("0123456789abcdef" * 5)[: len(random[0])]
    assert fixed.encode() not in body
    return content_type.replace(boundary, fixed), body.replace(boundary.encode(), fixed.encode())


def record(client: Client, directory: Path) -> dict[str, Recording]:
    """Its recordings by their titles; what has to be written to a file goes to the directory."""
    recordings = {}
    for title, parts in FORMS.items():
        with _keeping() as (url, kept):
            client.send(url, parts, directory)
        ((content_type, body),) = kept
        content_type, body = _settled(content_type, body)
        meant = [
            {
                "name": (client.means_name or client.means)(name),
                "filename": None if filename is None else client.means(filename),
                "content_type": client.field_type if filename is None else _TYPE,
                "data": base64.b64encode(data).decode(),
            }
            for name, filename, data in parts
        ]
        told = {"client": f"{client.name} {client.version()}", "type": content_type, "parts": meant}
        recordings[f"{client.name}-{title}"] = Recording(body, told)
    return recordings


def _main() -> None:
    DIRECTORY.mkdir(exist_ok=True)
    index = DIRECTORY / "recorded.json"
    told = json.loads(index.read_text("utf-8")) if index.exists() else {}
    for client in CLIENTS:
        try:
            with tempfile.TemporaryDirectory() as directory:
                recordings = record(client, Path(directory))
        except (pytest.skip.Exception, FileNotFoundError) as error:
            print(f"{client.name} is left as it was: {error}", file=sys.stderr)
            continue
        for title, recording in recordings.items():
            (DIRECTORY / f"{title}.body").write_bytes(recording.body)
            told[title] = recording.told
    index.write_text(json.dumps(dict(sorted(told.items())), indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    _main()
