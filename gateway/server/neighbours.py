"""The other processes of this gateway, asked for what only the one that has an upload knows.

Each listens on a socket in the directory that they share, which nobody else may look into. A question is one line, the
answer is one, and the connection is closed. Who does not answer soon may know: that is no answer, and no "no".
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gateway.errors import Busy, NoDescriptors
from gateway.server.board import Board, Others, Told

__all__ = ["Neighbours"]

_PATIENCE_SECONDS = 1.0
_HAS_TAKEN, _TELL = "has_taken", "tell"


class Neighbours(Others):
    """Those of the process with this number."""

    def __init__(self, directory: Path, number: int) -> None:
        self._directory = directory
        self._ours = f"board-{number}"

    @asynccontextmanager
    async def answering(self, board: Board) -> AsyncIterator[None]:
        """Answer the others from this board, until this is left."""

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError, ValueError):
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    verb, _, upload_id = (await reader.readline()).decode().strip().partition(" ")
                    writer.write(json.dumps(_answer(board, verb, upload_id)).encode())
                    await writer.drain()
            writer.close()

        with _short(self._directory) as directory:
            path = f"{directory}/{self._ours}"
            with suppress(FileNotFoundError):  # of the one before, of this number
                os.unlink(path)
            server = await asyncio.start_unix_server(answer, path)
        try:
            yield
        finally:
            server.close()
            with suppress(OSError):
                os.unlink(self._directory / self._ours)

    async def find(self, upload_id: str) -> Told | None:
        found = await self._first(_TELL, upload_id)
        return None if found is None else Told(**{**found, "text": found["text"].encode()})

    async def has_taken(self, upload_id: str) -> bool:
        try:
            return bool(await self._first(_HAS_TAKEN, upload_id))
        except Busy:
            return True

    async def _first(self, verb: str, upload_id: str) -> Any:
        """The first answer that is one, whoever else is slow; None where all say no. Raises Busy, NoDescriptors."""
        errors: list[Exception] = []
        with _short(self._directory) as directory:
            with _descriptors():
                listed = os.listdir(directory)
            names = [name for name in listed if name.startswith("board-") and name != self._ours]
            async with asyncio.TaskGroup() as group:
                asked = [group.create_task(_asked(f"{directory}/{name}", f"{verb} {upload_id}\n")) for name in names]
                for answer in asyncio.as_completed(asked):
                    found, error = await answer
                    if error is not None:
                        errors.append(error)
                    elif found:
                        for one in asked:
                            one.cancel()
                        return found
        for error in errors:
            if isinstance(error, NoDescriptors):
                raise error
        if errors:
            raise Busy("another process of this gateway, which may know the upload, did not answer") from errors[0]
        return None


def _answer(board: Board, verb: str, upload_id: str) -> Any:
    if verb == _HAS_TAKEN:
        return board.has_taken(upload_id)
    told = board.known(upload_id)
    return None if told is None else {**asdict(told), "text": told.text.decode()}


async def _asked(path: str, question: str) -> tuple[Any, Exception | None]:
    """(its answer, why there is none)."""
    try:
        return await _ask(path, question), None
    except (NoDescriptors, OSError, ValueError) as error:
        return None, error


async def _ask(path: str, question: str) -> Any:
    """None from one that is not there. Raises OSError, ValueError where one gives no answer, or only half of it;
    NoDescriptors.
    """
    async with asyncio.timeout(_PATIENCE_SECONDS):
        try:
            with _descriptors():
                reader, writer = await asyncio.open_unix_connection(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        try:
            writer.write(question.encode())
            return json.loads(await reader.read())
        finally:
            writer.close()


@contextmanager
def _descriptors() -> Iterator[None]:
    """That there are none left is said as what it is: the other processes are not to blame."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise NoDescriptors("there is no descriptor left to ask the other processes of this gateway") from error
        raise


@contextmanager
def _short(directory: Path) -> Iterator[str]:
    """A path of it that is short enough for the name of a socket, which is 107 bytes at most."""
    with _descriptors():
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        short = f"/proc/self/fd/{descriptor}"
        yield short if os.path.isdir(short) else str(directory)
    finally:
        os.close(descriptor)
