"""The beginning of a body that is kept, so that another attempt can send it again.

1. *In memory*, by reference, up to `limit` bytes: while that is all that was handed to a transport, another attempt
   may begin with it. From the first byte beyond it on the body is *pinned* to the attempt that it is with, and the
   prefix is let go of.
2. *In a temporary file*, where the body is spooled: all of it but its end, which is kept until the upload is over.
   What was in memory until then goes ahead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.sinks.relay.sending.spool import Region, Spool

__all__ = ["Replayable"]


class Replayable:
    """`limit` in bytes; 0 keeps nothing in memory. `make_spool` is asked when there is something to be spooled."""

    def __init__(self, limit: int, make_spool: Callable[[], Spool | Region], *, is_spooled: bool) -> None:
        self.limit = limit
        self.is_spooled = is_spooled
        """Whether the body goes by a temporary file, from the start or from now on."""
        self.is_pinned = False
        """Whether bytes were handed over that are not kept."""
        self.spooled = asyncio.Event()
        """Set when all but the end of the body lies in the file."""
        self._make_spool = make_spool
        self._spool: Spool | Region | None = None
        self._pieces: list[bytes] = []
        self._pieces_bytes = 0

    @property
    def size(self) -> int:
        """Bytes in the temporary file."""
        return 0 if self._spool is None else self._spool.size

    def keep(self, data: bytes) -> bool:
        """Keep more of the body in memory. False if that is too much: then it is to be spooled, or pinned."""
        if self.is_spooled or self._pieces_bytes + len(data) > self.limit:
            return False
        self._pieces.append(data)
        self._pieces_bytes += len(data)
        return True

    def pin(self) -> None:
        """What is to be handed over next is not kept, so that nothing can be sent again."""
        self.is_pinned = True
        self._pieces = []

    async def spool(self, data: bytes = b"") -> None:
        """Keep more of the body in the file. Raises OSError."""
        if self._spool is None:
            self._spool = self._make_spool()
            pieces, self._pieces = self._pieces, []
            for piece in pieces:
                await self._spool.write(piece)
        if data:
            await self._spool.write(data)

    async def finish_spool(self) -> None:
        """All but the end of the body was kept. Raises OSError."""
        await self.spool()
        assert self._spool is not None
        await self._spool.flush()
        self.spooled.set()

    async def after(self, handed: int) -> tuple[bytes, int]:
        """(what comes next, the number to come back with); b"" when there is no more as yet. 0 is the beginning.

        It waits only where there is more, in a file. Raises OSError.
        """
        if self.is_spooled:
            piece = await self._spool.read(handed) if self._spool is not None and handed < self._spool.size else b""
            return piece, handed + len(piece)
        if handed < len(self._pieces):
            return self._pieces[handed], handed + 1
        return b"", handed

    async def close(self) -> None:
        """Let go of all of it: at once, whoever may still hold on to us, and the file when its jobs have ended."""
        self._pieces = []
        if self._spool is not None:
            await self._spool.close()
