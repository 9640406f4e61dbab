"""What a long file of unknown length takes of memory on its way to a store: the small form of `make objects`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import ClientSession, ClientTimeout

from tests.contract import END, FORM, form_part
from tests.support.processes import gateway_process

pytestmark = pytest.mark.sockets

_MIB = 1 << 20


async def _body(size: int) -> AsyncIterator[bytes]:
    block = os.urandom(_MIB)
    head, _, tail = form_part(b"file", b"a.bin", b"@").rpartition(b"@")
    yield head
    for _ in range(size // _MIB):
        yield block
    yield tail + END


async def test_a_longer_file_takes_no_more_memory_and_less_than_the_bound(tmp_path: Path) -> None:
    config = (
        f'[sinks.bucket]\ntype = "objects"\nurl = "{(tmp_path / "objects").as_uri()}"\n'
        '[[routes]]\npath = "/upload"\nparts = [{ sinks = ["bucket"] }]\n[limits]\nmax_body_bytes = 107374182400\n'
    )
    with gateway_process(tmp_path, config) as process:
        idle = process.peak_rss_bytes()

        async def peak_after(size: int) -> int:
            async with ClientSession(process.url, timeout=ClientTimeout(300)) as session:
                async with session.post("/upload", data=_body(size), headers=FORM) as answer:
                    assert answer.status == 201
                async with session.delete(answer.headers["Location"]) as removed:
                    assert removed.status == 204
            return process.peak_rss_bytes()

        early, late = await peak_after(256 * _MIB), await peak_after(1024 * _MIB)
    assert late - early < 40 * _MIB  # two parts more in flight than before, by chance
    command = [sys.executable, "-m", "gateway", "check", "--config", str(tmp_path / "gateway-0.toml")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    bound = re.search(r"([\d.]+) MiB  per upload", told)
    assert bound is not None
    assert late - idle < float(bound[1]) * _MIB
