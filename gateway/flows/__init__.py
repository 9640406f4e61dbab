"""Flows: what happens to a file between the client and the sinks. The contract, and the chain that runs them.

    from gateway.flows import FlowFile, Reject

    async def shout(file: FlowFile, chunks: AsyncIterable[bytes], *, suffix: str = ".loud") -> AsyncIterator[bytes]:
        if file.filename is None:
            raise Reject("a file name, please")
        file.filename += suffix
        async for chunk in chunks:
            yield chunk.upper()
        file.findings["shouted"] = True

What holds:
1. A flow is a function that takes a file and its chunks and gives an asynchronous iterator of bytes,
   usually an async generator. Its keyword arguments come from the configuration.
2. `file.filename` and `file.content_type` may be assigned until the first chunk is yielded (or the flow
   returns): then the sinks are told them. Later it is an error. `file.findings` go into the manifest.
3. `raise Reject("why")` refuses the file: 422, and the upload keeps nothing. Any other exception is a
   FlowFailed, 500, with its traceback in our log, once.
4. What it yields is what the sinks get: nothing at all is a file of 0 bytes. What it leaves unread is read
   and dropped.
5. In a chain each flow sees the name and type that the one before it gave: it is started only when that
   one has yielded, or returned. Nobody runs ahead: a chunk is asked for when the sinks have room for it.
6. A flow may have an attribute `check`: a function of the same options that raises ValueError for values
   that mean nothing. It is asked at start-up.
7. A flow must not block the event loop: `in_thread` is for work that takes longer than a millisecond.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

from gateway.concurrency.pipe import Progress, batches
from gateway.errors import FlowFailed, GatewayError, Malformed, Rejected
from gateway.model import Limits
from gateway.multipart.headers import checked_name

__all__ = ["BATCH_BYTES", "Flow", "FlowChain", "FlowFile", "Reject", "batched", "in_thread", "memory_shares", "working"]

log = logging.getLogger("gateway.flows")

BATCH_BYTES = 1 << 20
"""What a flow best hands to a thread at a time: a hop costs about as much as compressing a few KiB."""

Reject = Rejected
"""What a flow raises to refuse its file."""

_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")

T = TypeVar("T")
_threads = ThreadPoolExecutor(max(2, os.cpu_count() or 1), thread_name_prefix="flow")
working: ContextVar[Progress | None] = ContextVar("working", default=None)
"""Of whoever runs a chain in this task: its progress, for the clock that finds stalls."""


def memory_shares(limits: Limits, received: int) -> dict[str, int]:
    """What flows hold of one upload at most, in bytes: for each open part a window, and batches before, in and behind
    two flows that gather; and the names and types that they gave. `received` is what may come at a time.
    """
    window = max(limits.window_bytes, received)
    return {
        "flows": limits.parallel_parts * (window + 6 * BATCH_BYTES),
        "names that flows gave": limits.max_manifest_bytes,
    }


async def in_thread(function: Callable[..., T], /, *args: Any) -> T:
    """Run CPU-heavy work beside the event loop. Waiting for a thread is no stall of the flow's."""
    loop, progress = asyncio.get_running_loop(), working.get()
    if progress is None:
        return await loop.run_in_executor(_threads, function, *args)
    started = asyncio.Event()

    def job() -> T:
        loop.call_soon_threadsafe(started.set)
        return function(*args)

    result = loop.run_in_executor(_threads, job)
    try:
        with progress.excused():
            await started.wait()
        return await result
    except asyncio.CancelledError:
        # Nobody wants it any more: asyncio would log an error in it that nobody has asked for, with its traceback.
        if not result.cancel() and not result.cancelled():
            result.exception()
        raise


async def batched(chunks: AsyncIterable[bytes], size: int = BATCH_BYTES) -> AsyncIterator[bytes]:
    """The same bytes, at least `size` at a time but for the last."""
    async for batch, _ in batches(chunks, size):
        yield b"".join(batch)


class FlowFile:
    """The file that a flow works on."""

    def __init__(self, *, index: int, name: str, filename: str | None, content_type: str | None) -> None:
        self.index = index
        """Its place among the parts on the wire."""
        self.name = name
        """The name of the part: of the form's field."""
        self._findings: dict[str, object] = {}
        self._filename = filename
        self._content_type = content_type
        self._told = False

    @property
    def findings(self) -> dict[str, object]:
        """What was found out, for the manifest: anything that JSON can say."""
        return self._findings

    @property
    def filename(self) -> str | None:
        """The file name: the client's, or what the flow before made of it."""
        return self._filename

    @filename.setter
    def filename(self, filename: str | None) -> None:
        self._may_change()
        try:
            checked_name((filename or "").encode())
        except Malformed as error:  # a client's may not have it, either
            raise ValueError(error.detail) from None
        self._filename = filename or None

    @property
    def content_type(self) -> str | None:
        """The Content-Type, with its parameters; None where the client gave none."""
        return self._content_type

    @content_type.setter
    def content_type(self, content_type: str | None) -> None:
        self._may_change()
        # It becomes a header of a part at a destination.
        if content_type is not None and _CONTROL.search(content_type.encode()):
            raise ValueError("a Content-Type holds no control characters")
        self._content_type = content_type

    def told(self) -> None:
        """Called by the chain: from now on the name and type cannot change."""
        self._told = True

    def _may_change(self) -> None:
        if self._told:
            raise RuntimeError("the sinks were told the file's name and type with the first chunk")


@dataclass(frozen=True, slots=True)
class Flow:
    """A flow under the name and with the options that the configuration gives it."""

    name: str
    function: Callable[..., AsyncIterable[bytes]]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def keeps_bytes(self) -> bool:
        """Whether it only looks: what it yields is what it took."""
        return bool(getattr(self.function, "keeps_bytes", False))


class FlowChain:
    """The flows of one file, one after the other."""

    def __init__(self, flows: Sequence[Flow], file: FlowFile, progress: Progress) -> None:
        self._flows = flows
        self.file = file
        """As the last flow that has begun left it."""
        self.running = flows[0].name
        """Which flow is at work, or waits."""
        self._progress = progress
        self._findings: dict[str, dict[str, object]] = {}
        self._failure: GatewayError | None = None

    async def start(self, chunks: AsyncIterable[bytes], stack: AsyncExitStack) -> AsyncIterator[bytes]:
        """Begin all flows (rule 5): `file` has its final name and type. Iterate for the output; leaving
        the stack closes them.
        """
        for flow in self._flows:
            before = self.file
            self.file = FlowFile(
                index=before.index, name=before.name, filename=before.filename, content_type=before.content_type
            )
            self._findings[self._key(flow.name)] = self.file.findings
            output = await stack.enter_async_context(aclosing(self._output(flow, self.file, chunks)))
            first = await anext(output, None)
            self.file.told()
            chunks = output if first is None else _prepended(first, output)
        return aiter(chunks)

    def _key(self, name: str) -> str:
        """A flow that stands in the chain twice has its findings twice."""
        number = sum(key.partition("#")[0] == name for key in self._findings) + 1
        return name if number == 1 else f"{name}#{number}"

    def all_findings(self) -> dict[str, dict[str, object]]:
        """By flow, for the manifest. Raises FlowFailed for what is no JSON."""
        for name, findings in self._findings.items():
            try:
                json.dumps(findings, ensure_ascii=False, allow_nan=False).encode()
            except (TypeError, ValueError) as error:
                log.exception("flow %s failed", name, extra={"flow": name, "part": self.file.index})
                raise FlowFailed(f"the findings of flow {name} are no JSON", flow=name, part=self.file.index) from error
        return {name: findings for name, findings in self._findings.items() if findings}

    async def _output(self, flow: Flow, file: FlowFile, chunks: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
        """What one flow yields; its errors as ours, its input read to the end whatever it does."""
        caller, self.running = self.running, flow.name
        try:
            async with AsyncExitStack() as stack:
                iterable = flow.function(file, chunks, **flow.options)
                if hasattr(iterable, "aclose"):
                    stack.push_async_callback(iterable.aclose)
                async for chunk in iterable:
                    if not isinstance(chunk, bytes | bytearray | memoryview):
                        raise TypeError(f"a flow yields bytes, not {type(chunk).__name__}")
                    if chunk:
                        self._progress.moved()
                        self.running = caller
                        yield bytes(chunk)
                        caller, self.running = self.running, flow.name
            _raise_if_cancelled()  # a flow that swallows everything swallowed that, too
            # The flows before this one are to come to their own end, and verdict, even if nobody wants their output.
            async for _ in chunks:
                self._progress.moved()
        except GeneratorExit:
            raise
        except BaseException as error:
            self._failure = self._failure or self._told(flow, file, error)
        # An error of any flow is the chain's, though a later one may have caught it.
        if self._failure is not None:
            raise self._failure
        self.running = caller

    def _told(self, flow: Flow, file: FlowFile, error: BaseException) -> GatewayError:
        """A flow's error as ours; what nobody expected is logged here, once, with its traceback."""
        if isinstance(error, asyncio.CancelledError):
            _raise_if_cancelled()  # by whoever ends the upload; a flow that cancels itself has failed
        if isinstance(error, GatewayError):
            error.members.setdefault("flow", flow.name)
            error.members.setdefault("part", file.index)
            return error
        log.error("flow %s failed", flow.name, exc_info=error, extra={"flow": flow.name, "part": file.index})
        failed = FlowFailed(f"flow {flow.name} failed", flow=flow.name, part=file.index)
        failed.__cause__ = error
        return failed


def _raise_if_cancelled() -> None:
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def _prepended(first: bytes, rest: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk
