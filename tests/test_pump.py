"""Events to lanes: entries, limits, fields, empty inputs, the two ways, without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from gateway.codec import Decoder, Encoder, Event
from gateway.errors import GatewayError, NoRoute, TooLarge
from gateway.lanes import Lane
from gateway.model import Entry, Limits, Part, Receipt
from gateway.pump import Pump
from gateway.routes import Match, Route, Rule


class Keeping:
    """A delivery that keeps everything in memory; as a relay it must be given all in order."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, bytes]] = []
        self._turn = asyncio.Lock()

    async def accept(self, part: Part, chunks: AsyncIterable[bytes]) -> None:
        async with self._turn:
            self.seen.append((part.index, b"".join([chunk async for chunk in chunks])))

    async def accept_all(self, parts: list[tuple[Part, bytes]]) -> None:
        async with self._turn:
            self.seen += [(part.index, data) for part, data in parts]

    async def commit(self) -> list[Receipt]:
        return []


def body(*parts: tuple[str | None, bytes]) -> bytes:
    encoder = Encoder(b"b")
    return (
        b"".join(
            encoder.begin_form_part(
                Part(0, b"name", None if filename is None else filename.encode(), None, is_file=filename is not None)
            )
            + data
            for filename, data in parts
        )
        + encoder.close()
    )


async def pumped(
    data: bytes, *, cut: int, stage: int = 0, **limits: Any
) -> tuple[list[Entry], list[tuple[int, bytes]]]:
    """What the manifest and a sink get of a body that comes `cut` bytes at a time."""

    async def events() -> AsyncIterator[list[Event]]:
        decoder = Decoder(b"b")
        for start in range(0, len(data), cut):
            yield decoder.receive(data[start : start + cut])
        decoder.finish()

    delivery = Keeping()
    route = Route("/in", "upload", [Rule(Match(filename="[!x]*"), ("sink",)), Rule(Match(filename=""), ("sink",))])
    with ThreadPoolExecutor(1) as executor:
        try:
            async with asyncio.TaskGroup() as tasks:
                lanes = {"sink": Lane("sink", stage, delivery, 1 << 20)}
                pump = Pump(route, lanes, {}, Limits(**limits), executor, tasks)
                await pump.run(events())
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
    return pump.entries, delivery.seen


CUTS = [1, 7, 64, 1 << 20]
MIXED: list[tuple[str | None, bytes]] = [
    ("a", b"A" * 300), (None, b"field"), ("", b""), ("b", b""), ("", b"no name, but bytes"), (None, b""), ("c", b"C"),
]  # fmt: skip


@pytest.mark.parametrize("cut", CUTS)
async def test_a_relay_gets_all_parts_in_the_order_of_the_wire(cut: int) -> None:
    entries, seen = await pumped(body(*MIXED), cut=cut)
    assert seen == [(index, data) for index, (_, data) in enumerate(MIXED)]
    assert [entry.size for entry in entries] == [len(data) for _, data in MIXED]


@pytest.mark.parametrize("cut", CUTS)
async def test_another_sink_gets_the_files_only(cut: int) -> None:
    entries, seen = await pumped(body(*MIXED), cut=cut, stage=1)
    assert sorted(seen) == [(0, b"A" * 300), (3, b""), (4, b"no name, but bytes"), (6, b"C")]
    assert [entry.value for entry in entries if not entry.part.is_file] == ["field", ""]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(
    ("parts", "limits", "error"),
    [
        ([("a", b"12345")], {"max_file_bytes": 4}, TooLarge),
        ([(None, b"12345")], {"max_field_bytes": 4}, TooLarge),
        ([(None, b"123"), (None, b"456")], {"max_fields_bytes": 5}, TooLarge),
        ([("x", b"1")], {}, NoRoute),
        ([("x", b"")], {}, NoRoute),
    ],
)
async def test_what_breaks_a_limit_or_has_no_rule_ends_the_upload(
    cut: int, parts: list[tuple[str | None, bytes]], limits: dict[str, int], error: type[GatewayError]
) -> None:
    with pytest.raises(error):
        await pumped(body(*parts), cut=cut, **limits)


@pytest.mark.parametrize("cut", CUTS)
async def test_limits_are_kept_to_the_byte(cut: int) -> None:
    parts: list[tuple[str | None, bytes]] = [("a", b"1234"), (None, b"123"), (None, b"45")]
    entries, _ = await pumped(body(*parts), cut=cut, max_file_bytes=4, max_field_bytes=3, max_fields_bytes=5)
    assert len(entries) == 3


async def test_a_field_that_is_no_utf8_has_no_value() -> None:
    entries, _ = await pumped(body((None, b"\xff")), cut=1 << 20)
    assert entries[0].value is None
    assert entries[0].size == 1
