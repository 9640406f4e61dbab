"""What one upload does on disk: jobs, each of which runs in a thread and blocks it.

The first job makes the upload's directory and locks it, whichever job that is: a small upload is two jobs, and
would else be three. Where things lie, and why in this order: see sink.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from gateway.digests import Hasher, digest_of
from gateway.model import Part
from gateway.sinks.disk.upload_directory import INCOMING, MANIFEST, lock_directory, sync_directory

__all__ = ["HashedFile", "Jobs", "write_all"]

_OPEN_FILES = 64
"""How many small files are open at a time: a process may often have 1024 descriptors in all."""
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC

T = TypeVar("T")


class Jobs:
    """One upload's directory, from its making to its rename or removal. Every method raises OSError.

    `fsync`: whether what is written is made durable. Several jobs may run at once, on different files; `publish`,
    `rewrite` and `finish` run alone.
    """

    def __init__(self, upload_id: str, *, root: Path, fsync: bool) -> None:
        self.algorithms: dict[int, Sequence[str]] = {}
        """By which each part is to be hashed that is to be hashed here, by index."""
        self.digests: dict[int, tuple[int, Mapping[str, str]]] = {}
        """Of those that were: their bytes, and algorithm -> hex."""
        self._root = root
        self._incoming = root / f".{upload_id}{INCOMING}"
        self._final = root / upload_id
        self._fsync = fsync
        self._making = threading.Lock()
        self._lock: int | None = None
        self._open_files: set[IO[bytes]] = set()
        self._published = False

    @property
    def has_open_files(self) -> bool:
        """Whether a file was created and not closed."""
        return bool(self._open_files)

    # -- the directory

    def in_directory(self, function: Callable[..., T], *args: Any) -> T:
        """Run a job of ours, in the directory that the first of them makes."""
        with self._making:
            if self._lock is None:
                self._lock = self._make_directory()
        return function(*args)

    def _make_directory(self) -> int:
        while True:
            self._incoming.mkdir(exist_ok=True)  # exists: a sweep that was faster (sink.py, 1) is not done with it
            with contextlib.suppress(BlockingIOError):
                if (lock := lock_directory(self._incoming)) is not None:
                    return lock
            time.sleep(0.001)  # a sweep takes one empty directory away, then never comes back

    # -- long files

    def create(self, index: int) -> HashedFile:
        """A new file for a part, to be written in threads and given to `close_part`."""
        file = HashedFile(self._incoming / str(index), self.algorithms.get(index, ()))
        self._open_files.add(file)
        return file

    def flush(self, file: IO[bytes]) -> None:
        """What was written so far is on its way to the disk, and waited for."""
        file.flush()
        if self._fsync:
            os.fdatasync(file.fileno())

    def close(self, file: IO[bytes]) -> None:
        """The file is whole: make it durable."""
        file.flush()
        if self._fsync:
            os.fsync(file.fileno())
        file.close()
        self._open_files.discard(file)

    def close_part(self, index: int, file: HashedFile) -> None:
        """The same for a part."""
        self.close(file)
        if file.hasher is not None:
            self.digests[index] = (file.hasher.size, file.hasher.digests())

    # -- small files

    def write_all(self, parts: Sequence[tuple[Part, bytes]]) -> None:
        """A file for each part, durable when this returns."""
        # Plain descriptors: a file object costs more than writing a small file. The fsyncs come after the writes of
        # a group: the first one's journal entry serves them all. Groups, because descriptors are few.
        prefix, fsync, algorithms = f"{self._incoming}/", self._fsync, self.algorithms
        for start in range(0, len(parts), _OPEN_FILES):
            written: list[int] = []
            try:
                for part, data in parts[start : start + _OPEN_FILES]:
                    descriptor = os.open(prefix + str(part.index), _CREATE, 0o666)
                    written.append(descriptor)
                    write_all(descriptor, data)
                    if part.index in algorithms:
                        self.digests[part.index] = (len(data), digest_of(data, algorithms[part.index]))
                    if not fsync:
                        os.close(written.pop())
                for descriptor in written:
                    os.fsync(descriptor)
            finally:
                for descriptor in written:
                    os.close(descriptor)

    def remove(self, index: int) -> None:
        """Forget one part, whether its file is there, open, or was never made."""
        path = str(self._incoming / str(index))
        for file in list(self._open_files):  # a copy, for other threads open and close theirs meanwhile
            if str(file.name) == path:
                with contextlib.suppress(OSError):
                    file.close()
                self._open_files.discard(file)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    # -- the end

    def publish(self, manifest: bytes | None) -> None:
        """Write the manifest, if this sink keeps it, make all of it durable, and rename it to its final name."""
        if manifest is not None:
            file = open(self._incoming / MANIFEST, "xb")  # noqa: SIM115 - closed by close, or by finish
            self._open_files.add(file)
            file.write(manifest)
            self.close(file)
        os.utime(self._incoming)  # its age counts from here: a long upload's would else count from its last file
        sync_directory(self._incoming, self._fsync)
        os.rename(self._incoming, self._final)
        self._published = True
        sync_directory(self._root, self._fsync)
        assert self._lock is not None
        with contextlib.suppress(BlockingIOError):  # somebody removes it already (sink.py, 5)
            fcntl.flock(self._lock, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def rewrite(self, manifest: bytes) -> None:
        """Another manifest for what is published: the one or the other is there, whenever the power goes."""
        path = self._final / f"{MANIFEST}.new"
        try:
            descriptor = os.open(path, _CREATE, 0o666)
            try:
                write_all(descriptor, manifest)
                if self._fsync:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(path, self._final / MANIFEST)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise
        with contextlib.suppress(OSError):  # it is there; that it may not outlive a power cut is no reason to deny it
            sync_directory(self._final, self._fsync)

    def finish(self, *, keep: bool) -> None:
        """Close everything, remove everything unless it is to be kept, and unlock."""
        for file in self._open_files:
            with contextlib.suppress(OSError):  # a full disk fails the flush in close() as well
                file.close()
        if self._lock is None:
            return  # the directory was not made: then there is none, or it is not ours to remove
        if not keep:
            shutil.rmtree(self._final if self._published else self._incoming, ignore_errors=True)
            sync_directory(self._root, self._fsync)
        self.unlock()

    def unlock(self) -> None:
        """Let go of the directory; it takes no thread, for it never waits for the disk."""
        assert self._lock is not None
        os.close(self._lock)


class HashedFile(io.BufferedWriter):
    """A new file, and the digests of what is written to it."""

    def __init__(self, path: Path, algorithms: Sequence[str]) -> None:
        super().__init__(io.FileIO(path, "x"))
        self.hasher = Hasher(algorithms) if algorithms else None

    def writelines(self, lines: Iterable[Any], /) -> None:
        for line in lines:
            self.write(line)
            if self.hasher is not None:
                self.hasher.update(line)


def write_all(descriptor: int, data: bytes) -> None:
    """Write every byte: a write may take a part only, as a disk that is nearly full does. Raises OSError."""
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, data[written:])
