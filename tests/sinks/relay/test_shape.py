"""What of an upload's parts a destination is told."""

from __future__ import annotations

import pytest

from gateway.model import Part, Upload
from gateway.multipart.encoder import Encoder
from gateway.sinks.relay.shape import Sent, Shape, Template, is_empty_input, written
from tests.contract import field, file

UPLOAD = Upload("01ABC", "/upload", request_id="r-1")
RAW = Upload("01ABC", "/upload", multipart=False)


def named(name: bytes, index: int = 0, filename: bytes | None = None) -> Part:
    return Part(index, name, filename, None, is_file=filename is not None)


def test_without_wishes_parts_go_on_as_they_came() -> None:
    shape, part = Shape(), file(0)
    assert shape.renamed(part) is part
    assert not shape.leaves_out(part)
    assert shape.before(UPLOAD) == shape.after(UPLOAD, [Sent(part, 1)]) == []
    assert not shape.wants_files
    assert not shape.wants_sha256


@pytest.mark.parametrize("filename", [None, b"a.bin"])
def test_fields_and_files_alike_are_renamed_and_left_out_by_their_exact_names(filename: bytes | None) -> None:
    shape = Shape(rename={"old": "new", "ä": "ö"}, drop=["secret"])
    assert shape.renamed(named(b"old", 3, filename)) == named(b"new", 3, filename)
    for kept in (b"Old", b"old ", b"olds", b"new", b""):
        part = named(kept, 0, filename)
        assert shape.renamed(part) is part
        assert not shape.leaves_out(part)
    assert shape.leaves_out(named(b"secret", 0, filename))
    assert not shape.leaves_out(named(b"secrets", 0, filename))
    # compared as text, whichever bytes it came in
    assert shape.renamed(named("ä".encode(), 0, filename)).raw_name == "ö".encode()
    assert shape.renamed(named(b"\xe4", 0, filename)).raw_name == "ö".encode()


def test_renaming_is_done_once_and_may_swap() -> None:
    shape = Shape(rename={"a": "b", "b": "a"})
    assert [shape.renamed(named(name)).raw_name for name in (b"a", b"b", b"c")] == [b"b", b"a", b"c"]


def test_fields_before_know_the_upload() -> None:
    shape = Shape(add_before={"source": "gateway", "{upload}": "{request_id}/{upload}"})
    assert shape.before(UPLOAD) == [(b"source", b"gateway"), (b"01ABC", b"r-1/01ABC")]
    assert shape.before(Upload("01X", "/upload"))[1] == (b"01X", b"01X/01X")


def test_fields_after_come_once_per_file_where_they_speak_of_one_and_then_once() -> None:
    shape = Shape(add_after={"done": "{upload}", "{name}_size": "{size}", "digest": "{index}:{sha256}"})
    files = [Sent(named(b"a", 1, b"x"), 5, "aa"), Sent(named(b"b", 4, b"y"), 0, "bb")]
    assert shape.after(UPLOAD, files) == [
        (b"a_size", b"5"),
        (b"digest", b"1:aa"),
        (b"b_size", b"0"),
        (b"digest", b"4:bb"),
        (b"done", b"01ABC"),
    ]
    assert shape.after(UPLOAD, []) == [(b"done", b"01ABC")]
    assert shape.wants_files
    assert shape.wants_sha256
    assert not Shape(add_after={"n": "{size}"}).wants_sha256
    assert Shape(add_after={"{sha256}": ""}).wants_sha256


def test_what_came_in_is_never_looked_at_for_placeholders_and_keeps_its_bytes() -> None:
    shape = Shape(add_after={"{name}": "{filename}|{content_type}"})
    part = Part(0, b"{size}\xff", b"{upload}\xe4", b"a/b; c={x}", is_file=True)
    assert shape.after(UPLOAD, [Sent(part, 1)]) == [(b"{size}\xff", b"{upload}\xe4|a/b; c={x}")]


def test_a_file_without_a_name_is_told_as_it_is_sent_and_an_unknown_type_is_empty() -> None:
    shape = Shape(add_after={"n": "{filename}{content_type}"})
    unnamed = Part(0, b"f", None, None, is_file=True)
    for upload, sent in ((UPLOAD, b""), (RAW, b"file")):
        part = shape.for_body(upload).renamed(unnamed)
        assert shape.after(upload, [Sent(part, 1)]) == [(b"n", sent)]


def test_braces_are_written_twice() -> None:
    template = Template("{{upload}} {upload}", ["upload"])
    assert template.render({"upload": b"u"}) == b"{upload} u"
    assert template.names == {"upload"}


@pytest.mark.parametrize("text", ["{nothing}", "{}", "{0}", "{size}", "{upload!r}", "{upload:>9}", "{upload.id}", "{"])
def test_an_unknown_placeholder_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="placeholder"):
        Template(text, ["upload"])


def test_fields_are_quoted_as_the_encoder_does() -> None:
    encoder = Encoder(b"b")
    wire = b"".join(written(encoder, [(b'a"\r\n', b"1"), (b"n", b'"\r\n')])) + encoder.close()
    assert wire == (
        b'--b\r\nContent-Disposition: form-data; name="a%22%0D%0A"\r\n\r\n1'
        b'\r\n--b\r\nContent-Disposition: form-data; name="n"\r\n\r\n"\r\n\r\n--b--\r\n'
    )


def test_a_length_can_be_known_before_the_digest_is() -> None:
    shape = Shape(add_after={"{name}": "{sha256} {size}"})
    told = shape.after(UPLOAD, [Sent(file(0), 1234, "f" * 64)])
    assert list(map(len, told[0])) == list(map(len, shape.after(UPLOAD, [Sent.assumed(file(0), 1234)])[0]))


@pytest.mark.parametrize(
    ("kind", "shaped"),
    [
        ("multipart/mixed; boundary=b", False),
        ('Multipart/Related; boundary=b; type="a/b"', False),
        ("multipart/form-data; boundary=b", True),
        ("", True),
    ],
)
def test_only_forms_have_a_shape(kind: str, shaped: bool) -> None:
    shape = Shape(drop=["a"], fields_first_bytes=1)
    upload = Upload("01ABC", "/upload", content_type=kind)
    assert (shape.for_body(upload) is shape) == shaped
    assert shape.for_body(upload).leaves_out(named(b"a")) == bool(shape.for_body(upload).fields_first_bytes) == shaped
    assert shape.for_body(RAW).leaves_out(named(b"a"))


def test_only_a_raw_body_gets_a_file_name_that_nobody_gave() -> None:
    unnamed = Part(0, b"f", None, b"a/b", is_file=True)
    shape = Shape(rename={"f": "g"})
    assert shape.for_body(UPLOAD).renamed(unnamed) == Part(0, b"g", None, b"a/b", is_file=True)
    assert shape.for_body(RAW).renamed(unnamed) == Part(0, b"g", b"file", b"a/b", is_file=True)
    assert shape.for_body(RAW).renamed(file(0)).raw_filename == file(0).raw_filename
    assert shape.renamed(unnamed).raw_filename is None


def test_an_empty_file_input_is_no_file() -> None:
    assert is_empty_input(file(0, b""), 0)
    assert not is_empty_input(file(0, b""), 1)
    assert not is_empty_input(file(0, b"a"), 0)
    assert not is_empty_input(file(0, None), 0)
    assert not is_empty_input(field(0), 0)
