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

from gateway.client.outcomes import Code, Failed, patiently, refused, translated
from gateway.client.remote import CONNECTION_ERRORS, Answer, Place, Remote, below, new_id, read
from gateway.client.sources import CHUNK_BYTES, STDIN, Reading, Source, Sources, content_digest
from gateway.client.watching import Legs, watch
from gateway.http import ConnectionLost
from gateway.multipart import Encoder, render_head
from gateway.multipart.writer import StreamingMultipartWriter

__all__ = ["Upload"]

_NAME = b"file"
_ASKS = 30
_ASK_SECONDS = 1.0
_TAKE_BACK_SECONDS = 5.0
_HANG_UP_STATUS = 499


@dataclass(slots=True)
class Upload:
    """What is sent, and what became of it."""

    sources: Sources
    fields: Sequence[tuple[bytes, bytes]] = ()
    id: str = field(default_factory=new_id)
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
                legs.told = {"parts": [], "sinks": _sinks(parts)}
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
            if lost.code is not Code.UNKNOWN:
                raise lost
            if not writer.closed:
                raise Failed(Code.LATER, f"{lost} before everything was sent; nothing of it is kept")
            said = f"{lost}; whether it is kept is not known: {self.id}"
            answer = await self._asked(remote, place, Failed(Code.UNKNOWN, said, state="unknown"))
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
            while data := reading.took(await _from_stdin()):
                file.sha256 = ""  # some of it is gone
                await writer.feed(data)
        finally:
            reading.close()

    async def _asked(self, remote: Remote, place: Place, lost: Failed) -> Answer:
        """What became of it. Raises Failed, `lost` where nobody knows."""
        for _ in range(_ASKS):
            for base in place.bases:
                told = None
                with suppress(Failed):
                    told = (await remote.get(below(base, f"/uploads/{self.id}/progress"))).document
                state = told.get("state") if isinstance(told, dict) else None
                if state == "kept":
                    manifest = below(base, f"/uploads/{self.id}")
                    with suppress(Failed):
                        return Answer(201, {"Location": str(manifest)}, (await remote.get(manifest)).document)
                    return Answer(200, {}, None)  # a relay's upload has no manifest
                if state == "failed" and isinstance(told, dict):
                    problem = told.get("problem") or {}
                    if (status := problem.get("status", _HANG_UP_STATUS)) == _HANG_UP_STATUS:
                        raise Failed(Code.LATER, "the connection was lost; nothing of it is kept")
                    raise refused(status, {}, json.dumps(problem).encode())
            await asyncio.sleep(_ASK_SECONDS)
        raise lost

    async def _taken_back(self, remote: Remote, place: Place, say: Callable[[str], None]) -> Failed:
        """What became of an upload that was interrupted. What was sent whole may be kept all the same: then it is
        removed again, if it can be, and if the gateway is soon done with it.
        """
        if not self._is_whole():
            return Failed(Code.LATER, "interrupted; nothing of it is kept", state="interrupted")
        say(f"everything had been sent: asking what becomes of {self.id}")
        lost = Failed(Code.UNKNOWN, "interrupted", state="unknown")
        url = None
        try:
            async with asyncio.timeout(_TAKE_BACK_SECONDS):
                url = (await self._asked(remote, place, lost)).headers.get("Location")
                if url is not None:
                    await remote.delete(URL(url))
                    return Failed(Code.LATER, "interrupted; it was kept, and is removed again", state="interrupted")
        except TimeoutError:
            pass
        except Failed as failed:
            if failed is not lost and url is None:
                return Failed(Code.LATER, "interrupted; nothing of it is kept", state="interrupted")
        if url is not None:
            self.url = url
            return Failed(Code.UNKNOWN, f"interrupted, and kept all the same: {url}", state="kept")
        return Failed(Code.UNKNOWN, f"interrupted, but sent whole: {self.id} may be kept", state="unknown")

    async def _compare(self, remote: Remote, route: URL) -> dict[int, dict[str, Any]]:
        """What was sent with what the manifest says: its parts, if there is one. Raises Failed."""
        assert self.answer is not None
        location = self.answer.headers.get("Location")
        self.url = None if location is None else str(route.join(URL(location)))
        parts = self._parts(self.answer.document)
        if not parts and self.url is not None and URL(self.url).origin() == route.origin():
            with suppress(Failed):  # the answer is a destination's, and a store has it, too
                parts = self._parts((await remote.get(URL(self.url))).document)
        problems = []
        for number, file in enumerate(self.sources.files, len(self.fields)):
            part = parts.get(number)
            if part is None:
                continue
            told = part.get("input", part)
            sha256, size = told.get("sha256"), told.get("size")
            if sha256 is not None:
                file.verified = (sha256, size) == (file.sha256, file.size)
            elif "sha256" in told.get("verified", ()):
                file.verified = True
            if part.get("problem"):
                problems.append(part["problem"])
            elif (where := _location(part)) is not None:
                file.url = str(route.join(URL(where)))
        if any(file.verified is False for file in self.sources.files):
            raise Failed(Code.DIFFERS, f"what is kept is not what was sent: {self.url}", state="differs")
        if problems or self.answer.status == 207:
            problem = problems[0] if problems else {"title": "some of it is not kept"}
            raise Failed(Code.PARTLY, _in_words(problem), problem=problem, state="partly")
        return parts

    def _parts(self, document: Any) -> dict[int, dict[str, Any]]:
        """Those of the manifest, or of what a route converted, by index; none of what a destination has answered."""
        listed: Any = None
        if isinstance(document, dict) and document.get("upload") == self.id:
            listed = document.get("parts")
        elif isinstance(document, list) and all(isinstance(one, dict) and "input" in one for one in document):
            listed = document
        return {one["index"]: one for one in listed or ()}


def _sinks(parts: dict[int, dict[str, Any]]) -> list[dict[str, str]]:
    """As progress has them."""
    receipts = [one for part in parts.values() for one in part.get("receipts", ())]
    return [
        {"sink": name, "state": "dropped" if is_dropped else "kept"}
        for name, is_dropped in {str(one["sink"]): bool(one.get("dropped")) for one in receipts}.items()
    ]


def _location(part: dict[str, Any]) -> str | None:
    """Of the file, below the gateway's own address."""
    places = [(part.get("output") or {}).get("location"), *(one.get("location") for one in part.get("receipts", ()))]
    return next((place for place in places if place and place.startswith("/")), None)


def _in_words(problem: dict[str, Any]) -> str:
    return ": ".join(str(problem[key]) for key in ("title", "detail") if problem.get(key))


async def _from_stdin() -> bytes:
    """The next bytes of standard input. They are waited for in the loop: a thread that waits could not be ended.
    Raises Failed.
    """
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    try:
        try:
            loop.add_reader(0, ready.set)
        except PermissionError:  # a file: it never waits
            return await asyncio.to_thread(os.read, 0, CHUNK_BYTES)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(0)
        return os.read(0, CHUNK_BYTES)
    except OSError as error:
        raise Failed(Code.LOCAL, f"standard input: {error.strerror}") from error
