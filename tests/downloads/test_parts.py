"""Parts are found in a stored manifest however it is read, and older manifests are read, too."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.downloads import parts
from gateway.downloads.parts import part_of, parts_of
from gateway.manifest import ManifestText
from gateway.model import Entry, Manifest, Part, Receipt
from gateway.sinks.store import StoredFile
from tests.support.doubles import MemoryFile

NAMES = [b"a", b'tab\tquote"', "\u2028\u00e4\U0001f600".encode(), b"]}", b",", b"x" * 50]


class CutOffFile(MemoryFile):
    """Says that it is longer than it is."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.size += 1


def written(count: int) -> bytes:
    entries = [
        Entry(Part(index, name, name, None, is_file=True), size=index, receipts=[Receipt(index, "disk", location="/f")])
        for index, name in enumerate((NAMES * count)[:count])
    ]
    return ManifestText(Manifest("x", entries), sinks=["disk"], limit=0).finish()


async def found(manifest: StoredFile, count: int) -> list[Any]:
    """Each of them asked for alone, and all in turn."""
    alone = [await part_of(manifest, index) for index in range(count)]
    assert [part async for part in parts_of(manifest)] == alone
    assert await part_of(manifest, count) is None
    return alone


@pytest.mark.parametrize("count", [0, 1, 2, 12])
@pytest.mark.parametrize("read_bytes", [1, 2, 7, 64, 1 << 20])
async def test_each_part_is_found_whatever_is_read_at_a_time(
    monkeypatch: pytest.MonkeyPatch, count: int, read_bytes: int
) -> None:
    monkeypatch.setattr(parts, "_READ_BYTES", read_bytes)
    data = written(count)
    assert await found(MemoryFile(data), count) == json.loads(data)["parts"]


@pytest.mark.parametrize("count", [0, 3])
async def test_an_older_manifest_which_has_no_tabs_is_read_as_a_whole(count: int) -> None:
    document = json.loads(written(count))
    assert await found(MemoryFile(json.dumps(document).encode()), count) == document["parts"]


async def test_a_manifest_that_is_cut_off_is_no_end() -> None:
    with pytest.raises(EOFError):
        await part_of(CutOffFile(written(2)), 5)
