"""`make stack`: what docker-compose.yml starts as a whole, with its own files, under traffic and in the end."""

from __future__ import annotations

import fnmatch
import json
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.stack import network
from tests.stack.prometheus import MOMENTS, QUIET, panels
from tests.stack.services import BUCKET, DIFFERENCES, ROOT, SWIFT, names, published, services
from tests.support.destinations import absent

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]
SECONDS = 180
pytestmark = pytest.mark.timeout(SECONDS + 60)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """With secrets."""
    runpy.run_path(str(ROOT / "config" / "make_secrets.py"))["main"](tmp_path / "secrets")
    return tmp_path


class TestWhatIsStarted:
    def test_every_service_of_the_whole_is_but_grafana(self) -> None:
        whole = {name for name, service in COMPOSE.items() if "full" in service.get("profiles", [])}
        assert set(names()) == whole - {"grafana"} | {"receiver"}

    @pytest.mark.parametrize("name", names())
    def test_all_paths_in_its_command_are_of_this_machine(self, name: str, directory: Path) -> None:
        service = services(directory)[name]
        inside = [volume.split(":")[1] for volume in COMPOSE[name].get("volumes", [])]
        for word in (*service.command, *service.health, *service.environment.values()):
            text = word.replace(str(directory), "").replace(str(ROOT), "")
            assert not [path for path in (*inside, "/run/secrets") if re.search(rf"(?<![\w/]){path}\b", text)]

    def test_it_reads_the_very_files_that_compose_mounts(self, directory: Path) -> None:
        started = services(directory)
        for name, file in [
            ("nginx", "config/nginx/nginx.conf"),
            ("gateway-1", "config/cluster.toml"),
            ("gateway-2", "config/cluster.toml"),
            ("prometheus", "config/prometheus/prometheus.yml"),
        ]:
            assert any(str(ROOT / file) in word for word in started[name].command)

    def test_each_difference_is_of_some_service_and_changes_it(self, directory: Path) -> None:
        for one in DIFFERENCES:
            of = [name for name in names() if fnmatch.fnmatch(name, one.services)]
            assert of
            for name in of:
                assert set(one.environment) <= set(services(directory)[name].environment)
                assert {word.format(name=name) for word in one.arguments} <= set(services(directory)[name].command)

    def test_what_this_machine_reaches_is_what_compose_publishes(self) -> None:
        assert published() == [("nginx", "127.0.0.1", 8000), ("prometheus", "127.0.0.1", 9090)]
        assert BUCKET in "".join(COMPOSE["bucket"]["entrypoint"])

    def test_panels_that_may_be_quiet_are_panels(self) -> None:
        assert set(QUIET) | MOMENTS <= {panel.title for panel in panels()}


# -- as processes


def _needed() -> None:
    """Skips where something is not here."""
    for program in ("nginx", "prometheus"):
        if shutil.which(program) is None:
            absent(f"{program} is not installed: make system-packages")
    if not SWIFT.exists():
        absent("Swift is not installed: make .venv/.swift")
    if (reason := network.missing()) is not None:
        pytest.skip(reason)


def _hears_sigint() -> None:
    """As in the foreground: what is started in the background has it ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def stack(directory: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The program, which ends with the block."""
    command = [sys.executable, "-m", "tests.stack", "--directory", str(directory), *arguments]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=_hears_sigint
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def left(directory: Path) -> list[str]:
    """Processes that have the directory in their command or in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if str(directory).encode() in text:
            found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def waits_for(condition: Callable[[], bool], told: Callable[[], object] = lambda: None) -> None:
    """For a minute, of a machine that is busy."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.1)


@pytest.mark.sockets
class TestAsProcesses:
    def test_uploads_reads_a_restart_and_the_dashboard_are_as_they_ought_to_be(self, tmp_path: Path) -> None:
        _needed()
        # Prometheus looks every 15 s, and a rate has to have seen a counter before it grows and after
        with stack(tmp_path, "--seconds", "24") as process:
            said, _ = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, said
        for expected in (
            "0 of those that were not meant to fail",
            "sums that the gateways tell            agree",
            "sums that Prometheus tells             agree",
            "targets, rules, alerts                 well",
        ):
            assert expected in said
        assert left(tmp_path) == []
        outcomes = [json.loads(line).get("outcome") for line in (tmp_path / "gateway-1.log").read_text().splitlines()]
        assert outcomes.count("ok") > 10

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    def test_whatever_ends_it_ends_all_that_it_started_also_while_it_starts(
        self, tmp_path: Path, number: signal.Signals
    ) -> None:
        _needed()
        with stack(tmp_path) as process:
            waits_for(lambda: len(left(tmp_path)) > 6)
            process.send_signal(number)
            process.wait(60)
            waits_for(lambda: not left(tmp_path), told=lambda: left(tmp_path))
        assert process.returncode in (130, -number)

    def test_a_port_that_is_taken_is_one_line(self, tmp_path: Path) -> None:
        _needed()
        taken = socket.socket()
        try:
            taken.bind(("127.0.0.1", 8000))
            taken.listen()
        except OSError:
            pass  # by somebody else, which is as good
        with taken, stack(tmp_path, "--stay") as process:
            said, _ = process.communicate(timeout=SECONDS)
        assert process.returncode == 1
        assert said == "127.0.0.1:8000 is taken by another program: Address already in use\n"
