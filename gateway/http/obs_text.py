"""Heads that are no UTF-8: fields pass through here as the bytes that they are (obs-text, RFC 9110 5.5).

aiohttp reads a head as UTF-8, with surrogates for the bytes that are none, and leaves these out when it writes one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aiohttp import web

__all__ = ["ForwardedResponse", "restore_obs_text"]


def restore_obs_text(writer: Any, headers: Iterable[tuple[str, str]], *, start_line: str | None = None) -> None:
    """Put a head that was written to aiohttp's StreamWriter, and not sent, as what it came from; if need be.

    `start_line`: instead of the one that was written.
    """
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers)
    if fields.isascii() and (start_line is None or start_line.isascii()):
        return
    start = writer._headers_buf.partition(b"\r\n")[0] if start_line is None else _bytes(start_line)
    writer._headers_buf = start + b"\r\n" + _bytes(fields) + b"\r\n"


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


class ForwardedResponse(web.StreamResponse):
    """The answer of somebody else on its way to a client."""

    _send_headers_immediately = False

    async def _write_headers(self) -> None:
        await super()._write_headers()
        writer = self._payload_writer
        assert writer is not None
        assert self._req is not None
        version = self._req.version
        line = f"HTTP/{version.major}.{version.minor} {self.status} {self.reason}"
        restore_obs_text(writer, self.headers.items(), start_line=line)
        writer.send_headers()
