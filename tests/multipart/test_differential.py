"""One reading only: what other people's readers see at the far end is what the manifest says, or it was refused.

Heads are generated out of what parsers are known to disagree about. Those that are not refused go through a gateway to
a destination, in the four ways that it sends parts: a form in wrapping of our own, a form for each file, a form whose
bytes go on as they came, and multipart/mixed. What arrived is given to the readers.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import GatewayError
from gateway.model import text
from gateway.multipart.codec import Decoder, Kind
from gateway.multipart.content_type import boundary_of
from gateway.multipart.encoder import Encoder
from tests.conftest import RunningGateway, StartGateway
from tests.support.clients import Answer, ask
from tests.support.doubles import HonestUpstream, Upstream
from tests.support.readers import READERS, Body, Reader

HEADS = 10_000
FORM = "multipart/form-data; boundary=b"
MIXED = "multipart/mixed; boundary=b"
WAYS = ["repacked", "per_part", "passed", "mixed"]
LAST_FILE = b'Content-Disposition: form-data; name="f"; filename="f"'
"""Behind the others, so that there is a request for the fields among them."""

PIECES = [
    *(b'"', b"\\", b'\\"', b"\\\\", b";", b"=", b"'", b"%22", b"%0D%0A", b"%0a", b"%5C", b"%", b"%41", b"%2522", b"*"),
    *(b"/", b",", b" ", b"  ", b"\t", b"\r\n ", b"\r\n\t", b"(c)", b"(a\\)", b"<", b">", b":", b"@", b"[]", b"?", b"{"),
    *(b"$", b"&", b"; filename=", b'; filename="', b"; x=y", b"; name=", b"filename*=UTF-8''", b"*0=", b"''", b"CON"),
    *(b"=?utf-8?q?a=22?=", b"=?utf-8?B?ZXZpbC5waHA=?=", b"%2e%2e%2f", b"%c3%a4", b"%E4", b"%u00e4", b"..\\", b"C:\\x"),
    *(b"\\0", b"\\;", b"\xe4", b"\xc2\xa0", b"\xc2\x85", b"\xe2\x80\xa8", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\x80"),
    *("ä".encode(), "漢".encode(), "€".encode(), b"\xff", b"\x0b", b"\x7f", b"\x00", b"a", b"b.txt", b"a b.txt", b"0"),
    *(b"evil.php", b"x" * 70),
]
STARRED = [b"filename*", b"name*", b"filename*0", b"filename*1", b"filename*0*", b"filename*01", b"filename**"]
ODD = [
    b"Name",
    b"FILENAME",
    b"x",
    b"size",
    b"name ",
    b" name",
    b"*",
    b"'",
    b'"name"',
    b"name[]",
    b"filename%2a",
    b"n\xe4",
]
PARAMETERS = [*[b"name", b"filename"] * 24, *STARRED, *ODD]
TYPES = [
    *(b"text/plain", b"a/b", b"application/octet-stream", b"", b"/", b"text/plain, a/b", b'a/b; name="x"'),
    *(b"a/b; name=x", b"a/b; filename=x", b"a/b; NAME*=utf-8''x", b"a/b; name*0=x", b"a/b;name", b"name=x"),
    *(b'a/b; x="; name=y"', b'a/b; x="a', b"a/b;\r\n name=x", b'a/b; x="\\"; name=y', b"te(x)t/plain"),
    *(b"multipart/mixed; boundary=b", b"message/rfc822"),
]
KINDS = [
    b'"form-data"',
    b"",
    b"inline",
    b"file",
    b"filename",
    b"name",
    b"name=x",
    b"attachment(c)",
    b"form-data/x",
    b"a*",
]
OTHERS = [
    *(b"Content-Length: 1", b"Content-Transfer-Encoding: binary", b"Content-Transfer-Encoding: base64", b"X-A: =?x?="),
    *(b"Content-Type: a/b", b"Content-Disposition-X: form-data; name=q", b"Subject: \xe4", b"X@Y: z", b"From me"),
]


def value(seeded: random.Random) -> bytes:
    inner = b"".join(seeded.choices(PIECES, k=seeded.choice([0, 1, 1, 2, 2, 3, 5])))
    match seeded.randrange(9):
        case 0:
            return inner
        case 1:
            return b"UTF-8''" + inner
        case 2:
            return b'"' + inner.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
        case 3:
            return b"'" + inner + b"'"
        case 4:
            return b'"' + inner + b'"' + seeded.choice([b"", b" ", b"x", b"\t"])
        case _:
            return b'"' + inner.replace(b'"', b"%22" if seeded.random() < 0.9 else b'"') + b'"'


def head(seeded: random.Random, kind: bytes) -> bytes:
    """A header block. Most are nearly right, or all would be refused."""
    names = [b"name"] if seeded.random() < 0.8 else []
    names += seeded.choices(PARAMETERS, k=seeded.choice([0, 1, 1, 1, 2, 3]))
    if seeded.random() < 0.2:
        seeded.shuffle(names)
    separator = seeded.choice([b"; "] * 16 + [b";", b" ; ", b";\t", b";;", b"\r\n ;", b", ", b";\r\n\t", b";  "])
    equals = [b"="] * 16 + [b" = ", b"= ", b" =", b"", b"=="]
    parameters = [name + seeded.choice(equals) + value(seeded) for name in names]
    disposition = separator.join([seeded.choice([kind] * 30 + [kind.upper(), *KINDS]), *parameters])
    disposition += seeded.choice([b""] * 16 + [b";", b" ", b" ; ", b"\t", b"(c)", b"; x"])
    lines = [seeded.choice([b"Content-Disposition: "] * 8 + [b"content-disposition:"]) + disposition]
    if seeded.random() < 0.3:
        lines.append(b"Content-Type: " + seeded.choice(TYPES))
    if seeded.random() < 0.1:
        lines.append(seeded.choice([*lines, *OTHERS]))
    seeded.shuffle(lines)
    return b"\r\n".join(lines)


@functools.cache
def heads(way: str, count: int) -> Sequence[bytes]:
    """The same every time."""
    seeded = random.Random(f"one reading, {way}")
    return [head(seeded, b"attachment" if way == "mixed" else b"form-data") for _ in range(count)]


def content_type(way: str) -> str:
    return MIXED if way == "mixed" else FORM


def is_taken(way: str, block: bytes) -> bool:
    """Whether a part with this head is not refused."""
    passed = way == "passed"
    try:
        decoder = Decoder(b"b", form=way != "mixed", keep_raw=passed, one_reading=passed)
        (part,) = (event.part for event in decoder.receive(wire([block])) if event.kind is Kind.WHOLE)
        decoder.finish()
        if not passed:
            assert part is not None
            Encoder.like(content_type(way).encode()).begin_part(part)
    except GatewayError:
        return False
    return True


def wire(blocks: Sequence[bytes]) -> bytes:
    """A body. The data of each part is its index."""
    parts = [b"--b\r\n%b\r\n\r\n%d\r\n" % (block, index) for index, block in enumerate(blocks)]
    return b"".join(parts) + b"--b--\r\n"


@functools.cache
def taken(way: str) -> Sequence[Sequence[bytes]]:
    """The heads that are not refused, in batches for a body each: those that are no UTF-8, which some readers do not
    take, apart from the others.
    """
    blocks = [block for block in heads(way, HEADS) if is_taken(way, block)]
    plain: list[bytes] = []
    other: list[bytes] = []
    for block in blocks:
        (plain if text(block).encode() == block else other).append(block)
    at_a_time = 20 if way == "per_part" else 100  # the fields go with each of the files
    return [some[at : at + at_a_time] for some in (plain, other) for at in range(0, len(some), at_a_time)]


async def started(start_gateway: StartGateway, url: str) -> RunningGateway:
    sinks = {
        "repacked": {"url": url},
        "per_part": {"url": url, "per": "part", "length": "spool"},
        "passed": {"url": url, "length": "passthrough"},
        "mixed": {"url": url},
    }
    kinds = {"per_part": "upload"}
    routes = [
        {
            "path": f"/{way}",
            "kind": kinds.get(way, "relay"),
            "parts": [{"sinks": [way] if way == "passed" else [way, "disk"]}],
        }
        for way in WAYS
    ]
    return await start_gateway(sinks={way: {"type": "relay", **sink} for way, sink in sinks.items()}, routes=routes)


async def send(gateway: RunningGateway, way: str, blocks: Sequence[bytes]) -> Answer:
    body = wire([*blocks, LAST_FILE] if way == "per_part" else blocks)
    return await ask(gateway.port, f"/{way}", "POST", body, content_type=content_type(way))


async def manifest_of(gateway: RunningGateway, way: str, blocks: Sequence[bytes]) -> list[dict[str, Any]]:
    """After it was sent on. Bytes that go on as they came are not stored beside, so they are sent once more."""
    answer = await send(gateway, way, blocks)
    assert answer.status in (200, 201), answer
    if way == "passed":
        answer = await ask(gateway.port, "/upload", "POST", wire(blocks), content_type=FORM)
    stored = await ask(gateway.port, answer.headers["location"])
    parts: list[dict[str, Any]] = stored.json()["parts"]
    return parts


def arrived(upstream: Upstream) -> Iterator[Body]:
    """The bodies that the destination got, which is to forget them."""
    for exchange in upstream.exchanges:
        yield Body(dict(exchange.headers)["content-type"], bytes(exchange.body))
    upstream.exchanges.clear()


def pieces(body: Body) -> list[bytes]:
    """The parts of a body, with their heads, as they stand in it."""
    delimiter = b"--" + body.content_type.partition("boundary=")[2].encode()
    return [piece.strip(b"\r\n") for piece in body.data.split(delimiter)[1:-1]]


def ways_to_show(name: str) -> set[str]:
    """What a reader may make of a name, and be right: the three escapes of the WHATWG form undone, or not."""
    shown = {name}
    for plain, escape in (('"', "%22"), ("\r", "%0D"), ("\n", "%0A")):
        shown |= {one.replace(plain, escape) for one in shown} | {one.replace(escape, plain) for one in shown}
    return shown


def agrees(reader: Reader, meant: str | None, raw: bytes | None) -> bool:
    read = None if raw is None else text(raw)
    if not meant and reader.overlooks_empty:
        return not read
    if meant is None or read is None:
        return meant is read
    if reader.drops_backslashes:  # the one exception: before a letter or a digit
        meant, read = meant.replace("\\", ""), read.replace("\\", "")
    return read in ways_to_show(meant)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readers")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
async def test_every_reader_sees_what_the_manifest_says(
    start_gateway: StartGateway, reader: Reader, way: str, directory: Path
) -> None:
    if way == "mixed" and reader.reads_forms_only:
        return
    bodies: list[Body] = []
    meant: list[list[dict[str, Any]]] = []
    seen = 0
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await started(start_gateway, upstream.url)
        for blocks in taken(way):
            manifest = await manifest_of(gateway, way, blocks)
            got = list(arrived(upstream))
            assert way != "passed" or [body.data for body in got] == [wire(blocks)]
            indexes = [[int(piece.rpartition(b"\r\n\r\n")[2]) for piece in pieces(body)] for body in got]
            bodies += got
            meant += [[manifest[index] for index in some] for some in indexes]
            seen += len({index for some in indexes for index in some})
    assert seen > HEADS / 30, "hardly anything is sent, so hardly anything is tested"
    wrong: list[Any] = []
    unread = 0
    for body, parts, (_, names) in zip(bodies, meant, reader.read(bodies, directory), strict=True):
        if names is None:
            unread += len(parts)
            # a body that holds what is no UTF-8 is refused as a whole
            if not reader.takes_utf8_only or text(body.data).encode() == body.data:
                wrong.append((parts, names, body.data))
        elif len(names) != len(parts):
            wrong.append((parts, names, body.data))
        else:
            wrong += [
                (part, read, piece)
                for part, read, piece in zip(parts, names, pieces(body), strict=True)
                if not agrees(reader, part["filename"], read.filename)
                or (way != "mixed" and not agrees(reader, part["name"], read.name))
            ]
    assert wrong[:5] == [], len(wrong)
    assert unread < sum(map(len, meant)) / 2


@pytest.mark.parametrize("way", WAYS)
async def test_what_is_not_among_those_is_refused(start_gateway: StartGateway, way: str) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await started(start_gateway, upstream.url)
        refused = [block for block in heads(way, 300) if not is_taken(way, block)]
        for block in refused:
            answer = await send(gateway, way, [block])
            assert (answer.status, answer.json()["type"]) == (400, "/problems/malformed"), block
        assert not upstream.saw_a_whole_body
        assert gateway.stored() == []
    assert refused


# -- the Content-Type of a body that goes on as it came

TYPE_PIECES = [
    *('"', '"', "\\", '\\"', "\\\\", ";", "=", "'", "%22", "%0D", "%", "*", "/", ",", " ", "\t", "<", ">", "(", ")"),
    *(
        "[",
        "]",
        "?",
        "@",
        ":",
        "{",
        "b",
        "boundary",
        "boundary=",
        "; boundary=c",
        ";boundary*=UTF-8''c",
        "--",
        "-",
        "$",
    ),
]
TYPE_PARAMETERS = [
    *["boundary"] * 8,
    *("x", "charset", "type", "Boundary", "boundary ", "boundary*", "boundary*0", '"boundary"', "", "(c)boundary"),
]


def boundary(seeded: random.Random) -> str:
    inner = "".join(seeded.choices(TYPE_PIECES, k=seeded.choice([1, 1, 2, 3, 4])))
    match seeded.randrange(6):
        case 0:
            return '"' + inner.replace("\\", "\\\\").replace('"', '\\"') + '"'
        case 1:
            return f"<{inner}>"
        case 2:
            return '"' + inner + '"' + seeded.choice(["", "", " ", "x"])
        case 3:
            return '"' + inner.replace('"', "") + '"'
        case _:
            return inner


def multipart_type(seeded: random.Random, kind: str) -> str:
    names = ["boundary"] if seeded.random() < 0.7 else []
    names += seeded.choices(TYPE_PARAMETERS, k=seeded.choice([0, 1, 1, 2, 3]))
    seeded.shuffle(names)
    separator = seeded.choice(["; "] * 8 + [";", " ; ", ";;", " ", ",", ";\t"])
    equals = ["="] * 10 + [" = ", "= ", " =", "=="]
    parameters = separator.join(name + seeded.choice(equals) + boundary(seeded) for name in names)
    ends = [""] * 8 + [";", " ", "; x", ","]
    return (
        seeded.choice([kind] * 8 + [kind.upper(), f"{kind} ", f"{kind}(c)", f"{kind};"])
        + separator
        + parameters
        + seeded.choice(ends)
    )


@functools.cache
def types(kind: str, *, passed: bool) -> Sequence[tuple[str, bytes]]:
    """Those that are sent on: as they came, or made anew; each with the boundary that is meant."""
    seeded = random.Random(f"boundaries, {kind}")
    sent = []
    for _ in range(HEADS):
        given = multipart_type(seeded, kind)
        try:
            ours = boundary_of(given.encode(), one_reading=passed)
            encoder = Encoder.like(given.encode())
        except GatewayError:
            continue
        sent.append((given, ours) if passed else (encoder.content_type, encoder.boundary))
    return sent


@pytest.mark.sockets
@pytest.mark.parametrize("passed", [True, False], ids=["passed", "repacked"])
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_every_reader_takes_the_boundary_that_was_taken_here(reader: Reader, passed: bool, directory: Path) -> None:
    sent = [
        *types("multipart/related", passed=passed),
        *(types("multipart/form-data", passed=passed) if passed else ()),
    ]
    assert len(sent) > 200
    answers = reader.read([Body(given, b"") for given, _ in sent], directory)
    read = [(given, ours, answer.boundary) for (given, ours), answer in zip(sent, answers, strict=True)]
    assert [one for one in read if one[2] not in (one[1], None)][:5] == []
    assert sum(1 for one in read if one[2] is None) < len(read) / 3
