"""Other people's readers of multipart: what each makes of the names in a body, so that ours can be compared with them.

`read(bodies)` answers, for each body, the boundary that it is read with, and its parts as (name, file name), as bytes
where the reader can tell them; None for what it refuses, and for what it does not find.
"""

from __future__ import annotations

import base64
import functools
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import NamedTuple

from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import Field, File, MultipartDecoder, NeedData

from tests.support.destinations import absent, installed_busboy

__all__ = ["READERS", "Body", "Names", "Read", "Reader"]

_HERE = Path(__file__).resolve().parent
_SECONDS = 240


class Body(NamedTuple):
    content_type: str
    data: bytes


class Names(NamedTuple):
    name: bytes | None
    filename: bytes | None


class Read(NamedTuple):
    boundary: bytes | None
    parts: list[Names] | None


Answers = list[Read]


class Reader(NamedTuple):
    name: str
    read: Callable[[Sequence[Body], Path], Answers]
    """The directory is the same for all calls, and may be written to."""
    drops_backslashes: bool = False
    """Whether it takes a backslash and a letter for that letter."""
    overlooks_empty: bool = False
    """Whether a name or file name of no characters is none to it."""
    takes_utf8_only: bool = False
    """Whether it refuses a body with a head that is no UTF-8."""
    reads_forms_only: bool = False


def _email(bodies: Sequence[Body], directory: Path) -> Answers:
    """The standard library's, under `compat32`, which is what `message_from_bytes` does."""
    answers: Answers = []
    for body in bodies:
        message = message_from_bytes(b"Content-Type: " + body.content_type.encode() + b"\r\n\r\n" + body.data)
        parts, boundary = message.get_payload(), message.get_boundary()
        answers.append(
            Read(
                None if boundary is None else boundary.encode(errors="surrogateescape"),
                [_email_names(part) for part in parts if isinstance(part, Message)]
                if isinstance(parts, list)
                else None,
            )
        )
    return answers


def _email_names(part: Message) -> Names:
    """The file name as `get_filename` finds it, which looks at the Content-Type, too, but with its spaces."""
    # the headers as they were parsed: what is no ASCII would be shown as question marks
    copy = Message()
    for key, value in part.raw_items():
        copy.add_header(key, str(value).encode("ascii", "surrogateescape").decode("latin-1"))

    def parameter(name: str, header: str) -> bytes | None:
        found = copy.get_param(name, header=header)
        if isinstance(found, tuple):
            return str(found[2]).encode("latin-1", "replace")
        return None if found is None else found.encode("latin-1")

    filename = parameter("filename", "content-disposition")
    if filename is None:
        filename = parameter("name", "content-type")
    return Names(parameter("name", "content-disposition"), filename)


def _werkzeug(bodies: Sequence[Body], directory: Path) -> Answers:
    answers: Answers = []
    for body in bodies:
        boundary = parse_options_header(body.content_type)[1].get("boundary", "").encode()
        answers.append(Read(boundary or None, _werkzeug_parts(boundary, body.data)))
    return answers


def _werkzeug_parts(boundary: bytes, data: bytes) -> list[Names] | None:
    decoder, names = MultipartDecoder(boundary), []
    try:
        decoder.receive_data(data)
        decoder.receive_data(None)
        while not isinstance(event := decoder.next_event(), NeedData) and type(event).__name__ != "Epilogue":
            if isinstance(event, File):
                names.append(Names((event.name or "").encode(), event.filename.encode()))
            elif isinstance(event, Field):
                names.append(Names((event.name or "").encode(), None))
    except Exception:
        return None
    return names


def _spoken_to(command: Sequence[str | Path], bodies: Sequence[Body], cwd: Path) -> Answers:
    given = [{"content_type": body.content_type, "data": base64.b64encode(body.data).decode()} for body in bodies]
    done = subprocess.run(
        list(map(str, command)),
        input=json.dumps(given).encode(),
        capture_output=True,
        timeout=_SECONDS,
        cwd=cwd,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    return [Read(_bytes(answer["boundary"]), _names(answer["parts"])) for answer in json.loads(done.stdout)]


def _names(parts: list[dict[str, str | None]] | None) -> list[Names] | None:
    return None if parts is None else [Names(_bytes(part["name"]), _bytes(part["filename"])) for part in parts]


def _bytes(encoded: str | None) -> bytes | None:
    return None if encoded is None else base64.b64decode(encoded)


def _busboy(bodies: Sequence[Body], directory: Path) -> Answers:
    modules = installed_busboy()
    shutil.copyfile(_HERE / "read.cjs", modules / "read.cjs")
    return _spoken_to(["node", modules / "read.cjs"], bodies, modules)


def _go(bodies: Sequence[Body], directory: Path) -> Answers:
    return _spoken_to([_built_go(directory)], bodies, directory)


@functools.cache
def _built_go(directory: Path) -> Path:
    go = shutil.which("go")
    if go is None:
        absent("go is not installed")
    program = directory / "read"
    done = subprocess.run(
        [go, "build", "-o", str(program), str(_HERE / "read.go")],
        env={**os.environ, "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return program


READERS = [
    Reader("email", _email),
    Reader("go", _go),
    Reader("busboy", _busboy, overlooks_empty=True, reads_forms_only=True),
    Reader("werkzeug", _werkzeug, drops_backslashes=True, takes_utf8_only=True),
]
