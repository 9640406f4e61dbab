"""System calls that fail or hang in a gateway process, when a test says so: the other end of faults.c."""

from __future__ import annotations

import ctypes
import enum
import mmap
import shutil
import subprocess
from pathlib import Path

__all__ = ["ALL", "Call", "Faults"]

_SOURCE = Path(__file__).with_suffix(".c")


class Call(enum.IntFlag):
    """Kinds of system calls."""

    OPEN = 1
    WRITE = 2
    FSYNC = 4
    RENAME = 8
    FLOCK = 16
    MKDIR = 32
    UNLINK = 64
    CLOSE = 128
    STAT = 256
    TOUCH = 512
    FSYNC_DIRECTORY = 1024
    """Of an upload's directory; FSYNC has these and those of a root among its own."""
    FSYNC_ROOT = 2048
    SYNCFS = 4096


ALL = ~Call(0)


class _Plan(ctypes.Structure):
    _fields_ = (
        ("armed", ctypes.c_int),
        ("calls", ctypes.c_int),
        ("at", ctypes.c_int),
        ("count", ctypes.c_int),
        ("error", ctypes.c_int),
        ("sleep_ms", ctypes.c_int),
        ("kinds", ctypes.c_int),
        ("hit", ctypes.c_int),
        ("roots", (ctypes.c_char * 240) * 2),
        ("last", ctypes.c_char * 64),
    )


class Faults:
    """For a process that is started with `env`. Raises RuntimeError where there is no compiler.

    Each file is fsynced there, as if there were no syncfs, but where `syncfs` is to be called.
    """

    def __init__(self, directory: Path, *roots: Path, syncfs: bool = False) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            raise RuntimeError("there is no compiler")
        library, plan = directory / "faults.so", directory / "faults.plan"
        command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(_SOURCE), "-ldl"]
        subprocess.run(command, check=True)
        plan.write_bytes(bytes(ctypes.sizeof(_Plan)))
        with plan.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self._plan = _Plan.from_buffer(self._memory)
        for number, root in enumerate(roots):
            self._plan.roots[number].value = str(root).encode()
        self.env = {"LD_PRELOAD": str(library), "FAULTS": str(plan), **({"FAULTS_SYNCFS": "yes"} if syncfs else {})}

    def arm(self, *, at: int = 1, count: int = 0, error: int = 0, sleep_seconds: float = 0, kinds: Call = ALL) -> None:
        """From the `at`-th call of these kinds on, `count` of them (0: all) fail with `error`, after a sleep."""
        self._plan.armed = 0
        self._plan.calls = self._plan.hit = 0
        self._plan.at, self._plan.count, self._plan.error = at, count, error
        self._plan.sleep_ms, self._plan.kinds = int(sleep_seconds * 1000), kinds & 0x7FFFFFFF
        self._plan.last = b""
        self._plan.armed = 1

    def disarm(self) -> int:
        """From now on all is well; returns how many calls were hit."""
        self._plan.armed = 0
        return int(self._plan.hit)

    @property
    def calls(self) -> int:
        """How many were counted since it was armed."""
        return int(self._plan.calls)

    @property
    def last(self) -> str:
        """The name of the call that was hit last."""
        return bytes(self._plan.last).decode()
