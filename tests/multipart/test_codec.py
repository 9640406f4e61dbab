"""The codec: the theory rule by rule, every way to cut a body, every truncation, every limit at its edge."""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple, TypedDict, Unpack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import GatewayError, Malformed, TooLarge, TooManyParts, Truncated
from gateway.model import Part
from gateway.multipart.codec import Decoder, Event, Kind
from gateway.multipart.encoder import Encoder

HEAD = b'Content-Disposition: form-data; name="a"'
IGNORED_CAP = 65536


class Options(TypedDict, total=False):
    form: bool
    max_parts: int
    max_header_bytes: int
    max_headers: int
    keep_raw: bool


class Got(NamedTuple):
    name: bytes
    filename: bytes | None
    content_type: bytes | None
    data: bytes


def collect(batches: Iterable[list[Event]]) -> list[Got]:
    """The parts in events, whose order is checked on the way."""
    parts: list[Got] = []
    current: Part | None = None
    data = b""
    closed = False
    for event in (event for batch in batches for event in batch):
        match event.kind:
            case Kind.BEGIN:
                assert current is None
                assert not closed
                current, data = event.part, b""
            case Kind.DATA:
                assert current is not None
                assert event.data
                data += event.data
            case Kind.END:
                assert current is not None
                parts.append(Got(current.raw_name, current.raw_filename, current.content_type, data))
                current = None
            case Kind.WHOLE:
                assert event.part is not None
                assert current is None
                part = event.part
                parts.append(Got(part.raw_name, part.raw_filename, part.content_type, event.data))
            case Kind.CLOSE:
                assert current is None
                closed = True
            case Kind.IGNORED:
                assert current is None
    assert closed
    return parts


def decode(pieces: Iterable[bytes], boundary: bytes = b"b", **options: Unpack[Options]) -> list[Got]:
    decoder = Decoder(boundary, **options)
    batches = [decoder.receive(piece) for piece in pieces]
    decoder.finish()
    assert decoder.complete
    return collect(batches)


def outcome(pieces: Iterable[bytes], **options: Unpack[Options]) -> list[Got] | type[GatewayError]:
    try:
        return decode(pieces, **options)
    except GatewayError as error:
        return type(error)


def bytewise(body: bytes) -> list[bytes]:
    return [body[i : i + 1] for i in range(len(body))]


def three_ways(body: bytes, **options: Unpack[Options]) -> list[Got] | type[GatewayError]:
    """Whole, byte by byte, with a tail: the outcome must be the same."""
    whole = outcome([body], **options)
    assert outcome(bytewise(body), **options) == whole
    tail = b"\r\n--b\r\nan epilogue\r\n--b--" if isinstance(whole, list) else b""
    assert outcome([body[:-1], body[-1:] + tail], **options) == whole
    return whole


def part(data: bytes, head: bytes = HEAD) -> bytes:
    return b"--b\r\n" + head + b"\r\n\r\n" + data + b"\r\n"


def values(body: bytes) -> list[bytes]:
    got = three_ways(body)
    assert isinstance(got, list), got
    return [each.data for each in got]


# -- the theory


@pytest.mark.parametrize("prefix", [b"", b"\r\n", b"a preamble\r\n", b"--bait\r\n--b not\r\n", b"\r\n\r\n"])
def test_rule_1_the_first_delimiter_is_at_the_start_or_after_a_preamble(prefix: bytes) -> None:
    assert values(prefix + part(b"x") + b"--b--") == [b"x"]


def test_rule_1_a_delimiter_in_the_middle_of_a_line_is_data() -> None:
    assert values(part(b"x--b\r\ny --b--") + b"--b--") == [b"x--b\r\ny --b--"]


@pytest.mark.parametrize(
    "data", [b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"x\r\n", b"\r\nx", b"\r\r\n\r", b"--b", b"--b--\r\n"]
)
def test_rule_1_only_the_last_line_end_belongs_to_the_delimiter(data: bytes) -> None:
    if data.startswith(b"--b"):  # right after the blank line that would be a delimiter
        data = b"x" + data
    assert values(part(data) + part(b"") + b"--b--") == [data, b""]


@pytest.mark.parametrize("padding", [b" ", b"\t", b" \t \t", b" " * 256])
def test_rule_2_white_space_may_follow_a_delimiter(padding: bytes) -> None:
    assert values(b"--b" + padding + part(b"x")[3:] + b"--b" + padding + part(b"y")[3:] + b"--b--") == [b"x", b"y"]


def test_rule_2_more_white_space_than_anybody_sends_is_refused() -> None:
    assert three_ways(b"--b" + b" " * 257 + part(b"x")[3:] + b"--b--") is Malformed


@pytest.mark.parametrize("after", [b"b", b"-x", b" x", b" --", b"\rx", b"\r\r\n", b" \rx", b"\x00"])
def test_rule_2_what_looks_like_a_delimiter_is_data(after: bytes) -> None:
    data = b"x\r\n--b" + after + b"y"
    assert values(part(data) + b"--b--") == [data]
    assert values(part(b"x\r\n--b" + after) + b"--b--") == [b"x\r\n--b" + after]


@pytest.mark.parametrize("padding", [b"", b" ", b"\t "])
def test_rule_2_a_delimiter_followed_by_a_bare_line_feed_is_refused(padding: bytes) -> None:
    assert three_ways(part(b"x\r\n--b" + padding + b"\ny") + b"--b--") is Malformed
    assert three_ways(part(b"x").replace(b"\r\n", b"\n") + b"--b--\n") is Malformed


def test_rule_3_only_the_delimiter_ends_a_part() -> None:
    nested = b"--n\r\n\r\nx\r\n--n--"
    head = (
        HEAD
        + b"\r\nContent-Length: 1\r\nContent-Transfer-Encoding: base64\r\nContent-Type: multipart/mixed; boundary=n"
    )
    assert values(part(nested, head) + b"--b--") == [nested]


def test_rule_3_an_empty_part_may_lack_its_second_line_end() -> None:
    assert values(b"--b\r\n" + HEAD + b"\r\n\r\n--b\r\n" + HEAD + b"\r\n\r\n--b--") == [b"", b""]


def test_rule_3_a_part_that_is_no_form_field_needs_no_headers() -> None:
    body = b"--b\r\n\r\nx\r\n--b\r\nContent-Type: text/x\r\n\r\ny\r\n--b--"
    assert three_ways(body, form=False) == [Got(b"", None, None, b"x"), Got(b"", None, b"text/x", b"y")]
    assert three_ways(body) is Malformed


def test_rule_4_text_before_a_closing_delimiter_without_a_part_is_refused() -> None:
    assert three_ways(b"--B\r\n" + HEAD + b"\r\n\r\nx\r\n--b--") is Malformed
    assert three_ways(b"--b--") == three_ways(b"\r\n--b--\r\n") == three_ways(b" \r\n--b--") == []


def test_rule_5_no_line_end_is_needed_at_the_end_and_an_epilogue_is_ignored() -> None:
    for epilogue in (b"", b"\r\n", b"\n", b"-", b"text", b"\r\n" + part(b"y") + b"--b--"):
        assert values(part(b"x") + b"--b--" + epilogue) == [b"x"]


@pytest.mark.parametrize("boundary", [b"-", b"--", b"----", b"a b", b"$^(x)", b"--b--", b"=" * 70])
def test_rule_5_any_printable_boundary_works(boundary: bytes) -> None:
    data = b"\r\n--" + boundary[:-1] + b"\r\n-"
    body = encode([(b"a", None, None, data)], boundary)
    assert decode([body], boundary) == decode(bytewise(body), boundary) == [Got(b"a", None, None, data)]


def test_a_refused_part_is_named_by_its_index() -> None:
    with pytest.raises(Malformed) as caught:
        decode([part(b"x") + part(b"y", b"Content-Disposition: form-data")])
    assert caught.value.members == {"part": 1}


# -- cuts and truncations

TYPICAL = (
    b"preamble\r\n"
    + part(b"value")
    + part(
        b"\r\n--\r\n--bait\r\n--b.", b'Content-Disposition: form-data; name="f"; filename="x"\r\nContent-Type: text/x'
    )
    + part(b"")
    + b"--b--"
)


def test_a_cut_at_any_two_offsets_changes_nothing() -> None:
    whole = decode([TYPICAL])
    assert [got.data for got in whole] == [b"value", b"\r\n--\r\n--bait\r\n--b.", b""]
    for i in range(len(TYPICAL) + 1):
        for j in range(i, len(TYPICAL) + 1, 3):
            assert decode([TYPICAL[:i], TYPICAL[i:j], TYPICAL[j:]]) == whole, (i, j)


def test_no_truncated_body_is_complete_however_it_was_cut() -> None:
    for end in range(len(TYPICAL)):
        for pieces in ([TYPICAL[:end]], bytewise(TYPICAL[:end])):
            decoder = Decoder(b"b")
            for piece in pieces:
                decoder.receive(piece)
            assert not decoder.complete
            with pytest.raises(Truncated):
                decoder.finish()


def test_a_part_ends_only_when_its_delimiter_was_seen() -> None:
    body = part(b"x" * 10)
    for end in range(len(body)):
        kinds = {event.kind for event in Decoder(b"b").receive(body[:end])}
        assert not kinds & {Kind.END, Kind.WHOLE}


NASTY = [
    b"\r",
    b"\n",
    b"-",
    b"\r\n",
    b"\r\n-",
    b"\r\n--",
    b"\r\n--bound",
    b"\r\n--boundar",
    b"--boundary",
    b"b",
    b"\r\n\r\n",
]
data_bytes = st.one_of(st.binary(max_size=60), st.lists(st.sampled_from(NASTY), max_size=20).map(b"".join))
texts = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "Zs"], exclude_characters="%\\"), max_size=12)
parts_strategy = st.lists(
    st.tuples(
        texts.map(str.encode),
        st.none() | texts.map(str.encode),
        st.none() | st.just(b"text/plain; x=y"),
        data_bytes.filter(lambda data: b"\r\n--boundary" not in b"\r\n" + data),
    ),
    max_size=5,
)
cuts_strategy = st.lists(st.integers(0, 1 << 12), max_size=12)


def cut(body: bytes, cuts: Iterable[int]) -> list[bytes]:
    offsets = [0, *sorted(offset % (len(body) + 1) for offset in cuts), len(body)]
    return [body[i:j] for i, j in pairwise(offsets)]


def encode(parts: Iterable[tuple[bytes, bytes | None, bytes | None, bytes]], boundary: bytes) -> bytes:
    encoder = Encoder(boundary)
    body = b"".join(
        encoder.begin_form_part(Part(index, name, filename, content_type, is_file=filename is not None)) + data
        for index, (name, filename, content_type, data) in enumerate(parts)
    )
    return body + encoder.close()


@settings(deadline=None, max_examples=300)
@given(parts_strategy, cuts_strategy, st.booleans())
def test_any_parts_in_any_cuts_come_back_as_they_were(
    parts: list[tuple[bytes, bytes | None, bytes | None, bytes]], cuts: list[int], keep_raw: bool
) -> None:
    body = encode(parts, b"boundary")
    assert decode(cut(body, cuts), b"boundary", keep_raw=keep_raw) == [Got(*each) for each in parts]


@settings(deadline=None, max_examples=200)
@given(parts_strategy, cuts_strategy, data_bytes, data_bytes)
def test_the_raws_of_all_events_joined_are_the_bytes_fed_in(
    parts: list[tuple[bytes, bytes | None, bytes | None, bytes]], cuts: list[int], preamble: bytes, epilogue: bytes
) -> None:
    before = b"" if not parts or b"\r\n--boundary" in b"\r\n" + preamble else preamble + b"\r\n"
    body = before + encode(parts, b"boundary") + epilogue
    decoder = Decoder(b"boundary", keep_raw=True)
    assert b"".join(event.raw for piece in cut(body, cuts) for event in decoder.receive(piece)) == body
    assert decoder.complete


@pytest.mark.parametrize("seed", range(20))
def test_data_dense_in_prefixes_of_the_delimiter_comes_back(seed: int) -> None:
    rnd = random.Random(seed)
    data = b"".join(rnd.choices(NASTY, k=2000)).replace(b"\r\n--boundary", b"\r\n--bound-ary")
    body = encode([(b"a", b"f", None, b"x" + data)], b"boundary")
    assert [got.data for got in decode(cut(body, rnd.choices(range(len(body)), k=300)), b"boundary")] == [b"x" + data]


# -- limits, just below and just above


def test_one_part_more_than_allowed_is_refused() -> None:
    body = part(b"") * 3 + b"--b--"
    assert three_ways(body, max_parts=3) == three_ways(body, max_parts=0) == [Got(b"a", None, None, b"")] * 3
    assert three_ways(body, max_parts=2) is TooManyParts


def test_one_byte_of_headers_more_than_allowed_is_refused() -> None:
    body = part(b"x") + b"--b--"
    assert three_ways(body, max_header_bytes=len(HEAD)) == [Got(b"a", None, None, b"x")]
    assert three_ways(body, max_header_bytes=0) == [Got(b"a", None, None, b"x")]
    assert three_ways(body, max_header_bytes=len(HEAD) - 1) is TooLarge


def test_a_header_block_that_never_ends_is_refused_before_it_is_buffered() -> None:
    decoder = Decoder(b"b", max_header_bytes=1000)
    decoder.receive(b"--b\r\n" + b"x" * 1000)
    with pytest.raises(TooLarge) as caught:
        decoder.receive(b"x" * 4)
    assert caught.value.members == {"limit": 1000, "part": 0}


def test_one_header_more_than_allowed_is_refused() -> None:
    body = part(b"x", HEAD + b"\r\nX: 1\r\nX: 2") + b"--b--"
    assert three_ways(body, max_headers=3) == three_ways(body, max_headers=0) == [Got(b"a", None, None, b"x")]
    assert three_ways(body, max_headers=2) is TooLarge


@pytest.mark.parametrize("size", [1000, IGNORED_CAP])
def test_a_preamble_or_epilogue_passes_up_to_its_cap(size: int) -> None:
    body = b"p" * IGNORED_CAP + b"\r\n" + part(b"x") + b"--b--"
    assert [got.data for got in decode(cut(body, range(0, len(body), size)))] == [b"x"]
    body = part(b"x") + b"--b--" + b"e" * IGNORED_CAP
    assert [got.data for got in decode(cut(body, range(0, len(body), size)))] == [b"x"]


@pytest.mark.parametrize("size", [1000, 2 * IGNORED_CAP])
def test_one_byte_more_of_preamble_or_epilogue_is_refused(size: int) -> None:
    body = b"p" * (IGNORED_CAP + 1) + b"\r\n" + part(b"x") + b"--b--"
    assert outcome(cut(body, range(0, len(body), size))) is TooLarge
    body = part(b"x") + b"--b--" + b"e" * (IGNORED_CAP + 1)
    assert outcome(cut(body, range(0, len(body), size))) is TooLarge


def test_the_preamble_and_the_epilogue_have_a_cap_each() -> None:
    ignored = b"i" * IGNORED_CAP
    assert [got.data for got in decode([ignored + b"\r\n" + part(b"x") + b"--b--" + ignored])] == [b"x"]


# -- what keeps it fast


def test_a_chunk_in_the_middle_of_a_part_passes_as_the_very_object_that_came_in() -> None:
    chunks = [bytes([byte]) * 1000 for byte in b"x-\n"] + [b"a\r\n--c" * 100 + b"."]
    for keep_raw in (False, True):
        decoder = Decoder(b"b", keep_raw=keep_raw)
        decoder.receive(b"--b\r\n" + HEAD + b"\r\n\r\nfirst")
        for chunk in chunks:
            [event] = decoder.receive(chunk)
            assert event.kind is Kind.DATA
            assert event.data is chunk


def test_only_what_could_begin_a_delimiter_is_held_back() -> None:
    decoder = Decoder(b"b")
    decoder.receive(b"--b\r\n" + HEAD + b"\r\n\r\nfirst")
    assert [event.data for event in decoder.receive(b"more\r\n--")] == [b"more"]
    assert [event.data for event in decoder.receive(b"c\r")] == [b"\r\n--c"]
    assert [event.data for event in decoder.receive(b"end")] == [b"\rend"]


def test_parts_that_lie_whole_in_the_buffer_are_one_event_each() -> None:
    kinds = [event.kind for event in Decoder(b"b").receive(part(b"x") + part(b"y") + b"--b--")]
    assert kinds == [Kind.WHOLE, Kind.WHOLE, Kind.CLOSE]


# -- the way out


def test_an_encoder_writes_one_canonical_form() -> None:
    assert encode([(b"n", None, None, b"1"), (b"f", b"g", b"text/x", b"2")], b"b") == (
        b'--b\r\nContent-Disposition: form-data; name="n"\r\n\r\n1\r\n'
        b'--b\r\nContent-Disposition: form-data; name="f"; filename="g"\r\nContent-Type: text/x\r\n\r\n2\r\n--b--\r\n'
    )


def test_an_encoder_without_parts_writes_a_closing_delimiter_that_a_decoder_takes() -> None:
    assert Encoder(b"b").close() == b"--b--\r\n"
    assert decode([Encoder(b"b").close()]) == []


def test_a_file_without_a_name_goes_without_one() -> None:
    assert b"filename" not in Encoder().begin_form_part(Part(0, b"n", None, None, is_file=True))


def test_two_encoders_never_share_a_boundary() -> None:
    assert Encoder().boundary != Encoder().boundary
    assert len(Encoder().boundary) == 32


def test_what_a_usual_part_shares_with_the_one_before_it_is_its_own_all_the_same() -> None:
    heads = [
        b'form-data; name="a"; filename="1"\r\nContent-Type: t/1',
        b'form-data; name="a"; filename="2"\r\nContent-Type: t/2',
        b'form-data; name="b"; filename="2"',
        b'form-data; name="b"',
        b'form-data; name="a"; filename=""\r\nContent-Type: t/2',
    ]
    body = b"".join(b"--b\r\nContent-Disposition: " + head + b"\r\n\r\nx\r\n" for head in heads) + b"--b--\r\n"
    parts = [part for _, part, _, _ in Decoder(b"b").receive(body) if part is not None]
    assert [part.headers[0][1] for part in parts] == [head.partition(b"\r\n")[0] for head in heads]
    assert [(part.raw_name, part.raw_filename, part.content_type) for part in parts] == [
        (b"a", b"1", b"t/1"), (b"a", b"2", b"t/2"), (b"b", b"2", None), (b"b", None, None), (b"a", b"", b"t/2"),
    ]  # fmt: skip


_USUAL_NAMES = st.text(st.characters(codec="utf-8"), max_size=12)
_USUAL_TYPES = st.none() | st.sampled_from([b"text/plain", b"text/plain; charset=utf-8", b"a/b ", b"image/png"])


@given(
    st.lists(st.tuples(_USUAL_NAMES, st.none() | _USUAL_NAMES, _USUAL_TYPES, st.binary(max_size=40)), max_size=5),
    st.sampled_from([b"", b" ", b"\r\n--boundar", b"\r\n--boundary!"]),
)
def test_the_quick_way_for_usual_parts_gives_what_the_slow_way_gives(
    parts: list[tuple[str, str | None, bytes | None, bytes]], tail: bytes
) -> None:
    """Keeping the wire bytes, or taking parts of no form, switches the quick way off."""
    body = b""
    for name, filename, content_type, data in parts:
        body += b'--boundary\r\nContent-Disposition: form-data; name="' + name.encode() + b'"'
        body += b"" if filename is None else b'; filename="' + filename.encode() + b'"'
        body += b"" if content_type is None else b"\r\nContent-Type: " + content_type
        body += b"\r\n\r\n" + data + tail + b"\r\n"
    body += b"--boundary--\r\n"
    outcomes = []
    for keep_raw in (False, True):
        decoder = Decoder(b"boundary", keep_raw=keep_raw, max_parts=4, max_header_bytes=80)
        events: list[object] = []
        try:
            events = [
                (
                    kind,
                    part
                    and (
                        part.index,
                        part.raw_name,
                        part.raw_filename,
                        part.content_type,
                        list(part.headers),
                        part.is_file,
                    ),
                    data,
                )
                for kind, part, data, _ in decoder.receive(body)
                if kind is not Kind.IGNORED
            ]
        except GatewayError as error:
            events = [type(error), error.detail]
        outcomes.append(events)
    assert outcomes[0] == outcomes[1]


def error_in_the_fourth_part(head: bytes, cut: int, **options: Unpack[Options]) -> GatewayError:
    good = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n'
    body = good * 3 + b"--b\r\n" + head + b"\r\n\r\ny\r\n--b--\r\n"
    with pytest.raises(GatewayError) as caught:
        decode([body[start : start + cut] for start in range(0, len(body), cut)], **options)
    return caught.value


@pytest.mark.parametrize("cut", [10, 1 << 20])
@pytest.mark.parametrize(
    "head",
    [
        b"Content-Disposition: form-data",
        b'Content-Disposition: form-data; filename="x"',
        b'Content-Disposition: form-data; name="a"; filename="a\x7fb"',
        b"Content-Disposition: form-data; name=\"a\"; filename*=UTF-8''%00",
        b'Content-Disposition: form-data; name="a"; name="b"',
        b"X: y",
    ],
)
def test_what_is_wrong_with_a_part_of_a_form_is_said_with_its_number(head: bytes, cut: int) -> None:
    assert error_in_the_fourth_part(head, cut).members["part"] == 3


@pytest.mark.parametrize("form", [True, False])
@pytest.mark.parametrize("cut", [10, 1 << 20])
@pytest.mark.parametrize(
    "head",
    [
        b"Content-Disposition form-data",
        b'Content-Disposition: form-data; name="a\x1bb"',
        b'Content-Disposition: form-data; name="a"\r\nX: ' + b"y" * 20_000,
        b'Content-Disposition: form-data; name="a"' + b"\r\nX: y" * 64,
        b'Content-Disposition: form-data; name="a"' + b"\r\nContent-Encoding: gzip" * 2,
    ],
)
def test_what_is_wrong_with_the_headers_of_a_part_is_said_with_its_number(head: bytes, cut: int, form: bool) -> None:
    assert error_in_the_fourth_part(head, cut, form=form).members["part"] == 3
