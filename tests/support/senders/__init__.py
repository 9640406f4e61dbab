"""Real clients: each sends the same uploads in its own way and its own dialect, to one URL.

A client quotes names as it likes, and the gateway reads most of that alike (codec and headers say how). What
cannot be told apart on the wire is not restored by anybody: `means` is what a client's name says there.

- curl, requests and node write the WHATWG form: `"` as %22, and a backslash as it is;
- httpx writes %22 as well, but doubles backslashes;
- Go escapes both with a backslash.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import requests

from tests.support.destinations import absent

__all__ = ["SENDERS", "Answered", "File", "Large", "Sender", "Upload", "field"]

_HERE = Path(__file__).resolve().parent
_SECONDS = 120
_TYPE = "application/octet-stream"


class File(NamedTuple):
    name: str
    filename: str | None
    data: bytes


def field(name: str, value: str) -> File:
    return File(name, None, value.encode())


@dataclass(frozen=True)
class Large:
    """One file, made while it is sent: `block` again and again, each time with its number in its first four bytes."""

    block: bytes
    count: int
    name: str = "file"
    filename: str = "large.bin"

    @property
    def size(self) -> int:
        return len(self.block) * self.count

    def pieces(self) -> Iterator[bytes]:
        for number in range(self.count):
            yield number.to_bytes(4, "big") + self.block[4:]

    @functools.cached_property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for piece in self.pieces():
            digest.update(piece)
        return digest.hexdigest()


Upload = Sequence[File] | Large
Answered = list[tuple[int, str]]
"""Status and body, per upload."""


# -- in this process


def _triples(parts: Sequence[File]) -> list[Any]:
    return [
        (part.name, (None, part.data) if part.filename is None else (part.filename, part.data, _TYPE)) for part in parts
    ]


def _by_hand(large: Large) -> tuple[dict[str, str], Iterator[bytes]]:
    """For clients whose own forms would hold it all: a body that is made as it is sent, and so goes out chunked."""

    def body() -> Iterator[bytes]:
        disposition = f'form-data; name="{large.name}"; filename="{large.filename}"'
        yield f"--large\r\nContent-Disposition: {disposition}\r\nContent-Type: {_TYPE}\r\n\r\n".encode()
        yield from large.pieces()
        yield b"\r\n--large--\r\n"

    return {"Content-Type": "multipart/form-data; boundary=large"}, body()


def _requests(url: str, uploads: Sequence[Upload], directory: Path) -> Answered:
    answers = []
    with requests.Session() as session:
        session.trust_env = False
        for upload in uploads:
            if isinstance(upload, Large):
                headers, body = _by_hand(upload)
                answer = session.post(url, data=body, headers=headers, timeout=_SECONDS)
            else:
                answer = session.post(url, files=_triples(upload), timeout=_SECONDS)
            answers.append((answer.status_code, answer.text))
    return answers


def _httpx(url: str, uploads: Sequence[Upload], directory: Path) -> Answered:
    answers = []
    with httpx.Client(timeout=_SECONDS, trust_env=False) as client:
        for upload in uploads:
            if isinstance(upload, Large):
                headers, body = _by_hand(upload)
                answer = client.post(url, content=body, headers=headers)
            else:
                answer = client.post(url, files=_triples(upload))
            answers.append((answer.status_code, answer.text))
    return answers


# -- in processes of their own


def _curl(url: str, uploads: Sequence[Upload], directory: Path) -> Answered:
    if shutil.which("curl") is None:
        absent("curl is not installed")
    return [_curl_one(url, upload, directory) for upload in uploads]


def _curl_one(url: str, upload: Upload, directory: Path) -> tuple[int, str]:
    arguments: list[str] = []
    if isinstance(upload, Large):
        path = directory / "large"
        with path.open("wb") as file:
            file.writelines(upload.pieces())
        arguments = ["-F", f"{upload.name}=@{path};filename={upload.filename};type={_TYPE}"]
    else:
        for number, part in enumerate(upload):
            if part.filename is None:
                arguments += ["--form-string", f"{part.name}={part.data.decode()}"]
                continue
            path = directory / str(number)
            path.write_bytes(part.data)
            # in curl's own syntax a quoted value escapes quotes and backslashes
            quoted = part.filename.replace("\\", "\\\\").replace('"', '\\"')
            arguments += ["-F", f'{part.name}=@{path};filename="{quoted}";type={_TYPE}']
    try:
        done = subprocess.run(
            ["curl", "-sS", "--noproxy", "*", "--max-time", str(_SECONDS), "-w", "\n%{http_code}", *arguments, url],
            capture_output=True,
            timeout=_SECONDS + 10,
            check=False,
        )
    finally:
        if isinstance(upload, Large):
            path.unlink()
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    body, _, status = done.stdout.decode().rpartition("\n")
    return int(status), body


def _spoken_to(*command: str | Path) -> Callable[[str, Sequence[Upload]], Answered]:
    """A program that reads what to send as JSON, and prints the answers as JSON."""

    def document(upload: Upload) -> Any:
        def text(data: bytes) -> str:
            return base64.b64encode(data).decode()

        if isinstance(upload, Large):
            return {
                "name": upload.name,
                "filename": upload.filename,
                "block": text(upload.block),
                "count": upload.count,
            }
        return [{"name": part.name, "filename": part.filename, "data": text(part.data)} for part in upload]

    def send(url: str, uploads: Sequence[Upload]) -> Answered:
        given = json.dumps({"url": url, "uploads": [document(upload) for upload in uploads]})
        done = subprocess.run(
            list(map(str, command)), input=given.encode(), capture_output=True, timeout=_SECONDS, check=False
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return [(status, body) for status, body in json.loads(done.stdout)]

    return send


def _node(url: str, uploads: Sequence[Upload], directory: Path) -> Answered:
    if shutil.which("node") is None:
        absent("node is not installed")
    said = subprocess.run(["node", "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    if int(said.lstrip("v").partition(".")[0]) < 18:
        absent(f"node {said.strip()} has no fetch")
    return _spoken_to("node", _HERE / "send.cjs")(url, uploads)


def _go(url: str, uploads: Sequence[Upload], directory: Path) -> Answered:
    return _spoken_to(_built_go(directory))(url, uploads)


@functools.cache
def _built_go(directory: Path) -> Path:
    go = shutil.which("go")
    if go is None:
        absent("go is not installed")
    program = directory / "send"
    done = subprocess.run(
        [go, "build", "-o", str(program), str(_HERE / "send.go")],
        env={**os.environ, "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return program


# -- names


def _as_it_is(name: str) -> str:
    return name


def _doubled(name: str) -> str:
    return name.replace("\\", "\\\\")


@dataclass(frozen=True)
class Sender:
    """`send(url, uploads, directory)`: the directory is the same for all calls, and may be written to."""

    name: str
    send: Callable[[str, Sequence[Upload], Path], Answered]
    means: Callable[[str], str] = _as_it_is
    writes: Callable[[str], str] = _as_it_is
    """What it makes of backslashes on the wire, for who gets that as it is."""
    knows_empty_inputs: bool = True
    """Whether it can send a file name of ""."""

    def __str__(self) -> str:
        return self.name


SENDERS = [
    Sender("curl", _curl),
    Sender("requests", _requests),
    Sender("httpx", _httpx, writes=_doubled, knows_empty_inputs=False),
    Sender("node", _node, knows_empty_inputs=False),
    Sender("go", _go, writes=_doubled),
]
