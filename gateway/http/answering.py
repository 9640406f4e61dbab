"""Connections on which answers come: as aiohttp's, with heads that can be relied on, and used again only where that
is safe.

aiohttp's parser decides by what lies in one segment: whether a head is too large for it, whether bytes behind an answer
spoil it, whether they are taken for the next one. Here it is given one head at a time, after `answer_heads` has read
it; then the body; and nothing behind that.

A connection that bytes came on while nobody had asked, or that has ended, is never used again: they were an answer to
nobody (a 408 before the close, a stray body), and the next client would get it.
"""

from __future__ import annotations

import asyncio
import select
from enum import Enum, auto
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import BadHttpMessage

from gateway.http.answer_heads import (
    MAX_FIELD_BYTES,
    MAX_FIELDS,
    MAX_HEAD_BYTES,
    BadHead,
    end_of_head,
    parse_head,
)

__all__ = ["HEAD_LIMITS", "HELD_HEAD_BYTES", "AnswerConnector", "AnswerHandler"]

HEAD_LIMITS: dict[str, Any] = {
    "max_line_size": MAX_FIELD_BYTES,
    "max_field_size": MAX_FIELD_BYTES,
    "max_headers": MAX_FIELDS,
}
"""For aiohttp.ClientSession: its own parser is to have no others."""

HELD_HEAD_BYTES = 3 * MAX_HEAD_BYTES
"""What a head takes until its answer has been passed on: as bytes, as text, and in what goes out. Measured, two to
almost three times its size, the more the more fields it has.
"""
_END_BYTES = 3
"""So much of the end of a head may have come without the rest."""


class _Phase(Enum):
    HEAD = auto()
    BODY = auto()
    OVER = auto()
    """The answer has no body, or none that could be found the end of: nothing more belongs to it."""


class AnswerHandler(ResponseHandler):
    """aiohttp's protocol of a client's connection."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._phase = _Phase.HEAD
        self._received = bytearray()
        """Of a head that is not whole."""
        self._looked_at = 0
        """So many bytes of it have no end of a head."""
        self._asked_for_head = False
        self._is_silent = False
        """Whether nothing can have come, since nothing was asked."""

    def set_response_params(self, *, skip_payload: bool = False, **params: Any) -> None:
        """aiohttp's: another request is about to be sent. `skip_payload`: its answer has no body (HEAD)."""
        self._phase, self._asked_for_head = _Phase.HEAD, skip_payload
        super().set_response_params(skip_payload=skip_payload, **params)
        self._take_heads()  # of somebody who does not wait to be asked

    def expect_silence(self) -> None:
        """A kept connection is about to be used again: until `ask`, whatever comes is an answer to nobody."""
        self._is_silent = True

    def ask(self) -> bool:
        """The request is about to be sent. False if something has come before, or the connection has ended."""
        was_silent = super().is_connected() and not (self._is_silent and self._can_be_read)
        self._is_silent = False
        return was_silent

    def is_connected(self) -> bool:
        """Whether it can be used; one that waits for its next request must have nothing to read, not even an end."""
        return super().is_connected() and not (self._is_answered and self._can_be_read)

    def data_received(self, data: bytes) -> None:
        """What came, by segments. b"" is aiohttp's own, when whoever reads a body has taken some of it."""
        if self._is_silent and data:
            self._drop_connection()
        elif self._phase is _Phase.HEAD:
            self._received += data
            self.start_timeout()  # bytes came, though aiohttp is told of none
            self._take_heads()
        elif data and self._is_answered:
            self._drop_connection()
        else:
            messages = len(self)
            super().data_received(data)
            payload = self._payload
            if self.exception() is not None and payload is not None and not payload.is_eof():
                # aiohttp tells those who wait for an answer, not who reads the body of one
                payload.set_exception(aiohttp.ClientPayloadError("the framing of an answer is broken"))
            while len(self) > messages:  # what was behind the body could be taken for an answer
                self._buffer.pop()
                self._drop_connection()

    @property
    def _is_answered(self) -> bool:
        return self._phase is _Phase.OVER or (
            self._phase is _Phase.BODY and self._payload is not None and self._payload.is_eof()
        )

    @property
    def _can_be_read(self) -> bool:
        shown = None if self.transport is None else self.transport.get_extra_info("socket")
        if shown is None or shown.fileno() < 0:
            return False
        poll = select.poll()
        poll.register(shown.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def _take_heads(self) -> None:
        """Interim answers, and the one that they announce."""
        received = self._received
        while self._phase is _Phase.HEAD:
            while received.startswith((b"\r", b"\n")):  # before a head, as lenient as aiohttp
                del received[:1]
            try:
                end = end_of_head(received, self._looked_at)
                if end is None:
                    self._looked_at = max(0, len(received) - _END_BYTES)
                    return
                if self._parser is None:
                    return
                head = parse_head(bytes(received[:end]))
            except BadHead as error:
                self._refuse(str(error))
                return
            del received[:end]
            self._looked_at = 0
            if not head.is_whole:
                self.force_close()
            if head.status >= 200 or head.status == 101:
                self._phase = _Phase.OVER if head.has_no_body or self._asked_for_head else _Phase.BODY
            super().data_received(head.data)
        if received:
            rest = bytes(received)
            received.clear()
            self.data_received(rest)

    def _refuse(self, why: str) -> None:
        """As aiohttp does where it cannot parse."""
        self._phase = _Phase.OVER
        self._drop_connection()
        self.set_exception(BadHttpMessage(why))

    def _drop_connection(self) -> None:
        self._received.clear()
        self.force_close()
        if self.transport is not None:
            self.transport.close()


class AnswerConnector(aiohttp.TCPConnector):
    """aiohttp's pool of connections, made of AnswerHandlers."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory = partial(AnswerHandler, loop=self._loop)  # type: ignore[assignment]
