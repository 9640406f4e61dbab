"""The other processes of this gateway, asked for what only the one that has an upload knows.

Each listens on a socket in the directory that they share, which nobody else may look into. A question is one line, the
answer is one, and the connection is closed. Who does not answer soon does not know.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

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
        found = [answer for answer in await self._asked(_TELL, upload_id) if answer]
        return Told(**found[0]) if found else None

    async def has_taken(self, upload_id: str) -> bool:
        return any(await self._asked(_HAS_TAKEN, upload_id))

    async def _asked(self, verb: str, upload_id: str) -> list[Any]:
        """What each of them answers."""
        with _short(self._directory) as directory:
            names = [name for name in os.listdir(directory) if name.startswith("board-") and name != self._ours]
            return await asyncio.gather(*(_ask(f"{directory}/{name}", f"{verb} {upload_id}\n") for name in names))


def _answer(board: Board, verb: str, upload_id: str) -> Any:
    if verb == _HAS_TAKEN:
        return board.has_taken(upload_id)
    told = board.known(upload_id)
    return None if told is None else asdict(told)


async def _ask(path: str, question: str) -> Any:
    """None from one that is not there, or busy."""
    with suppress(OSError, ValueError):  # ValueError: it has ended in the middle
        async with asyncio.timeout(_PATIENCE_SECONDS):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                writer.write(question.encode())
                return json.loads(await reader.read())
            finally:
                writer.close()
    return None


@contextmanager
def _short(directory: Path) -> Iterator[str]:
    """A path of it that is short enough for the name of a socket, which is 107 bytes at most."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        short = f"/proc/self/fd/{descriptor}"
        yield short if os.path.isdir(short) else str(directory)
    finally:
        os.close(descriptor)
