"""Whose the uploads on a disk are, against manifests as they are written."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from gateway.manifest import ManifestText
from gateway.model import Entry, Manifest, Part
from gateway.sinks.disk.holdings import Holdings
from gateway.sinks.disk.sink import DiskSink

ID = "01JD000000000000000000000{}"


def keep(root: Path, number: int, owner: str, *sizes: int) -> Path:
    entries = [Entry(Part(i, b"f", b"a.bin", None, is_file=True), size=size) for i, size in enumerate(sizes)]
    upload = ID.format(number)
    text = ManifestText(Manifest(upload, entries, identity=owner), sinks=[], limit=0).finish()
    (root / upload).mkdir()
    (root / upload / "manifest.json").write_bytes(text)
    return root / upload


def test_sums_follow_what_is_there(tmp_path: Path) -> None:
    holdings = Holdings(tmp_path)
    assert holdings.look().get("key:a", 0) == 0
    first = keep(tmp_path, 1, "key:a", 10, 20)
    keep(tmp_path, 2, 'key:"ü\\', 5)
    keep(tmp_path, 3, "", 1000)
    assert [holdings.look().get(owner, 0) for owner in ("key:a", 'key:"ü\\', "key:b", "")] == [30, 5, 0, 0]
    first.rename(tmp_path / f".{first.name}.deleted")
    keep(tmp_path, 4, "key:a", 7)
    assert holdings.look().get("key:a", 0) == 7


def test_what_is_no_upload_of_somebodys_counts_nothing(tmp_path: Path) -> None:
    (tmp_path / ID.format(1)).mkdir()  # another disk has its manifest
    (tmp_path / ID.format(2)).write_text("a file")
    damaged = tmp_path / ID.format(3)
    damaged.mkdir()
    (damaged / "manifest.json").write_bytes(b'{"upload": "01", "identity": "key')
    (tmp_path / "lost+found").mkdir()
    keep(tmp_path, 5, "key:a", 1)
    assert Holdings(tmp_path).look()["key:a"] == 1


async def test_many_who_ask_take_one_thread_and_miss_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = most = looks = 0
    look = Holdings.look

    def slow(self: Holdings) -> Mapping[str, int]:
        nonlocal at_once, most, looks
        looks += 1
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.1)
        found = look(self)
        at_once -= 1
        return found

    monkeypatch.setattr(Holdings, "look", slow)
    async with DiskSink(name="disk", root=str(tmp_path)) as disk:
        keep(tmp_path, 1, "key:a", 10)
        async with asyncio.TaskGroup() as group:
            first = [group.create_task(disk.stored_bytes("key:a")) for _ in range(8)]
            await asyncio.sleep(0.05)
            keep(tmp_path, 2, "key:a", 5)
            assert await disk.stored_bytes("key:a") == 15, "the look that went on may have missed it"
        assert {one.result() for one in first} <= {10, 15}
    assert (most, looks) == (1, 2)
