"""The units: read by systemd itself, and what they say held against what the gateway is configured with."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from gateway.cli import main
from gateway.config.load import load
from tests.support.destinations import serving
from tests.support.ports import free_port
from tests.support.recipes import CONFIG, command_of, placed

SERVICE = (CONFIG / "systemd" / "gateway.service").read_text("utf-8")
SOCKET = (CONFIG / "systemd" / "gateway.socket").read_text("utf-8")
GATEWAY = "/opt/gateway/bin/gateway"


def values(unit: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", unit, re.MULTILINE)


def value(unit: str, key: str) -> str:
    (found,) = values(unit, key)
    return found


def environment() -> dict[str, str]:
    return dict(word.split("=", 1) for line in values(SERVICE, "Environment") for word in shlex.split(line))


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """Copies of them, with a gateway that is here."""
    here = Path(sys.executable).parent / "gateway"
    assert here.exists()
    return placed("systemd", tmp_path, {GATEWAY: str(here)})


def analyzed(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [command_of("systemd-analyze"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.sockets
def test_systemd_finds_nothing_wrong_with_them(units: Path) -> None:
    done = analyzed("verify", *sorted(units.iterdir()))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    wrong = SERVICE.replace("KillMode=mixed", "KillMode=never").replace(GATEWAY, "/none")
    (units / "gateway.service").write_text(wrong)
    said = analyzed("verify", *sorted(units.iterdir())).stderr
    assert "kill mode" in said
    assert "/none" in said


@pytest.mark.sockets
def test_systemd_finds_little_that_the_service_may_do_beyond_what_it_has_to(units: Path) -> None:
    security = ("security", "--offline=yes", "--no-pager", "--threshold=15")
    done = analyzed(*security, units / "gateway.service")
    assert done.returncode == 0, done.stdout
    (units / "bare.service").write_text(f"[Service]\nExecStart={GATEWAY}\n")
    assert analyzed(*security, units / "bare.service").returncode != 0


def test_the_service_drains_before_it_is_killed_and_signals_reach_the_first_process_alone() -> None:
    server = load().server
    assert int(value(SERVICE, "TimeoutStopSec")) >= server.drain_delay_seconds + server.drain_seconds + 10
    assert value(SERVICE, "KillMode") == "mixed"
    assert value(SERVICE, "ExecReload").startswith("/bin/kill -HUP ")


def test_the_service_may_use_the_memory_that_its_limits_allow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text("")
    assert main(["check", "--config", str(config)]) == 0
    bound = re.search(r"([\d.]+) MiB  for .* beside the process itself", capsys.readouterr().out)
    assert bound is not None
    assert float(bound[1]) + 100 <= int(value(SERVICE, "MemoryMax").removesuffix("G")) * 1024
    server = load(config).server
    assert int(value(SERVICE, "LimitNOFILE")) > 10 * server.max_connections


def test_both_name_each_other() -> None:
    assert value(SERVICE, "Requires") == value(SERVICE, "Also") == "gateway.socket"
    assert value(SOCKET, "WantedBy") == "sockets.target"
    assert json.loads(environment()["GATEWAY_SERVER__LISTEN"]) == ["fd://"]
    assert value(SERVICE, "ExecStart").startswith(f"{GATEWAY} serve --config /etc/gateway/gateway.toml")


@pytest.mark.sockets
def test_with_its_environment_the_gateway_serves_on_the_socket_that_systemd_has_opened(tmp_path: Path) -> None:
    port = free_port()
    config = tmp_path / "gateway.toml"
    config.write_text('[[routes]]\npath = "/upload"\naccess = ["none"]\nparts = [{ sinks = ["disk"] }]\n')
    words = shlex.split(value(SERVICE, "ExecStart").replace(GATEWAY, f"{Path(sys.executable).parent}/gateway"))
    words[words.index("--config") + 1] = str(config)
    variables = {**environment(), "GATEWAY_SINKS__DISK__ROOT": str(tmp_path / "uploads")}
    passed = [f"--setenv={name}={text}" for name, text in variables.items()]
    command = [command_of("systemd-socket-activate"), f"--listen=127.0.0.1:{port}", *passed, *words]
    with serving(command, tmp_path / "log", port=port) as url:
        answer = requests.post(f"{url}/upload", files={"file": ("a.txt", b"hello")}, timeout=30)
        assert answer.status_code == 201, (tmp_path / "log").read_text()
