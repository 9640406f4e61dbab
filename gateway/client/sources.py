"""The files that are sent, in uploads: each file is one, and each folder is.

A file is sent as it was when its upload began: one that has changed since then, or does while it is read, fails the
upload before its last bytes, so that nothing of it is kept.
"""

from __future__ import annotations

import base64
import hashlib
import mimetypes
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from gateway.client.outcomes import Code, Failed

__all__ = ["CHUNK_BYTES", "STDIN", "Reading", "Source", "Sources", "gathered", "printable"]

STDIN = "-"
CHUNK_BYTES = 256 << 10
DECLARED_BYTES = 64 << 20
"""Files up to here are hashed before they are sent, and so can say their digest in front; who reads a longer one twice
waits for the disk twice.
"""


def printable(text: str) -> str:
    """As it may stand in a terminal, which would obey what else a name or an answer has in it."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)


@dataclass(slots=True)
class Source:
    """One file. `name` is what it is called by at the other end; `size` is None where it is not known before."""

    path: str
    name: bytes
    size: int | None = None
    sha256: str | None = None
    """Of what was sent, when it was."""
    verified: bool | None = None
    """Whether the gateway has the same; None where it does not say."""
    url: str | None = None
    """Where it can be read."""
    seen: tuple[int, int] | None = None
    """Its size, and when it was changed last, as its upload began."""

    @property
    def content_type(self) -> bytes:
        kind, encoding = mimetypes.guess_type(os.fsdecode(self.name))
        return b"application/octet-stream" if kind is None or encoding is not None else kind.encode()

    def look(self) -> None:
        """How long it is. Raises Failed."""
        if self.path == STDIN:
            return
        try:
            found = os.stat(self.path)
        except (OSError, ValueError) as error:
            raise _unreadable(self.path, error) from error
        if not stat.S_ISREG(found.st_mode):
            what = "a folder: --recursive sends those" if stat.S_ISDIR(found.st_mode) else "no regular file"
            raise Failed(Code.LOCAL, f"{self.path} is {what}")
        self.size, self.seen = found.st_size, (found.st_size, found.st_mtime_ns)

    @property
    def is_declared(self) -> bool:
        """Whether its digest is said in front of it."""
        return self.size is not None and self.size <= DECLARED_BYTES


@dataclass(slots=True)
class Sources:
    """One upload. `given` is what stood on the command line."""

    given: str
    files: list[Source] = field(default_factory=list)
    unreadable: Failed | None = None

    def look(self) -> None:
        """Raises Failed."""
        if self.unreadable is not None:
            raise self.unreadable
        if not self.files:
            raise Failed(Code.LOCAL, f"{self.given} has no file in it")
        for file in self.files:
            file.look()

    @property
    def size(self) -> int | None:
        """Of all files; None where one is not known."""
        sizes = [file.size for file in self.files]
        return None if None in sizes else sum(size or 0 for size in sizes)


class Reading:
    """A file while it is sent. It blocks. Raises Failed. Standard input others read, and tell what they `took`."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._left = source.size
        self._taken = 0
        self._hash = hashlib.sha256()
        self._file: IO[bytes]
        if source.path == STDIN:
            return
        try:
            self._file = open(source.path, "rb", buffering=0)  # noqa: SIM115  # `close` does
        except OSError as error:
            raise _unreadable(source.path, error) from error
        self._check()

    def digest(self) -> bytes:
        """All of it is read, for its Content-Digest, and it is as if nothing was."""
        try:
            found = hashlib.file_digest(self._file, hashlib.sha256).digest()  # type: ignore[arg-type]
            self._file.seek(0)
        except OSError as error:
            raise _unreadable(self._source.path, error) from error
        return content_digest(found)

    def read(self) -> bytes:
        """The next bytes; none at its end, when it is what it was."""
        try:
            if self._source.size == 0 and self._file.read(1):  # as those of /proc are
                given = self._source.path
                raise Failed(Code.LOCAL, f"{given} says that it has no bytes, and has some: send it as standard input")
            data = self._file.read(CHUNK_BYTES if self._left is None else min(CHUNK_BYTES, self._left))
        except OSError as error:
            raise _unreadable(self._source.path, error) from error
        return self.took(data)

    def took(self, data: bytes) -> bytes:
        """The next bytes, by whoever has read them."""
        self._hash.update(data)
        self._taken += len(data)
        if self._left is not None:
            self._left -= len(data)
        if not data:
            if self._left:
                raise _changed(self._source.path)
            self._check()
            self._source.sha256 = self._hash.hexdigest()
            self._source.size = self._taken
        return data

    def close(self) -> None:
        """Not standard input, which is not ours."""
        if self._source.path != STDIN:
            self._file.close()

    def _check(self) -> None:
        if self._source.path == STDIN:
            return
        found = os.fstat(self._file.fileno())
        if (found.st_size, found.st_mtime_ns) != self._source.seen:
            raise _changed(self._source.path)


def content_digest(digest: bytes) -> bytes:
    """The value of a Content-Digest (RFC 9530)."""
    return b"sha-256=:" + base64.b64encode(digest) + b":"


def gathered(given: Sequence[str], *, recursive: bool, most: int, say: Callable[[str], None]) -> Iterator[Sources]:
    """What is to be sent, in the order of the command line. A folder of more than `most` files is several uploads; 0 is
    no limit. What cannot be sent is found out when its turn comes; what is left out of a folder is said.
    """
    for path in given:
        if not (recursive and path != STDIN and os.path.isdir(path)):
            name = b"stdin" if path == STDIN else os.path.basename(os.fsencode(path))
            yield Sources(path, [Source(path, name)])
            continue
        try:
            files = list(_walked(path, say))
        except OSError as error:
            yield Sources(path, [], _unreadable(str(error.filename or path), error))
            continue
        except Failed as failed:
            yield Sources(path, [], failed)
            continue
        for start in range(0, len(files) or 1, most or len(files) or 1):
            yield Sources(path, files[start : start + most] if most else files)


def _walked(top: str, say: Callable[[str], None]) -> Iterator[Source]:
    """The files below a folder, each called by the way to it from the folder's own name on."""
    root = Path(os.path.abspath(top))

    def unreadable(error: OSError) -> None:
        raise _unreadable(str(error.filename), error) from error

    for directory, folders, names in os.walk(root, onerror=unreadable):
        folders.sort()
        for name in folders:
            if (path := Path(directory, name)).is_symlink():
                say(f"left out, for it is a link to a folder: {path}")
        for name in sorted(names):
            path = Path(directory, name)
            if path.is_symlink() or not path.is_file():
                say(f"left out, for it is no regular file: {path}")
                continue
            yield Source(str(path), os.fsencode(path.relative_to(root.parent).as_posix()))


def _unreadable(path: str, error: OSError | ValueError) -> Failed:
    return Failed(Code.LOCAL, f"{path}: {getattr(error, 'strerror', None) or error}")


def _changed(path: str) -> Failed:
    return Failed(Code.LOCAL, f"{path} changed while it was sent")
