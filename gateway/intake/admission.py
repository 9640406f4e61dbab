"""May this request come in? Decided on headers alone, before a byte of the body and before `100 Continue`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from aiohttp import HttpVersion11, hdrs, web

from gateway.errors import Busy, Draining, Malformed, NotMultipart, TooLarge, UnsupportedTransferCoding
from gateway.model import Limits
from gateway.multipart.content_type import MIXED_TYPES, boundary_of, other_parameters
from gateway.multipart.headers import media_type

__all__ = ["Gate", "UploadSlots", "accept_body", "check_headers"]


class UploadSlots(Protocol):
    """A count of slots that others take from, too."""

    def take(self) -> bool:
        """False where none is left."""

    def give_back(self) -> None:
        """Let others take it."""


class Gate:
    """The upload slots.

    `max_uploads` are for this process, or for all that share `slots`; 0 is unlimited.
    """

    def __init__(self, max_uploads: int, slots: UploadSlots | None = None) -> None:
        self._max_uploads = max_uploads
        self._slots = slots
        self.in_flight = 0
        self.draining = False

    def slot(self) -> AbstractContextManager[None]:
        """A slot, taken now and given back on leaving it. Raises Busy, Draining."""
        if self.draining:
            raise Draining
        if not self._take():
            raise Busy(f"{self._max_uploads} uploads are in progress", limit=self._max_uploads)
        self.in_flight += 1
        return self._held()

    def _take(self) -> bool:
        if not self._max_uploads:
            return True
        return self.in_flight < self._max_uploads if self._slots is None else self._slots.take()

    @contextmanager
    def _held(self) -> Iterator[None]:
        try:
            yield
        finally:
            self.in_flight -= 1
            if self._max_uploads and self._slots is not None:
                self._slots.give_back()


def check_headers(
    request: web.Request, limits: Limits, *, raw: bool, mixed: bool = False, encoded: bool = False
) -> bool:
    """Whether the body is to be read as multipart (`raw`: never). Raises what it is refused with.

    `mixed`: multipart/mixed and multipart/related are taken, too. `encoded`: so is what has a Content-Encoding.
    """
    for header in (hdrs.CONTENT_TYPE, hdrs.CONTENT_ENCODING):
        if len(request.headers.getall(header, ())) > 1:
            raise Malformed(f"{header} is given twice")
    coding = request.headers.get(hdrs.TRANSFER_ENCODING)
    if coding is not None:
        # aiohttp takes these two, and servers behind us may read them otherwise: request smuggling.
        if request.version < HttpVersion11:
            raise Malformed("HTTP/1.0 has no Transfer-Encoding")
        if coding.strip().lower() != "chunked":
            raise UnsupportedTransferCoding(f"Transfer-Encoding: {coding}")
    if not encoded and request.headers.get(hdrs.CONTENT_ENCODING, "identity").strip().lower() != "identity":
        raise NotMultipart("a body with a Content-Encoding is not taken")
    content_type = request.headers.get(hdrs.CONTENT_TYPE, "").encode("utf-8", "surrogateescape")
    kind = media_type(content_type)
    multipart = not raw and kind.startswith(b"multipart/")
    if multipart:
        if mixed and kind in MIXED_TYPES:
            other_parameters(content_type)
        elif kind != b"multipart/form-data":
            also = ", multipart/mixed and multipart/related are" if mixed else " is"
            raise NotMultipart(f"of the multipart types only multipart/form-data{also} taken")
        boundary_of(content_type)
    declared = request.content_length
    if declared is not None:
        for limit in (limits.max_body_bytes, 0 if multipart else limits.max_file_bytes):
            if limit and declared > limit:
                raise TooLarge(f"the body is {declared} bytes, more than {limit}", limit=limit)
    return multipart


async def accept_body(request: web.Request) -> None:
    """Tell a client that waits for it to go on (RFC 9110 10.1.1)."""
    if request.version >= HttpVersion11 and request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # or aiohttp takes it for a response that has begun
