"""`python -m tests.bench.soak --minutes 60`: a gateway under all kinds of clients at once, for as long as one likes.

Good ones send one to five files of all sizes, and read each back, or as an archive, and remove it; slow ones send a
kilobyte at a time; aborting ones hang up in the middle; hostile ones send what is no request, no form, or no end;
unauthorised ones have no key, or a wrong one. Each 201 is verified by its bytes. Descriptors and memory are told each
minute, and have to be at the end what they were after the first tenth.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from gateway.access import SCOPES, new_key
from tests.support.clients import Answer, Client, ask, file, form, head
from tests.support.processes import Process, gateway_process

_CONFIG = """
[server]
workers = {workers}
max_uploads = 64
[limits]
idle_seconds = 20
max_body_bytes = 67108864
[sinks.disk]
root = "{place}/uploads"
fsync = false
[access.keys]
file = "{place}/keys.toml"
[[routes]]
path = "/upload"
access = ["keys"]
parts = [{{ sinks = ["disk"] }}]
"""
_SIZES = (0, 1, 1000, 65536, 300_000, 3 << 20)
_GROWTH = 1.25
"""Of memory after the first tenth of the time: what is cached is cached by then."""


@dataclass
class Soak:
    """What all clients share."""

    port: int
    keys: list[str]
    random: random.Random
    pause_seconds: float = 0
    """Between what a client has done and what it does next: a machine may have other work, too."""
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def blocks(self) -> list[bytes]:
        """The files of an upload."""
        return [self.random.randbytes(self.random.choice(_SIZES)) for _ in range(self.random.randint(1, 5))]

    def check(self, what: str, right: bool) -> None:
        if not right:
            self.wrong.append(what)

    async def upload(self, key: str, body: bytes) -> Answer:
        return await ask(self.port, "/upload", "POST", body, x_api_key=key)


async def good(soak: Soak) -> None:
    """Sends, reads back, removes."""
    blocks, key = soak.blocks(), soak.random.choice(soak.keys)
    answer = await soak.upload(key, form(*map(file, blocks)))
    soak.outcomes[f"good {answer.status}"] += 1
    if answer.status in (429, 503):
        return
    soak.check(f"a good upload got {answer.status}", answer.status == 201)
    if answer.status != 201:
        return
    document = answer.json()
    for part, block in zip(document["parts"], blocks, strict=True):
        soak.check("a digest is wrong", part["sha256"] == hashlib.sha256(block).hexdigest())
        target = f"/files/{document['upload']}/{part['index']}"
        read = await ask(soak.port, target, x_api_key=key)
        soak.check(f"{target}: {read.status}, or other bytes", read.body == block)
        foreign = await ask(soak.port, target, x_api_key=soak.keys[(soak.keys.index(key) + 1) % len(soak.keys)])
        soak.check(f"another one reads it: {foreign.status}", foreign.status == 404)
    archive = await ask(soak.port, f"/uploads/{document['upload']}/archive.zip", x_api_key=key)
    soak.check(f"the archive: {archive.status}", archive.status == 200 and archive.body.startswith(b"PK"))
    removed = await ask(soak.port, f"/uploads/{document['upload']}", "DELETE", x_api_key=key)
    soak.check(f"removal: {removed.status}", removed.status == 204)


async def slow(soak: Soak) -> None:
    """Sends a kilobyte at a time, and is waited for."""
    body = form(file(soak.random.randbytes(30_000)))
    async with Client(soak.port) as client:
        await client.send(head(content_length=len(body), x_api_key=soak.random.choice(soak.keys)))
        for start in range(0, len(body), 1000):
            await client.send(body[start : start + 1000])
            await asyncio.sleep(0.05)
        answer = await client.answer()
    soak.outcomes[f"slow {answer.status}"] += 1
    soak.check(f"a slow upload got {answer.status}", answer.status in (201, 429, 503))


async def aborting(soak: Soak) -> None:
    """Hangs up in the middle, well or badly."""
    body = form(*map(file, soak.blocks()))
    async with Client(soak.port) as client:
        await client.send(head(content_length=len(body), x_api_key=soak.random.choice(soak.keys)))
        await client.send(body[: soak.random.randrange(len(body))])
        await asyncio.sleep(soak.random.random() / 10)
        if soak.random.random() < 0.5:
            client.reset()
    soak.outcomes["aborting"] += 1


async def hostile(soak: Soak) -> None:
    """Sends what nobody should."""
    key = soak.random.choice(soak.keys)
    body = bytearray(form(*map(file, soak.blocks())))
    for _ in range(soak.random.randint(1, 5)):
        body[soak.random.randrange(len(body))] = soak.random.randrange(256)
    sent = soak.random.choice(
        [
            head(content_length=len(body), x_api_key=key) + bytes(body),
            head(content_length=len(body), x_api_key=key) + bytes(body[:-5]),
            head(transfer_encoding="chunked", x_api_key=key) + b"ffffffffff\r\n" + bytes(body[:1000]),
            soak.random.randbytes(200) + b"\r\n\r\n",
            b"POST /upload HTTP/1.1\r\n" + b"a: b\r\n" * 1000,
            b"GET / HTTP/1.1\r\n",
        ]
    )
    async with Client(soak.port) as client:
        await client.send(sent)
        client.finish()
        answer = (await client.ended(30)).split(b"\r\n", 1)[0].decode("latin-1")
    soak.outcomes[f"hostile {answer[9:12] or 'closed'}"] += 1
    soak.check(f"a fault of ours: {answer}", " 500 " not in answer)


async def unauthorised(soak: Soak) -> None:
    """Has no key, a wrong one, or one that is over."""
    key = soak.random.choice(["", "gw_wrong", soak.keys[0][:-1], "x" * 3000])
    answer = await ask(soak.port, "/upload", "POST", form(*map(file, soak.blocks())), x_api_key=key)
    soak.outcomes[f"unauthorised {answer.status}"] += 1
    soak.check(f"who may not got {answer.status}", answer.status == 401)


CLIENTS: dict[Callable[[Soak], Awaitable[None]], int] = {good: 6, slow: 4, aborting: 4, hostile: 4, unauthorised: 2}
"""How many of each kind there are at a time."""


async def _forever(client: Callable[[Soak], Awaitable[None]], soak: Soak, until: float) -> None:
    while time.monotonic() < until:
        try:
            await asyncio.sleep(soak.pause_seconds)
            await client(soak)
        except (ConnectionError, TimeoutError) as error:
            soak.outcomes[f"{client.__name__} {type(error).__name__}"] += 1
            soak.check(f"{client.__name__}: {error!r}", client in (aborting, hostile, unauthorised))


def _held(process: Process) -> tuple[int, int]:
    """(descriptors, MiB resident) of the gateway and its workers."""
    family = [process.pid, *map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())]
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in family)
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in family), pages * os.sysconf("SC_PAGE_SIZE") >> 20


async def _tell(process: Process, soak: Soak, minutes: float, until: float) -> tuple[tuple[int, int], tuple[int, int]]:
    """What was held after a tenth of the time, and at the end."""
    began = time.monotonic()
    early, next_minute = None, began + 60
    while (now := time.monotonic()) < until:
        await asyncio.sleep(min(1, until - now))
        if early is None and now - began >= minutes * 6:
            early = _held(process)
        if now >= next_minute:
            next_minute += 60
            descriptors, mib = _held(process)
            print(
                f"{(now - began) / 60:.0f} min: {descriptors} descriptors, {mib} MiB, {soak.outcomes.total()} requests"
            )
    return early or _held(process), _held(process)


async def _soak(process: Process, keys: list[str], minutes: float, seed: int, pause_seconds: float) -> Soak:
    soak = Soak(process.port, keys, random.Random(seed), pause_seconds)
    until = time.monotonic() + 60 * minutes
    async with asyncio.TaskGroup() as group:
        for client, count in CLIENTS.items():
            for _ in range(count):
                group.create_task(_forever(client, soak, until))
        telling = group.create_task(_tell(process, soak, minutes, until))
    early, late = telling.result()
    await asyncio.sleep(6)  # what its clients have left is seen
    rest, _ = _held(process)
    soak.check(f"{early[1]} MiB became {late[1]}", late[1] <= early[1] * _GROWTH + 8)
    soak.check(f"{rest} descriptors stay of {early[0]}", rest <= early[0])
    return soak


def main() -> int:
    """The exit code: 1 where something was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.soak")
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--pause", type=float, default=0, metavar="SECONDS", help="of each client between two requests")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        place = Path(name)
        made = [new_key(owner, SCOPES) for owner in ("a", "b", "c")]
        (place / "keys.toml").write_text("\n".join(line for _, line in made))
        config = _CONFIG.format(place=place, workers=options.workers)
        with gateway_process(place, config) as process:
            soak = asyncio.run(_soak(process, [key for key, _ in made], options.minutes, options.seed, options.pause))
            left = [path.name for path in (place / "uploads").iterdir() if path.name.startswith(".")]
            soak.check(f"left over: {left}", not left)
        loud = [line for line in process.log.read_text().splitlines() if '"level": "ERROR"' in line]
        soak.check(f"the log: {loud[:3]}", not loud)
    for outcome, count in sorted(soak.outcomes.items()):
        print(f"{count:9} {outcome}")
    for what, count in Counter(soak.wrong).most_common(20):
        print(f"WRONG {count} times: {what}")
    return int(bool(soak.wrong))


if __name__ == "__main__":
    sys.exit(main())
