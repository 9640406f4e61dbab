"""What the pages for operators say: outcomes, how large a gateway gets, and copies of what it keeps."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from gateway.config.memory import connection_bound_bytes, memory_bound_bytes, read_bound_bytes
from gateway.config.settings import Settings
from gateway.errors import LEAVES
from gateway.http.problems import severity
from tests.support.clients import ask, file, form, random_bytes
from tests.support.processes import gateway_process
from tests.test_docs import page, rows, section

ROUTES = [{"path": "/upload", "access": ["none"], "parts": [{"sinks": ["disk"]}]}]
SMALLER = {"max_parts": 1000, "max_manifest_bytes": 1 << 20, "max_fields_bytes": 1 << 20}
FEW = {"max_uploads": 16, "max_reads": 64, "max_connections": 200}


def test_each_outcome_is_explained_with_its_level() -> None:
    listed = {row[0].strip("`"): row[1] for row in rows(page("outcomes"), columns=4)}
    levels = {leaf.slug(): logging.getLevelName(severity(leaf())) for leaf in LEAVES}
    assert listed == {**dict.fromkeys(("ok", "partial", "answered"), "INFO"), **levels}


def test_the_memory_of_the_examples_is_what_check_prints() -> None:
    table = section(page("running"), "Memory")
    shown = [line.split("|")[2:4] for line in table.splitlines() if line.startswith("|")][2:]
    found = []
    for server, limits in (({}, {}), ({}, SMALLER), (FEW, SMALLER)):
        document: dict[str, Any] = {"server": server, "limits": limits, "routes": ROUTES}
        settings = Settings(**document)
        upload, _ = memory_bound_bytes(settings)
        uploads, reads = settings.server.max_uploads, settings.server.max_reads
        others = settings.server.effective_max_connections - uploads - reads
        together = uploads * (upload + settings.limits.max_parts * 1024) + reads * read_bound_bytes(settings)
        together += others * connection_bound_bytes(settings)
        found.append((upload / (1 << 20), together / (1 << 30)))
    assert len(shown) == len(found)
    for (per_upload, in_all), (upload_mib, together_gib) in zip(shown, found, strict=True):
        assert float(per_upload.strip().removesuffix(" MiB")) == pytest.approx(upload_mib, abs=0.5)
        assert float(in_all.strip().removesuffix(" GiB")) == pytest.approx(together_gib, abs=0.05)


@pytest.mark.sockets
async def test_a_copy_that_is_made_while_uploads_go_on_is_a_good_one(tmp_path: Path) -> None:
    root, copy = tmp_path / "uploads", tmp_path / "elsewhere" / "uploads"
    data = [random_bytes(size) for size in (1, 5000, 300_000)]
    body = form(*(file(one, f"{number}.bin") for number, one in enumerate(data)))
    with gateway_process(tmp_path, "sinks.disk.fsync = false\n") as process:
        is_over = asyncio.Event()
        kept: list[str] = []

        async def go_on() -> None:
            while not is_over.is_set():
                answer = await ask(process.port, "/upload", "POST", body)
                assert answer.status == 201
                kept.append(answer.json()["upload"])

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(go_on())
            while len(kept) < 10:  # noqa: ASYNC110 - until there is something to be copied
                await asyncio.sleep(0.02)
            before = list(kept)
            await asyncio.to_thread(shutil.copytree, root, copy, ignore=shutil.ignore_patterns(".*"))
            is_over.set()
    copied = {path.name for path in copy.iterdir()}
    assert copied >= set(before)
    (tmp_path / "elsewhere").mkdir(exist_ok=True)
    with gateway_process(tmp_path / "elsewhere") as restored:
        for upload in copied:
            manifest = (await ask(restored.port, f"/uploads/{upload}")).json()
            for number, one in enumerate(data):
                answer = await ask(restored.port, f"/files/{upload}/{number}")
                assert answer.body == one
                assert manifest["parts"][number]["sha256"] == hashlib.sha256(one).hexdigest()
