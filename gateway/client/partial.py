"""A file that is not whole yet: `.NAME.part`, and the strong ETag of what it is a part of, `.NAME.part.etag`.

Names that are fetched never begin with a dot, so that neither is taken for a file of the same upload. What has such a
name and is none of ours is left alone: a part without an ETag beside it is nothing that could be gone on with.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from pathlib import Path
from typing import IO

from gateway.client.outcomes import Code, Failed

__all__ = ["Partial", "strong"]

_MOST_OPENS = 3
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
_STRONG = re.compile(r'"[\x21\x23-\x7e]*"')


def strong(etag: str) -> str | None:
    """The ETag, if it is a strong one in ASCII (RFC 9110 8.8.3): what may be sent in If-Range."""
    return etag if _STRONG.fullmatch(etag) else None


class Partial:
    """For nobody else while it is open. Everything here blocks, and raises OSError; `with` closes it."""

    def __init__(self, path: Path, *, force: bool) -> None:
        """`path`: where it is in the end; `force`: in place of what is there. Raises Failed, too: it is in use, or
        there is something of that name that no fetch has left.
        """
        self._path = path
        self._force = force
        self._part = path.with_name(f".{path.name}.part")
        self._beside = path.with_name(f".{path.name}.part.etag")
        self.etag: str | None = None
        """Of what it is a part of; None where that is not known, and it cannot be gone on with."""
        for _ in range(_MOST_OPENS):
            if (file := self._opened()) is not None:
                self.file: IO[bytes] = file
                return
        raise self._in_use()

    def _opened(self) -> IO[bytes] | None:
        """None where whoever had it has removed it meanwhile."""
        flags, is_ours = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, True
        try:
            descriptor = os.open(self._part, flags | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            is_ours = self._force
            try:
                descriptor = os.open(self._part, flags)
            except FileNotFoundError:
                return None
        file = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            self._claim(file, is_ours=is_ours)
        except FileNotFoundError:
            file.close()
            return None
        except BaseException:
            file.close()
            raise
        return file

    def _claim(self, file: IO[bytes], *, is_ours: bool) -> None:
        """Raises FileNotFoundError where it has its name no more, Failed."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise self._in_use() from error
        found, named = os.fstat(file.fileno()), os.lstat(self._part)
        if (found.st_dev, found.st_ino) != (named.st_dev, named.st_ino):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._part))
        self.etag = self._read_etag()
        if not stat.S_ISREG(found.st_mode) or not (is_ours or self.etag):
            raise Failed(Code.LOCAL, f"{self._part} is there, and nothing that could be gone on with: remove it")

    def _in_use(self) -> Failed:
        return Failed(Code.LOCAL, f"{self._part} is being fetched by somebody else")

    def _read_etag(self) -> str | None:
        try:
            with open(os.open(self._beside, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                return strong(file.read(64 << 10).decode("ascii"))
        except (OSError, ValueError):
            return None

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.file.close()

    def begin(self, etag: str) -> None:
        """Anew, with what has this ETag, if any."""
        self.file.seek(0)
        self.file.truncate()
        self.etag = strong(etag)
        if self.etag is None:
            self._beside.unlink(missing_ok=True)
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(self._beside, flags, 0o666), "wb") as file:
            file.write(self.etag.encode())

    def write(self, data: bytes) -> None:
        """All of it: a disk that is almost full takes a part, and says so only when it is asked once more."""
        left = memoryview(data)
        while left:
            left = left[self.file.write(left) :]

    def finish(self) -> None:
        """Give it its name. Raises Failed."""
        os.fsync(self.file.fileno())
        if self._force:
            os.replace(self._part, self._path)
        else:
            self._name_it()
        self.remove()

    def _name_it(self) -> None:
        try:
            os.link(self._part, self._path)  # unlike a rename it takes nobody's place
        except FileExistsError:
            raise self._taken() from None
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if os.path.lexists(self._path):
                raise self._taken() from None
            os.rename(self._part, self._path)

    def _taken(self) -> Failed:
        return Failed(Code.LOCAL, f"{self._path} is there already, since a moment ago")

    def give_up(self) -> bool:
        """Remove it, unless it can be gone on with: whether it can."""
        if self.etag is not None and os.fstat(self.file.fileno()).st_size:
            return True
        self.remove()
        return False

    def remove(self) -> None:
        """It and what is beside it."""
        self._part.unlink(missing_ok=True)
        self._beside.unlink(missing_ok=True)
