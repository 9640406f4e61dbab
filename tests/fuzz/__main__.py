"""`python -m tests.fuzz [--runs N] [TARGET …]`: each target for N executions, guided by what they reach (atheris).

What is new is kept in var/fuzz/TARGET; a failure prints the bytes, and leaves them there as a file `crash-…`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
NAMES = ("codec", "heads", "chunks", "names", "tokens", "configuration")

_ONE = """
import sys
import atheris
with atheris.instrument_imports(include=["gateway", "tests.fuzz"], enable_loader_override=False):
    from tests.fuzz.targets import TARGETS
atheris.Setup([sys.argv[0], *sys.argv[2:]], TARGETS[sys.argv[1]])
atheris.Fuzz()
"""


def _run(name: str, runs: int) -> bool:
    kept = Path("var/fuzz") / name
    kept.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    options = [f"-atheris_runs={runs}", "-max_len=2000", "-verbosity=0", f"-artifact_prefix={kept}/"]
    done = subprocess.run(
        [sys.executable, "-c", _ONE, name, *options, str(kept), str(HERE / "corpus" / name)], check=False
    )
    seconds = time.monotonic() - began
    print(f"{name}: {runs} executions in {seconds:.0f} s, {len(list(kept.iterdir()))} inputs kept", flush=True)
    return done.returncode == 0


def main() -> int:
    """The exit code: 1 where a target failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(NAMES)} (default: all)")
    options = parser.parse_args()
    failed = [name for name in options.targets or NAMES if not _run(name, options.runs)]
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
