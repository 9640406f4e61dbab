"""One request per upload: filled as the parts come, in the order of the wire.

1. The request begins with the first part that is not left out (a route of kind relay makes one even for no parts at
   all). It stays open until commit: only then the closing delimiter and the last chunk are sent.
2. `fields_first_bytes`: files wait in memory, empty file inputs with them, until no field can come any more. More
   bytes of files than that are TooLarge: nothing is ever put into another order without having been asked for.
3. A length that is `known` follows from that of a raw body, since the form around it is ours.
4. The wire goes as it came, under the client's own framing: a form that is ours is around nothing of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterable, Mapping, Sequence

import aiohttp

from gateway.concurrency.pipe import Progress, add_chunk, gathered
from gateway.errors import TooLarge
from gateway.model import Entry, Part, Receipt, Upload
from gateway.multipart.encoder import Encoder
from gateway.sinks import LATEST, Answered, Delivery
from gateway.sinks.relay.sending.outbound import Outbound
from gateway.sinks.relay.sending.pending import COALESCE_BYTES
from gateway.sinks.relay.sending.sender import Sender
from gateway.sinks.relay.shape import Sent, Shape, is_empty_input, written

__all__ = ["FormDelivery", "RelayDelivery", "WireDelivery"]


class RelayDelivery(Delivery):
    """One upload on its way to a destination, in one request. `length_mode` is how its length is told."""

    is_watched = True

    def __init__(
        self, name: str, upload: Upload, sender: Sender, *, length_mode: str, read_seconds: float | None
    ) -> None:
        self.read_seconds = read_seconds
        self.name = name
        self.upload = upload
        self.length_mode = length_mode
        self.outbound: Outbound | None = None
        """The request, once there is one."""
        self._sender = sender
        self._progress: Progress | None = None
        self._begun = asyncio.Event()
        self._response: aiohttp.ClientResponse | None = None

    @property
    def began(self) -> bool:
        """Whether there is a request: all that came may have been left out."""
        return self.outbound is not None

    def keep_time(self, progress: Progress) -> None:
        """Our own clocks are what is waited for while the request is."""
        self._progress = progress

    def begin(self, content_type: str, length: int | None) -> Outbound:
        """The request, made if there is none yet."""
        if self.outbound is None:
            self.outbound = self._sender.outbound(
                self.upload,
                content_type,
                length,
                is_spooled=self.length_mode == "spool",
                unchanged=self.takes_wire,
                progress=self._progress,
            )
            self._begun.set()
        return self.outbound

    def backlog(self) -> Mapping[int, int]:
        """All parts are in one request, one behind the other."""
        return {} if self.outbound is None else {LATEST: self.outbound.backlog_bytes}

    async def watch(self) -> None:
        """Make the request, and see to the answer, whenever it comes."""
        await self._begun.wait()
        assert self.outbound is not None
        await self.outbound.run()

    async def finish(self, outbound: Outbound, tail: bytes, files: Iterable[int]) -> list[Receipt]:
        """Send the end of the body; receipts for the files if the answer is a yes. Raises Answered if not."""
        for _ in range(2):
            await asyncio.sleep(0)  # an answer that is already here came before the closing delimiter
        response = self._response = await outbound.finish(tail)
        if not 200 <= response.status < 300:
            raise Answered(self.name, response)
        return [Receipt(index, self.name, status=response.status) for index in files]

    def answer(self) -> aiohttp.ClientResponse | None:
        """The destination's response, after a commit; its body has not been read."""
        return self._response

    async def end(self) -> None:
        """Let go of the connection; without a commit, break the request off."""
        if self.outbound is not None:
            await self.outbound.end()


class WireDelivery(RelayDelivery):
    """The body goes on byte for byte (rule 4)."""

    takes_wire = True

    _files: Sequence[int] = ()
    _tail = b""

    async def accept(self, part: Part, chunks: AsyncIterable[bytes]) -> None:
        """Never called: parts are not taken out of the wire. Raises NotImplementedError."""
        raise NotImplementedError

    async def accept_wire(self, chunks: AsyncIterable[bytes]) -> None:
        """As soon as it comes. Waits as long as the destination does."""
        async for batch, _ in gathered(chunks, COALESCE_BYTES):
            await self._request().pass_on(batch)

    def hold_wire(self, files: Sequence[int], tail: bytes) -> None:
        """For the commit."""
        self._files = list(files)
        self._tail = tail

    async def commit(self) -> list[Receipt]:
        """The end of the body, and the answer. Raises Answered if that is no yes."""
        if self.outbound is None and not self._files and self.upload.kind not in ("relay", "opaque"):
            return []
        return await self.finish(self._request(), self._tail, self._files)

    def _request(self) -> Outbound:
        return self.begin(self.upload.content_type, self.upload.content_length)


class FormDelivery(RelayDelivery):
    """The parts go on in a form of ours; a raw body is wrapped as a form with one file."""

    takes_batches = True

    def __init__(
        self,
        name: str,
        upload: Upload,
        sender: Sender,
        *,
        length_mode: str,
        read_seconds: float | None,
        shape: Shape,
    ) -> None:
        super().__init__(name, upload, sender, length_mode=length_mode, read_seconds=read_seconds)
        self._shape = shape.for_body(upload)
        content_type = upload.content_type.encode("utf-8", "surrogateescape")
        self._encoder = Encoder.like(content_type) if upload.multipart else Encoder()
        self._turn = asyncio.Lock()  # first come, first served: the order of the wire
        self._files: list[Part] = []
        """As the destination gets them."""
        self._waiting: list[tuple[Part, list[bytes]]] = []
        self._waiting_bytes = 0
        self._entries: Sequence[Entry] = ()

    async def accept(self, part: Part, chunks: AsyncIterable[bytes]) -> None:
        """In the order of the calls. Raises TooLarge where files that wait for fields are too many."""
        if self._shape.leaves_out(part):
            return
        async with self._turn:
            part = self._shape.renamed(part)
            if part.is_file:
                self._files.append(part)
            if self._shape.fields_first_bytes and part.is_file:
                self._waiting.append((part, []))
                async for chunk in chunks:
                    self._wait(chunk)
                return
            outbound = await self._begin_part(part)
            # as soon as it comes: what is there is joined, what is not there is not waited for
            async for batch, _ in gathered(chunks, COALESCE_BYTES):
                await outbound.pass_on(batch)
            await outbound.pass_on()  # of a part without bytes there is a head

    def backlog(self) -> Mapping[int, int]:
        """With the files that wait for fields."""
        sending = 0 if self.outbound is None else self.outbound.backlog_bytes
        return {LATEST: sending + self._waiting_bytes}

    async def accept_all(self, parts: Sequence[tuple[Part, bytes]]) -> None:
        """The same, sent as one piece."""
        pieces: list[bytes] = []
        async with self._turn:
            for part, data in parts:
                if self._shape.leaves_out(part):
                    continue
                part = self._shape.renamed(part)
                if part.is_file and not is_empty_input(part, len(data)):
                    self._files.append(part)
                if self._shape.fields_first_bytes and part.is_file:
                    self._waiting.append((part, []))
                    self._wait(data)
                else:
                    if self.outbound is None:
                        await self._form(part)
                    pieces += (self._encoder.begin_part(part), data)
            if self.outbound is not None:  # a batch may be empty, and the first
                await self.outbound.pass_on(pieces)

    def _wait(self, chunk: bytes) -> None:
        """Rule 2: more of the file that came last."""
        limit = self._shape.fields_first_bytes
        self._waiting_bytes += len(chunk)
        if self._waiting_bytes > limit:
            raise TooLarge(
                f"the files are more than the {limit} bytes that may wait for the fields of sink {self.name}",
                limit=limit,
                sink=self.name,
            )
        add_chunk(self._waiting[-1][1], chunk)

    async def _begin_part(self, part: Part) -> Outbound:
        outbound = await self._form(part)
        await outbound.put(self._encoder.begin_part(part))
        return outbound

    async def _form(self, first: Part | None = None) -> Outbound:
        """The request, with all that comes before its first part."""
        if self.outbound is not None:
            return self.outbound
        length = self._known_length(first) if self.length_mode == "known" else None
        outbound = self.begin(self._encoder.content_type, length)
        for field in written(self._encoder, self._shape.before(self.upload)):
            await outbound.put(field)
        return outbound

    def _known_length(self, part: Part | None) -> int:
        """Rule 3; None where the raw body is left out."""
        upload, shape = self.upload, self._shape
        assert upload.content_length is not None
        encoder = Encoder(self._encoder.boundary)
        size = sum(map(len, written(encoder, shape.before(upload))))
        if part is not None:
            size += len(encoder.begin_part(part)) + upload.content_length
        files = [] if part is None else [Sent.assumed(part, upload.content_length)]
        return size + sum(map(len, written(encoder, shape.after(upload, files)))) + len(encoder.close())

    def inform(self, entries: Sequence[Entry]) -> None:
        """For what is said of files behind them."""
        self._entries = entries

    async def commit(self) -> list[Receipt]:
        """What waits, what is added behind all parts, and the answer. Raises Answered if that is no yes."""
        if self.outbound is None and not self._waiting and self.upload.kind not in ("relay", "opaque"):
            return []
        outbound = await self._complete_form()
        return await self.finish(outbound, self._encoder.close(), [part.index for part in self._files])

    async def _complete_form(self) -> Outbound:
        """All but the closing delimiter."""
        waiting, self._waiting = self._waiting, []
        for part, chunks in waiting:
            outbound = await self._begin_part(part)
            for chunk in chunks:
                self._waiting_bytes -= len(chunk)
                await outbound.put(chunk)
        outbound = await self._form()
        files = [_sent(part, self._entries[part.index]) for part in self._files] if self._shape.wants_files else []
        for field in written(self._encoder, self._shape.after(self.upload, files)):
            await outbound.put(field)
        return outbound


def _sent(part: Part, entry: Entry) -> Sent:
    """What the flows made of it, if they made something of it."""
    if entry.output is not None:
        return Sent(part, entry.output.size, entry.output.sha256 or "")
    return Sent(part, entry.size, entry.digests.get("sha256", ""))
