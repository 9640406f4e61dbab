"""Two gateways on one bucket, behind nginx: what one took the other gives back; one of them is killed, or replaced."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from aiohttp import ClientConnectorError, ClientError, ClientSession, ClientTimeout, TCPConnector

from gateway.sinks.objects.bucket import Bucket
from gateway.sinks.objects.sweep import sweep
from tests.contract import answer_of, form, sha256
from tests.support.buckets import Place
from tests.support.destinations import nginx_before
from tests.support.ports import free_port
from tests.support.processes import Process, gateway_process

pytestmark = pytest.mark.sockets

_LARGE = bytes(range(256)) * 60_000
_UPLOADS = 200
_CLIENTS = 8
_SECONDS = 120


class Replicas:
    """Two gateways, each at a port of its own, that can be ended and started again."""

    def __init__(self, place: Place, directory: Path) -> None:
        self.place = place
        self.ports = [free_port(), free_port()]
        self._directory = directory
        self._processes: dict[int, Process] = {}

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self.ports]

    def start(self, number: int) -> None:
        place = self.place
        config = (
            f'[sinks.bucket]\ntype = "objects"\nurl = "{place.url}"\nprefix = "{place.prefix}"\npart_bytes = 5242880\n'
            '[[routes]]\npath = "/upload"\nparts = [{ sinks = ["bucket"] }]\n'
            f"[server]\nport = {self.ports[number]}\ndrain_seconds = 5\n"
        )
        env = {**place.environment, "GATEWAY_SERVER__PORT": str(self.ports[number])}
        self._processes[number] = gateway_process(self._directory, config, **env)

    def terminate(self, number: int) -> None:
        """Drained, until it has ended."""
        self._processes[number].terminate()
        self._processes[number].wait(30)

    def kill(self, number: int) -> None:
        self._processes[number].kill()

    def end(self) -> None:
        for process in self._processes.values():
            process.__exit__(None)

    def is_writing(self) -> bool:
        """Whether something of a large file is there."""
        return any(name.startswith("open:") or name.endswith("/1") for name in self.left())

    def left(self) -> list[str]:
        return [name for name in self.place.left() if not name.startswith(".sweeps/")]


@contextmanager
def started(place: Place, directory: Path) -> Iterator[tuple[Replicas, str]]:
    """(two of them, the nginx before them)."""
    replicas = Replicas(place, directory)
    (directory / "nginx").mkdir()
    with ExitStack() as stack:
        stack.callback(replicas.end)
        for number in (0, 1):
            replicas.start(number)
        first, other = replicas.urls
        url = stack.enter_context(nginx_before(first, directory / "nginx", buffering="off", others=[other]))
        yield replicas, url


@pytest.fixture
def place(place_of: Callable[[str], Place]) -> Place:
    return place_of("swift")


async def test_what_one_took_another_gives_back_and_removes(place: Place, tmp_path: Path) -> None:
    with started(place, tmp_path) as (replicas, nginx):
        async with ClientSession() as session:
            status, manifest = await answer_of(session, f"{nginx}/upload", form((b"file", b"a.bin", _LARGE)))
            assert status == 201
            location, file = f"/uploads/{manifest['upload']}", manifest["parts"][0]["receipts"][0]["location"]
            for url in (*replicas.urls, nginx):
                async with session.get(url + location) as answer:
                    assert await answer.json() == manifest
                async with session.get(url + file) as answer:
                    assert sha256(await answer.read()) == manifest["parts"][0]["sha256"]
            first, other = replicas.urls
            async with session.delete(first + location) as answer:
                assert answer.status == 204
            async with session.get(other + file) as answer:
                assert answer.status == 404
        assert replicas.left() == []


@pytest.mark.parametrize("how", ["killed", "told to end"])
async def test_one_that_ends_amid_an_upload_keeps_nothing_and_the_other_takes_it(
    how: str, place: Place, tmp_path: Path
) -> None:
    going, ended = asyncio.Event(), asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        async for chunk in form((b"file", b"small", b"x"), (b"file", b"a.bin", _LARGE), (b"file", b"b.bin", _LARGE)):
            yield chunk
        going.set()
        await ended.wait()
        yield b"more"

    with started(place, tmp_path) as (replicas, nginx):
        replicas.terminate(1)  # so that it is known which one has it
        async with ClientSession() as session, asyncio.TaskGroup() as group, asyncio.timeout(_SECONDS):
            uploading = group.create_task(_broken(session, f"{nginx}/upload", body()))
            await going.wait()
            while not replicas.is_writing():  # noqa: ASYNC110 - the store signals nothing
                await asyncio.sleep(0.1)
            replicas.start(1)
            if how == "killed":
                replicas.kill(0)
            else:
                await asyncio.to_thread(replicas.terminate, 0)
            ended.set()
            assert await uploading
            assert not any("manifest" in name for name in replicas.left())
            if how == "killed":
                await _remove_what_is_left(place)
            assert replicas.left() == []
            status, manifest = await answer_of(session, f"{nginx}/upload", form((b"file", b"a.bin", _LARGE)))
            assert status == 201
            async with session.get(f"{replicas.urls[1]}/uploads/{manifest['upload']}") as answer:
                assert answer.status == 200


async def _broken(session: ClientSession, url: str, body: AsyncIterator[bytes]) -> bool:
    """Whether the client sees that the upload failed."""
    try:
        status, _ = await answer_of(session, url, body)
    except (ClientError, json.JSONDecodeError):
        return True
    return status >= 500


async def _remove_what_is_left(place: Place) -> None:
    """What a sweep of ours does a day later, and a rule of the bucket's."""
    bucket = Bucket("bucket", place.url, place.prefix, stall_seconds=30)
    assert await sweep(bucket, touched_before=2e9 * 2) <= 1
    client = place.client()
    name = place.url.removeprefix("s3://")
    for one in client.list_multipart_uploads(Bucket=name, Prefix=place.prefix).get("Uploads", ()):
        client.abort_multipart_upload(Bucket=name, Key=one["Key"], UploadId=one["UploadId"])


async def test_each_worker_has_a_client_of_its_own(place: Place, tmp_path: Path) -> None:
    """One that was made before the fork would hang in its children."""
    config = (
        f'[sinks.bucket]\ntype = "objects"\nurl = "{place.url}"\nprefix = "{place.prefix}"\n'
        '[[routes]]\npath = "/upload"\nparts = [{ sinks = ["bucket"] }]\n[server]\nworkers = 2\n'
    )
    with gateway_process(tmp_path, config, **place.environment) as process:
        async with ClientSession(process.url, connector=TCPConnector(force_close=True)) as session:
            for _ in range(6):
                status, manifest = await answer_of(session, "/upload", form((b"file", b"a", b"x")))
                assert status == 201
                async with session.get(f"/files/{manifest['upload']}/0") as answer:
                    assert await answer.read() == b"x"


async def test_replicas_are_replaced_one_by_one_under_load_and_no_upload_fails_or_is_there_twice(
    place: Place, tmp_path: Path
) -> None:
    """Clients send again what was refused, which nginx does for them where it can."""
    numbers, taken, failed = iter(range(_UPLOADS)), list[str](), list[object]()

    async def client(session: ClientSession, url: str) -> None:
        for number in numbers:
            data = b"%d" % number * 10_000
            while True:
                try:
                    status, answer = await answer_of(
                        session, url, form((b"file", b"a", data), (b"n", None, b"%d" % number))
                    )
                except ClientConnectorError:
                    await asyncio.sleep(0.05)
                    continue
                except ClientError as error:
                    failed.append(error)
                else:
                    taken.append(answer["upload"]) if status == 201 else failed.append((status, answer))
                break

    async def replace(replicas: Replicas) -> None:
        for number in (0, 1):
            while len(taken) < _UPLOADS * (number * 2 + 1) // 5:  # noqa: ASYNC110 - counted, not signalled
                await asyncio.sleep(0.02)
            await asyncio.to_thread(replicas.terminate, number)
            await asyncio.to_thread(replicas.start, number)

    with started(place, tmp_path) as (replicas, nginx):
        connector = TCPConnector(force_close=True)
        async with (
            ClientSession(connector=connector, timeout=ClientTimeout(60)) as session,
            asyncio.timeout(_SECONDS),
            asyncio.TaskGroup() as group,
        ):
            group.create_task(replace(replicas))
            for _ in range(_CLIENTS):
                group.create_task(client(session, f"{nginx}/upload"))
        assert failed == []
        assert len(set(taken)) == _UPLOADS
        kept = Counter(name.partition("/")[2] for name in replicas.left())
        assert kept == {"0": _UPLOADS, "manifest.json": _UPLOADS}
        values = set()
        bucket = Bucket("bucket", place.url, place.prefix, stall_seconds=30)
        for upload_id in taken[::10]:
            found = await bucket.fetch(f"{upload_id}/manifest.json", at_most=1 << 20)
            assert found is not None
            assert found[1] is not None
            values.add(json.loads(found[1])["parts"][1]["value"])
        assert len(values) == _UPLOADS / 10
