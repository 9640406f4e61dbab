"""gzip and zstd, both ways. Batches of about 1 MiB are worked on in threads."""

from __future__ import annotations

import sys
import zlib
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Protocol

from gateway.errors import Malformed, TooLarge
from gateway.flows import BATCH_BYTES, FlowFile, Reject, batched, in_thread

if sys.version_info >= (3, 14):
    from compression import zstd as zstandard
else:
    from backports import zstd as zstandard

__all__ = ["gunzip", "gzip", "unzstd", "zstd"]

_GZIP = 31  # zlib's number for a gzip wrapper around a 32 KiB window
_SLICE_BYTES = 16 << 10
_MAX_FRAMES, _FRAME_BYTES = 1000, 1024
"""A frame of zstd costs twenty times what a member of gzip does, and may be empty: so many of them, or as many as have
a KiB each, as those of its seekable format do.
"""
_FREE_BYTES = 1 << 20
"""The ratio is looked at from here on: a small file of zeros is no bomb."""


class Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class Decompressor(Protocol):
    """One member (gzip) or frame (zstd), as the bz2 and lzma modules have it."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


# -- in


async def gzip(file: FlowFile, chunks: AsyncIterable[bytes], *, level: int = 6) -> AsyncIterator[bytes]:
    """Compress: `a.bin` becomes `a.bin.gz`, application/gzip. `level` is 0 to 9."""
    async for chunk in _compressed(file, chunks, zlib.compressobj(level, wbits=_GZIP), ".gz", "application/gzip"):
        yield chunk


async def zstd(file: FlowFile, chunks: AsyncIterable[bytes], *, level: int = 3) -> AsyncIterator[bytes]:
    """Compress: `a.bin` becomes `a.bin.zst`, application/zstd (RFC 8878). `level` is 1 to 19."""
    async for chunk in _compressed(file, chunks, zstandard.ZstdCompressor(level), ".zst", "application/zstd"):
        yield chunk


def _check_level(highest: int, lowest: int) -> Callable[..., None]:
    def check(*, level: int = lowest) -> None:
        if type(level) is not int or not lowest <= level <= highest:
            raise ValueError(f"level is {lowest} to {highest}")

    return check


gzip.check = _check_level(9, 0)  # type: ignore[attr-defined]
zstd.check = _check_level(19, 1)  # type: ignore[attr-defined]


async def _compressed(
    file: FlowFile, chunks: AsyncIterable[bytes], compressor: Compressor, suffix: str, content_type: str
) -> AsyncIterator[bytes]:
    file.filename = (file.filename or "file") + suffix
    file.content_type = content_type
    async for batch in batched(chunks):
        yield await in_thread(compressor.compress, batch)
    yield await in_thread(compressor.flush)


# -- and out


async def gunzip(
    file: FlowFile, chunks: AsyncIterable[bytes], *, max_output_bytes: int = 4 << 30, max_ratio: float = 200
) -> AsyncIterator[bytes]:
    """Decompress: `a.bin.gz` becomes `a.bin`. Rejects what is no gzip, or is cut off.

    More than `max_output_bytes`, or than `max_ratio` times the input (looked at after the first MiB), is
    TooLarge; 0 = unlimited. Several members, one after the other, are one file (RFC 1952 2.2).
    """
    async for chunk in _decompressed(file, chunks, _Gunzip, (".gz", ".gzip"), max_output_bytes, max_ratio):
        yield chunk


async def unzstd(
    file: FlowFile, chunks: AsyncIterable[bytes], *, max_output_bytes: int = 4 << 30, max_ratio: float = 200
) -> AsyncIterator[bytes]:
    """Decompress: `a.bin.zst` becomes `a.bin`. Limits as in gunzip; a window over 8 MiB is rejected (RFC 9659)."""
    async for chunk in _decompressed(file, chunks, _unzstd, (".zst", ".zstd"), max_output_bytes, max_ratio):
        yield chunk


def _check_caps(*, max_output_bytes: int = 0, max_ratio: float = 0) -> None:
    for name, cap in (("max_output_bytes", max_output_bytes), ("max_ratio", max_ratio)):
        if type(cap) not in (int, float) or not cap >= 0:
            raise ValueError(f"{name} is a number, 0 = unlimited")


gunzip.check = unzstd.check = _check_caps  # type: ignore[attr-defined]


async def _decompressed(
    file: FlowFile,
    chunks: AsyncIterable[bytes],
    member: Callable[[], Decompressor],
    suffixes: tuple[str, ...],
    max_output_bytes: int,
    max_ratio: float,
) -> AsyncIterator[bytes]:
    name = file.filename or ""
    for suffix in suffixes:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            file.filename = name[: -len(suffix)]
    file.content_type = "application/octet-stream"
    taken = given = 0
    members = _Members(member)
    async for batch in batched(chunks):
        taken += len(batch)
        members.feed(batch)
        while members.hungry is False:
            try:
                output = await in_thread(members.work, BATCH_BYTES)
            except (zlib.error, zstandard.ZstdError, EOFError) as error:
                raise Reject(f"it cannot be decompressed: {error}") from error
            given += len(output)
            if max_output_bytes and given > max_output_bytes:
                raise TooLarge(f"it decompresses to more than {max_output_bytes} bytes", limit=max_output_bytes)
            if max_ratio and given > _FREE_BYTES and given > taken * max_ratio:
                raise TooLarge(f"it decompresses to more than {max_ratio:g} times its size", limit=max_ratio)
            if output:
                yield output
    if not members.whole:
        raise Reject("it ends before it is whole" if taken else "it is empty, so it is no compressed file")


class _Members:
    """Members (gzip) or frames (zstd), one after the other. `work` runs in a thread, so that a file of very many
    tiny ones costs no hop for each. Raises Malformed for too many tiny frames.
    """

    def __init__(self, member: Callable[[], Decompressor]) -> None:
        self._member = member
        self._current = member()
        self._ended = False
        self._input = b""
        self._taken = 0
        self._count = 1
        self._all = 0
        """How many members there were, in how many bytes."""
        self.hungry = True
        """Whether nothing more comes without more input."""

    @property
    def whole(self) -> bool:
        return self._ended

    def feed(self, data: bytes) -> None:
        self._input, self._taken, self.hungry = data, 0, False
        self._all += len(data)

    def work(self, size: int) -> bytes:
        """About `size` bytes of output, or what the input gives."""
        pieces: list[bytes] = []
        made = 0
        while made < size:
            data = b""
            if self._current.eof or self._current.needs_input:
                # Small slices: what is left of one when a member ends is copied.
                data = self._input[self._taken : self._taken + _SLICE_BYTES]
                self._taken += len(data)
                if not data:
                    self.hungry = True
                    break
                if self._current.eof:
                    data = data.lstrip(b"\0") if self._pads else data  # gzip pads its last block on tapes
                    if not data:
                        continue
                    self._current, self._ended = self._member(), False
                    self._count += 1
                    if not self._pads and self._count > _MAX_FRAMES and self._all < self._count * _FRAME_BYTES:
                        raise Malformed(f"it has more than {_MAX_FRAMES} frames, and they are tiny")
            output = self._current.decompress(data, size - made)
            made += len(output)
            pieces.append(output)
            if self._current.eof:
                self._ended = True
                self._taken -= len(self._current.unused_data)
        return b"".join(pieces)

    @property
    def _pads(self) -> bool:
        return self._member is _Gunzip


class _Gunzip:
    """zlib's decompressor with the face of bz2's, so that one loop serves both."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=_GZIP)
        self._full = False

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self._full

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        output = self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)
        self._full = len(output) == max_length  # then it may hold more, even with all the input taken
        return output


def _unzstd() -> Decompressor:
    return zstandard.ZstdDecompressor(options={int(zstandard.DecompressionParameter.window_log_max): 23})
