"""What every sink must do, whatever it is. Not collected by itself: a test file inherits it.

class TestDisk(SinkContract):
    @pytest.fixture
    async def subject(self, tmp_path: Path) -> AsyncIterator[Subject]:
        ...
        yield Subject(sink, visible=..., digests=...)
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import ClientSession

from gateway.model import Part, Receipt, Upload
from gateway.sinks import Delivery, Sink

_PATIENCE_SECONDS = 20
_numbers = itertools.count()


@dataclass
class Subject:
    """A sink under test, and what the world sees of it."""

    sink: Sink
    visible: Callable[[], Awaitable[int]]
    """How many uploads can be seen now. Anything else that is left of one, it asserts away."""
    digests: Callable[[Upload, Delivery], Awaitable[Sequence[str]]] | None = None
    """The SHA-256 of each part of an upload that was committed, in order; None where a sink keeps no bytes."""
    gives_receipts: bool = True
    """Whether its commits say anything of the files; where not, the gateway gives them plain receipts."""


# -- helpers, for other tests too


async def eventually(holds: Callable[[], bool]) -> None:
    """Wait for what the other side does in its own time."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while not holds():  # noqa: ASYNC110 - the other side signals nothing
            await asyncio.sleep(0.01)


@asynccontextmanager
async def nothing_left_running() -> AsyncIterator[None]:
    """No task outlives the block, but aiohttp's own for connections: after an early answer those linger."""
    before = asyncio.all_tasks()

    def left() -> set[asyncio.Task[Any]]:
        return {task for task in asyncio.all_tasks() - before if "RequestHandler.start" not in repr(task.get_coro())}

    yield
    try:
        await eventually(lambda: not left())
    except TimeoutError:
        raise AssertionError(f"tasks are left: {left()}") from None


def upload(kind: str = "upload") -> Upload:
    """An upload with an identifier of its own."""
    return Upload(f"01TEST{next(_numbers):020}", "/upload", kind)


def file(index: int, filename: bytes | None = b"a.bin") -> Part:
    return Part(index, b"file", filename, b"application/octet-stream", is_file=True)


def field(index: int, name: bytes = b"note") -> Part:
    return Part(index, name, None, None)


async def source(data: bytes, chunk_bytes: int = 65536) -> AsyncIterator[bytes]:
    """A part's bytes, at a pace that lets others run."""
    for start in range(0, len(data), chunk_bytes):
        await asyncio.sleep(0)
        yield data[start : start + chunk_bytes]


class BrokenSource:
    """Gives some bytes, then nothing for ever: `reached` says that the sink waits for more of them."""

    def __init__(self, data: bytes) -> None:
        self._chunks = source(data)
        self.reached = asyncio.Event()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        async for chunk in self._chunks:
            return chunk
        self.reached.set()
        await asyncio.Event().wait()
        raise AssertionError


@asynccontextmanager
async def delivering(sink: Sink, upload: Upload) -> AsyncIterator[Delivery]:
    """A delivery, watched as the dispatcher does it. Errors come out as themselves, not in groups."""
    async with sink.open(upload) as delivery:
        try:
            async with asyncio.TaskGroup() as group:
                watching = group.create_task(delivery.watch()) if delivery.is_watched else None
                try:
                    yield delivery
                finally:
                    if watching is not None:
                        watching.cancel()
        except BaseExceptionGroup as errors:
            error: BaseException = errors
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from None


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


FORM = {"Content-Type": "multipart/form-data; boundary=b"}
END = b"--b--\r\n"


def form_part(name: bytes, filename: bytes | None, data: bytes) -> bytes:
    """A part of a form as it goes over the wire, with the delimiter before it; a field without a file name."""
    head = b'--b\r\nContent-Disposition: form-data; name="' + name + b'"'
    if filename is not None:
        head += b'; filename="' + filename + b'"\r\nContent-Type: application/octet-stream'
    return head + b"\r\n\r\n" + data + b"\r\n"


async def form(*parts: tuple[bytes, bytes | None, bytes], chunk_bytes: int = 200_000) -> AsyncIterator[bytes]:
    """A body of form-data in chunks."""
    for part in parts:
        wire = form_part(*part)
        for start in range(0, len(wire), chunk_bytes):
            yield wire[start : start + chunk_bytes]
    yield END


async def answer_of(session: ClientSession, url: str, body: AsyncIterator[bytes], **headers: str) -> tuple[int, Any]:
    """(status, JSON) of an upload."""
    async with session.post(url, data=body, headers={**FORM, **headers}) as response:
        return response.status, await response.json(content_type=None)


# -- the contract

_LARGE = bytes(range(256)) * 12_001  # about 3 MiB, no multiple of anything


class SinkContract:
    """Inherit it as `Test…`, and give it a fixture named `subject`."""

    async def _commit(self, subject: Subject, upload: Upload, delivery: Delivery, *parts: bytes) -> Sequence[Receipt]:
        """Commit, and see that the parts arrived; nothing of this upload was visible before."""
        before = await self._settled_before_commit(subject, upload, delivery)
        receipts = await delivery.commit()
        if subject.digests is not None:
            assert list(await subject.digests(upload, delivery)) == [sha256(data) for data in parts]
            assert await subject.visible() == before + 1
        return receipts

    async def _settled_before_commit(self, subject: Subject, upload: Upload, delivery: Delivery) -> int:
        """How many uploads are visible: a hook for sinks that cannot be looked at while one runs."""
        return await subject.visible()

    async def test_the_bytes_of_a_streamed_part_arrive(self, subject: Subject) -> None:
        one = upload()
        async with delivering(subject.sink, one) as delivery:
            await delivery.accept(file(0), source(_LARGE))
            await self._commit(subject, one, delivery, _LARGE)

    async def test_an_empty_file_arrives(self, subject: Subject) -> None:
        one = upload()
        async with delivering(subject.sink, one) as delivery:
            await delivery.accept(file(0), source(b""))
            await self._commit(subject, one, delivery, b"")

    async def test_accepts_that_run_at_once_arrive_in_the_order_of_the_wire(self, subject: Subject) -> None:
        one, parts = upload(), [bytes([65 + index]) * (300_000 - 50_000 * index) for index in range(5)]
        async with delivering(subject.sink, one) as delivery:
            async with asyncio.TaskGroup() as group:
                for index, data in enumerate(parts):
                    group.create_task(delivery.accept(file(index), source(data, 30_000)))
            await self._commit(subject, one, delivery, *parts)

    async def test_many_small_parts_arrive_in_one_go_between_others(self, subject: Subject) -> None:
        one, small = upload(), [b"x" * index for index in range(100)]
        async with delivering(subject.sink, one) as delivery:
            if not delivery.takes_batches:
                with pytest.raises(NotImplementedError):  # one by one, and it does not say otherwise
                    await delivery.accept_all([(file(0), b"x")])
                return
            await delivery.accept(file(0), source(_LARGE))
            await delivery.accept_all([(file(1 + index), data) for index, data in enumerate(small)])
            await delivery.accept(file(101), source(b"last"))
            await self._commit(subject, one, delivery, _LARGE, *small, b"last")

    async def test_commit_gives_a_receipt_for_each_file(self, subject: Subject) -> None:
        one = upload()
        async with delivering(subject.sink, one) as delivery:
            await delivery.accept(file(0), source(b"first"))
            await delivery.accept(file(2, None), source(b"second"))
            receipts = await self._commit(subject, one, delivery, b"first", b"second")
        assert [receipt.part for receipt in receipts] == ([0, 2] if subject.gives_receipts else [])
        assert len({receipt.sink for receipt in receipts}) == subject.gives_receipts

    async def test_what_was_committed_stays_when_the_context_is_left(self, subject: Subject) -> None:
        one, before = upload(), await subject.visible()
        async with delivering(subject.sink, one) as delivery:
            await delivery.accept(file(0), source(b"kept"))
            await delivery.commit()
        assert await subject.visible() == before + (subject.digests is not None)

    async def test_leaving_without_a_commit_keeps_nothing(self, subject: Subject) -> None:
        before = await subject.visible()
        async with delivering(subject.sink, upload()) as delivery:
            await delivery.accept(file(0), source(_LARGE))
        assert await subject.visible() == before

    async def test_leaving_before_anything_was_accepted_keeps_nothing(self, subject: Subject) -> None:
        before = await subject.visible()
        async with delivering(subject.sink, upload()):
            pass
        assert await subject.visible() == before

    async def test_a_part_that_is_cancelled_midway_keeps_nothing(self, subject: Subject) -> None:
        before, broken = await subject.visible(), BrokenSource(_LARGE)
        async with (
            nothing_left_running(),
            delivering(subject.sink, upload()) as delivery,
            asyncio.TaskGroup() as group,
        ):
            await delivery.accept(file(0), source(b"whole"))
            accepting = group.create_task(delivery.accept(file(1), broken))
            await broken.reached.wait()
            accepting.cancel()
        assert accepting.cancelled()
        assert await subject.visible() == before

    async def test_a_part_whose_source_raises_raises_it_and_keeps_nothing(self, subject: Subject) -> None:
        async def breaking() -> AsyncIterator[bytes]:
            yield _LARGE
            raise LookupError("the source broke")

        before = await subject.visible()
        with pytest.raises(LookupError):
            async with delivering(subject.sink, upload()) as delivery:
                await delivery.accept(file(0), breaking())
        assert await subject.visible() == before

    async def test_an_error_within_the_context_keeps_nothing_and_comes_out(self, subject: Subject) -> None:
        async def failing() -> None:
            async with delivering(subject.sink, upload()) as delivery:
                await delivery.accept(file(0), source(_LARGE))
                raise LookupError

        before = await subject.visible()
        with pytest.raises(LookupError):
            await failing()
        assert await subject.visible() == before

    async def test_a_context_can_be_left_while_its_jobs_run(self, subject: Subject) -> None:
        before = await subject.visible()
        async with (
            nothing_left_running(),
            delivering(subject.sink, upload()) as delivery,
            asyncio.TaskGroup() as group,
        ):
            tasks = [group.create_task(delivery.accept(file(index), source(_LARGE))) for index in range(4)]
            await asyncio.sleep(0.005)
            for task in tasks:
                task.cancel()
        assert await subject.visible() == before

    async def test_parts_that_are_dropped_are_not_committed_and_the_others_are(self, subject: Subject) -> None:
        one, broken = upload(), BrokenSource(_LARGE)
        async with nothing_left_running(), delivering(subject.sink, one) as delivery:
            if not subject.sink.can_drop:
                with pytest.raises(NotImplementedError):  # all or nothing, and it does not say otherwise
                    await delivery.drop(file(0))
                return
            await delivery.accept(file(0), source(b"kept"))
            await delivery.accept(file(1), source(_LARGE))
            async with asyncio.TaskGroup() as group:
                accepting = group.create_task(delivery.accept(file(2), broken))
                await broken.reached.wait()
                accepting.cancel()
            early = asyncio.get_running_loop().create_task(delivery.accept(file(3), BrokenSource(_LARGE)))
            await asyncio.sleep(0)  # it has begun, and its first job may be running
            early.cancel()
            await asyncio.wait([early])
            if delivery.takes_batches:
                await delivery.accept_all([(file(4), b"dropped"), (file(5), b"kept, too")])
            else:
                await delivery.accept(file(5), source(b"kept, too"))
            for index in (1, 2, 3, 4, 6):  # the last one was never given
                await delivery.drop(file(index))
            receipts = await self._commit(subject, one, delivery, b"kept", b"kept, too")
        assert [receipt.part for receipt in receipts] == ([0, 5] if subject.gives_receipts else [])

    async def test_two_uploads_at_once_do_not_touch_each_other(self, subject: Subject) -> None:
        one, other = upload(), upload()
        async with delivering(subject.sink, one) as kept:
            await kept.accept(file(0), source(b"one" * 100_000))
            async with delivering(subject.sink, other) as dropped:
                await dropped.accept(file(0), source(b"other" * 100_000))
                await kept.accept(file(1), source(b"one more"))
            await self._commit(subject, one, kept, b"one" * 100_000, b"one more")
