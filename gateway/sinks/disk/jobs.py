"""What one upload does on disk: jobs, each of which runs in a thread and blocks it.

The first job makes the upload's directory, whichever job that is: a small upload may be one job, the one that
publishes. After each call that waits for the disk `moved` is called: a slow disk that works is no stall.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import partial
from typing import IO, Any, TypeVar

from gateway.concurrency.groups import Call
from gateway.digests import Hasher, digest_of
from gateway.model import Part
from gateway.sinks.disk.incoming import Incoming
from gateway.sinks.disk.layout import MANIFEST, close_all, sync_directory

__all__ = ["HashedFile", "Jobs", "write_whole"]

_OPEN_FILES = 64
"""How many small files are open at a time: a process may often have 1024 descriptors in all."""
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

T = TypeVar("T")


class Jobs:
    """The files of one upload, written, published and removed. Every method but `finish` raises OSError.

    `fsync`: whether what is written is made durable. `mode`: that of files, less the umask. Several jobs may run at
    once, on different files; `publish`, `rewrite` and `finish` run alone. Of the disk `min_free_bytes` are left to
    others, beside those that are `expected` here: less is a full one.
    """

    def __init__(
        self, directory: Incoming, *, fsync: bool, mode: int, min_free_bytes: int = 0, expected_bytes: int = 0
    ) -> None:
        self.directory = directory
        self.algorithms: dict[int, Sequence[str]] = {}
        """By which each part is to be hashed that is to be hashed here, by index."""
        self.digests: dict[int, tuple[int, Mapping[str, str]]] = {}
        """Of those that were: their bytes, and algorithm -> hex."""
        self.moved: Callable[[], None] = _tell_nobody
        self._fsync = fsync
        self._mode = mode
        self._min_free_bytes = min_free_bytes
        self._needed_bytes = min_free_bytes + expected_bytes if min_free_bytes else 0
        """Before anything is written."""
        self._is_ended = False
        self._open_files: set[IO[bytes]] = set()

    @property
    def has_open_files(self) -> bool:
        """Whether a file was created and not closed."""
        return bool(self._open_files)

    def end(self) -> None:
        """What runs need not be done to its end: it will be removed."""
        self._is_ended = True

    def in_directory(self, function: Callable[..., T], *args: Any) -> T:
        """Run a job of ours, in the directory that the first of them makes."""
        self._prepare()
        return function(*args)

    def _prepare(self, began_at: float | None = None) -> None:
        if self._needed_bytes:
            self._check_room(self._needed_bytes)
            self._needed_bytes = 0
        self.directory.make(began_at)

    def _check_room(self, needed: int) -> None:
        there = os.path.dirname(self.directory.path)
        with contextlib.suppress(FileNotFoundError):  # a root that is made anew has room
            status = os.statvfs(there)
            if status.f_bavail * status.f_frsize < needed:
                raise OSError(errno.ENOSPC, f"fewer than {needed} bytes are free", there)

    def _open(self, path: str, flags: int) -> int:
        return os.open(path, flags, self._mode)

    # -- long files

    def create(self, index: int) -> HashedFile:
        """A new file for a part, to be written in threads and given to `close_part`."""
        file = HashedFile(self.directory.file(str(index)), self._open, self.algorithms.get(index, ()))
        self._open_files.add(file)
        return file

    def flush(self, file: IO[bytes]) -> None:
        """What was written so far is on its way to the disk, and waited for."""
        file.flush()
        if self._fsync:
            os.fdatasync(file.fileno())
        if self._min_free_bytes:
            self._check_room(self._min_free_bytes)
        self.moved()

    def close(self, file: IO[bytes]) -> None:
        """The file is whole: make it durable."""
        file.flush()
        if self._fsync:
            os.fsync(file.fileno())
        file.close()
        self._open_files.discard(file)
        self.moved()

    def close_part(self, index: int, file: HashedFile) -> None:
        """The same for a part."""
        self.close(file)
        if file.hasher is not None:
            self.digests[index] = (file.hasher.size, file.hasher.digests())

    # -- small files

    def write_all(self, parts: Sequence[tuple[Part, bytes]]) -> None:
        """A file for each part, durable when this returns."""
        written: list[int] = []
        try:
            self._write_each(parts, written)
            self._sync_all(written)
        finally:
            close_all(written)

    def _write_each(self, parts: Iterable[tuple[Part, bytes]], written: list[int]) -> None:
        """The same, durable when what is `written` is fsynced."""
        # Plain descriptors: a file object costs more than writing a small file. The fsyncs come after the writes of
        # a group: the first one's journal entry serves them all. Groups, because descriptors are few.
        for part, data in parts:
            if len(written) >= _OPEN_FILES:
                self._sync_all(written)
            self._write(str(part.index), data, written)
            if part.index in self.algorithms:
                self.digests[part.index] = (len(data), digest_of(data, self.algorithms[part.index]))

    def _sync_all(self, written: list[int]) -> None:
        for descriptor in written:
            self._sync(descriptor)
        close_all(written)
        written.clear()

    def _sync(self, descriptor: int) -> None:
        self._go_on()
        os.fsync(descriptor)

    def _go_on(self) -> None:
        if self._is_ended:
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        self.moved()

    def _write(self, name: str, data: bytes, written: list[int]) -> None:
        self._go_on()
        path = self.directory.file(name)
        try:
            descriptor = self._open(path, _CREATE)
        except OSError as error:
            if error.errno != errno.EMFILE or not written:
                raise
            self._sync_all(written)  # they are fewer than that
            descriptor = self._open(path, _CREATE)
        written.append(descriptor)
        write_whole(descriptor, data)
        if not self._fsync:
            os.close(written.pop())

    def remove(self, index: int) -> None:
        """Forget one part, whether its file is there, open, or was never made."""
        path = f"{self.directory.path}/{index}"
        for file in list(self._open_files):  # a copy, for other threads open and close theirs meanwhile
            if str(file.name) == path:
                with contextlib.suppress(OSError):
                    file.close()
                self._open_files.discard(file)
        self.directory.unlink(str(index))

    # -- the end

    def publish(
        self, parts: Sequence[tuple[Part, bytes]], manifest: bytes | None, sync_root: Call, began_at: float
    ) -> Generator[Sequence[Call], None, None]:
        """Write the last small parts, which may be all, and the manifest, if this sink keeps it; make all of it
        durable, and rename it to its final name. What is to be called for that is yielded: see `JobGroups`.

        `sync_root` makes what is in the root durable. `began_at`: since when the job waits, by the monotonic clock.
        """
        self._prepare(began_at)
        written: list[int] = []
        try:
            self._write_each(parts, written)
            if manifest is not None:
                self._write(MANIFEST, manifest, written)
            if self._fsync:
                yield from self._made_durable(written)
        finally:
            close_all(written)
        if not parts:
            self.directory.touch()
        self.moved()
        yield from self.directory.publish(sync_root)
        self.moved()

    def _made_durable(self, written: Sequence[int]) -> Generator[Sequence[Call], None, None]:
        """By one call for all in the group, or for each file, where there is none such or it has failed."""
        is_durable = False
        with contextlib.suppress(OSError):
            yield [self.directory.sync_all()]
            is_durable = True
        if not is_durable:
            yield [*(partial(self._sync, descriptor) for descriptor in written), self.directory.sync]

    def rewrite(self, manifest: bytes) -> None:
        """Another manifest for what is published: the one or the other is there, whenever the power goes."""
        final = self.directory.final
        path = f"{final}/{MANIFEST}.new"
        try:
            descriptor = self._open(path, _CREATE)
            try:
                write_whole(descriptor, manifest)
                if self._fsync:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(path, f"{final}/{MANIFEST}")
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise
        with contextlib.suppress(OSError):  # it is there; that it may not outlive a power cut is no reason to deny it
            sync_directory(final, self._fsync)

    def finish(self, *, keep: bool) -> OSError | None:
        """Close everything, remove everything unless it is to be kept, and unlock.

        Raises nothing: an error is why the directory is still there.
        """
        try:
            for file in self._open_files:
                with contextlib.suppress(OSError):  # a full disk fails the flush in close() as well
                    file.close()
            self._open_files.clear()
            return None if keep else self.directory.remove()
        finally:
            self.directory.unlock()


def _tell_nobody() -> None:
    pass


class HashedFile(io.BufferedWriter):
    """A new file, and the digests of what is written to it."""

    def __init__(self, path: str, opener: Callable[[str, int], int], algorithms: Sequence[str]) -> None:
        super().__init__(io.FileIO(path, "x", opener=opener))
        self.hasher = Hasher(algorithms) if algorithms else None

    def writelines(self, lines: Iterable[Any], /) -> None:
        for line in lines:
            self.write(line)
            if self.hasher is not None:
                self.hasher.update(line)


def write_whole(descriptor: int, data: bytes) -> None:
    """Write every byte: a write may take a part only, as a disk that is nearly full does. Raises OSError."""
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, data[written:])
