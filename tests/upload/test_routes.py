"""Which rule takes which file: globs, media types, what is missing, and that the first match wins."""

from __future__ import annotations

import pytest

from gateway.model import Part
from gateway.upload.routes import Match, Route, Rule


def _file(
    name: bytes = b"file", filename: bytes | None = b"a.bin", content_type: bytes | None = b"application/octet-stream"
) -> Part:
    return Part(0, name, filename, content_type, is_file=True)


PDF = Rule(Match(content_type="application/pdf"), ("archive", "api"))
IMAGES = Rule(Match(content_type="image/*"), ("disk",))
REST = Rule(Match(), ("disk", "none"))


def test_the_first_match_wins() -> None:
    by_name, by_filename = Rule(Match(name="file"), ("a",)), Rule(Match(filename="*.bin"), ("b",))
    assert Route("/upload", "upload", (by_name, by_filename)).rule_for(_file()) is by_name
    assert Route("/upload", "upload", (by_filename, by_name)).rule_for(_file()) is by_filename


def test_a_rule_that_does_not_match_is_passed_over() -> None:
    route = Route("/upload", "upload", (PDF, IMAGES, REST))
    assert route.rule_for(_file(content_type=b"image/png")) is IMAGES
    assert route.rule_for(_file(content_type=b"text/plain")) is REST


def test_a_file_that_no_rule_takes_has_no_rule() -> None:
    assert Route("/upload", "upload", (PDF, IMAGES)).rule_for(_file()) is None
    assert Route("/upload", "upload").rule_for(_file()) is None


@pytest.mark.parametrize(
    "part", [_file(), _file(b"", b"", b""), _file(b"", None, None), _file(b"\xff\n", b"\xfe\r\n", b"\xfd")]
)
def test_an_empty_match_takes_every_file(part: Part) -> None:
    assert Match().takes(part)


@pytest.mark.parametrize(
    ("pattern", "name", "takes"),
    [
        ("file", "file", True),
        ("file", "file2", False),
        ("file", "a file", False),
        ("file", "file\n", False),
        ("file", "", False),
        ("file", "FILE", False),
        ("file*", "file", True),
        ("file*", "file2", True),
        ("file*", "file\r\nmore", True),
        ("*", "", True),
        ("", "", True),
        ("", "a", False),
        ("file?", "file2", True),
        ("file?", "file", False),
        ("file[0-9]", "file7", True),
        ("file[!0-9]", "file7", False),
        ("file[!0-9]", "filex", True),
        ("a.b", "a.b", True),
        ("a.b", "axb", False),
        ("a+(b)", "a+(b)", True),
        ("photo\u00e9*", "photo\u00e91", True),
        ("[", "[", True),
    ],
)
def test_a_glob_is_matched_against_the_whole_name_and_case_counts(pattern: str, name: str, takes: bool) -> None:
    assert Match(name=pattern).takes(_file(name.encode())) is takes
    assert Match(filename=pattern).takes(_file(filename=name.encode())) is takes


@pytest.mark.parametrize("separator", [b"/", b"\\"])
def test_a_star_in_a_file_name_crosses_directories(separator: bytes) -> None:
    assert Match(filename="*.pdf").takes(_file(filename=b"C:" + separator + b"papers" + separator + b"a.pdf"))


def test_a_name_that_is_no_utf_8_is_matched_as_latin_1() -> None:
    assert Match(name="caf\u00e9").takes(_file(name=b"caf\xe9"))


@pytest.mark.parametrize(
    "content_type",
    [
        b"application/pdf",
        b"Application/PDF",
        b"application/pdf;version=1.7",
        b"APPLICATION/pdf ; charset=binary; x=y",
        b"  application/pdf  ",
    ],
)
@pytest.mark.parametrize("pattern", ["application/pdf", "APPLICATION/Pdf", "application/*", "*/pdf", "*"])
def test_a_media_type_is_matched_without_case_and_parameters(pattern: str, content_type: bytes) -> None:
    assert Match(content_type=pattern).takes(_file(content_type=content_type))


@pytest.mark.parametrize("content_type", [b"text/pdf", b"application/pdfx", b"application", b"", None])
def test_another_media_type_does_not_match(content_type: bytes | None) -> None:
    assert not Match(content_type="application/pdf").takes(_file(content_type=content_type))


def test_a_file_name_that_is_missing_matches_what_an_empty_one_does() -> None:
    for filename in (None, b""):
        part = _file(filename=filename)
        assert Match(filename="*").takes(part)
        assert Match(filename="").takes(part)
        assert not Match(filename="?*").takes(part)
        assert not Match(filename="*.bin").takes(part)


def test_a_type_that_is_missing_matches_what_an_empty_one_does() -> None:
    for content_type in (None, b""):
        part = _file(content_type=content_type)
        assert Match(content_type="*").takes(part)
        assert Match(content_type="").takes(part)
        assert not Match(content_type="*/*").takes(part)


def test_all_that_a_match_names_has_to_match() -> None:
    match = Match(name="file*", filename="*.pdf", content_type="application/pdf")
    assert match.takes(_file(b"file1", b"a.pdf", b"application/pdf"))
    assert not match.takes(_file(b"other", b"a.pdf", b"application/pdf"))
    assert not match.takes(_file(b"file1", b"a.txt", b"application/pdf"))
    assert not match.takes(_file(b"file1", b"a.pdf", b"text/plain"))


def test_the_sinks_of_a_route_are_named_once_in_the_order_of_its_rules() -> None:
    assert Route("/upload", "upload", (PDF, IMAGES, REST)).sinks == ("archive", "api", "disk", "none")
    assert Route("/upload", "upload").sinks == ()


def test_a_route_digests_sha256_unless_told_otherwise() -> None:
    assert Route("/upload", "upload").digests == ("sha256",)
