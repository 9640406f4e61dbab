"""A PostgreSQL server of our own, where the system has its programs (Debian's postgresql)."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["postgres", "postgres_programs"]

_START_SECONDS = 30


def postgres_programs() -> Path | None:
    """Where they are; None: nowhere."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


@contextmanager
def postgres() -> Iterator[str]:
    """Its url. It refuses to run as root, and so runs as the user that its package has made."""
    programs = postgres_programs()
    assert programs is not None
    as_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        place = Path(name)
        if as_user:
            shutil.chown(place, "postgres")
        data, log = place / "data", place / "log"
        made = [*as_user, str(programs / "initdb"), "-D", str(data), "-U", "gateway", "--auth=trust", "--no-sync"]
        subprocess.run(made, check=True, cwd=place, stdout=subprocess.DEVNULL)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = f"-h 127.0.0.1 -p {port} -k {place} -c fsync=off"
        control = [*as_user, str(programs / "pg_ctl"), "-D", str(data), "-w", "-t", str(_START_SECONDS)]
        subprocess.run(
            [*control, "-l", str(log), "-o", options, "start"], check=True, cwd=place, stdout=subprocess.DEVNULL
        )
        try:
            yield f"postgresql://gateway@127.0.0.1:{port}/postgres"
        finally:
            with suppress(subprocess.CalledProcessError):  # a test has stopped it
                subprocess.run([*control, "-m", "immediate", "stop"], check=True, cwd=place, stdout=subprocess.DEVNULL)
