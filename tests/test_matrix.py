"""Every real client before every real destination, with the gateway between them: the same awkward uploads for all.

What arrives has to be what was sent: names, file names, sizes, digests and order, as far as a destination can tell.
Where a client or a destination reads names in its own way, tests/senders and tests/destinations say which.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.destinations import DESTINATIONS, LENGTH_ONLY, Destination
from tests.support.processes import Process, gateway_process
from tests.support.senders import SENDERS, File, Large, Sender, field

# The first build of the Go client compiles the standard library.
pytestmark = [pytest.mark.sockets, pytest.mark.timeout(400)]

_RANDOM = random.Random(5)
UPLOADS: dict[str, Sequence[File]] = {
    "one file": [File("file", "a.bin", _RANDOM.randbytes(300_000))],
    "quotes": [File('na"me', 'a "quoted" name.txt', b"1"), field('fi"eld', '"value"')],
    "unicode": [File("файл", "näïve 文件 🎉 nai\u0308ve.txt", b"1"), field("välue", "žluťoučký 🐎")],
    "percent signs": [File("100%", "100%.txt", b"1"), File("file", "%41%2e%.txt", b"2"), field("50%", "%00")],
    "backslashes": [
        File("file", "back\\slash.txt", b"1"),
        File("file", 'both\\of "them".txt', b"2"),
        File("file", "C:\\fakepath\\a.txt", b"3"),
    ],
    "other separators": [File("a[b].c", " semi;colon='x', y=z .txt", b"1"), File("file", "../up/a.txt", b"2")],
    "bytes like delimiters": [
        File("file", "a.bin", b"\r\n--\r\n--x\r\n\0\xff--\r\n"),
        File("file", "b.bin", b"--" * 100_000 + b"\r\n"),
    ],
    "nothing in it": [File("file", "empty.txt", b""), field("note", ""), File("file", "empty, too", b"")],
    "the same names": [File("file", "a.txt", data) for data in (b"1", b"", b"3" * 100_000)] + [field("file", "4")],
    "an empty file input": [field("before", "1"), File("file", "", b""), File("file", "a.txt", b"2")],
    "fields between files": [
        part for number in range(20) for part in (field(f"n{number}", "x" * number), File("f", f"{number}", b"y"))
    ],
    "300 parts": [
        File("file", f"{number}.bin", _RANDOM.randbytes(number)) if number % 3 else field("note", str(number))
        for number in range(300)
    ],
}
LARGE = Large(_RANDOM.randbytes(1 << 20), 256)


@dataclass(frozen=True)
class Behind:
    """A destination, and a gateway before it."""

    destination: Destination
    gateway: Process

    @property
    def url(self) -> str:
        return f"{self.gateway.url}/proxy"


@pytest.fixture(scope="module", params=DESTINATIONS, ids=str)
def behind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    destination: Destination = request.param
    directory = tmp_path_factory.mktemp(destination.name)
    with (
        destination.start(directory) as url,
        gateway_process(directory, GATEWAY_SINKS__API__URL=f"{url}/upload") as gateway,
    ):
        yield Behind(destination, gateway)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What clients may write to."""
    return tmp_path_factory.mktemp("senders")


Row = tuple[str, str | None, int, str]


def expected(parts: Sequence[File], sender: Sender, destination: Destination, length: str = "") -> list[Row]:
    """What this destination has to say about what this client sends."""
    means = sender.writes if length == "passthrough" else sender.means

    rows: list[Row] = []
    for name, filename, data in parts:
        told = None if filename is None else destination.reads(means(filename))
        if told == "" and not (sender.knows_empty_inputs and destination.knows_empty_inputs):
            told = None
        rows.append((destination.reads(means(name)), told, len(data), hashlib.sha256(data).hexdigest()))
    return rows


def told(answer: str, destination: Destination) -> list[Row]:
    parts: list[dict[str, Any]] = json.loads(answer)["parts"]
    return [(part["name"], part["filename"], part["size"], part["sha256"]) for part in parts]


def in_order(rows: list[Row], destination: Destination) -> list[Row]:
    """For a destination that has fields and files apart: fields before files, each in their order."""
    return rows if destination.keeps_order else sorted(rows, key=lambda row: row[1] is not None)


@pytest.mark.parametrize("sender", SENDERS, ids=str)
def test_every_upload_arrives_as_it_was_sent(sender: Sender, behind: Behind, directory: Path) -> None:
    destination = behind.destination
    answers = sender.send(behind.url, list(UPLOADS.values()), directory)
    differences = {}
    for (title, parts), (status, answer) in zip(UPLOADS.items(), answers, strict=True):
        meant = in_order(expected(parts, sender, destination), destination)
        got = told(answer, destination) if status == 200 else []
        if got != meant:
            differences[title] = next((pair for pair in zip(got, meant, strict=False) if pair[0] != pair[1]), answer)
    assert differences == {}


@pytest.mark.parametrize("sender", SENDERS, ids=str)
def test_256_mib_arrive_and_are_never_held(sender: Sender, behind: Behind, directory: Path) -> None:
    destination = behind.destination
    ((status, answer),) = sender.send(behind.url, [LARGE], directory)
    assert (status, told(answer, destination)) == (200, [(LARGE.name, LARGE.filename, LARGE.size, LARGE.sha256)])
    assert behind.gateway.peak_rss_bytes() < LARGE.size / 2


# -- a destination that takes no chunks


@pytest.fixture(scope="module", params=["spool", "passthrough"])
def with_a_length(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Behind]]:
    """A destination that wants a Content-Length, and a gateway that is told how to have one."""
    length: str = request.param
    directory = tmp_path_factory.mktemp(f"wsgiref-{length}")
    config = f'[sinks.api]\nlength = "{length}"\n'
    with (
        LENGTH_ONLY.start(directory) as url,
        gateway_process(directory, config, GATEWAY_SINKS__API__URL=f"{url}/upload") as gateway,
    ):
        yield length, Behind(LENGTH_ONLY, gateway)


@pytest.mark.parametrize("sender", SENDERS, ids=str)
def test_every_upload_arrives_where_a_length_is_wanted(
    sender: Sender, with_a_length: tuple[str, Behind], directory: Path
) -> None:
    """Go sends chunks, so that a passthrough has no length to pass on: there the gateway learns, and spools.

    It learns from something small: who refuses a large body unread resets the connection, and a 411 may get lost.
    """
    length, behind = with_a_length
    sender.send(behind.url, [UPLOADS["nothing in it"]], directory)
    answers = sender.send(behind.url, list(UPLOADS.values()), directory)
    differences = {}
    for (title, parts), (status, answer) in zip(UPLOADS.items(), answers, strict=True):
        meant = in_order(expected(parts, sender, LENGTH_ONLY, length), LENGTH_ONLY)
        got = told(answer, LENGTH_ONLY) if status == 200 else []
        if got != meant:
            differences[title] = next((pair for pair in zip(got, meant, strict=False) if pair[0] != pair[1]), answer)
    assert differences == {}


def test_256_mib_arrive_where_a_length_is_wanted(with_a_length: tuple[str, Behind], directory: Path) -> None:
    _, behind = with_a_length
    curl = SENDERS[0]  # it declares a length
    ((status, answer),) = curl.send(behind.url, [LARGE], directory)
    assert (status, told(answer, LENGTH_ONLY)) == (200, [(LARGE.name, LARGE.filename, LARGE.size, LARGE.sha256)])
    assert behind.gateway.peak_rss_bytes() < LARGE.size / 2
