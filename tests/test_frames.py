"""The way of one chunk: no longer than it may be, and as the page for developers shows it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.bench.frames import MOST, ways

PAGE = Path(__file__).parents[1] / "docs" / "how-it-is-built.md"


@pytest.mark.sockets
async def test_the_way_of_a_chunk_is_no_longer_than_it_may_be_and_is_the_one_that_is_shown() -> None:
    found = await ways()
    assert {name: len(way) for name, way in found.items() if len(way) > MOST[name]} == {}
    blocks = re.findall(r"```text\n(.+?)```", PAGE.read_text("utf-8"), re.DOTALL)
    shown = [re.findall(r"^[\w.]+", block, re.MULTILINE) for block in blocks]
    both, disk, relay = [block for block in shown if any("pipe" in name for name in block)]
    assert {*both, *disk} == {*found["disk"]}
    assert {*both, *relay} == {*found["relay"]}
