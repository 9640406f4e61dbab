"""`gateway` on a disk that hangs: each write of a file's bytes waits while the file of that name is there.

For measuring what waits before it. The first argument is that name, the others are gateway's.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway.cli import main
from gateway.sinks.disk import jobs
from gateway.sinks.relay.sending import spool


def _hanging(function: Callable[..., Any], hangs: Path) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        while hangs.exists():
            time.sleep(0.02)
        return function(*arguments)

    return call


if __name__ == "__main__":
    hangs = Path(sys.argv[1])
    jobs.HashedFile.writelines = _hanging(jobs.HashedFile.writelines, hangs)  # type: ignore[method-assign]
    jobs.write_whole = _hanging(jobs.write_whole, hangs)
    spool.Spool._write = _hanging(spool.Spool._write, hangs)  # type: ignore[method-assign]
    sys.exit(main(sys.argv[2:]))
