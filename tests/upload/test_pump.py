"""Events to lanes: entries, limits, fields, empty inputs, the two ways, without a socket."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import pytest

from gateway.errors import GatewayError, NoRoute, TooLarge
from gateway.model import Entry, Limits, Part, Receipt
from gateway.multipart.codec import Decoder, Event
from gateway.multipart.encoder import Encoder
from gateway.sinks import Delivery, Stage
from gateway.upload.handover import Handover
from gateway.upload.keep_each import AllOrNothing
from gateway.upload.part_digests import PartDigests
from gateway.upload.part_limits import PartLimits
from gateway.upload.plans import Plans
from gateway.upload.pump import Pump
from gateway.upload.required_lane import RequiredLane
from gateway.upload.routes import Match, Route, Rule


class Keeping(Delivery):
    """A delivery that keeps everything in memory; as a relay it must be given all in order."""

    takes_batches = True

    def __init__(self) -> None:
        self.seen: list[tuple[int, bytes]] = []
        self._turn = asyncio.Lock()

    async def accept(self, part: Part, chunks: AsyncIterable[bytes]) -> None:
        async with self._turn:
            self.seen.append((part.index, b"".join([chunk async for chunk in chunks])))

    async def accept_all(self, parts: Sequence[tuple[Part, bytes]]) -> None:
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


def pump_to(
    delivery: Delivery, stage: Stage, route: Route, executor: Executor, tasks: asyncio.TaskGroup, limits: Limits
) -> tuple[Pump, list[Entry]]:
    """(a pump to one sink, the entries that it makes)."""
    lane, entries = RequiredLane("sink", stage, delivery, 1 << 20), list[Entry]()
    digests = PartDigests(route.digests, executor)
    handover = Handover([lane], digests, limits, AllOrNothing())
    handover.tasks = tasks
    return Pump(Plans(route, [lane], {}), digests, PartLimits(limits), handover, entries, AllOrNothing()), entries


async def pumped(
    data: bytes, *, cut: int, stage: Stage = Stage.RELAY, **limits: Any
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
                pump, entries = pump_to(delivery, stage, route, executor, tasks, Limits(**limits))
                await pump.run(events())
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
    return entries, delivery.seen


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
    entries, seen = await pumped(body(*MIXED), cut=cut, stage=Stage.OTHER)
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
    cut: int, parts: list[tuple[str | None, bytes]], limits: dict[str, Any], error: type[GatewayError]
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


class Feeder:
    """Events of a body that comes when the test says so."""

    def __init__(self) -> None:
        self._decoder = Decoder(b"b")
        self._pieces: asyncio.Queue[bytes] = asyncio.Queue(10)

    async def feed(self, piece: bytes) -> None:
        await self._pieces.put(piece)

    async def events(self) -> AsyncIterator[list[Event]]:
        while piece := await self._pieces.get():
            yield self._decoder.receive(piece)
        self._decoder.finish()


HEAD = Encoder(b"b").begin_form_part(Part(0, b"name", b"a.bin", None, is_file=True))


@pytest.mark.parametrize("stage", [Stage.RELAY, Stage.OTHER])
async def test_the_beginning_of_a_file_waits_for_the_rest_but_not_for_a_slow_client(stage: Stage) -> None:
    class Eager(Keeping):
        def __init__(self) -> None:
            super().__init__()
            self.first = asyncio.Event()

        async def accept(self, part: Part, chunks: AsyncIterable[bytes]) -> None:
            data = b""
            async for chunk in chunks:
                self.first.set()
                data += chunk
            self.seen.append((part.index, data))

    for slow in (False, True):
        delivery, feeder = Eager(), Feeder()
        with ThreadPoolExecutor(1) as executor:
            async with asyncio.TaskGroup() as tasks:
                route = Route("/in", "upload", [Rule(Match(), ("sink",))])
                pump, entries = pump_to(delivery, stage, route, executor, tasks, Limits())
                running = tasks.create_task(pump.run(feeder.events()))
                await feeder.feed(HEAD + b"first, ")
                if slow:
                    async with asyncio.timeout(10):
                        await delivery.first.wait()
                await feeder.feed(b"last")
                await feeder.feed(b"\r\n--b--\r\n")
                await feeder.feed(b"")
                await running
        pump._digests.settle()
        assert delivery.seen == [(0, b"first, last")]
        assert delivery.first.is_set() is slow
        assert entries[0].digests == {"sha256": hashlib.sha256(b"first, last").hexdigest()}
        assert [entry.part.index for entry in entries] == [0]
