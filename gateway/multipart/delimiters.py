"""What readers may take for a delimiter, in bytes that go on as they came. Pure.

Some readers end a line at a bare LF or CR, some do not mind what stands ahead of the first delimiter in its line, and
some read on behind the closing one. So `--boundary` may begin a line nowhere but in a delimiter, and a delimiter is
written in one way: CRLF ahead of it (save at the very start), CRLF or `--` after it, and CRLF or the end after those.
"""

from __future__ import annotations

import re

from gateway.errors import Malformed

__all__ = ["DelimiterCheck"]

_AFTER_BYTES = 4
"""What follows a delimiter has to be seen that far: `--` and CRLF."""


class DelimiterCheck:
    """Shown the body in the pieces that the decoder gets, it raises Malformed for what is not so."""

    def __init__(self, boundary: bytes) -> None:
        self._dashes = b"--" + boundary
        rest = re.escape(self._dashes) + rb"(?=([\x00-\xff]{0,%d}))" % _AFTER_BYTES
        self._anywhere = re.compile(rb"(\r?\n|\r|)" + rest)
        self._in_line = re.compile(rb"(\r?\n|\r)" + rest)
        self._unseen = b"\r\n"  # what may begin a delimiter, or one of which the end is missing
        self._begun = self._closed = False

    def receive(self, data: bytes, *, last: bool = False) -> None:
        """The next bytes; the last ones may be none."""
        window = self._unseen + data
        seen = 0
        while window.find(self._dashes, seen) >= 0:
            pattern = self._in_line if self._begun else self._anywhere
            match = pattern.search(window, seen)
            if match is None:
                break
            if len(match[2]) < _AFTER_BYTES and not last:
                self._unseen = window[match.start() :]
                return
            self._judge(match[1], match[2])
            seen = match.end()
        self._unseen = window[max(seen, len(window) - len(self._dashes) - 1) :]

    def _judge(self, ahead: bytes, after: bytes) -> None:
        closing = after[:2] == b"--" and b"\r\n".startswith(after[2:])
        if self._closed or ahead != b"\r\n" or not (closing or after[:2] == b"\r\n"):
            raise Malformed("the body, which goes on as it is, has a line that some readers take for a delimiter")
        self._begun, self._closed = True, closing
