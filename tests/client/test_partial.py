"""The file that is not whole yet: whose it is, that all of it is written, and how it gets its name."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.client.outcomes import Code, Failed
from gateway.client.partial import Partial, strong

ETAG = '"abc"'
KIB = 1 << 10


def refused(path: Path, *, force: bool = False) -> Failed:
    with pytest.raises(Failed) as raised:
        Partial(path, force=force)
    assert raised.value.code is Code.LOCAL
    return raised.value


@pytest.mark.sockets
def test_of_a_file_that_may_not_be_so_long_nobody_says_it_was_written(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from gateway.client.partial import Partial
with Partial(Path({str(tmp_path / "a")!r}), force=False) as part:
    part.begin('{ETAG}')
    try:
        part.write(bytes(100 * {KIB}))
    except OSError as error:
        print(error.errno)
"""
    limit = (64 * KIB + 1, resource.RLIM_INFINITY)
    done = subprocess.run(
        [sys.executable, "-c", program],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
        capture_output=True,
        check=True,
    )
    assert int(done.stdout) == errno.EFBIG
    assert (tmp_path / ".a.part").stat().st_size == 64 * KIB + 1


def test_what_no_fetch_has_left_is_left_alone_unless_it_is_said(tmp_path: Path) -> None:
    (tmp_path / ".a.part").write_bytes(b"mine")
    refused(tmp_path / "a")
    for not_one in (b"", b'"abc"\n', b'W/"abc"', b"\xff"):
        (tmp_path / ".a.part.etag").write_bytes(not_one)
        refused(tmp_path / "a")
    assert (tmp_path / ".a.part").read_bytes() == b"mine"
    with Partial(tmp_path / "a", force=True) as part:
        assert part.etag is None
        part.begin(ETAG)
        part.write(b"new")
        part.finish()
    assert (tmp_path / "a").read_bytes() == b"new"
    assert [one.name for one in tmp_path.iterdir()] == ["a"]


def test_it_is_gone_on_with_by_the_etag_that_it_was_begun_with(tmp_path: Path) -> None:
    with Partial(tmp_path / "a", force=False) as part:
        part.begin(ETAG)
        part.write(b"x")
        assert part.give_up()
    with Partial(tmp_path / "a", force=False) as part:
        assert part.etag == ETAG
        part.begin("")
        assert not part.give_up()
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_read_or_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text(ETAG)
    (tmp_path / ".a.part").write_bytes(b"x")
    (tmp_path / ".a.part.etag").symlink_to("theirs")
    refused(tmp_path / "a")
    with Partial(tmp_path / "a", force=True) as part:
        assert part.etag is None
        with pytest.raises(OSError, match="symbolic links"):
            part.begin('"new"')
    assert (tmp_path / "theirs").read_text() == ETAG
    (tmp_path / ".b.part").symlink_to("theirs")
    with pytest.raises(OSError, match="symbolic links"):
        Partial(tmp_path / "b", force=True)


def test_it_is_for_one_at_a_time_and_a_regular_file(tmp_path: Path) -> None:
    with Partial(tmp_path / "a", force=False):
        assert "somebody else" in str(refused(tmp_path / "a", force=True))
    os.mkfifo(tmp_path / ".b.part")
    refused(tmp_path / "b", force=True)


def test_what_lost_its_name_before_it_was_locked_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    opened = os.open

    def others_end_meanwhile(name: Path, flags: int, mode: int = 0o777) -> int:
        descriptor = opened(name, flags, mode)
        if flags & os.O_RDWR and not flags & os.O_EXCL:
            monkeypatch.undo()
            os.unlink(name)
        return descriptor

    (tmp_path / ".a.part").write_bytes(b"theirs")
    (tmp_path / ".a.part.etag").write_text(ETAG)
    monkeypatch.setattr(os, "open", others_end_meanwhile)
    with Partial(path, force=False) as part:
        assert os.fstat(part.file.fileno()).st_ino == os.stat(tmp_path / ".a.part").st_ino
        assert os.fstat(part.file.fileno()).st_size == 0


def test_where_there_are_no_hard_links_it_is_renamed_and_takes_nobodys_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*names: Path) -> None:
        raise PermissionError(errno.EPERM, "as vfat says it")

    monkeypatch.setattr(os, "link", no_links)
    for is_there in (False, True):
        with Partial(tmp_path / "a", force=False) as part:
            part.write(b"new" if not is_there else b"another")
            if not is_there:
                part.finish()
                continue
            with pytest.raises(Failed):
                part.finish()
    assert (tmp_path / "a").read_bytes() == b"new"


def test_which_etags_are_strong() -> None:
    assert [strong(one) for one in (ETAG, '""', 'W/"a"', "a", '"a', '"a" ', '"a"\n', '"ä"', '"a\tb"', '"a"b"')] == [
        ETAG,
        '""',
        *[None] * 8,
    ]
