"""One root directory: the threads that work in it, and what is in it that could not be removed when it ought to be.

A failing disk, or a process without a free descriptor, may refuse even a removal. What is left then is told of, once,
and tried again by every sweep (`remove_left`) until it is gone; if the process ends before, the next start sees to it.
What a crash left behind is found at the start in the same way.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from gateway.concurrency.groups import JobGroups
from gateway.concurrency.probe import Probe
from gateway.concurrency.threads import CleanUps, DaemonThreads, TrackedExecutor
from gateway.errors import SinkFault
from gateway.model import Part
from gateway.sinks import sink_fault
from gateway.sinks.disk.file_system import FileSystem
from gateway.sinks.disk.incoming import Incoming
from gateway.sinks.disk.jobs import Jobs
from gateway.sinks.disk.layout import DELETED, INCOMING, lock_directory, sync_directory

__all__ = ["Volume"]

log = logging.getLogger("gateway.disk")

_MAY_PASS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE)
"""With these the gateway starts: what is stored can be read and expires, and each upload is told."""


class Volume:
    """What all uploads on one root share. `fsync`: whether what is written there is made durable. `mode` is that of
    files, `directory_mode` that of directories, the root among them if it is made; the umask is taken off.

    `on_left` is called in a thread when something was left, and nothing was before; `on_fault` in any thread with each
    error of the system's, as that of a sink.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        *,
        fsync: bool,
        min_free_bytes: int = 0,
        threads: int,
        mode: int = 0o640,
        directory_mode: int = 0o750,
        on_left: Callable[[], None] = lambda: None,
        on_fault: Callable[[SinkFault], None] = lambda fault: None,
    ) -> None:
        self.name = name
        """That of the sink, for errors and the log."""
        self.root = root
        self.fsync = fsync
        self._min_free_bytes = min_free_bytes
        self._file_system = FileSystem()
        self.threads = DaemonThreads(threads, name=f"disk-{name}")
        self.groups = JobGroups(self.threads, threads)
        self.cleanups = CleanUps()
        self.writable = Probe(self.probe, name=f"probe-{name}")
        self._mode = mode
        self._directory_mode = directory_mode
        self._on_left = on_left
        self._on_fault = on_fault
        self._left: set[Path] = set()

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """The system's errors as the sink's: SinkFull and SinkUnavailable."""
        try:
            yield
        except OSError as error:
            raise self._fault(error) from error

    def _fault(self, error: OSError) -> SinkFault:
        fault = sink_fault(self.name, error)
        self._on_fault(fault)
        return fault

    def tracked(self) -> TrackedExecutor:
        """The threads, for the jobs of one owner."""
        return TrackedExecutor(self.threads)

    def jobs(self, upload_id: str, *, expected_bytes: int = 0) -> Jobs:
        """The jobs of one upload, in a directory that the first of them makes if there is room for so many bytes."""
        directory = Incoming(
            upload_id, root=self.root, file_system=self._file_system, fsync=self.fsync, mode=self._directory_mode
        )
        return Jobs(
            directory,
            fsync=self.fsync,
            mode=self._mode,
            min_free_bytes=self._min_free_bytes,
            expected_bytes=expected_bytes,
        )

    def sync_root(self) -> None:
        """Make the names of uploads durable, if that is wanted. Blocks. Raises OSError."""
        sync_directory(self.root, self.fsync)

    def remove(self, path: Path, *, durably: bool = True) -> None:
        """Remove an upload, whose exclusive lock the caller holds. It vanishes by one rename, `durably` or not. Blocks.

        Raises OSError, and it is there as before.
        """
        doomed = path.with_name(f".{path.name}{DELETED}")
        os.rename(path, doomed)
        try:
            # Before anything in it goes: a power cut is not to bring back half of it.
            sync_directory(self.root, self.fsync and durably)
        except OSError:
            try:
                os.rename(doomed, path)
            except OSError as error:
                self.leave(doomed, error)
            raise
        self._remove_tree(doomed)

    def start(self) -> None:
        """Make the root if need be, try to write there, and remove what nobody locks there and no upload has published.

        Blocks. Raises OSError if there is no root, it cannot be read, or cannot be written, unless that may pass.
        """
        try:
            self.root.mkdir(self._directory_mode, parents=True, exist_ok=True)
            refused = self.probe()
        except OSError as error:
            if error.errno not in _MAY_PASS:
                raise OSError(f"sinks.{self.name}.root: {self.root} cannot be used: {error.strerror}") from error
            log.warning("disk %s: %s cannot be written now: %s", self.name, self.root, error.strerror)
        else:
            if refused is not None:
                text = "disk %s: %s cannot be fsynced (%s), so that an upload may not survive a power cut"
                log.warning(text, self.name, self.root, refused.strerror)
        for name in os.listdir(self.root):
            if name.startswith(".") and name.endswith((INCOMING, DELETED)):
                self._remove_unlocked(self.root / name)

    def probe(self) -> OSError | None:
        """Write as an upload does, and remove it. Blocks. Raises OSError, but returns that there is no fsync."""
        jobs = self.jobs(f"probe-{secrets.token_hex(8)}")
        try:
            jobs.in_directory(jobs.write_all, [(Part(0, b"", None, None, is_file=True), b"probe")])
            jobs.directory.sync()
            return sync_directory(self.root, self.fsync)
        finally:
            left = jobs.finish(keep=False)
            if left is not None:
                self.leave(Path(jobs.directory.path), left)

    # -- what could not be removed

    @property
    def has_left(self) -> bool:
        """Whether there is something for `remove_left`."""
        return bool(self._left)

    def leave(self, path: Path, error: OSError) -> None:
        """A directory could not be removed: say so, once, and remember it. In any thread."""
        if path in self._left:
            return
        log.warning("disk %s: %s cannot be removed now, and will be tried again: %s", self.name, path.name, error)
        self._fault(error)
        was_clean = not self._left
        self._left.add(path)
        if was_clean:
            self._on_left()

    def remove_left(self) -> None:
        """Try again. Blocks."""
        for path in list(self._left):
            if self._remove_unlocked(path):
                self._left.discard(path)
                log.info("disk %s: %s is removed", self.name, path.name)

    def _remove_unlocked(self, path: Path) -> bool:
        """Remove a directory unless somebody holds its lock; whether it is gone."""
        try:
            lock = lock_directory(path)
            if lock is None:
                return True
            try:
                if path.name.startswith("."):
                    return self._remove_tree(path)
                self.remove(path)  # was published, and that could not be taken back
                return True
            finally:
                os.close(lock)
        except BlockingIOError:
            return False
        except OSError as error:
            self.leave(path, error)
            return False

    def _remove_tree(self, path: Path) -> bool:
        try:
            shutil.rmtree(path)
        except OSError as error:
            self.leave(path, error)
            return False
        return True
