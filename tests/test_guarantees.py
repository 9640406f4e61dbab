"""G1 to G8, each by its name (docs/guarantees.md), over real sockets. G6 is in server/test_serve.py."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from aiohttp import web

from gateway.config.load import load
from gateway.config.memory import memory_bound_bytes
from gateway.sinks.disk.file_system import FileSystemSync
from tests.conftest import Destination, RunningGateway, StartDestination, StartGateway
from tests.support.clients import (
    BOUNDARY,
    Client,
    SilentClient,
    UnreadingClient,
    VanishingClient,
    ask,
    chunked,
    eventually,
    file,
    form,
    head,
    random_bytes,
)
from tests.support.processes import Process, gateway_process, receiver_process

BIG = os.environ.get("GATEWAY_TEST_BIG") == "1"
MIB = 1 << 20

FAN_OUT = [
    {"path": "/upload", "kind": "upload", "parts": [{"sinks": ["disk", "api"]}]},
    {"path": "/proxy", "kind": "relay", "parts": [{"sinks": ["disk", "api"]}]},
]
"""Both routes to disk and relay at once, so that one cut shows what each of them does with it."""
SMALL = form(file(b"first", "a"), file(b"second", "b"))

How = Literal["fin", "rst", "short"]


@pytest.fixture
async def destination(start_destination: StartDestination) -> Destination:
    return await start_destination()


@pytest.fixture
async def gateway(start_gateway: StartGateway, destination: Destination) -> RunningGateway:
    return await start_gateway(api=f"{destination.url}/upload", routes=FAN_OUT)


async def _seen(destination: Destination | Process) -> Any:
    return (await ask(destination.port, "/seen")).json()


async def _nothing_is_left(gateway: RunningGateway, destination: Destination) -> None:
    """Once everything has come to rest; and then the next request works."""
    await eventually(lambda: not gateway.services.requests)
    assert gateway.services.gate.in_flight == 0
    assert gateway.stored() == []
    seen: dict[str, int] = {"started": 0, "aborted": -1}
    async with asyncio.timeout(30):
        while seen["started"] != seen["aborted"]:  # it may take a moment until a destination sees the end
            await asyncio.sleep(0.01)
            seen = await _seen(destination)
            assert seen["completed"] == 0
    for target, status in (("/upload", 201), ("/proxy", 200)):
        assert (await ask(gateway.port, target, "POST", SMALL)).status == status
    assert (await _seen(destination))["completed"] == 2
    assert len(gateway.stored()) == 2 * (1 + 3)  # directories, and files with a manifest each


class TestG1BoundedMemory:
    """File sizes do not enter into it: measured on a process of its own."""

    LARGE = 4096 * MIB if BIG else 1024 * MIB

    @pytest.fixture
    def receiver(self, tmp_path: Path) -> Iterator[Process]:
        with receiver_process(tmp_path) as process:
            yield process

    @pytest.fixture
    def process(self, tmp_path: Path, receiver: Process) -> Iterator[Process]:
        env = {"GATEWAY_SINKS__API__URL": f"{receiver.url}/upload", "GATEWAY_SERVER__DRAIN_SECONDS": "1"}
        with gateway_process(tmp_path, **env) as process:
            yield process

    @staticmethod
    async def _send(port: int, target: str, size: int) -> int:
        """A file of `size` bytes that is nowhere as a whole; returns the answer's status."""
        block, begin, end = random_bytes(MIB), file(b""), b"\r\n--%s--\r\n" % BOUNDARY
        async with Client(port) as client:
            await client.send(head(target, content_length=len(begin) + size + len(end)) + begin)
            for _ in range(size // MIB):
                await client.send(block)
            await client.send(end)
            answer = await client.answer(120)
            (part,) = answer.json()["parts"]
            assert part["size"] == size
            return answer.status

    @pytest.mark.sockets
    @pytest.mark.timeout(900)
    @pytest.mark.parametrize(("target", "status"), [("/upload", 201), ("/proxy", 200)])
    async def test_a_larger_upload_takes_no_more_memory(
        self, process: Process, tmp_path: Path, target: str, status: int
    ) -> None:
        assert await self._send(process.port, target, 64 * MIB) == status
        before = process.peak_rss_bytes()
        assert await self._send(process.port, target, self.LARGE) == status
        after = process.peak_rss_bytes()
        assert after - before < 24 * MIB
        assert after < 150 * MIB
        for stored in (tmp_path / "uploads").rglob("0"):
            stored.unlink()  # pytest keeps what tests leave

    @pytest.mark.sockets
    async def test_a_slow_destination_takes_no_more_memory(self, process: Process, receiver: Process) -> None:
        assert await self._send(process.port, "/proxy", 64 * MIB) == 200
        before = process.peak_rss_bytes()
        async with VanishingClient(process.port) as client:
            await client.send(head("/proxy?rate_bytes=1000000", content_length=1 << 40) + file(b""))
            await client.send_for(2, random_bytes(MIB))
            early = process.peak_rss_bytes()
            await client.send_for(4, random_bytes(MIB))
            late = process.peak_rss_bytes()
        assert late - before < 24 * MIB
        assert late - early < 4 * MIB
        assert (await _seen(receiver))["completed"] == 1

    @pytest.mark.sockets
    async def test_many_uploads_at_once_keep_within_the_bound_that_is_printed(
        self, tmp_path: Path, receiver: Process
    ) -> None:
        config = f"""
            server.drain_seconds = 1
            limits.max_fields_bytes = 65536
            [[routes]]
            path = "/both"
            parts = [{{ sinks = ["disk", "api"] }}]
            [sinks.api]
            type = "relay"
            url = "{receiver.url}/upload"
        """
        uploads = 8
        with gateway_process(tmp_path, config) as process:
            bound, _ = memory_bound_bytes(load(tmp_path / "gateway-0.toml"))
            assert (await ask(process.port, "/both", "POST", SMALL)).status == 201
            before = process.peak_rss_bytes()

            async def send() -> None:
                async with VanishingClient(process.port) as client:
                    await client.send(head("/both?rate_bytes=200000", content_length=1 << 40) + file(b""))
                    await client.send_for(4, random_bytes(MIB))

            async with asyncio.TaskGroup() as group:
                for _ in range(uploads):
                    group.create_task(send())
            assert process.peak_rss_bytes() - before < uploads * bound


class TestG2NothingEarly:
    """Nothing is visible before the last byte of the body."""

    @pytest.mark.parametrize("target", ["/upload", "/proxy"])
    @pytest.mark.parametrize("withheld", [1, 2, 3, len(BOUNDARY) + 8])
    async def test_a_form_whose_last_bytes_are_withheld_is_nowhere_yet(
        self, gateway: RunningGateway, destination: Destination, target: str, withheld: int
    ) -> None:
        request = head(target, content_length=len(SMALL)) + SMALL
        await self._is_nowhere_before_its_end(gateway, destination, request, withheld)

    @pytest.mark.parametrize("target", ["/upload", "/proxy"])
    @pytest.mark.parametrize("withheld", [1, 2, 3, 5, 6])
    async def test_a_chunked_form_is_nowhere_before_its_last_chunk_ended(
        self, gateway: RunningGateway, destination: Destination, target: str, withheld: int
    ) -> None:
        request = head(target, transfer_encoding="chunked") + chunked(SMALL)
        await self._is_nowhere_before_its_end(gateway, destination, request, withheld)

    @pytest.mark.parametrize("target", ["/upload", "/proxy"])
    @pytest.mark.parametrize("framing", ["length", "chunked"])
    async def test_a_raw_body_is_nowhere_before_its_last_byte(
        self, gateway: RunningGateway, destination: Destination, target: str, framing: str
    ) -> None:
        data = random_bytes(300_000)
        if framing == "length":
            request = head(target, content_type="text/plain", content_length=len(data)) + data
        else:
            request = head(target, content_type="text/plain", transfer_encoding="chunked") + chunked(data)
        await self._is_nowhere_before_its_end(gateway, destination, request, 1)

    @staticmethod
    async def _is_nowhere_before_its_end(
        gateway: RunningGateway, destination: Destination, request: bytes, withheld: int
    ) -> None:
        async with Client(gateway.port) as client:
            await client.send(request[:-withheld])
            await eventually(lambda: gateway.services.gate.in_flight)
            await asyncio.sleep(0.3)
            (incoming, *_) = gateway.stored()
            assert [path.name for path in gateway.root.iterdir()] == [incoming.name]
            upload = incoming.name.removeprefix(".").removesuffix(".incoming")
            assert upload != incoming.name
            assert (await ask(gateway.port, f"/uploads/{upload}")).status == 404
            assert (await ask(gateway.port, f"/files/{upload}/0/a")).status == 404
            assert (await _seen(destination))["completed"] == 0
            await client.send(request[-withheld:])
            assert (await client.answer()).status in (200, 201)
        assert (await _seen(destination))["completed"] == 1
        assert [path.name for path in gateway.root.iterdir()] == [upload]


class TestG3NothingLeft:
    """What was not whole leaves no file, no temporary directory and no complete request."""

    @staticmethod
    async def _cut(port: int, target: str, body: bytes | memoryview, offset: int, how: How) -> None:
        async with VanishingClient(port) as client:
            if how == "short":
                await client.send(head(target, content_length=offset))
                await client.send(body[:offset])
                answer = await client.answer()
                assert (answer.status, answer.json()["type"]) == (400, "/problems/truncated")
            else:
                await client.send(head(target, content_length=len(body)))
                await client.vanish_after(body[:offset], how)

    @pytest.mark.parametrize("target", ["/upload", "/proxy"])
    @pytest.mark.parametrize("how", ["fin", "rst", "short"])
    async def test_a_small_body_cut_at_every_offset(
        self, gateway: RunningGateway, destination: Destination, target: str, how: How
    ) -> None:
        # what follows the closing delimiter may be missing where it was not promised
        end = len(SMALL) - len(b"\r\n") if how == "short" else len(SMALL)
        offsets = iter(range(end))

        async def cut() -> None:
            for offset in offsets:
                await self._cut(gateway.port, target, SMALL, offset, how)

        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(cut())
        await eventually(lambda: not gateway.services.requests)
        assert self._uploads(gateway) >= (end if how != "rst" else end // 2)  # a RST may outrun its request
        await _nothing_is_left(gateway, destination)

    @staticmethod
    def _uploads(gateway: RunningGateway) -> float:
        counts = re.findall(rb"gateway_uploads_total{.*?} ([\d.]+)", gateway.services.metrics.text())
        return sum(float(count) for count in counts)

    @pytest.mark.parametrize("target", ["/upload", "/proxy"])
    @pytest.mark.parametrize("how", ["fin", "rst"])
    @pytest.mark.parametrize("kind", ["form", "raw"])
    async def test_a_chunked_body_cut_at_every_offset(
        self,
        gateway: RunningGateway,
        destination: Destination,
        target: str,
        how: Literal["fin", "rst"],
        kind: str,
    ) -> None:
        wire = chunked(SMALL if kind == "form" else b"x" * 40, 33)
        types = {} if kind == "form" else {"content_type": "text/plain"}
        offsets = iter(range(len(wire)))

        async def cut() -> None:
            for offset in offsets:
                async with VanishingClient(gateway.port) as client:
                    await client.send(head(target, transfer_encoding="chunked", **types))
                    await client.vanish_after(wire[:offset], how)

        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(cut())
        await _nothing_is_left(gateway, destination)

    @pytest.mark.timeout(900)
    async def test_a_large_body_cut_at_random_offsets(self, gateway: RunningGateway, destination: Destination) -> None:
        body = memoryview(form(file(random_bytes(24 * MIB), "a"), file(b"tiny", "b"), file(random_bytes(40 * MIB))))
        chance = random.Random(20)
        ways: list[How] = ["fin", "rst", "short"]
        for number in range(200 if BIG else 24):
            offset = chance.randrange(len(body) - 2)
            for how in ways if BIG else [ways[number % 3]]:
                await self._cut(gateway.port, ("/upload", "/proxy")[number % 2], body, offset, how)
        await _nothing_is_left(gateway, destination)

    @pytest.mark.parametrize("target", ["/upload", "/proxy"])
    async def test_oversized_malformed_and_stalled_bodies(
        self, start_gateway: StartGateway, destination: Destination, target: str
    ) -> None:
        limits = {"max_file_bytes": MIB, "max_body_bytes": 4 * MIB, "idle_seconds": 0.5, "max_parts": 3}
        gateway = await start_gateway(api=f"{destination.url}/upload", routes=FAN_OUT, limits=limits)
        sound = file(random_bytes(300_000), "sound")
        for body, status in (
            (form(sound, file(random_bytes(MIB + 1))), 413),
            (form(*[file(random_bytes(MIB))] * 5), 413),
            (form(sound, file(b""), file(b""), file(b"")), 413),
            (form(sound, b"--b0undary\r\nNo header\r\n\r\nabc"), 400),
            (form(sound, b'--b0undary\r\nContent-Disposition: form-data; name="\x00"\r\n\r\nabc'), 400),
            (sound + b"\r\n", 400),
        ):
            async with Client(gateway.port) as client:
                await client.send(head(target, transfer_encoding="chunked"))
                with contextlib.suppress(ConnectionError):  # it may be answered, and closed, while we are sending
                    await client.send(chunked(body))
                assert (await client.answer()).status == status
        async with SilentClient(gateway.port) as client:
            assert (await client.fall_silent_after(head(target, content_length=MIB) + sound)).status == 408
        await _nothing_is_left(gateway, destination)


class TestG4BackPressure:
    """A slow sink slows the client, a stuck one is an error."""

    async def test_what_a_client_can_send_is_bounded_by_what_the_sink_takes(self, gateway: RunningGateway) -> None:
        async with VanishingClient(gateway.port) as slowed:
            await slowed.send(head("/proxy?rate_bytes=1000000", content_length=1 << 40) + file(b""))
            await slowed.send_for(1, random_bytes(MIB))
            at_first = slowed.sent_bytes  # buffers of the kernel on both sides, the window, and a second's worth
            await slowed.send_for(3, random_bytes(MIB))
        assert at_first < 64 * MIB
        assert slowed.sent_bytes - at_first < 12 * MIB

    @pytest.mark.parametrize("stuck", ["rate_bytes=1", "never_answer=1"])
    @pytest.mark.parametrize("target", ["/upload", "/proxy"])
    async def test_a_stuck_destination_is_a_timeout_and_no_hang(
        self, start_gateway: StartGateway, destination: Destination, target: str, stuck: str
    ) -> None:
        limits = {"stall_seconds": 1}
        gateway = await start_gateway(api=f"{destination.url}/upload", routes=FAN_OUT, limits=limits)
        size = 32 * MIB if stuck == "rate_bytes=1" else 1
        body = form(file(random_bytes(size)))
        async with Client(gateway.port) as client, asyncio.TaskGroup() as group:
            sending = group.create_task(client.send(head(f"{target}?{stuck}", content_length=len(body)) + body))
            answer = await client.answer()
            sending.cancel()
        assert (answer.status, answer.json()["type"], answer.json()["sink"]) == (504, "/problems/sink-timeout", "api")
        await eventually(lambda: not gateway.services.requests)
        assert gateway.stored() == []

    async def test_an_answer_that_nobody_reads_is_not_gathered(
        self, start_gateway: StartGateway, start_destination: StartDestination
    ) -> None:
        sent = 0

        async def answer_at_length(request: web.Request) -> web.StreamResponse:
            nonlocal sent
            while await request.content.readany():
                pass
            response = web.StreamResponse()
            await response.prepare(request)
            with contextlib.suppress(ConnectionError):
                while sent < 512 * MIB:
                    await response.write(bytes(MIB))
                    sent += MIB
            return response

        app = web.Application()
        app.router.add_post("/upload", answer_at_length)
        gateway = await start_gateway(api=f"{(await start_destination(app)).url}/upload")
        async with UnreadingClient(gateway.port) as client:
            await client.send(head("/proxy", content_length=len(SMALL)) + SMALL)
            await asyncio.sleep(2)
            early = sent
            await asyncio.sleep(1)
            assert sent == early < 64 * MIB  # the kernel's buffers are full, and we hold no more
            client.reset()
        await eventually(lambda: not gateway.services.requests)
        assert gateway.services.gate.in_flight == 0


class TestG5RefusedBeforeRead:
    """What is refused on its headers is refused before the body, and before 100 Continue."""

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({"content_length": 1001}, 413),
            ({"content_length": 100, "content_encoding": "gzip"}, 415),
            ({"content_length": 100, "content_type": "multipart/mixed; boundary=b"}, 415),
            ({"content_length": 100, "content_type": "multipart/form-data"}, 400),
        ],
    )
    async def test_a_refusal_comes_instead_of_100_continue(
        self, start_gateway: StartGateway, headers: dict[str, Any], status: int
    ) -> None:
        gateway = await start_gateway(limits={"max_body_bytes": 1000})
        async with SilentClient(gateway.port) as client:
            answer = await client.fall_silent_after(head(**{"expect": "100-continue", **headers}))
        assert answer.status == status
        assert gateway.stored() == []

    async def test_who_may_come_in_is_told_to_go_on(self, gateway: RunningGateway) -> None:
        async with SilentClient(gateway.port) as client:
            request = head(content_length=len(SMALL), expect="100-continue")
            assert (await client.fall_silent_after(request)).status == 100
            await client.send(SMALL)
            assert (await client.answer()).status == 201


class TestG7AcknowledgedMeansDurable:
    """Flushed, renamed and flushed again, before the answer."""

    @pytest.fixture
    def steps(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """What was flushed and renamed, in order; identifiers replaced."""
        steps: list[str] = []
        fsync, rename = os.fsync, os.rename

        def _named(path: str | os.PathLike[str]) -> str:
            parts = Path(path).parts
            root = next(place for place, part in enumerate(parts) if part.startswith("uploads-"))
            return re.sub(r"[0-9A-Z]{26}", "ID", "/".join(["root", *parts[root + 1 :]]))

        def _fsync(descriptor: int) -> None:
            fsync(descriptor)
            steps.append("fsync " + _named(os.readlink(f"/proc/self/fd/{descriptor}")))

        def _rename(source: Path, target: Path) -> None:
            rename(source, target)
            steps.append(f"rename {_named(source)} {_named(target)}")

        def _sync_all(call: FileSystemSync) -> None:
            os.sync()
            steps.append("all")

        monkeypatch.setattr(os, "fsync", _fsync)
        monkeypatch.setattr(os, "rename", _rename)
        monkeypatch.setattr(FileSystemSync, "__call__", _sync_all)
        return steps

    @pytest.fixture
    def without_syncfs(self, steps: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        def _refuse(call: FileSystemSync) -> None:
            raise OSError(errno.ENOTSUP, "not here")

        monkeypatch.setattr(FileSystemSync, "__call__", _refuse)

    @pytest.mark.parametrize("size", [5, 3 * MIB])
    async def test_all_then_the_root_are_flushed_before_the_answer(
        self, start_gateway: StartGateway, steps: list[str], size: int
    ) -> None:
        gateway = await start_gateway(fsync=True)
        steps.clear()
        body = form(file(random_bytes(size), "a"), file(random_bytes(size), "b"))
        assert (await ask(gateway.port, "/upload", "POST", body)).status == 201
        large = [] if size == 5 else ["fsync root/.ID.incoming/0", "fsync root/.ID.incoming/1"]  # when each was whole
        assert sorted(steps[:-3]) == large
        assert steps[-3:] == ["all", "rename root/.ID.incoming root/ID", "fsync root"]

    @pytest.mark.usefixtures("without_syncfs")
    @pytest.mark.parametrize("size", [5, 3 * MIB])
    async def test_files_and_their_directory_then_the_root_are_flushed_before_the_answer(
        self, start_gateway: StartGateway, steps: list[str], size: int
    ) -> None:
        gateway = await start_gateway(fsync=True)
        steps.clear()  # those of the start, which tries whether the root can be written
        body = form(file(random_bytes(size), "a"), file(random_bytes(size), "b"))
        answer = await ask(gateway.port, "/upload", "POST", body)
        assert answer.status == 201
        done, steps[:] = list(steps), []
        assert sorted(done[:4]) == [  # beside each other
            "fsync root/.ID.incoming",
            "fsync root/.ID.incoming/0",
            "fsync root/.ID.incoming/1",
            "fsync root/.ID.incoming/manifest.json",
        ]
        assert done[4:] == ["rename root/.ID.incoming root/ID", "fsync root"]
        assert (await ask(gateway.port, answer.headers["location"], "DELETE")).status == 204
        assert steps == ["rename root/ID root/.ID.deleted", "fsync root"]

    async def test_one_switch_turns_it_off(self, start_gateway: StartGateway, steps: list[str]) -> None:
        gateway = await start_gateway(fsync=False)
        assert (await ask(gateway.port, "/upload", "POST", SMALL)).status == 201
        assert steps == ["rename root/.ID.incoming root/ID"]


class TestG8Faithful:
    """A destination gets the same parts, in one canonical form."""

    NAMES = (
        "a.bin",
        "naïve ☃.txt",
        'a"b.txt',
        r"C:\x\y.txt",
        "a;b;c.txt",
        "a\r\nb.txt",
        " a ",
        "'",
        "a,b=c",
    )

    @staticmethod
    def _part(name: str, filename: str | None, content_type: str | None, data: bytes) -> bytes:
        """As a browser sends it."""
        quoted = [
            None if value is None else value.replace("\r", "%0D").replace("\n", "%0A").replace('"', "%22")
            for value in (name, filename)
        ]
        lines = f'Content-Disposition: form-data; name="{quoted[0]}"'
        lines += "" if filename is None else f'; filename="{quoted[1]}"'
        lines += "" if content_type is None else f"\r\nContent-Type: {content_type}"
        return b"--%s\r\n%s\r\n\r\n%s" % (BOUNDARY, lines.encode(), data)

    @pytest.mark.parametrize("step", [0, 1, 1000])
    async def test_parts_arrive_as_they_were_sent(
        self, gateway: RunningGateway, destination: Destination, step: int
    ) -> None:
        parts: list[tuple[str, str | None, str | None, bytes]] = [
            *((filename, filename, "text/plain; charset=x", filename.encode()) for filename in self.NAMES),
            ("note", None, None, "grüße".encode()),
            ("file", "twice", "a/b", b"same"),
            ("file", "twice", "a/b", b"same"),
            ("note", None, "application/json", b"{}"),
            ("note", None, None, b""),
            ("binary", None, None, b"\xff\x00"),
            ("nothing", "", "application/octet-stream", b""),
            ("empty", "empty.txt", None, b""),
            ("large", "large.bin", "application/octet-stream", random_bytes(700_000) if step != 1 else b"--b0undar"),
            ("last", "crlf", None, b"\r\n--b0undar\r\n"),
        ]
        body = form(*(self._part(*part) for part in parts))
        async with Client(gateway.port) as client:
            await client.send(head("/proxy?a=1&b=%C3%BC", content_length=len(body)))
            for start in range(0, len(body), step or len(body)):
                await client.send(body[start : start + (step or len(body))])
                await asyncio.sleep(0)
            answer = await client.answer()
        assert answer.status == 200
        got = answer.json()
        members = ("name", "filename", "content_type", "size", "sha256")
        assert [tuple(part[member] for member in members) for part in got["parts"]] == [
            (name, filename, content_type, len(data), hashlib.sha256(data).hexdigest())
            for name, filename, content_type, data in parts
        ]
        values = [part["value"] for part in got["parts"] if part["name"] == "note"]
        assert values == ["grüße", "{}", ""]
        assert got["query"] == "a=1&b=%C3%BC"
        assert (await _seen(destination))["last"] == got

    async def test_a_quote_is_written_in_the_one_canonical_way(
        self, start_gateway: StartGateway, start_destination: StartDestination
    ) -> None:
        received: list[bytes] = []

        async def keep(request: web.Request) -> web.Response:
            received.append(await request.read())
            return web.Response()

        app = web.Application()
        app.router.add_post("/upload", keep)
        gateway = await start_gateway(api=f"{(await start_destination(app)).url}/upload")
        rfc = (
            b'--%s\r\nContent-Disposition: form-data; filename="a\\"b\\\\c.txt"; name=x\r\nX-Own: 1\r\n\r\nabc'
            % BOUNDARY
        )
        extended = b"--%s\r\ncontent-disposition: form-data;name=y;filename*=UTF-8''%%E2%%98%%83\r\n\r\nabc" % BOUNDARY
        assert (await ask(gateway.port, "/proxy", "POST", form(rfc, extended))).status == 200
        (body,) = received
        heads = [head for head in body.split(b"\r\n") if head.lower().startswith((b"content-", b"x-"))]
        assert heads == [
            b'Content-Disposition: form-data; name="x"; filename="a%22b\\c.txt"',
            'Content-Disposition: form-data; name="y"; filename="☃"'.encode(),
        ]

    async def test_a_raw_body_travels_as_one_file(self, gateway: RunningGateway) -> None:
        data = random_bytes(100_000)
        answer = await ask(gateway.port, "/proxy", "POST", data, content_type="image/png")
        (part,) = answer.json()["parts"]
        assert (part["name"], part["filename"], part["content_type"]) == ("file", "file", "image/png")
        assert part["sha256"] == hashlib.sha256(data).hexdigest()
