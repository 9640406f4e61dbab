"""The other processes, where one of them is slow, or we have nothing to ask them with; as a whole: test_workers."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from gateway.errors import Busy, Conflict, NoDescriptors
from gateway.http.ulids import new_ulid
from gateway.server import neighbours as neighbours_module
from gateway.server.board import Board, Told
from gateway.server.neighbours import Neighbours
from tests.conftest import StartGateway
from tests.support.clients import Client, eventually, file, form, head

pytestmark = pytest.mark.sockets
PATIENCE_SECONDS = 0.3


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours_module, "_PATIENCE_SECONDS", PATIENCE_SECONDS)


@contextmanager
def silent(directory: Path, number: int) -> Iterator[None]:
    """A process that is stopped: its socket takes questions, and nobody answers."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(directory / f"board-{number}"))
        listening.listen(64)
        yield


@asynccontextmanager
async def uploading(start_gateway: StartGateway, directory: Path, number: int) -> AsyncIterator[str]:
    """The id of an upload that goes on in the process of that number, which answers."""
    gateway, upload_id = await start_gateway(), new_ulid()
    async with Client(gateway.port) as client, Neighbours(directory, number).answering(gateway.services.board):
        await client.send(head(x_upload_id=upload_id, content_length=1000) + form(file(b"x"))[:100])
        await eventually(lambda: gateway.services.board.known(upload_id))
        yield upload_id


async def test_who_does_not_answer_holds_up_nobody_where_another_one_knows(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    ours = Board(Neighbours(tmp_path, 0))
    with silent(tmp_path, 2):
        async with uploading(start_gateway, tmp_path, 1) as upload_id:
            watch = ours.watch(upload_id)
            began = asyncio.get_running_loop().time()
            told = await watch.newest()
            assert asyncio.get_running_loop().time() - began < PATIENCE_SECONDS
            assert told is not None
            assert watch._next_at - began < PATIENCE_SECONDS
            with pytest.raises(Conflict):
                async with ours.claimed(upload_id, ()):
                    pass


async def test_what_a_text_took_to_make_counts_wherever_it_was_made_and_not_what_it_took_to_come(
    tmp_path: Path,
) -> None:
    class SlowlyMade(Board):
        def known(self, upload_id: str) -> Told:
            return Told("", False, b"{}", seconds=1.0)

    ours, theirs, upload_id = Board(Neighbours(tmp_path, 0)), SlowlyMade(), new_ulid()
    watch = ours.watch(upload_id)
    async with Neighbours(tmp_path, 1).answering(theirs):
        assert await watch.newest() == Told("", False, b"{}", seconds=1.0)
    assert 18 < watch._next_at - asyncio.get_running_loop().time() <= 20


async def test_silence_is_no_no(tmp_path: Path) -> None:
    ours, upload_id = Board(Neighbours(tmp_path, 0)), new_ulid()
    with silent(tmp_path, 1):
        with pytest.raises(Busy):
            await ours.watch(upload_id).newest()
        with pytest.raises(Conflict):
            async with ours.claimed(upload_id, ()):
                pass
    # it is gone, and its socket is left
    assert await ours.find(upload_id) is None
    async with ours.claimed(upload_id, ()):
        pass


async def test_who_watches_keeps_what_was_told_last_while_there_is_no_answer_and_is_told_soon_after(
    tmp_path: Path,
) -> None:
    ours, upload_id = Board(Neighbours(tmp_path, 0)), new_ulid()
    watch = ours.watch(upload_id)
    watch._told = Told("", False, b"{}")
    with silent(tmp_path, 1):
        assert await watch.newest() is watch._told
    assert watch._next_at - asyncio.get_running_loop().time() <= 1
    watch._next_at = 0
    assert await watch.newest() is None


async def test_without_a_descriptor_left_nothing_is_said_of_the_others(tmp_path: Path) -> None:
    """One is there, and may know: whatever there are too few descriptors for, that is not "no"."""
    ours, upload_id, errors = Board(Neighbours(tmp_path, 0)), new_ulid(), []
    with silent(tmp_path, 1):
        for spare in range(4):
            with _no_descriptors_but(spare):
                with pytest.raises((NoDescriptors, Busy)) as found:
                    await ours.find(upload_id)
                errors.append(found.type)
                with pytest.raises(NoDescriptors if found.type is NoDescriptors else Conflict):
                    await _claim(ours, upload_id)
    assert errors == sorted(errors, key=lambda error: error is Busy)
    assert (errors[0], errors[-1]) == (NoDescriptors, Busy)


async def _claim(board: Board, upload_id: str) -> None:
    async with board.claimed(upload_id, ()):
        pass


@contextmanager
def _no_descriptors_but(spare: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 5, hard))
    held: list[int] = []
    try:
        while True:
            try:
                held.append(os.dup(0))
            except OSError:
                break
        for _ in range(min(spare, len(held))):
            os.close(held.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for one in held:
            os.close(one)
