"""What the file system under a root cannot do, or forbids: refused at the start, or one warning, and uploads work."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path

import pytest

from tests.support.clients import ask, file, form, random_bytes
from tests.support.faults import Call, Faults
from tests.support.processes import Process, gateway_process

pytestmark = [
    pytest.mark.sockets,
    pytest.mark.skipif(shutil.which("cc") is None, reason="the library has to be compiled"),
]

BODY = form(file(b"x"))
_ANY_PORT = {"GATEWAY_SERVER__PORT": "0"}
UNWRITABLE = "cannot be written: its owner, its mode, or a read-only file system forbids it"


async def _status(process: Process) -> int:
    return (await ask(process.port, "/upload", "POST", BODY)).status


def _warnings(process: Process) -> list[str]:
    lines = [json.loads(line) for line in process.log.read_text().splitlines()]
    return [line["message"] for line in lines if line["level"] != "INFO"]


# -- what may be missing


async def test_directories_that_cannot_be_fsynced_are_one_warning_and_uploads_work(tmp_path: Path) -> None:
    faults = Faults(tmp_path, tmp_path / "uploads")
    directories = Call.FSYNC_DIRECTORY | Call.FSYNC_ROOT
    faults.arm(error=errno.EINVAL, kinds=directories)
    with gateway_process(tmp_path, **faults.env) as process:
        assert await _status(process) == 201
        for number in (errno.ENOTSUP, errno.ENOSYS, errno.EBADF):
            faults.arm(error=number, kinds=directories)
            assert await _status(process) == 201
            assert faults.disarm() == 2
        (warning,) = _warnings(process)
    assert warning == (
        f"disk disk: {tmp_path}/uploads cannot be fsynced (Invalid argument), "
        "so that an upload may not survive a power cut"
    )


async def test_a_time_that_cannot_be_set_does_not_matter(tmp_path: Path) -> None:
    faults = Faults(tmp_path, tmp_path / "uploads")
    faults.arm(error=errno.EPERM, kinds=Call.TOUCH)
    with gateway_process(tmp_path, **faults.env) as process:
        large = form(file(random_bytes(600_000)))  # the time of a small one is that of its last file
        assert (await ask(process.port, "/upload", "POST", large)).status == 201
        assert faults.disarm() == 1
        assert _warnings(process) == []


async def test_a_disk_that_fails_at_the_start_is_one_warning_and_serves_when_it_works(tmp_path: Path) -> None:
    faults = Faults(tmp_path, tmp_path / "uploads")
    faults.arm(error=errno.EIO, kinds=Call.FSYNC)
    with gateway_process(tmp_path, **faults.env) as process:
        assert _warnings(process) == [f"disk disk: {tmp_path}/uploads cannot be written now: Input/output error"]
        assert await _status(process) == 503
        assert os.listdir(tmp_path / "uploads") == []
        faults.disarm()
        assert await _status(process) == 201


# -- whether uploads should come here


async def _readiness(process: Process) -> tuple[int, str]:
    await asyncio.sleep(1.1)  # it is tried once in a second
    answer = await ask(process.port, "/readyz")
    return answer.status, answer.body.decode()


async def test_a_full_disk_is_told_at_the_start_and_by_readyz_until_there_is_room(tmp_path: Path) -> None:
    root = tmp_path / "uploads"
    with _mounted(root, "size=64k"):
        (root / "ballast").write_bytes(bytes(64 << 10))
        with gateway_process(tmp_path) as process:
            assert _warnings(process) == [f"disk disk: {root} cannot be written now: No space left on device"]
            assert await _status(process) == 507
            assert await _readiness(process) == (503, "the store of sink disk is full\n")
            (root / "ballast").unlink()
            assert await _readiness(process) == (200, "ok\n")
            assert await _status(process) == 201


BESIDE = """
[sinks.second]
type = "disk"
root = "{directory}/second"
[sinks.spooling]
type = "relay"
url = "http://127.0.0.1:9"
length = "spool"
spool_dir = "{directory}/spool"
[[routes]]
path = "/upload"
[[routes.parts]]
sinks = ["disk", {{sink = "second", mode = "best_effort"}}]
"""
SPOOLED = """
[[routes]]
path = "/spooled"
kind = "relay"
[[routes.parts]]
sinks = ["spooling"]
"""


async def test_a_disk_that_cannot_be_written_is_told_by_readyz_if_a_route_requires_it(tmp_path: Path) -> None:
    faults = Faults(tmp_path, tmp_path / "second")
    (tmp_path / "spool").mkdir()
    config = BESIDE.format(directory=tmp_path)
    with gateway_process(tmp_path, config, **faults.env) as process:
        faults.arm(error=errno.EROFS, kinds=Call.MKDIR)
        (tmp_path / "spool").rmdir()
        assert await _readiness(process) == (200, "ok\n")
        faults.disarm()
        shutil.rmtree(tmp_path / "uploads")
        (tmp_path / "uploads").write_bytes(b"")
        assert await _readiness(process) == (503, "sink disk failed: Not a directory\n")
        (tmp_path / "uploads").unlink()
        assert await _readiness(process) == (200, "ok\n")
    (tmp_path / "spool").mkdir()
    with gateway_process(tmp_path, config + SPOOLED) as process:
        (tmp_path / "spool").rmdir()
        assert await _readiness(process) == (503, "sink spooling failed: No such file or directory\n")
        (tmp_path / "spool").mkdir()
        assert await _readiness(process) == (200, "ok\n")


# -- modes


@pytest.mark.parametrize(
    ("env", "modes"),
    [
        ({}, (0o640, 0o750)),
        ({"GATEWAY_SINKS__DISK__MODE": "0664", "GATEWAY_SINKS__DISK__DIRECTORY_MODE": "770"}, (0o644, 0o750)),
        ({"GATEWAY_SINKS__DISK__MODE": "600", "GATEWAY_SINKS__DISK__DIRECTORY_MODE": "0700"}, (0o600, 0o700)),
    ],
    ids=["by default", "the umask is taken off", "as configured"],
)
async def test_files_and_directories_have_modes(tmp_path: Path, env: dict[str, str], modes: tuple[int, int]) -> None:
    assert os.umask(0o022) == 0o022, "the usual one, which the process inherits"
    with gateway_process(tmp_path, **env) as process:
        large = form(file(b"small"), file(random_bytes(600_000)))
        assert (await ask(process.port, "/upload", "POST", large)).status == 201
    root = tmp_path / "uploads"
    (directory,) = root.iterdir()
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in (root, directory, *directory.iterdir())} == {
        **dict.fromkeys(("uploads", directory.name), modes[1]),
        **dict.fromkeys(("0", "1", "manifest.json"), modes[0]),
    }


# -- what is refused


def _said(directory: Path, command: str, prefix: Sequence[str] = (), env: Mapping[str, str] | None = None) -> list[str]:
    """What a command says that finds no root to use."""
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "gateway", command],
        env={
            **os.environ,
            "GATEWAY_SINKS__DISK__ROOT": str(directory / "uploads"),
            **_ANY_PORT,
            "GATEWAY_SERVER__WORKERS": "2",
            **(env or {}),
        },
        capture_output=True,
        timeout=60,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr.splitlines()


@pytest.mark.parametrize(("command", "number"), [("check", errno.ENOLCK), ("serve", errno.EBADF)])
def test_a_root_that_cannot_be_locked_is_refused(tmp_path: Path, command: str, number: int) -> None:
    faults = Faults(tmp_path, tmp_path / "uploads")
    faults.arm(error=number, kinds=Call.FLOCK)
    root = tmp_path / "uploads"
    root.mkdir()
    assert _said(tmp_path, command, env=faults.env) == [
        f"sinks.disk.root: the file system of {root} cannot lock (flock): {os.strerror(number)}"
    ]


@pytest.mark.parametrize(("command", "is_there"), [("check", False), ("serve", True)])
def test_a_root_that_cannot_be_written_is_refused(tmp_path: Path, command: str, is_there: bool) -> None:
    parent = tmp_path / "parent"
    there = parent / "uploads" if is_there else parent
    there.mkdir(parents=True)
    there.chmod(0o555)
    # root may write wherever it likes, but for this capability
    prefix = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
    assert _said(parent, command, prefix=prefix) == [f"sinks.disk.root: {there} {UNWRITABLE}"]


def test_a_file_in_the_place_of_a_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "uploads").write_bytes(b"")
    assert _said(tmp_path, "check") == [f"sinks.disk.root: {tmp_path}/uploads is no directory"]


async def test_the_default_disk_need_not_be_writable_where_nobody_names_it(tmp_path: Path) -> None:
    (tmp_path / "var").write_bytes(b"where its root would be")
    config = tmp_path / "relay.toml"
    config.write_text('[[routes]]\npath = "/x"\nkind = "relay"\nparts = [{sinks = ["api"]}]\n')
    with chdir(tmp_path), Process("serve", "--config", str(config), log=tmp_path / "log", env=_ANY_PORT) as process:
        assert (await ask(process.port, "/readyz")).status == 200
        assert (await ask(process.port, "/uploads/01ARZ3NDEKTSV4RRFFQ69G5FAV")).status == 404


def test_a_read_only_file_system_is_refused(tmp_path: Path) -> None:
    with _mounted(tmp_path / "uploads", "ro"):
        assert _said(tmp_path, "serve") == [f"sinks.disk.root: {tmp_path}/uploads {UNWRITABLE}"]


@contextmanager
def _mounted(path: Path, options: str) -> Iterator[None]:
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(path)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("a file system can be mounted by root only")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
