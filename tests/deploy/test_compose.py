"""docker-compose.yml without an engine: the schema of the specification, and the rules that every service keeps."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import subprocess
import tomllib
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


def set_environment(name: str, secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the service has it, but for where its secrets are."""
    for variable, value in environment(name).items():
        monkeypatch.setenv(variable, value)
    if "gateway_keys" in SERVICES[name].get("secrets", []):
        monkeypatch.setenv("GATEWAY_ACCESS__KEYS__FILE", str(secrets / "gateway_keys"))


def configuration(name: str) -> Path:
    """The file that the service's gateway reads: what is mounted, or the image's own."""
    mounted = [volume.split(":")[0] for volume in SERVICES[name].get("volumes", []) if "gateway.toml" in volume]
    return ROOT / (mounted[0] if mounted else "config/container.toml")


def networks(name: str) -> set[str]:
    """Those that the service is in."""
    return set(SERVICES[name].get("networks", ["default"]))


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make secrets` makes."""
    directory = tmp_path_factory.mktemp("made") / "secrets"
    _made(directory)
    return directory


def _made(directory: Path) -> None:
    runpy.run_path(str(ROOT / "config" / "make_secrets.py"))["main"](directory)


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
    def test_may_drain_before_it_is_killed(self, name: str, secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        set_environment(name, secrets, monkeypatch)
        server = load(configuration(name)).server
        takes = server.drain_delay_seconds + server.drain_seconds
        assert seconds(SERVICES[name]["stop_grace_period"]) >= takes + 10
        if "front" in networks(name):  # the proxy has the connections of what drains
            assert seconds(SERVICES["nginx"]["stop_grace_period"]) >= seconds(SERVICES[name]["stop_grace_period"])

    def test_can_use_no_more_memory_than_it_may(
        self, name: str, secrets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        set_environment(name, secrets, monkeypatch)
        assert main(["check", "--config", str(configuration(name))]) == 0
        bound = re.search(r"([\d.]+) MiB  for .* beside the process itself", capsys.readouterr().out)
        assert bound is not None
        most = float(bound[1]) * (1 << 20) + PROCESS_BYTES
        assert most <= size(SERVICES[name]["deploy"]["resources"]["limits"]["memory"])


class TestTheTwoPictures:
    def test_the_small_one_is_a_gateway_and_its_receiver_the_whole_is_started_by_a_profile(self) -> None:
        assert [name for name, service in SERVICES.items() if "profiles" not in service] == ["gateway", "receiver"]
        assert {tuple(service["profiles"]) for service in SERVICES.values() if "profiles" in service} == {("full",)}

    def test_what_the_files_call_by_name_is_a_service_in_a_network_of_theirs(self) -> None:
        files = {
            "gateway-1": ["config/cluster.toml"],
            "nginx": ["config/nginx/nginx.conf"],
            "prometheus": ["config/prometheus/prometheus.yml"],
            "grafana": ["config/grafana/provisioning/datasources/prometheus.yml"],
        }
        called = set()
        for name, paths in files.items():
            texts = [(ROOT / path).read_text("utf-8") for path in paths] + list(environment(name).values())
            for other in re.findall(r"\b([a-z][a-z0-9-]+):\d{4}\b", " ".join(texts)):
                assert networks(name) & networks(other), f"{name} does not reach {other}"
                called.add(other)
        assert called == {"gateway-1", "gateway-2", "receiver", "store", "prometheus"}

    def test_the_file_of_the_whole_is_for_both_gateways_and_each_file_that_is_mounted_is_there(self) -> None:
        assert SERVICES["gateway-1"] == SERVICES["gateway-2"]
        mounted = [volume for service in SERVICES.values() for volume in service.get("volumes", []) if volume[0] == "."]
        assert len(mounted) > 4
        for volume in mounted:
            path, _, mode = volume.split(":")
            assert (ROOT / path).exists()
            assert mode == "ro"

    def test_the_gateways_believe_the_network_that_they_share_with_nginx_alone(self) -> None:
        document = tomllib.loads((ROOT / "config/cluster.toml").read_text("utf-8"))
        (pool,) = COMPOSE["networks"]["front"]["ipam"]["config"]
        assert document["server"]["trusted_networks"] == [pool["subnet"]]
        assert {name for name in SERVICES if "front" in networks(name)} == {"nginx", "gateway-1", "gateway-2"}

    def test_nobody_outside_reaches_the_store_or_the_metrics(self) -> None:
        assert COMPOSE["networks"]["back"]["internal"] is True
        assert networks("store") == {"back"}
        assert "watch" not in networks("nginx")
        assert not [port for name in GATEWAYS for port in SERVICES[name].get("ports", []) if "9090" in port]


class TestSecrets:
    def test_each_is_a_file_that_make_secrets_makes_and_a_service_reads(self, secrets: Path) -> None:
        assert all((secrets / Path(one["file"]).name).read_text() for one in COMPOSE["secrets"].values())
        assert {Path(one["file"]).parent for one in COMPOSE["secrets"].values()} == {Path("var/secrets")}
        read = [name for service in SERVICES.values() for name in service.get("secrets", [])]
        assert set(read) == COMPOSE["secrets"].keys()

    def test_they_are_random_and_made_once(self, secrets: Path, tmp_path: Path) -> None:
        before = {path.name: path.read_text() for path in secrets.iterdir()}
        _made(secrets)
        assert {path.name: path.read_text() for path in secrets.iterdir()} == before
        _made(tmp_path)
        assert not {path.read_text() for path in tmp_path.iterdir()} & set(before.values())
        assert secrets.stat().st_mode & 0o777 == 0o700

    @pytest.mark.sockets
    def test_a_gateway_gets_those_of_the_store_from_their_files(self, secrets: Path) -> None:
        shell, option, script, *rest = SERVICES["gateway-1"]["entrypoint"] + SERVICES["gateway-1"]["command"]
        assert "exec gateway " in script
        script = script.replace("$$", "$").replace("/run/secrets", shlex.quote(str(secrets)))
        script = script.replace("exec gateway ", "printenv AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY; exec echo ")
        said = subprocess.run([shell, option, script, *rest], capture_output=True, text=True, check=True).stdout
        access, secret, arguments = said.splitlines()
        assert arguments.split() == SERVICES["gateway-1"]["command"]
        (identity,) = json.loads((secrets / "store_identities.json").read_text())["identities"]
        assert identity["credentials"] == [{"accessKey": access, "secretKey": secret}]
