"""Bodies from other projects' test suites and from real clients, over HTTP, in many cuts and both framings.

test_conformance.py has the same cases through the codec alone; here they come in as requests, driven by the
runner that lies beside them. A gateway of its own takes them, so that nothing else is in its disk root.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.multipart.test_conformance import (  # skips this file, too, where the cases are absent
    DIRECTORY,
    POLICY_DECISIONS,
)
from tests.support.processes import gateway_process

pytestmark = [pytest.mark.sockets, pytest.mark.timeout(600)]

HTTP_POLICY_DECISIONS: dict[str, str] = {
    "pymultipart-bad-content-type": (
        "taken as a raw body, one file: its Content-Type is no multipart type, and what is no form is a file"
    ),
}
"""Where the gateway differs from a case's origin although the codec does not: case -> what we do, and why."""

WIDE_LIMITS = """
[limits]
max_parts = 20000
max_headers = 300
[sinks.disk]
fsync = false
"""
DEFAULT_LIMITS = """
[sinks.disk]
fsync = false
"""


@dataclass(frozen=True, repr=False)
class Run:
    """What the runner said of one gateway, and what it left behind there."""

    exit_code: int
    output: str
    report: dict[str, dict[str, Any]]
    left: list[str]
    """Temporary directories in the disk root."""
    log: str

    def named(self, *verdicts: str) -> dict[str, str]:
        return {name: case["why"] for name, case in self.report.items() if case["verdict"] in verdicts}

    def answers(self, name: str) -> set[tuple[str, int]]:
        """What became of a case: one element, or its outcome depends on how it was cut."""
        return {(outcome["kind"], outcome["status"]) for outcome in self.report[name]["outcomes"]}


def run_all(directory: Path, config: str, *, chunkings: str) -> Run:
    report = directory / "report.json"
    with gateway_process(directory, config) as process:
        done = subprocess.run(
            [
                *(sys.executable, str(DIRECTORY / "run.py"), f"{process.url}/upload", "-q"),
                *("--chunkings", chunkings, "--framings", "cl,te", "--json", str(report)),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        left = [path.name for path in (directory / "uploads").iterdir() if path.name.startswith(".")]
    cases = {case["id"]: case for case in json.loads(report.read_text())} if report.exists() else {}
    return Run(done.returncode, done.stdout + done.stderr, cases, left, process.log.read_text())


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_all(tmp_path_factory.mktemp("wide"), WIDE_LIMITS, chunkings="whole,1,7,random,origin")


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_all(tmp_path_factory.mktemp("default"), DEFAULT_LIMITS, chunkings="whole,7")


def test_every_must_case_passes_whatever_the_chunking_and_the_framing(wide: Run) -> None:
    assert wide.named("FAIL", "ERR", "UNSTABLE") == {}
    assert wide.exit_code == 0, wide.output
    assert len(wide.report) > 300


def test_every_difference_on_a_policy_case_is_a_decision_with_its_reason(wide: Run) -> None:
    assert wide.named("DIFF").keys() == POLICY_DECISIONS.keys() | HTTP_POLICY_DECISIONS.keys()
    assert POLICY_DECISIONS.keys().isdisjoint(HTTP_POLICY_DECISIONS)
    assert all(wide.report[name]["level"] == "policy" for name in HTTP_POLICY_DECISIONS)
    assert all(":" in reason for reason in HTTP_POLICY_DECISIONS.values())


def test_no_case_makes_the_gateway_answer_5xx_or_log_a_traceback(wide: Run, default: Run) -> None:
    for run in (wide, default):
        statuses = Counter(status for name in run.report for _, status in run.answers(name))
        assert {status for status in statuses if status >= 500 or status == 0} == set()
        assert "Traceback" not in run.log


def test_with_the_default_limits_nothing_fails_to_be_answered_or_depends_on_chunking(default: Run) -> None:
    assert default.named("ERR", "UNSTABLE") == {}


def test_the_default_limits_change_the_outcome_of_limit_cases_only(wide: Run, default: Run) -> None:
    changed = {name for name in wide.report if default.answers(name) != wide.answers(name)}
    assert {name for name in changed if "limit" not in default.report[name]["tags"]} == set()
    assert all(default.answers(name) == {("reject", 413)} for name in changed)


def test_no_temporary_directory_is_left_behind(wide: Run, default: Run) -> None:
    assert (wide.left, default.left) == ([], [])
