"""What is taken for a file, and in which uploads."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from gateway.client.outcomes import Code, Failed
from gateway.client.sources import Reading, Source, gathered, printable


def test_each_file_is_an_upload_and_each_folder_is_one_or_as_many_as_it_takes(tmp_path: Path) -> None:
    (tmp_path / "top/sub").mkdir(parents=True)
    for name in ("top/c", "top/a", "top/sub/b", "alone"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "top/link").symlink_to("/etc/passwd")
    (tmp_path / "top/linked").symlink_to(tmp_path / "top/sub")
    os.mkfifo(tmp_path / "top/pipe")
    left_out: list[str] = []
    given = [str(tmp_path / "alone"), f"{tmp_path}/top/", "-"]
    found = list(gathered(given, recursive=True, most=2, say=left_out.append))
    names = [[file.name for file in one.files] for one in found]
    assert names == [[b"alone"], [b"top/a", b"top/c"], [b"top/sub/b"], [b"stdin"]]
    assert [Path(text.rpartition(": ")[2]).name for text in left_out] == ["linked", "link", "pipe"]


@pytest.mark.parametrize("name", ["missing", "folder", "pipe"])
def test_what_cannot_be_sent_is_told_when_it_is_looked_at(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Failed, match=name) as raised:
        Source(str(tmp_path / name), b"").look()
    assert raised.value.code is Code.LOCAL


def test_a_file_that_says_it_has_nothing_and_has_something_is_not_sent_as_nothing(tmp_path: Path) -> None:
    source = Source("/proc/self/status", b"status")
    source.look()
    assert source.size == 0
    reading = Reading(source)
    with pytest.raises(Failed, match="standard input"):
        reading.read()
    reading.close()
    (tmp_path / "empty").touch()
    source = Source(str(tmp_path / "empty"), b"empty")
    source.look()
    reading = Reading(source)
    assert (reading.read(), source.size) == (b"", 0)
    reading.close()


def test_a_folder_that_cannot_be_looked_into_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").touch()

    def forbid(path: Path) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "is_file", forbid)  # as a folder that may be listed, and no more
    (found,) = gathered([str(tmp_path)], recursive=True, most=0, say=pytest.fail)
    with pytest.raises(Failed, match="Permission denied") as raised:
        found.look()
    assert raised.value.code is Code.LOCAL


@pytest.mark.parametrize(
    ("name", "content_type"),
    [(b"a.txt", b"text/plain"), (b"a.tar.gz", b"application/octet-stream"), (b"\xff", b"application/octet-stream")],
)
def test_a_file_is_of_the_type_of_its_name(name: bytes, content_type: bytes) -> None:
    assert Source("", name).content_type == content_type


def test_what_a_terminal_would_obey_is_not_shown_to_it() -> None:
    assert printable("a\x1b[31m\nb\u202e☃") == "a\ufffd[31m\ufffdb\ufffd☃"
