"""One call for all that a file system holds: where it may be made, and what it says where it may not."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from gateway.sinks.disk import file_system
from gateway.sinks.disk.file_system import FileSystem, FileSystemSync


@contextmanager
def directory(path: Path | str) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def refused(root: Path | str, of: FileSystem | None = None) -> int | None:
    """The errno that it raises there; None: it was made."""
    with directory(root) as descriptor:
        try:
            FileSystemSync(of or FileSystem(), descriptor)()
        except OSError as error:
            return error.errno
    return None


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory whose file system is one of those for which it is made, whichever it is; others wait for nothing."""
    with directory(tmp_path) as descriptor:
        monkeypatch.setattr(file_system, "_DURABLE", {file_system._magic(descriptor)})
    monkeypatch.setattr(file_system, "_MOST_WAITING_BYTES", 1 << 60)
    return tmp_path


def test_it_is_made_of_a_file_system_that_is_known(known: Path) -> None:
    (known / "file").write_bytes(b"x")
    assert refused(known) is None


@pytest.mark.usefixtures("known")
def test_it_is_not_made_of_one_that_is_not() -> None:
    assert refused("/proc") == errno.ENOTSUP


def test_those_that_are_known_are_ext4_and_xfs() -> None:
    assert {0xEF53, int.from_bytes(b"XFSB")} == file_system._DURABLE


def test_it_is_not_made_beside_one_that_takes_long_nor_for_a_while_after_it(
    known: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, begun, goes_on = FileSystem(), threading.Event(), threading.Event()
    monkeypatch.setattr(file_system, "_SLOW_SECONDS", 0.02)

    def hang() -> None:
        with one.timed():
            begun.set()
            goes_on.wait(20)

    assert refused(known, one) is None
    hanging = threading.Thread(target=hang)
    hanging.start()
    assert begun.wait(20)
    while not one.is_slow():
        pass
    assert refused(known, one) == errno.ENOTSUP
    goes_on.set()
    hanging.join()
    assert refused(known, one) == errno.ENOTSUP
    assert refused(known, FileSystem()) is None, "of another one that is not known"
    monkeypatch.setattr(one, "_slow_until", 0.0)
    monkeypatch.setattr(file_system, "_SLOW_SECONDS", 20)
    assert refused(known, one) is None


def test_a_library_that_has_no_such_call_is_no_mistake_of_ours() -> None:
    with pytest.raises(OSError, match="not implemented") as raised:
        file_system._made("no_such_call", 0)
    assert raised.value.errno == errno.ENOSYS


def test_it_is_not_made_while_much_waits_to_be_written(known: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_system, "_MOST_WAITING_BYTES", -1)
    assert refused(known) == errno.ENOTSUP


def test_it_is_not_made_where_that_is_not_told(known: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under systemd's `ProcSubset=pid`."""
    monkeypatch.setattr(file_system, "_MEMORY", str(known / "hidden"))
    assert refused(known) == errno.ENOENT


@pytest.mark.parametrize(
    ("system", "release", "is_made"),
    [
        ("Linux", "5.17.0-1-amd64", True),
        ("Linux", "6.1", True),
        ("Linux", "10.0.3", True),
        ("Linux", "5.16.19", False),
        ("Linux", "4.19.0", False),
        ("Linux", "unknown", False),
        ("Darwin", "23.1.0", False),
    ],
)
def test_it_is_made_by_kernels_that_tell_of_errors(
    known: Path, monkeypatch: pytest.MonkeyPatch, system: str, release: str, is_made: bool
) -> None:
    file_system._tells_of_errors.cache_clear()
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(sysname=system, release=release))
    try:
        assert refused(known) == (None if is_made else errno.ENOTSUP)
    finally:
        file_system._tells_of_errors.cache_clear()


def test_what_the_system_says_is_raised(known: Path) -> None:
    with directory(known) as descriptor:
        call = FileSystemSync(FileSystem(), descriptor)
    with pytest.raises(OSError, match="Bad file descriptor") as raised:
        call()
    assert raised.value.errno == errno.EBADF


def test_what_waits_to_be_written_is_what_the_kernel_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "meminfo"
    told.write_bytes(b"MemTotal: 9 kB\nDirty:              12 kB\nWriteback:   3 kB\nWritebackTmp:   7 kB\n")
    assert file_system._waiting_bytes() >= 0
    monkeypatch.setattr(file_system, "_MEMORY", str(told))
    assert file_system._waiting_bytes() == 15 << 10


def test_those_of_one_root_are_equal_whatever_descriptor_they_have() -> None:
    root = FileSystem()
    one, other, elsewhere = FileSystemSync(root, 3), FileSystemSync(root, 4), FileSystemSync(FileSystem(), 3)
    assert one == other != elsewhere
    (kept,) = dict.fromkeys([one, other])
    assert kept.descriptor == 3
