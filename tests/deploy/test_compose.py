"""docker-compose.yml without an engine: the schema of the specification, and the rules that every service keeps."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import gateway
from gateway.cli import main
from gateway.config.load import load

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = "multipart-relay-gateway"
LASTING = [name for name, service in SERVICES.items() if service["restart"] != "no"]
GATEWAYS = [name for name in SERVICES if name.startswith("gateway")]
PROCESS_BYTES = 100 << 20
"""A worker without uploads, and Python's own, with much to spare."""

each_service = pytest.mark.parametrize("name", SERVICES)
each_gateway = pytest.mark.parametrize("name", GATEWAYS)


def seconds(text: str) -> float:
    """Of a duration as it is written there."""
    parts = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", text)
    assert parts is not None, text
    return int(parts[1] or 0) * 60 + int(parts[2] or 0)


def size(text: str) -> int:
    """Of bytes as they are written there."""
    parts = re.fullmatch(r"(\d+)([MG])", text)
    assert parts is not None, text
    return int(parts[1]) << {"M": 20, "G": 30}[parts[2]]


def environment(name: str) -> dict[str, str]:
    return dict(SERVICES[name].get("environment", {}))


def set_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the service has it."""
    for variable, value in environment(name).items():
        monkeypatch.setenv(variable, value)


def configuration(name: str) -> Path:
    """The file that the service's gateway reads: what is mounted, or the image's own."""
    mounted = [volume.split(":")[0] for volume in SERVICES[name].get("volumes", []) if "gateway.toml" in volume]
    return ROOT / (mounted[0] if mounted else "config/container.toml")


def test_it_is_what_the_specification_of_compose_files_allows() -> None:
    schema = json.loads((files("check_jsonschema.builtin_schemas") / "vendor/compose-spec.json").read_text("utf-8"))
    jsonschema.validate(COMPOSE, schema)
    with pytest.raises(jsonschema.ValidationError, match="no_such_key"):
        jsonschema.validate({"services": {"a": {"image": "a", "no_such_key": 1}}}, schema)


@each_service
class TestEveryService:
    def test_has_a_root_that_is_read_only_no_capability_and_no_way_to_get_one(self, name: str) -> None:
        service = SERVICES[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not {"cap_add", "privileged", "network_mode", "pid", "devices"} & service.keys()

    def test_is_bounded_in_memory_processors_processes_and_what_it_logs(self, name: str) -> None:
        limits = SERVICES[name]["deploy"]["resources"]["limits"]
        assert size(limits["memory"]) > 0
        assert float(limits["cpus"]) > 0
        assert limits["pids"] > 0
        assert SERVICES[name]["logging"]["options"].keys() == {"max-size", "max-file"}

    def test_is_of_an_image_with_a_version_and_no_host_of_a_registry(self, name: str) -> None:
        image, _, tag = SERVICES[name]["image"].partition(":")
        assert re.match(r"v?\d+\.\d+", tag)
        assert "." not in image.split("/")[0]
        assert (image == OURS) is ("build" in SERVICES[name])
        assert image != OURS or tag == gateway.__version__

    def test_is_asked_whether_it_is_well_or_does_one_thing_and_ends(self, name: str) -> None:
        if name in LASTING:
            check = SERVICES[name]["healthcheck"]
            assert check["test"][0] == "CMD"
            assert seconds(check["timeout"]) <= seconds(check["interval"])
            assert SERVICES[name]["restart"] == "unless-stopped"

    def test_waits_for_those_that_it_needs_until_they_are_well_or_done(self, name: str) -> None:
        for other, how in SERVICES[name].get("depends_on", {}).items():
            wanted = "service_healthy" if other in LASTING else "service_completed_successfully"
            assert how["condition"] == wanted, other

    def test_publishes_its_port_on_this_machine_only(self, name: str) -> None:
        assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))

    def test_has_no_secret_in_its_environment(self, name: str) -> None:
        assert not [key for key in environment(name) if re.search("PASSWORD$|SECRET|KEY$|TOKEN$", key)]


@each_gateway
class TestEveryGateway:
    def test_may_drain_before_it_is_killed(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        set_environment(name, monkeypatch)
        settings = load(configuration(name))
        assert seconds(SERVICES[name]["stop_grace_period"]) >= settings.server.drain_seconds + 10

    def test_can_use_no_more_memory_than_it_may(
        self, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        set_environment(name, monkeypatch)
        assert main(["check", "--config", str(configuration(name))]) == 0
        bound = re.search(r"([\d.]+) MiB  for .* beside the process itself", capsys.readouterr().out)
        assert bound is not None
        most = float(bound[1]) * (1 << 20) + PROCESS_BYTES
        assert most <= size(SERVICES[name]["deploy"]["resources"]["limits"]["memory"])
