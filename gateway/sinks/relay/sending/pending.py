"""What was put into a body and has not been passed on: small pieces to be joined, and an end that is withheld. Pure.

1. *Nothing early.* The last byte of a declared length is withheld, with all that would come after it: before it no
   destination can take the request for complete.
2. *A declared length* is kept to: a byte too many is Malformed when it is put, one too few when the body ends.
"""

from __future__ import annotations

from collections.abc import Iterable

from gateway.errors import Malformed

__all__ = ["COALESCE_BYTES", "Pending"]

COALESCE_BYTES = 256 << 10
"""Smaller pieces are joined up to this size: to send a part's head on its own costs as much as copying its data."""


class Pending:
    """`length` is the declared one of the whole body, in bytes; None if there is none."""

    def __init__(self, length: int | None) -> None:
        self.length = length
        self.tail = b""
        """What is withheld until the end."""
        self._pieces: list[bytes] = []
        self._pieces_bytes = 0
        self.put_bytes = 0
        """All that was ever put."""

    def add(self, chunks: Iterable[bytes]) -> list[bytes]:
        """The next bytes of the body; what is to be passed on now. Raises Malformed."""
        due: list[bytes] = []
        for data in chunks:
            size = len(data)
            self.put_bytes += size
            if self.length is not None and size and self.put_bytes >= self.length:
                self._check()
                data, self.tail = data[:-1], data[-1:]
                size -= 1
            if self._pieces and self._pieces_bytes + size > COALESCE_BYTES:
                due.append(self.take())
            if size >= COALESCE_BYTES:
                due.append(data)
            elif size:
                self._pieces.append(data)
                self._pieces_bytes += size
        return due

    def __bool__(self) -> bool:
        """Whether something is held back to be joined with more."""
        return bool(self._pieces)

    def take(self) -> bytes:
        """What was held back, as one piece."""
        joined = b"".join(self._pieces)
        self.forget()
        return joined

    def finish(self, tail: bytes) -> None:
        """The body ends with `tail`. Raises Malformed."""
        self.put_bytes += len(tail)
        self._check()
        self.tail += tail
        if self.length is not None and self.put_bytes != self.length:
            raise Malformed(f"the body is {self.put_bytes} bytes, and was declared to be {self.length}")

    def forget(self) -> None:
        """Let go of what was held back."""
        self._pieces, self._pieces_bytes = [], 0

    def _check(self) -> None:
        if self.length is not None and self.put_bytes > self.length:
            raise Malformed(f"the body is more than the {self.length} bytes that were declared")
