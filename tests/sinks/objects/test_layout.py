"""What objects are called and carry, and into how many parts a file is cut."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gateway.model import Limits, Part
from gateway.sinks.objects.layout import MAX_PARTS, attributes_of, memory_shares, part_bytes_for
from tests.contract import file

_MIB = 1 << 20
_SIZES = {"part_bytes": 16 * _MIB, "max_part_bytes": 64 * _MIB}


@pytest.mark.sockets
def test_who_has_no_bucket_does_not_import_the_client_of_the_store() -> None:
    program = "import sys; from gateway.config.load import load; from gateway.config.make import make_sinks_and_flows; "
    program += "make_sinks_and_flows(load()); sys.exit('obstore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("length", "part_bytes"),
    [
        (None, 16 * _MIB),
        (0, 16 * _MIB),
        (16 * _MIB * MAX_PARTS, 16 * _MIB),
        (16 * _MIB * MAX_PARTS + 1, 16 * _MIB + 1),
        (64 * _MIB * MAX_PARTS, 64 * _MIB),
        (1 << 50, 64 * _MIB),
    ],
)
def test_parts_grow_with_a_declared_length_only_and_up_to_a_limit(length: int | None, part_bytes: int) -> None:
    assert part_bytes_for(length, **_SIZES) == part_bytes


@pytest.mark.parametrize(
    ("content_type", "kept"),
    [
        (b"text/html; charset=utf-8", "text/html; charset=utf-8"),
        (None, "application/octet-stream"),
        (b"", "application/octet-stream"),
        ("tëxt/x".encode("latin-1"), "application/octet-stream"),
        (b"a\r\nb: c", "application/octet-stream"),
    ],
)
def test_an_object_has_a_type_that_can_be_a_header(content_type: bytes | None, kept: str) -> None:
    attributes = attributes_of(Part(0, b"file", b"a", content_type, is_file=True), "01X")
    assert (attributes["Content-Type"], attributes["upload"]) == (kept, "01X")


@pytest.mark.parametrize(
    ("filename", "disposition"),
    [
        (b"a b.txt", "attachment; filename=\"a b.txt\"; filename*=UTF-8''a%20b.txt"),
        ('ä"\\.txt'.encode(), "attachment; filename=\".txt\"; filename*=UTF-8''.txt"),
        ("ä%.txt".encode(), "attachment; filename=\"__.txt\"; filename*=UTF-8''%C3%A4%25.txt"),
        (None, "attachment; filename=\"file\"; filename*=UTF-8''file"),
    ],
)
def test_an_object_is_an_attachment_of_a_safe_name(filename: bytes | None, disposition: str) -> None:
    assert attributes_of(file(0, filename), "01X")["Content-Disposition"] == disposition


def test_memory_is_counted_for_the_largest_parts_that_a_body_can_ask_for() -> None:
    unlimited = sum(memory_shares(Limits(), 0, **_SIZES).values())
    limited = sum(memory_shares(Limits(max_body_bytes=100 << 30), 0, **_SIZES).values())
    assert unlimited == 4 * (4 * 64 + 1) * _MIB
    assert limited == 4 * (4 * 16 + 1) * _MIB
