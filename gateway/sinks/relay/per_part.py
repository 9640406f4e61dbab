"""One request per file: a form with that file, the fields that came before it on the wire, and those that are added.

1. *A part that is kept for itself* (`keep = "each"`: `upload.parts_alone`) is sent while it comes, and its request is
   completed when the part is whole and checked: its delimiter was seen, and its digests are those declared. This is
   the one place where something is complete before the upload is: to withhold them all would deadlock when
   `parallel_parts` of them are open. So a body that breaks off later leaves them as they are, and `drop` takes
   nothing back that was completed; what was not is broken off.
2. *Where all or nothing is kept*, the files wait in one temporary file, and requests begin at `commit`. The first
   refusal ends the commit: those under way are broken off, no others begin, and `committed` says which ones stay.
3. Up to `parallel_parts` requests are under way at a time. Each is a body of its own, with its own choice of a
   destination, its attempts and its clocks.
4. `known` is for a part that declares a Content-Length, and is kept to.
5. Fields are held until the end of the upload, by reference. Those that no file follows go nowhere; empty file inputs
   are no files, and no fields: they go nowhere, either.
6. What goes out for what came in is bounded (`max_outbound_ratio`): 8 MiB of fields before a thousand empty files would
   be 8 GiB. Where all or nothing is kept, that is known before the first request.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

from aiohttp import ClientResponse

from gateway.concurrency.pipe import Progress, gathered
from gateway.digests import PartDigest
from gateway.errors import GatewayError, LengthRequired, Malformed, TooLarge
from gateway.model import Part, Receipt, Upload
from gateway.multipart.encoder import Encoder
from gateway.multipart.headers import only
from gateway.sinks import Answered, Delivery, refused
from gateway.sinks.relay.sending.outbound import Outbound
from gateway.sinks.relay.sending.pending import COALESCE_BYTES
from gateway.sinks.relay.sending.sender import Sender
from gateway.sinks.relay.sending.spool import Region
from gateway.sinks.relay.shape import Sent, Shape, is_empty_input, written

__all__ = ["PartsDelivery"]

_FREE_BYTES = 64 << 10
"""A small file with some fields that are added may well be a hundred times itself."""


@dataclass(slots=True)
class _Waiting:
    """A file that waits for the commit."""

    sent: Sent
    region: Region


class _Forms:
    """The form around each file: what is added to it, and the fields that came before it (rule 5)."""

    def __init__(self, upload: Upload, shape: Shape) -> None:
        self.fields: list[tuple[Part, bytes]] = []
        self._upload = upload
        self._shape = shape

    def ahead(self, encoder: Encoder, part: Part) -> list[bytes]:
        """All that comes before the bytes of a file."""
        ahead = list(written(encoder, self._shape.before(self._upload)))
        for field, data in self.fields:
            if field.index < part.index:
                ahead += (encoder.begin_part(field), data)
        return [*ahead, encoder.begin_part(part)]

    def sizes(self, files: Sequence[Sent]) -> Iterator[int]:
        """Of the form around each of these, about: without what is added, which is not the client's."""
        encoder = Encoder()
        fields = sorted((field.index, len(encoder.begin_part(field)) + len(data)) for field, data in self.fields)
        sums = [0, *accumulate(size for _, size in fields)]
        for sent in files:
            yield sums[bisect_left(fields, (sent.part.index, 0))] + sent.size

    def tail(self, encoder: Encoder, sent: Sent) -> bytes:
        """All that comes after them."""
        return b"".join(written(encoder, self._shape.after(self._upload, [sent]))) + encoder.close()


class _Amplified:
    """Rule 6: so many times as many bytes as came in, of an upload that is no smaller than `_FREE_BYTES`."""

    def __init__(self, name: str, ratio: int) -> None:
        self._name = name
        self._ratio = ratio
        self._received_bytes = self._sent_bytes = 0

    def came(self, size: int) -> None:
        """Of a part, or of a chunk of one."""
        self._received_bytes += size

    def goes(self, size: int) -> None:
        """So many bytes are about to be sent. Raises TooLarge."""
        self._sent_bytes += size
        if self._ratio and self._sent_bytes > self._ratio * max(self._received_bytes, _FREE_BYTES):
            detail = f"sink {self._name} would be sent more than {self._ratio} times what came in"
            raise TooLarge(detail, limit=self._ratio, sink=self._name)


class PartsDelivery(Delivery):
    """One upload on its way to a destination, a request for each file."""

    takes_batches = True

    def __init__(
        self,
        name: str,
        upload: Upload,
        sender: Sender,
        *,
        lengths: Sequence[str],
        shape: Shape,
        parallel_parts: int,
        max_outbound_ratio: int = 0,
    ) -> None:
        self.completes_parts = upload.parts_alone
        self._amplified = _Amplified(name, max_outbound_ratio)
        self._name = name
        self._upload = upload
        self._sender = sender
        self._lengths = lengths
        self._shape = shape.for_body(upload)
        self._forms = _Forms(upload, self._shape)
        self._parallel_parts = parallel_parts or 1 << 30
        self._places = asyncio.Semaphore(self._parallel_parts)
        self._spool = sender.spool()
        self._progress: Progress | None = None
        self._waiting: dict[int, _Waiting] = {}
        self._sending: dict[int, Outbound] = {}
        self._receipts: dict[int, Receipt] = {}

    @property
    def began(self) -> bool:
        """Whether a request was completed."""
        return bool(self._receipts)

    def keep_time(self, progress: Progress) -> None:
        """Our own clocks are what is waited for while a request is."""
        self._progress = progress

    def backlog(self) -> Mapping[int, int]:
        """Of each part that is on its way, or waits for the commit."""
        backlog = {index: outbound.backlog_bytes for index, outbound in self._sending.items()}
        for index, waiting in self._waiting.items():
            arrived = self._sending[index].arrived_bytes if index in self._sending else 0
            backlog[index] = max(0, waiting.region.size - arrived)
        return backlog

    async def accept(self, part: Part, chunks: AsyncIterable[bytes]) -> None:
        """A field waits for the files that come after it; a file is sent (rule 1), or waits for the commit (rule 2)."""
        if self._shape.leaves_out(part):
            return
        part = self._shape.renamed(part)
        if not part.is_file:
            data = b"".join([chunk async for chunk in chunks])
            self._amplified.came(len(data))
            self._forms.fields.append((part, data))
        elif self.completes_parts:
            async with self._places:
                await self._send_alone(part, chunks)
        else:
            await self._keep(part, chunks)

    async def accept_all(self, parts: Sequence[tuple[Part, bytes]]) -> None:
        """The same for each of them. Raises the first error."""
        # all fields before the first wait: files that come after this batch want them
        taken = [(self._shape.renamed(part), data) for part, data in parts if not self._shape.leaves_out(part)]
        self._amplified.came(sum(len(data) for _, data in taken))
        self._forms.fields += [(part, data) for part, data in taken if not part.is_file]
        files = [(part, data) for part, data in taken if part.is_file and not is_empty_input(part, len(data))]
        if self.completes_parts:
            await self._all_at_once([partial(self._send_alone, part, _whole(data)) for part, data in files])
        else:
            for part, data in files:
                await self._keep(part, _whole(data))

    async def drop(self, part: Part) -> None:
        """Rule 1: of what was completed only the receipt is taken back."""
        self._waiting.pop(part.index, None)
        self._receipts.pop(part.index, None)

    async def commit(self) -> list[Receipt]:
        """Send what waits. Raises a sink's errors; what was answered with a yes by then stays."""
        if self._waiting:
            await self._spool.flush()
            waiting = [self._waiting[index] for index in sorted(self._waiting)]
            self._amplified.goes(sum(self._forms.sizes([one.sent for one in waiting])))
            await self._all_at_once([partial(self._send_waiting, one) for one in waiting])
        return self.committed()

    def committed(self) -> list[Receipt]:
        """Of the requests that were answered with a yes."""
        return [self._receipts[index] for index in sorted(self._receipts)]

    async def end(self) -> None:
        """Let go of what waits."""
        self._waiting.clear()
        await self._spool.close()

    # -- one request

    async def _send_alone(self, part: Part, chunks: AsyncIterable[bytes]) -> None:
        """Rule 1."""
        mode, declared = self._length_mode(part)
        encoder = Encoder()
        ahead = self._forms.ahead(encoder, part)
        self._amplified.goes(sum(map(len, ahead)))
        length = None
        if declared is not None:
            length = sum(map(len, ahead)) + declared + len(self._forms.tail(encoder, Sent.assumed(part, declared)))
        outbound = self._sender.outbound(
            self._upload, encoder.content_type, length, is_spooled=mode == "spool", progress=self._progress
        )

        async def sending() -> ClientResponse:
            for piece in ahead:
                await outbound.put(piece)
            size, digest = 0, self._digest()
            async for batch, taken in gathered(chunks, COALESCE_BYTES):
                size += taken
                self._amplified.came(taken)
                self._amplified.goes(taken)
                if declared is not None and size > declared:
                    raise Malformed(f"a part is more than the {declared} bytes that it declares", part=part.index)
                if digest is not None:
                    for chunk in batch:
                        await digest.update(chunk)
                await outbound.pass_on(batch)
            if declared is not None and size != declared:
                raise Malformed(f"a part is {size} bytes, and declares {declared}", part=part.index)
            sent = Sent(part, size, "" if digest is None else (await digest.finish())["sha256"])
            for _ in range(2):
                await asyncio.sleep(0)  # an answer that is already here came before the closing delimiter
            return await outbound.finish(self._forms.tail(encoder, sent))

        await self._answered(part, outbound, sending)

    async def _send_waiting(self, waiting: _Waiting) -> None:
        """Rule 2."""
        part, encoder = waiting.sent.part, Encoder()
        waiting.region.put_ahead(self._forms.ahead(encoder, part))
        outbound = self._sender.outbound(
            self._upload,
            encoder.content_type,
            None,
            is_spooled=True,
            progress=self._progress,
            region=waiting.region,
        )
        tail = self._forms.tail(encoder, waiting.sent)
        await self._answered(part, outbound, lambda: outbound.finish(tail))
        del self._waiting[part.index]

    async def _answered(self, part: Part, outbound: Outbound, sending: Callable[[], Awaitable[ClientResponse]]) -> None:
        """One request to its answer. Raises a sink's errors, and what is wrong with the part."""
        self._sending[part.index] = outbound
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(outbound.run())
                response = await sending()
            if not 200 <= response.status < 300:
                raise Answered(self._name, response)
            self._receipts[part.index] = Receipt(part.index, self._name, status=response.status)
        except BaseExceptionGroup as errors:
            raise _with_part(errors.exceptions[0], part) from None
        except Answered as answered:
            raise _with_part(answered, part) from None
        finally:
            del self._sending[part.index]
            await outbound.end()
            if self._progress is not None:
                self._progress.moved()

    def _length_mode(self, part: Part) -> tuple[str, int | None]:
        """(mode, declared bytes if that mode is `known`). Raises LengthRequired, Malformed."""
        for mode in self._lengths:
            if mode != "known":
                return mode, None
            declared = _declared_bytes(part) if self._upload.multipart else self._upload.content_length
            if declared is not None:
                return mode, declared
        raise LengthRequired(
            f"sink {self._name} needs to know the length of a part, and this one declares none",
            sink=self._name,
            part=part.index,
        )

    # -- a file that waits

    async def _keep(self, part: Part, chunks: AsyncIterable[bytes]) -> None:
        region, size, digest = Region(self._spool), 0, self._digest()
        async for chunk in chunks:
            size += len(chunk)
            self._amplified.came(len(chunk))
            if digest is not None:
                await digest.update(chunk)
            await region.write(chunk)
        sha256 = "" if digest is None else (await digest.finish())["sha256"]
        self._waiting[part.index] = _Waiting(Sent(part, size, sha256), region)

    def _digest(self) -> PartDigest | None:
        """Of what this destination gets, if it is told."""
        return PartDigest(("sha256",), self._sender.executor) if self._shape.wants_sha256 else None

    async def _all_at_once(self, jobs: Sequence[Callable[[], Awaitable[None]]]) -> None:
        """Rule 3. Raises the first error."""
        left = iter(jobs)

        async def work() -> None:
            for job in left:
                async with self._places:
                    await job()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(len(jobs), self._parallel_parts)):
                    group.create_task(work())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None


def _with_part(error: BaseException, part: Part) -> BaseException:
    if isinstance(error, Answered):
        error = refused(error)
    if isinstance(error, GatewayError):
        error.members.setdefault("part", part.index)
    return error


def _declared_bytes(part: Part) -> int | None:
    """The Content-Length of a part. Raises Malformed."""
    try:
        value = only(part.headers, b"content-length")
    except Malformed as error:
        raise Malformed(error.detail, part=part.index) from None
    if value is None:
        return None
    if not value.isdigit() or len(value) > 18:
        raise Malformed("the Content-Length of a part is no number", part=part.index)
    return int(value)


async def _whole(data: bytes) -> AsyncIterator[bytes]:
    if data:
        yield data
