"""What is fed with any bytes, and what has to hold then. Each target raises AssertionError, or what it should never."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Iterator

from multidict import CIMultiDict
from pydantic import ValidationError

from gateway.access import Asked, SignedUrls, Tokens, fixed_key
from gateway.config.messages import mistakes
from gateway.config.settings import Settings
from gateway.errors import Forbidden, GatewayError, Malformed, Unauthenticated
from gateway.http.request_bodies import ChunkedBody
from gateway.http.request_heads import checked_head, end_of_head
from gateway.multipart.codec import Decoder, Kind
from gateway.multipart.content_type import boundary_of, other_parameters
from gateway.multipart.headers import filename_of, form_fields, parameters, parse_header_block
from gateway.multipart.rendering import render_head

__all__ = ["TARGETS"]

_BOUNDARY = b"b"
_ESCAPED = re.compile(rb"%(22|0A|0D)", re.IGNORECASE)


def codec(data: bytes) -> None:
    """A body in one piece, byte by byte, and in pieces of three: the same parts, or the same error."""
    if not data:
        return
    flags, body = data[0], data[1:]
    keep_raw, one_reading, form = bool(flags & 1), bool(flags & 2), bool(flags & 4)

    def decoded(pieces: Iterable[bytes]) -> tuple[list[object], str]:
        decoder = Decoder(
            _BOUNDARY, form=form, max_parts=5, max_header_bytes=500, keep_raw=keep_raw, one_reading=one_reading
        )
        parts: list[object] = []
        raw = b""
        try:
            for piece in pieces:
                for event in decoder.receive(piece):
                    raw += event.raw
                    if event.part is not None:
                        part = event.part
                        parts.append([part.raw_name, part.raw_filename, part.content_type, bytearray()])
                    if event.data:
                        parts[-1][3].extend(event.data)  # type: ignore[index]
                    if event.kind in (Kind.END, Kind.WHOLE):
                        parts[-1][3] = bytes(parts[-1][3])  # type: ignore[index]
            decoder.finish()
        except GatewayError as error:
            return parts if one_reading else [], error.slug()
        if keep_raw:
            assert raw == body, "whoever passes the bytes on would pass others on"
        return parts, "ok"

    whole = decoded([body])
    single = decoded(body[place : place + 1] for place in range(len(body)))
    pieces = decoded(body[place : place + 3] for place in range(0, len(body), 3))
    if whole[1] == "ok" or single[1] == "ok" or pieces[1] == "ok":
        assert whole == single == pieces
    elif not one_reading:  # there a whole piece is looked at before its parts are: of two faults that one is told
        assert whole[1] == single[1] == pieces[1]


def heads(data: bytes) -> None:
    """A request's head, at once and byte by byte: the same end, or refused in both; and no error but ours."""
    while data.startswith(b"\r\n"):
        data = data[2:]

    def read(step: int) -> tuple[str, int]:
        received = bytearray()
        end = None
        try:
            for place in range(0, len(data), step):
                before = len(received)
                received += data[place : place + step]
                if (end := end_of_head(received, before, max_bytes=4096)) is not None:
                    head = checked_head(bytes(received[:end]))
                    assert head.data.endswith(b"\r\n\r\n")
                    return "ok", end
        except GatewayError:
            return "refused", 0
        return "more", 0

    whole, single = read(len(data) or 1), read(1)
    assert whole == single or {whole[0], single[0]} == {"more", "refused"}


def chunks(data: bytes) -> None:
    """A chunked body, at once and byte by byte: the same bytes and the same end, or an error in both."""

    def read(pieces: Iterator[bytes]) -> tuple[bytes, bool] | None:
        body, content = ChunkedBody(), b""
        try:
            for piece in pieces:
                while piece and not body.ended:
                    taken, size = body.take(piece)
                    content += taken
                    piece = piece[size:]
                if body.ended:
                    return content, True
        except Malformed:
            return None
        return content, False

    whole, single = read(iter([data])), read(data[place : place + 1] for place in range(len(data)))
    assert whole == single


def names(data: bytes) -> None:
    """Parameters, boundaries and names: ours, or our error; and what was read is read again from what we send."""
    for read in (parameters, boundary_of, other_parameters, filename_of):
        try:
            read(data)
        except GatewayError:
            continue
    try:
        headers = parse_header_block(data, max_headers=64)
        name, filename, _ = form_fields(headers)
        head = render_head(name, filename, None)
    except GatewayError:
        return
    if _ESCAPED.search(name + (filename or b"")):
        return  # browsers escape a quote as %22, and %22 not at all: nobody can tell one from the other
    again = form_fields(parse_header_block(head.removesuffix(b"\r\n\r\n"), max_headers=64))
    assert again[:2] == (name, filename)


_TOKENS = Tokens(
    fixed_key(b"s" * 40, ("HS256",)),
    issuer="i",
    audience="a",
    algorithms=("HS256",),
    leeway_seconds=0,
    scope_claim="scope",
)
_SIGNED = SignedUrls(["s" * 40])


def tokens(data: bytes) -> None:
    """Whatever a stranger makes up is nobody, and no error but ours."""
    text = data.decode("latin-1")
    for kind, asked in (
        (_TOKENS, Asked("upload", "/upload", headers=CIMultiDict(Authorization=f"Bearer {text}"))),
        (_SIGNED, Asked("upload", "/upload", query=f"signature={text}")),
        (_SIGNED, Asked("upload", "/upload", query=text)),
    ):
        try:
            found = asyncio_run(kind.identify(asked))
        except (Unauthenticated, Forbidden):
            continue
        assert found is None


def asyncio_run(coroutine: object) -> object:
    """The result of one that waits for nothing."""
    try:
        coroutine.send(None)  # type: ignore[attr-defined]
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


def configuration(data: bytes) -> None:
    """A document of TOML is a configuration, or lines that name its keys."""
    try:
        document = tomllib.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError):
        return
    try:
        Settings.model_validate(document)
    except ValidationError as error:
        lines = mistakes(error, file="my.toml", variable=lambda key, is_missing: None)
        assert lines
        assert all(line.strip() for line in lines)


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (codec, heads, chunks, names, tokens, configuration)
}
