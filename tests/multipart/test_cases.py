"""Bodies with what they mean (tests/multipart/cases), through the codec in every way of cutting them.

What a body means does not depend on where it was cut, and no body that was cut off ends cleanly.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from gateway.errors import GatewayError, Malformed, Truncated
from gateway.model import Part
from gateway.multipart.codec import Decoder, Kind
from gateway.multipart.content_type import boundary_of
from tests.multipart.cases import CASES, RECORDED, RECORDINGS, WRITTEN, Case, Got
from tests.support.recorder import CLIENTS, FORMS, Client, record

Outcome = tuple[Got, ...] | type[GatewayError]

each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_whole_one = pytest.mark.parametrize("case", [case for case in CASES if case.error is None], ids=str)


def expected(case: Case) -> Outcome:
    return case.error or case.parts


def decoder_for(case: Case, *, keep_raw: bool = False) -> Decoder:
    return Decoder(boundary_of(case.content_type), form=case.is_form, keep_raw=keep_raw)


def outcome(case: Case, pieces: Iterable[bytes], *, keep_raw: bool = False) -> Outcome:
    """What comes of a case's body, cut into these pieces."""
    parts: list[Got] = []
    current: Part | None = None
    data = b""
    try:
        decoder = decoder_for(case, keep_raw=keep_raw)
        for piece in pieces:
            for event in decoder.receive(piece):
                if event.kind in (Kind.BEGIN, Kind.WHOLE):
                    current, data = event.part, b""
                data += event.data
                if event.kind in (Kind.END, Kind.WHOLE):
                    assert current is not None
                    parts.append(Got(current.raw_name, current.raw_filename, current.content_type, data))
        decoder.finish()
    except GatewayError as error:
        return type(error)
    return tuple(parts)


def bytewise(body: bytes) -> list[bytes]:
    return [body[place : place + 1] for place in range(len(body))]


@each_case
@pytest.mark.parametrize("keep_raw", [False, True], ids=["", "keeping the wire bytes"])
def test_a_body_means_what_its_source_says_whole_and_byte_by_byte(case: Case, keep_raw: bool) -> None:
    assert outcome(case, [case.body], keep_raw=keep_raw) == expected(case)
    assert outcome(case, bytewise(case.body), keep_raw=keep_raw) == expected(case)


@each_case
def test_a_cut_at_any_offset_changes_nothing(case: Case) -> None:
    for place in range(1, len(case.body)):
        assert outcome(case, [case.body[:place], case.body[place:]]) == expected(case), place


@each_whole_one
def test_a_tail_changes_nothing(case: Case) -> None:
    """What comes after the closing delimiter is an epilogue, whatever it is."""
    for tail in (b"\r\n", b"text", case.body, b"\r\n" + case.body):
        assert outcome(case, [case.body + tail]) == case.parts
        assert outcome(case, [case.body, tail]) == case.parts
        assert outcome(case, bytewise(case.body + tail)) == case.parts


def closing_delimiter_ends_at(case: Case) -> int:
    closing = b"\r\n--" + boundary_of(case.content_type) + b"--"
    return (b"\r\n" + case.body).index(closing) + len(closing) - 2


@each_whole_one
def test_a_body_that_was_cut_off_never_ends_cleanly(case: Case) -> None:
    whole = closing_delimiter_ends_at(case)
    for end in range(whole):
        assert outcome(case, [case.body[:end]]) in (Truncated, Malformed), end
    decoder = decoder_for(case)
    for end, byte in enumerate(bytewise(case.body[:whole])):
        with pytest.raises((Truncated, Malformed)):
            decoder.finish()
        assert not decoder.complete, end
        decoder.receive(byte)
    decoder.finish()


@each_case
def test_with_keep_raw_every_byte_comes_out_again(case: Case) -> None:
    if case.error is not None:
        with pytest.raises(case.error):
            list(raws(case))
    else:
        assert b"".join(raws(case)) == case.body


def raws(case: Case) -> Iterator[bytes]:
    decoder = decoder_for(case, keep_raw=True)
    for byte in bytewise(case.body):
        yield from (event.raw for event in decoder.receive(byte))
    decoder.finish()


# -- the cases themselves


def test_titles_tell_cases_apart_and_every_case_names_its_source() -> None:
    assert len({case.title for case in CASES}) == len(CASES)
    assert all(case.source for case in CASES)
    assert len(WRITTEN) > 130


def test_every_client_that_can_be_recorded_is_recorded_and_nothing_else_lies_there() -> None:
    titles = {f"{client.name}-{form}" for client in CLIENTS for form in FORMS}
    assert {case.title for case in RECORDED} == titles
    assert {path.name for path in RECORDINGS.iterdir()} == {f"{title}.body" for title in titles} | {"recorded.json"}


@pytest.mark.sockets
@pytest.mark.parametrize("client", [client for client in CLIENTS if client.is_pinned], ids=lambda client: client.name)
def test_a_recording_made_again_is_the_same(client: Client, tmp_path: Path) -> None:
    """Of those clients whose version the requirements say."""
    told = json.loads((RECORDINGS / "recorded.json").read_text("utf-8"))
    recordings = record(client, tmp_path)
    assert {title: recording.told["parts"] for title, recording in recordings.items()} == {
        title: told[title]["parts"] for title in recordings
    }
    assert [recording.body for recording in recordings.values()] == [
        (RECORDINGS / f"{title}.body").read_bytes() for title in recordings
    ]
