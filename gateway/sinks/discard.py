"""Reads, counts and drops: for dry runs, for benchmarks, and for parts that nobody wants."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from gateway.model import Part, Receipt, Upload
from gateway.sinks import Delivery, Sink

__all__ = ["DiscardSink"]


class DiscardSink(Sink):
    """Its receipts say where nothing is."""

    can_drop = opens_at_once = True

    def __init__(self, *, name: str) -> None:
        self.name = name

    @asynccontextmanager
    async def open(self, upload: Upload) -> AsyncIterator[DiscardDelivery]:
        yield DiscardDelivery(self.name)


class DiscardDelivery(Delivery):
    """One upload that goes nowhere."""

    takes_batches = True
    began = False  # nothing of it ever becomes visible, so nothing of it can stay

    def __init__(self, name: str) -> None:
        self._name = name
        self._parts: list[int] = []

    async def accept(self, part: Part, chunks: AsyncIterable[bytes]) -> None:
        async for _ in chunks:
            pass
        self._parts.append(part.index)

    async def accept_all(self, parts: Sequence[tuple[Part, bytes]]) -> None:
        self._parts += [part.index for part, _ in parts]

    async def drop(self, part: Part) -> None:
        with suppress(ValueError):
            self._parts.remove(part.index)

    async def commit(self) -> list[Receipt]:
        return [Receipt(index, self._name) for index in self._parts]
