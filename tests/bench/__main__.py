"""How fast the gateway is, beside its peers: `make bench`, or `python -m tests.bench`; `--help` says how to run less.

Jobs, bodies and peers take turns, round after round, so that a drift of the machine hits all alike; every measurement
has a server process of its own. Every answer, file and delivery is checked: a wrong one, or a crash, fails the run; a
number never does.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.bench import report
from tests.bench.bodies import SHAPES, SMOKE_SHAPES, make_body
from tests.bench.jobs import JOBS, Bench
from tests.bench.peers import PEERS
from tests.bench.rounds import Plan, Rounds
from tests.bench.servers import Server, free_port
from tests.bench.targets import Results, judge

OUTPUT = Path(__file__).resolve().parents[2] / "var" / "bench"
MEMORY = Path("/dev/shm")
ROUNDS = 3
MINUTES = 18.5
"""After so many nothing new is begun: the whole is to be over in 20."""
_ROOM_BYTES = 4 << 30
_SMOKE_ROOM_BYTES = 512 << 20
_SMOKE_PEERS = frozenset({"gateway", "raw", "create", "stock"})
"""What the tests' own environment runs, with nothing to be built."""
_ALONE = ("memory", "workers")


def main() -> int:
    options = _options()
    plan = _plan(options)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    _open_many_files()
    about = report.machine()
    with ExitStack() as stack:
        disk = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="work-", dir=OUTPUT)))
        roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= (
            _SMOKE_ROOM_BYTES if options.smoke else _ROOM_BYTES
        )
        where = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gateway-bench-", dir=MEMORY)))
        memory = where if roomy else disk
        about["files"] = f"{memory.parent} ({report.file_system(memory)})"
        about["files_with_fsync"] = f"var/bench ({report.file_system(disk)})"
        if not roomy:
            about["files"] += f", for {MEMORY} has too little room"
        print(
            f"{about['cores']} cores ({about['processor']}), Python {about['python']}, load {about['load']:.1f}\n"
            f"All write fresh names into an empty directory below {about['files']}; with fsync below "
            f"{about['files_with_fsync']}.",
            flush=True,
        )
        missing = {peer.name: note for peer in plan.peers if (note := peer.prepare(OUTPUT))}
        shapes = SMOKE_SHAPES if options.smoke else SHAPES
        results = Results({name: make_body(shape, memory) for name, shape in shapes.items()})
        port = free_port()
        command = [sys.executable, "-m", "tests.bench.destination", "--port", str(port)]
        stack.enter_context(Server(command, port=port, log=memory / "destination.log"))
        bench = Bench(
            bodies=results.bodies, destination=port, memory=memory, disk=disk, cache=OUTPUT, smoke=options.smoke
        )
        Rounds(bench, results, plan).run(missing)

    about["load_after"] = report.machine()["load"]
    verdicts = judge(results)
    report.print_table(results)
    if not options.smoke:
        report.print_targets([verdict for verdict in verdicts if options.whole or verdict.figures != "not measured"])
    name = "smoke" if options.smoke else "results" if options.whole else "partial"
    report.write_json(OUTPUT / f"{name}.json", results, verdicts, about)
    if not options.smoke and (note := report.write_plot(OUTPUT / f"{name}.png", results)):
        print(note)
    for failure in results.failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if results.failures else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=[*JOBS, *_ALONE], help="this job alone")
    parser.add_argument("--body", choices=[name for name in SHAPES if name != "memory"], help="this body alone")
    parser.add_argument("--peers", help="these alone, with commas: " + ",".join(peer.name for peer in PEERS))
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS}")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help="begin nothing after these (default: %(default)s)"
    )
    parser.add_argument("--smoke", action="store_true", help="one round of small bodies, with nothing to be installed")
    options = parser.parse_args()
    if unknown := set((options.peers or "gateway").split(",")) - {peer.name for peer in PEERS}:
        parser.error(f"there is no peer {', '.join(sorted(unknown))}")
    options.whole = not (options.only or options.body or options.peers)
    return options


def _plan(options: argparse.Namespace) -> Plan:
    if options.peers:
        names = frozenset(options.peers.split(","))
    else:
        names = _SMOKE_PEERS if options.smoke else frozenset(peer.name for peer in PEERS)
    everything = () if options.body else _ALONE
    return Plan(
        jobs=[options.only] if options.only else [*JOBS, *everything],
        bodies=[options.body] if options.body else list(SHAPES),
        peers=[peer for peer in PEERS if peer.name in names],
        rounds=options.rounds or (1 if options.smoke else ROUNDS),
        minutes=options.minutes,
    )


def _open_many_files() -> None:
    """As many as we may, for us and for all whom we start: some peers hold a file for every part."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
