"""One upload: a form that is made while it is sent, and compared with what the gateway says it has.

1. A retry has the id of the first try: what was kept after all is then refused with 409, and never kept twice.
2. A body whose closing delimiter was not sent is no body, whatever ends it: nothing of it is kept. Behind that the
   answer counts, and where the connection is lost before it came, the gateway is asked.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from yarl import URL

from gateway.client.answers import PartTold, joined, parts_of, sinks_of
from gateway.client.outcomes import Code, Failed, patiently, refused, translated
from gateway.client.remote import CONNECTION_ERRORS, Answer, Place, Remote, below, read
from gateway.client.sources import CHUNK_BYTES, STDIN, Reading, Source, Sources, content_digest
from gateway.client.watching import Legs, watch
from gateway.http import ConnectionLost
from gateway.http.ulids import new_ulid
from gateway.multipart import Encoder, render_head
from gateway.multipart.writer import StreamingMultipartWriter

__all__ = ["Upload"]

_NAME = b"file"
_ASK_SECONDS = 30.0
_ASK_PAUSE_SECONDS = 1.0
_TAKE_BACK_SECONDS = 5.0
_HANG_UP_STATUS = 499
_ON_THE_WAY = (502, 504)
"""Without a problem of the gateway's they are of a proxy between, which may have passed everything on."""


@dataclass(slots=True)
class Upload:
    """What is sent, and what became of it."""

    sources: Sources
    fields: Sequence[tuple[bytes, bytes]] = ()
    id: str = field(default_factory=new_ulid)
    tries: int = 0
    seconds: float = 0.0
    answer: Answer | None = None
    url: str | None = None
    failed: Failed | None = None
    _broken: Failed | None = None
    """By us, in the middle."""
    _is_whole: Callable[[], bool] = lambda: False
    """Whether everything was sent."""

    async def send(self, remote: Remote, place: Place, legs: Legs, say: Callable[[str], None]) -> None:
        """It ends well, or has `failed`; it may be cancelled, which ends the connection at once."""
        began = time.monotonic()
        try:
            self.answer = await patiently(lambda: self._try(remote, place, legs), say)
            legs.is_kept = True
            parts = await self._compare(remote, place.route)
            if parts and legs.told is None:  # it was over before anybody had asked
                legs.told = {"parts": [], "sinks": sinks_of(parts)}
        except Failed as failed:
            self.failed = failed
            legs.is_kept = False
        except asyncio.CancelledError:
            self.failed = await self._taken_back(remote, place, say)
            raise
        finally:
            self.seconds = round(time.monotonic() - began, 3)

    async def _try(self, remote: Remote, place: Place, legs: Legs) -> Answer:
        try:
            return await self._attempt(remote, place, legs)
        except Failed as failed:
            if any(file.path == STDIN and file.sha256 is not None for file in self.sources.files):
                failed.pause = None  # what came from standard input is gone
            if failed.state == "failed":
                self._is_whole = lambda: False  # there is nothing to be taken back
            raise

    async def _attempt(self, remote: Remote, place: Place, legs: Legs) -> Answer:
        self.tries += 1
        await asyncio.to_thread(self.sources.look)
        legs.told, legs.size, self._broken = None, self.sources.size, None
        writer = StreamingMultipartWriter("form-data")
        try:
            length = self._length(writer.boundary)
        except ValueError as error:  # a name that has two readings
            raise Failed(Code.LOCAL, f"{self.sources.given}: {error}") from error
        self._is_whole = lambda: writer.closed
        legs.arrived = lambda: writer.arrived_bytes / (length or 1)
        answer, lost = await self._exchange(remote, place, writer, length, legs)
        if self._broken is not None:
            raise self._broken
        if lost is not None:
            answer = await self._despite(lost, remote, place, is_whole=writer.closed)
        assert answer is not None
        if not writer.closed:
            raise Failed(Code.FAILED, f"it was answered with {answer.status} before everything was sent")
        return answer

    def _length(self, boundary: str) -> int | None:
        """Of the body. Raises ValueError for a name that has two readings."""
        encoder = Encoder(boundary.encode())
        total = sum(len(encoder.begin(render_head(name, None, None))) + len(value) for name, value in self.fields)
        some_digest = ((b"Content-Digest", content_digest(bytes(32))),)
        for file in self.sources.files:
            head = render_head(_NAME, file.name, file.content_type, some_digest if file.is_declared else ())
            total += len(encoder.begin(head)) + (file.size or 0)
        return None if self.sources.size is None else total + len(encoder.close())

    async def _exchange(
        self, remote: Remote, place: Place, writer: StreamingMultipartWriter, length: int | None, legs: Legs
    ) -> tuple[Answer | None, Failed | None]:
        headers = remote.headers(accept="application/json, */*;q=0.1", x_upload_id=self.id)
        if length is not None:
            headers["Content-Length"] = str(length)
        answer = failed = None
        async with asyncio.TaskGroup() as group:
            beside = [group.create_task(self._feed(writer))]
            beside.append(group.create_task(watch(remote, place.bases, self.id, legs)))
            try:
                # who asks first is answered before any of standard input is gone
                async with remote.session.post(
                    place.route, data=writer, headers=headers, allow_redirects=False, expect100=length is None
                ) as response:
                    answer = await read(response)
            except Failed as refusal:
                failed = refusal
            except CONNECTION_ERRORS as error:
                failed = translated(error)
            finally:
                writer.abort()
                for task in beside:
                    task.cancel()
        return answer, failed

    async def _feed(self, writer: StreamingMultipartWriter) -> None:
        try:
            for name, value in self.fields:
                await writer.begin_form_part(name)
                await writer.feed(value)
            for file in self.sources.files:
                await self._feed_file(writer, file)
            await writer.finish()
        except ConnectionLost:
            pass  # whoever waits for the answer is told why
        except Failed as failed:
            self._broken = failed
            writer.abort()

    async def _feed_file(self, writer: StreamingMultipartWriter, file: Source) -> None:
        reading = await asyncio.to_thread(Reading, file)
        try:
            digest = await asyncio.to_thread(reading.digest) if file.is_declared else None
            await writer.begin_form_part(_NAME, file.name, file.content_type, content_digest=digest)
            if file.path != STDIN:
                while data := await asyncio.to_thread(reading.read):
                    await writer.feed(data)
                return
            await writer.flush()  # it waits for the connection, so that of what is not reached nothing is taken
            while data := reading.took(await _from_stdin(file)):
                await writer.feed(data)
        finally:
            reading.close()

    async def _despite(self, lost: Failed, remote: Remote, place: Place, *, is_whole: bool) -> Answer:
        """What became of it, where the answer leaves that open. Raises Failed: `lost` where it does not."""
        status, kind = lost.problem.get("status"), str(lost.problem.get("type", "")).rpartition("/")[2]
        if status is None and lost.code is Code.UNKNOWN:
            if not is_whole:
                raise Failed(Code.LATER, f"{lost} before everything was sent; nothing of it is kept")
        elif not (
            (is_whole and status in _ON_THE_WAY and kind in ("", "about:blank"))
            or (self.tries > 1 and kind == "conflict")  # a try before may be the one that has the id
        ):
            raise lost
        said = f"{lost}; whether it is kept is not known: {self.id}"
        return await self._asked(remote, place, Failed(Code.UNKNOWN, said, problem=lost.problem, state="unknown"))

    async def _asked(self, remote: Remote, place: Place, lost: Failed) -> Answer:
        """What became of it. Raises Failed, `lost` where nobody knows."""
        kept = None
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                kept = await self._kept_at(remote, place)
                with suppress(Failed):
                    return Answer(201, {"Location": str(kept)}, (await remote.get(kept)).document)
        except TimeoutError:
            if kept is None:
                raise lost from None
        return Answer(200, {}, None)  # a relay's upload has no manifest

    async def _kept_at(self, remote: Remote, place: Place) -> URL:
        """Where its manifest is. It asks until somebody knows. Raises Failed."""
        while True:
            for base in place.bases:
                told = None
                with suppress(Failed):
                    told = (await remote.get(below(base, f"/uploads/{self.id}/progress"))).document
                if not isinstance(told, dict):
                    continue
                if told.get("state") == "kept":
                    return below(base, f"/uploads/{self.id}")
                if told.get("state") == "failed":
                    raise _as_told(told.get("problem"))
            await asyncio.sleep(_ASK_PAUSE_SECONDS)

    async def _taken_back(self, remote: Remote, place: Place, say: Callable[[str], None]) -> Failed:
        """What became of an upload that was interrupted. What was sent whole may be kept all the same: then it is
        removed again, if it can be, and if the gateway is soon done with it.
        """
        nothing = Failed(Code.LATER, "interrupted; nothing of it is kept", state="interrupted")
        if not self._is_whole():
            return nothing
        say(f"everything had been sent: asking what becomes of {self.id}")
        lost = Failed(Code.UNKNOWN, f"interrupted, but sent whole: {self.id} may be kept", state="unknown")
        answer = None
        try:
            async with asyncio.timeout(_TAKE_BACK_SECONDS):
                answer = await self._asked(remote, place, lost)
                self.url = answer.headers.get("Location")
                if self.url is not None:
                    await remote.delete(URL(self.url))
                    self.url = None
                    return Failed(Code.LATER, "interrupted; it was kept, and is removed again", state="interrupted")
        except TimeoutError:
            if self.url is not None:
                said = f"interrupted; it was kept, and may be removed again: {self.url}"
                return Failed(Code.UNKNOWN, said, state="unknown")
        except Failed as failed:
            if answer is None:
                if failed.state == "failed":
                    return nothing
                said = str(failed) if failed is lost else f"interrupted; {failed}"
                return Failed(failed.code, said, problem=failed.problem, state=failed.state)
        if answer is None:
            return lost
        return Failed(Code.UNKNOWN, f"interrupted, and kept all the same: {self.url or self.id}", state="kept")

    async def _compare(self, remote: Remote, route: URL) -> dict[int, PartTold]:
        """What was sent with what the manifest says: its parts, if there is one. Raises Failed."""
        assert self.answer is not None
        location = self.answer.headers.get("Location")
        manifest = None if location is None else joined(route, location)
        self.url = None if manifest is None else str(manifest)
        parts = parts_of(self.answer.document, self.id)
        if not parts and manifest is not None and manifest.origin() == route.origin():
            with suppress(Failed):  # the answer is a destination's, and a store has it, too
                parts = parts_of((await remote.get(manifest)).document, self.id)
        problems = []
        for number, file in enumerate(self.sources.files, len(self.fields)):
            if (part := parts.get(number)) is None:
                continue
            if part.sha256 is not None:
                file.verified = (part.sha256, part.size) == (file.sha256, file.size)
            elif part.is_verified:
                file.verified = True
            if part.problem is not None:
                problems.append(part.problem)
            elif part.location is not None and (where := joined(route, part.location)) is not None:
                file.url = str(where)
        if any(file.verified is False for file in self.sources.files):
            raise Failed(Code.DIFFERS, f"what is kept is not what was sent: {self.url}", state="differs")
        if problems or self.answer.status == 207:
            problem = problems[0] if problems else {"title": "some of it is not kept"}
            raise Failed(Code.PARTLY, _in_words(problem), problem=problem, state="partly")
        return parts


def _as_told(problem: Any) -> Failed:
    """What a gateway tells of an upload that has failed there."""
    problem = problem if isinstance(problem, dict) else {}
    status = problem.get("status")
    if not isinstance(status, int) or status == _HANG_UP_STATUS:
        return Failed(Code.LATER, "the connection was lost; nothing of it is kept")
    return refused(status, {}, json.dumps(problem).encode())


def _in_words(problem: dict[str, Any]) -> str:
    return ": ".join(str(problem[key]) for key in ("title", "detail") if problem.get(key))


async def _from_stdin(file: Source) -> bytes:
    """The next bytes of standard input. They are waited for in the loop: a thread that waits could not be ended. From
    the first of them on `file` has a digest, if an empty one: they are gone, whoever gets them. Raises Failed.
    """
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    try:
        try:
            loop.add_reader(0, ready.set)
        except PermissionError:  # a file: it never waits
            file.sha256 = ""
            return await asyncio.to_thread(os.read, 0, CHUNK_BYTES)
        try:
            while True:
                await ready.wait()
                ready.clear()
                with suppress(BlockingIOError):  # somebody else has read it
                    data = os.read(0, CHUNK_BYTES)
                    file.sha256 = ""
                    return data
        finally:
            loop.remove_reader(0)
    except OSError as error:
        raise Failed(Code.LOCAL, f"standard input: {error.strerror}") from error
