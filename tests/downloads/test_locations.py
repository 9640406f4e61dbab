"""Where what was stored is said to be: paths that hold whatever a file is called."""

from __future__ import annotations

import pytest

from gateway.downloads.locations import file_location, upload_location
from tests.contract import file


@pytest.mark.parametrize(
    ("filename", "segment"),
    [
        (b"a b.txt", "a%20b.txt"),
        (b"../../../../tmp/escape", "escape"),
        (b"..\\..\\escape.txt", "escape.txt"),
        (b"/etc/passwd", "passwd"),
        (b"..", "file"),
        (b".", "file"),
        (b"manifest.json", "manifest.json"),
        (b"na\xc3\xafve?#%.txt", "na%C3%AFve%3F%23%25.txt"),
        (b"\xff\xfe", "%C3%BF%C3%BE"),
        (b"x" * 5000, "x" * 200),
        (None, "file"),
    ],
)
def test_a_location_is_ours_whatever_the_file_is_called(filename: bytes | None, segment: str) -> None:
    assert file_location("01TEST", 7, file(7, filename).filename) == f"/files/01TEST/7/{segment}"


def test_the_location_of_an_upload_is_its_manifest() -> None:
    assert upload_location("01TEST") == "/uploads/01TEST"
