"""May this request come in? Decided on headers alone, before a byte of the body and before `100 Continue`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple, Protocol
from urllib.parse import unquote_to_bytes

from aiohttp import HttpVersion11, hdrs, web
from multidict import istr

from gateway.errors import Busy, ClientGone, Draining, Malformed, NotMultipart, TooLarge
from gateway.model import Limits
from gateway.multipart.content_type import MIXED_TYPES, boundary_of, other_parameters
from gateway.multipart.headers import checked_name, filename_of, media_type

__all__ = ["Form", "Gate", "SharedSlots", "Slots", "accept_body", "check_headers", "raw_filename"]

_MEDIA_TYPE = re.compile(rb'[ \t]*[^\s;,"/]+/[^\s;,"/]+[ \t]*(?:;|\Z)')
_OF_OTHER_BYTES = (
    hdrs.CONTENT_RANGE,
    hdrs.CONTENT_ENCODING,
    istr("x-amz-content-sha256"),
    istr("x-amz-decoded-content-length"),
)
"""Who has none of these sends the bytes as they are."""
_FORM, _WEB_FORM = b"multipart/form-data", b"application/x-www-form-urlencoded"
_WEB_FORM_DETAIL = (
    'a form comes with its files by enctype="multipart/form-data" only. If this is a file, send it by PUT (curl -T), '
    "or say what it is (curl -H 'Content-Type: …') or what its name is (Content-Disposition)"
)


class SharedSlots(Protocol):
    """A count of slots that others take from, too."""

    def take(self) -> bool:
        """False where none is left."""

    def give_back(self) -> None:
        """Let others take it."""


class Slots:
    """So many of something at a time: `limit` for this process, or for all that share `slots`; 0 is unlimited."""

    def __init__(self, what: str, limit: int, slots: SharedSlots | None = None) -> None:
        self._what = what
        self._limit = limit
        self._slots = slots if limit else None
        self.in_flight = 0

    def slot(self) -> AbstractContextManager[None]:
        """A slot, taken now and given back on leaving it. Raises Busy."""
        taken = not self._limit or self.in_flight < self._limit if self._slots is None else self._slots.take()
        if not taken:
            raise Busy(f"{self._limit} {self._what} are in progress", limit=self._limit)
        self.in_flight += 1
        return self._held()

    @contextmanager
    def _held(self) -> Iterator[None]:
        try:
            yield
        finally:
            self.in_flight -= 1
            if self._slots is not None:
                self._slots.give_back()


class Gate:
    """What may come in: uploads until the gateway drains, and reads of what is kept or lies elsewhere."""

    def __init__(self, uploads: Slots, reads: Slots) -> None:
        self.uploads = uploads
        self.reads = reads
        self.leaving = False
        """Whether new ones should go elsewhere: it is said, and those that come are let in."""
        self.draining = False
        """Whether nothing new begins."""

    @property
    def is_ending(self) -> bool:
        """Whether clients that have got their answer are to go elsewhere."""
        return self.leaving or self.draining

    @property
    def in_flight(self) -> int:
        """Uploads in progress."""
        return self.uploads.in_flight

    def slot(self, *, begins_late: bool = False) -> AbstractContextManager[None]:
        """For an upload, of a client that had connected before the gateway drained if it `begins_late`. Raises Busy,
        Draining.
        """
        if self.draining and not begins_late:
            raise Draining
        return self.uploads.slot()


class Form(NamedTuple):
    """A body that is read as multipart."""

    boundary: bytes
    is_form_data: bool
    """Whether it is what browsers send, so that each part has a name."""


def check_headers(request: web.Request, limits: Limits, *, kind: str) -> Form | None:
    """How the body is to be read, on a route of that kind; None: as one file. Raises what it is refused with.

    `opaque` takes any body, and looks into none. The others take forms, and files as they are, whole: a body that is
    not what its bytes look like would be kept, or passed on, without what said so. By PUT it is a file, but on `relay`.
    """
    form = None
    if kind != "opaque":
        _check_whole(request)
        form = _form(request, kind)
        if form is None:
            _check_once(request, hdrs.CONTENT_DISPOSITION)
            _check_once(request, "Content-Transfer-Encoding")
    declared = request.content_length
    if declared is not None:
        for limit in (limits.max_body_bytes, 0 if form else limits.max_file_bytes):
            if limit and declared > limit:
                raise TooLarge(f"the body is {declared} bytes, more than {limit}", limit=limit)
    return form


def _check_once(request: web.Request, name: str) -> None:
    """Of two, one reader takes the first and another one the last."""
    if len(request.headers.getall(name, ())) > 1:
        raise Malformed(f"{name} is given twice")


def _check_whole(request: web.Request) -> None:
    """The bytes of the body have to be those of the file, or form: all of them, and in no coding."""
    headers = request.headers
    if not any(name in headers for name in _OF_OTHER_BYTES):
        return
    if any(_values(request, hdrs.CONTENT_RANGE)):  # RFC 9110 14.5
        raise Malformed("a body with a Content-Range is a part of a file, and files are taken whole")
    codings = {coding.strip().lower() for line in _values(request, hdrs.CONTENT_ENCODING) for coding in line.split(",")}
    if codings - {"", "identity"}:
        raise NotMultipart("a body with a Content-Encoding is not taken", accept_encoding="identity")
    streaming = any(value.upper().startswith("STREAMING-") for value in _values(request, "x-amz-content-sha256"))
    if streaming or any(_values(request, "x-amz-decoded-content-length")):  # which is sent with such bodies only
        raise NotMultipart("a body in the chunks of aws-chunked is not taken", accept_encoding="identity")


def _values(request: web.Request, name: str) -> list[str]:
    return [value.strip() for value in request.headers.getall(name, ())]


def _form(request: web.Request, kind: str) -> Form | None:
    content_type = request.headers.get(hdrs.CONTENT_TYPE, "").encode("utf-8", "surrogateescape")
    found = media_type(content_type)
    lower = content_type.lower()
    is_form = b"multipart" in lower or b"urlencoded" in lower
    if is_form and not _MEDIA_TYPE.match(content_type):
        raise NotMultipart("the Content-Type looks like that of a form, and is no media type")
    as_file = request.method == hdrs.METH_PUT and kind != "relay"
    if as_file and found == _FORM:
        raise NotMultipart("what is PUT here is one file as it is; a form is sent by POST")
    if found == _WEB_FORM and request.method != hdrs.METH_PUT and raw_filename(request) is None:
        raise NotMultipart(_WEB_FORM_DETAIL)
    if as_file or not found.startswith(b"multipart/"):
        return None
    if kind == "relay" and found in MIXED_TYPES:
        other_parameters(content_type)
    elif found != _FORM:
        also = ", multipart/mixed and multipart/related are" if kind == "relay" else " is"
        raise NotMultipart(f"of the multipart types only multipart/form-data{also} taken")
    return Form(boundary_of(content_type), found == _FORM)


def raw_filename(request: web.Request) -> bytes | None:
    """A raw body's file name: from the path, else from Content-Disposition, else none. Raises Malformed."""
    if "filename" in request.match_info:
        filename = unquote_to_bytes(request.raw_path.partition("?")[0].rpartition("/")[2])
        if filename:
            return checked_name(filename)
    disposition = request.headers.get(hdrs.CONTENT_DISPOSITION)
    return (filename_of(disposition.encode("utf-8", "surrogateescape")) if disposition else None) or None


async def accept_body(request: web.Request) -> None:
    """Tell a client that waits for it to go on (RFC 9110 10.1.1). Raises ClientGone."""
    if request.version >= HttpVersion11 and request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
        try:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        except ConnectionError as error:
            raise ClientGone("the client hung up before its body was asked for") from error
        request.writer.output_size = 0  # or aiohttp takes it for a response that has begun
