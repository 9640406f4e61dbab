"""One reading only: what other people's readers see at the far end is what was decided on here, or it was refused.

Heads are generated out of what parsers are known to disagree about. Each goes three ways, as the gateway sends parts:
a form in wrapping of our own, a form whose bytes go on as they came, and a part of multipart/mixed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.errors import GatewayError
from gateway.model import Part
from gateway.multipart.codec import Decoder, Kind
from gateway.multipart.encoder import Encoder
from tests.conftest import StartGateway
from tests.support.clients import ask
from tests.support.doubles import HonestUpstream
from tests.support.readers import READERS, Body, Names, Reader

HEADS = 10_000
FORM = "multipart/form-data; boundary=b"
MIXED = "multipart/mixed; boundary=b"

PIECES = [
    *(b'"', b"\\", b'\\"', b"\\\\", b";", b"=", b"'", b"%22", b"%0D%0A", b"%5C", b"%", b"%41", b"*", b"/", b",", b" "),
    *(b"; filename=", b'; filename="', b"; x=y", b"filename*=UTF-8''", b"=?utf-8?q?a?=", b"<", b":", b"(c)", b"@"),
    *("ä".encode(), b"\xe4", "漢".encode(), "€".encode(), b"a", b"b.txt", b"C:\\x", b"..\\", b"evil.php", b"0"),
    *(b"\t", b"\r\n "),
]
STARRED = [b"filename*", b"name*", b"filename*0", b"filename*1", b"filename*0*"]
PARAMETERS = [*[b"name", b"filename"] * 8, *STARRED, b"Name", b"FILENAME", b"x", b"size", b"name ", b" name"]


def value(seeded: random.Random) -> bytes:
    inner = b"".join(seeded.choices(PIECES, k=seeded.choice([0, 1, 1, 2, 2, 3, 5])))
    match seeded.randrange(8):
        case 0:
            return inner
        case 1:
            return b"UTF-8''" + inner
        case 2:
            return b'"' + inner.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
        case 3:
            return b"'" + inner + b"'"
        case _:
            return b'"' + inner.replace(b'"', b"%22" if seeded.random() < 0.8 else b'"') + b'"'


def head(seeded: random.Random, kind: bytes) -> bytes:
    """A header block. Most are nearly right, or all would be refused."""
    names = [b"name"] if seeded.random() < 0.8 else []
    names += seeded.choices(PARAMETERS, k=seeded.choice([0, 1, 1, 1, 2, 3]))
    if seeded.random() < 0.2:
        seeded.shuffle(names)
    separator = seeded.choice([b"; "] * 12 + [b";", b" ; ", b";\t", b";;", b"\r\n ;", b", "])
    parameters = [name + seeded.choice([b"="] * 12 + [b" = ", b"= ", b""]) + value(seeded) for name in names]
    disposition = separator.join([seeded.choice([kind] * 12 + [kind.upper(), b'"%b"' % kind, b""]), *parameters])
    disposition += seeded.choice([b""] * 12 + [b";", b" ", b" ; "])
    lines = [seeded.choice([b"Content-Disposition: "] * 8 + [b"content-disposition:"]) + disposition]
    if seeded.random() < 0.3:
        lines.append(b"Content-Type: " + seeded.choice([b"text/plain", b"a/b", b'a/b; name="x"', b"a/b; filename=x"]))
    if seeded.random() < 0.05:
        lines.append(seeded.choice(lines))
    seeded.shuffle(lines)
    return b"\r\n".join(lines)


def decoded(content_type: str, block: bytes, *, one_reading: bool = False) -> Part | None:
    """What we make of a body with this head; None if it is refused."""
    wire = b"--b\r\n" + block + b"\r\n\r\nx\r\n--b--\r\n"
    try:
        decoder = Decoder(b"b", form=content_type == FORM, keep_raw=one_reading, one_reading=one_reading)
        (part,) = (event.part for event in decoder.receive(wire) if event.kind is Kind.WHOLE)
        decoder.finish()
    except GatewayError:
        return None
    return part


Sent = tuple[Part, Body]
"""What the manifest says of a part, and the body that a destination gets."""


def repacked(block: bytes, content_type: str = FORM) -> Sent | None:
    if (part := decoded(content_type, block)) is None:
        return None
    encoder = Encoder.like(content_type.encode())
    try:
        body = encoder.begin_part(part) + b"x" + encoder.close()
    except GatewayError:
        return None
    return part, Body(encoder.content_type, body)


def passed(block: bytes) -> Sent | None:
    part = decoded(FORM, block, one_reading=True)
    return None if part is None else (part, Body(FORM, b"--b\r\n" + block + b"\r\n\r\nx\r\n--b--\r\n"))


def mixed(block: bytes) -> Sent | None:
    return repacked(block, MIXED)


WAYS: dict[str, tuple[Callable[[bytes], Sent | None], bytes]] = {
    "repacked": (repacked, b"form-data"),
    "passed": (passed, b"form-data"),
    "mixed": (mixed, b"attachment"),
}


def ways_to_show(name: bytes) -> set[bytes]:
    """What a reader may make of a name, and be right: the three escapes of the WHATWG form undone, or not."""
    shown = {name}
    for plain, escape in ((b'"', b"%22"), (b"\r", b"%0D"), (b"\n", b"%0A")):
        shown |= {one.replace(plain, escape) for one in shown} | {one.replace(escape, plain) for one in shown}
    return shown


def agrees(reader: Reader, meant: bytes | None, read: bytes | None) -> bool:
    if not meant and reader.overlooks_empty:
        return not read
    if meant is None or read is None:
        return meant is read
    if reader.drops_backslashes:  # the one exception: before a letter or a digit
        meant, read = meant.replace(b"\\", b""), read.replace(b"\\", b"")
    return read in ways_to_show(meant)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readers")


@pytest.mark.sockets
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_no_reader_sees_other_names_than_we_did(reader: Reader, way: str, directory: Path) -> None:
    make, kind = WAYS[way]
    seeded = random.Random(f"one reading, {way}")
    blocks = [head(seeded, kind) for _ in range(HEADS)]
    sent = [one for block in blocks if (one := make(block)) is not None]
    assert len(sent) > HEADS / 20, "hardly anything is sent, so hardly anything is tested"
    wrong = []
    for (part, body), names in zip(sent, reader.read([body for _, body in sent], directory), strict=True):
        if not names:
            continue  # what it refuses, it does not read differently
        read = Names(b"", names[0].filename) if way == "mixed" else names[0]
        both = agrees(reader, part.raw_name, read.name) and agrees(reader, part.raw_filename, read.filename)
        if len(names) > 1 or not both:
            wrong.append((part, names, body.data))
    assert wrong[:5] == [], len(wrong)


@pytest.mark.parametrize("way", WAYS)
async def test_the_gateway_sends_them_these_ways(start_gateway: StartGateway, way: str) -> None:
    """What is compared above is what comes out of a gateway, and the manifest says what was compared."""
    make, kind = WAYS[way]
    seeded = random.Random(f"sockets, {way}")
    kept = 0
    async with HonestUpstream(200, b"{}") as upstream:
        sinks = {"api": {"url": upstream.url, "length": "passthrough" if way == "passed" else "chunked"}}
        gateway = await start_gateway(
            sinks=sinks, routes=[{"path": "/r", "kind": "relay", "parts": [{"sinks": ["api"]}]}]
        )
        for _ in range(300):
            block = head(seeded, kind)
            wire = b"--b\r\n" + block + b"\r\n\r\nx\r\n--b--\r\n"
            content_type = MIXED if way == "mixed" else FORM
            answer = await ask(gateway.port, "/r", "POST", wire, content_type=content_type)
            if (sent := make(block)) is None:
                assert answer.status == 400, block
                continue
            assert answer.status == 200, block
            exchange = upstream.exchanges[-1]
            boundary = dict(exchange.headers)["content-type"].partition("boundary=")[2].encode()
            ours = sent[1].content_type.partition("boundary=")[2].encode()
            assert bytes(exchange.body).replace(boundary, ours) == sent[1].data
            kept += 1
    assert kept > 10
