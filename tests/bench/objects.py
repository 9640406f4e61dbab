"""Uploads to object storage beside what its client alone does, and the memory that a huge one takes: `make objects`.

A real server (Swift) on this machine, and a gateway as a process. Small files: a thousand of them in one upload, beside
a put for each by the client alone, as many at a time as is quickest. Large ones: one file, beside its writer alone. In
turn, so that what else the machine does meets both. Memory: a body of unknown length, 3 GiB by default.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import obstore
from aiohttp import ClientSession, ClientTimeout
from obstore.store import S3Store, from_url

from tests.contract import END, FORM, form_part
from tests.support.buckets import Place, swift_place
from tests.support.processes import Process, gateway_process

MIB = 1 << 20
SMALL_FILES, SMALL_BYTES = 1000, 4096
PART_BYTES = 16 * MIB


def config(place: Place) -> str:
    return (
        f'[sinks.bucket]\ntype = "objects"\nurl = "{place.url}"\nprefix = "{place.prefix}"\n'
        '[[routes]]\npath = "/upload"\nparts = [{ sinks = ["bucket"] }]\n'
        "[limits]\nmax_body_bytes = 107374182400\nmax_parts = 2000\n"
    )


async def post(url: str, body: AsyncIterator[bytes]) -> float:
    """How many seconds it took; then it is removed, for space."""
    async with ClientSession(url, timeout=ClientTimeout(3600)) as session:
        began = time.monotonic()
        async with session.post("/upload", data=body, headers=FORM) as answer:
            assert answer.status == 201, await answer.text()
            await answer.read()
            took = time.monotonic() - began
        async with session.delete(answer.headers["Location"]) as removed:
            assert removed.status == 204
    return took


async def small(data: bytes) -> AsyncIterator[bytes]:
    yield b"".join([form_part(b"file", b"%d.bin" % number, data) for number in range(SMALL_FILES)]) + END


async def large(size: int) -> AsyncIterator[bytes]:
    block = os.urandom(MIB)
    head, _, tail = form_part(b"file", b"large.bin", b"@").rpartition(b"@")
    yield head
    for _ in range(size // MIB):
        yield block
    yield tail + END


async def alone_small(store: S3Store, prefix: str, data: bytes, at_once: int) -> None:
    numbers = iter(range(SMALL_FILES))

    async def put_some() -> None:
        for number in numbers:
            await obstore.put_async(store, f"{prefix}/alone/{at_once}/{number}", data)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(put_some())


async def alone_large(store: S3Store, prefix: str, size: int) -> None:
    block = os.urandom(MIB)
    async with obstore.open_writer_async(
        store, f"{prefix}/alone/large", buffer_size=PART_BYTES, max_concurrency=3
    ) as writer:
        for _ in range(size // MIB):
            await writer.write(block)


async def timed(work: Awaitable[None]) -> float:
    began = time.monotonic()
    await work
    return time.monotonic() - began


async def compare(url: str, place: Place, *, rounds: int, large_bytes: int) -> None:
    store = from_url(place.url, client_options={"allow_http": True})
    assert isinstance(store, S3Store)
    data = os.urandom(SMALL_BYTES)
    ours, alone = [], []
    for _ in range(rounds):
        alone.append(min([await timed(alone_small(store, place.prefix, data, at_once)) for at_once in (8, 16)]))
        ours.append(await post(url, small(data)))
    report(f"{SMALL_FILES} files of {SMALL_BYTES // 1024} KiB in one upload", SMALL_FILES, "files/s", ours, alone, 0.5)
    ours, alone = [], []
    for _ in range(rounds):
        alone.append(await timed(alone_large(store, place.prefix, large_bytes)))
        ours.append(await post(url, large(large_bytes)))
    report(f"one file of {large_bytes // MIB} MiB", large_bytes / MIB, "MiB/s", ours, alone, 0.8)


def report(what: str, amount: float, unit: str, ours: list[float], alone: list[float], target: float) -> None:
    gateway, client = amount / statistics.median(ours), amount / statistics.median(alone)
    ratio = statistics.median([one / other for one, other in zip(alone, ours, strict=True)])
    verdict = "met" if ratio >= target else "missed"
    print(f"{what}: gateway {gateway:.0f} {unit}, obstore alone {client:.0f} {unit}: {ratio:.2f} ({target} {verdict})")


async def memory(process: Process, size: int, bound: float) -> None:
    await post(process.url, large(256 * MIB))
    before = process.peak_rss_bytes()
    await post(process.url, large(size))
    after = process.peak_rss_bytes()
    grown = f"{(after - before) / MIB:.1f} MiB more than 256 MiB took; the bound of one upload is {bound:.0f} MiB"
    print(f"{size // MIB} MiB of unknown length: a peak of {after / MIB:.0f} MiB, {grown}")


def bound_of(directory: Path) -> float:
    command = [sys.executable, "-m", "gateway", "check", "--config", str(directory / "gateway-0.toml")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"([\d.]+) MiB  per upload", told)
    assert found is not None
    return float(found[1])


def main() -> None:
    """Print a line for each of the three."""
    parser = argparse.ArgumentParser(prog="make objects")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large-mib", type=int, default=512)
    parser.add_argument("--memory-mib", type=int, default=3072)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        directory = Path(name)
        with swift_place(directory / "swift") as place:
            os.environ.update(place.environment)
            with gateway_process(directory, config(place), **place.environment) as process:
                asyncio.run(compare(process.url, place, rounds=options.rounds, large_bytes=options.large_mib * MIB))
                asyncio.run(memory(process, options.memory_mib * MIB, bound_of(directory)))


if __name__ == "__main__":
    main()
