"""A command in a pseudo-terminal, as a person sees it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from types import TracebackType

__all__ = ["Terminal"]

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_WIDE = struct.pack("HHHH", 40, 120, 0, 0)


class Terminal:
    """`gateway` with these arguments. `async with Terminal("send", ...) as terminal: await terminal.ended()`.

    `output` is all that was written, without what moves the cursor.
    """

    def __init__(self, *arguments: str, cwd: Path) -> None:
        self.output = ""
        self._arguments = arguments
        self._cwd = cwd
        self._master = -1

    async def __aenter__(self) -> Terminal:
        self._master, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, _WIDE)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gateway", *self._arguments],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            cwd=self._cwd,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env={**os.environ, "TERM": "xterm"},
        )
        os.close(terminal)
        os.set_blocking(self._master, False)
        asyncio.get_running_loop().add_reader(self._master, self._read)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self.close()

    def _read(self) -> None:
        try:
            self.output += _ESCAPES.sub("", os.read(self._master, 1 << 16).decode(errors="replace"))
        except OSError:  # nobody has it open any more
            asyncio.get_running_loop().remove_reader(self._master)

    def press(self, key: bytes) -> None:
        """`b"\\x03"` is Ctrl-C."""
        os.write(self._master, key)

    def close(self) -> None:
        """As a window is: who runs in it is sent SIGHUP, and can write nothing any more."""
        if self._master != -1:
            asyncio.get_running_loop().remove_reader(self._master)
            os.close(self._master)
            self._master = -1

    async def ended(self, seconds: float = 60.0) -> int:
        """Its exit code."""
        code = await asyncio.to_thread(self._process.wait, seconds)
        await asyncio.sleep(0.05)  # what it wrote last is read
        return code
