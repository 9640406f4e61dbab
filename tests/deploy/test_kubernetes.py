"""The manifests for Kubernetes: its own schemas, and the rules that they keep among each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import gateway
from gateway.access import ApiKeys
from gateway.cli import main
from gateway.config.load import load
from gateway.config.settings import HEALTH_PATHS

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "config" / "kubernetes").glob("*.yaml"))
MANIFESTS: dict[str, dict[str, Any]] = {
    manifest["kind"]: manifest for path in FILES for manifest in yaml.safe_load_all(path.read_text("utf-8"))
}
POD = MANIFESTS["Deployment"]["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]
DOCUMENT = MANIFESTS["ConfigMap"]["data"]["gateway.toml"]
VERSIONS = ("1.27", "1.33")
"""The oldest that any provider still has, or has just given up, and a newer one."""


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    """The one of the ConfigMap, with the keys of the Secret, as a pod has them."""
    keys = tmp_path / "keys.toml"
    keys.write_text(MANIFESTS["Secret"]["stringData"]["keys.toml"])
    (mount,) = (mount for mount in CONTAINER["volumeMounts"] if mount["name"] == "secrets")
    path = tmp_path / "gateway.toml"
    path.write_text(DOCUMENT.replace(f"{mount['mountPath']}/keys.toml", str(keys)))
    assert str(keys) in path.read_text()
    return path


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", MANIFESTS)
def test_each_is_what_the_schema_of_its_kind_allows(kind: str, version: str) -> None:
    kubernetes_validate.validate(MANIFESTS[kind], version, strict=True)


def test_the_schemas_refuse_what_there_is_not() -> None:
    wrong = {**MANIFESTS["Service"], "spec": {**MANIFESTS["Service"]["spec"], "no_such_key": 1}}
    with pytest.raises(kubernetes_validate.ValidationError, match="no_such_key"):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_there_is_one_of_each_kind_for_one_gateway() -> None:
    kinds = {"ConfigMap", "Secret", "Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler"}
    assert MANIFESTS.keys() == kinds
    assert len(FILES) == len(kinds)
    labels = {"app.kubernetes.io/name": "gateway"}
    for manifest in [*MANIFESTS.values(), POD]:
        assert manifest["metadata"]["labels"] == labels
    for selector in (
        MANIFESTS["Deployment"]["spec"]["selector"]["matchLabels"],
        MANIFESTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        MANIFESTS["Service"]["spec"]["selector"],
        POD["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ):
        assert selector == labels


class TestThePod:
    def test_may_do_nothing_but_serve(self) -> None:
        assert POD["spec"]["automountServiceAccountToken"] is False
        security = POD["spec"]["securityContext"]
        assert (security["runAsNonRoot"], security["runAsUser"], security["runAsGroup"]) == (True, 10001, 10001)
        assert security["seccompProfile"]["type"] == "RuntimeDefault"
        assert CONTAINER["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }

    def test_is_of_the_image_in_this_version(self) -> None:
        assert CONTAINER["image"] == f"multipart-relay-gateway:{gateway.__version__}"

    def test_drains_before_it_is_killed(self, configuration: Path) -> None:
        server = load(configuration).server
        takes = server.drain_delay_seconds + server.drain_seconds
        assert POD["spec"]["terminationGracePeriodSeconds"] >= takes + 10
        readiness = CONTAINER["readinessProbe"]
        assert server.drain_delay_seconds >= 2 * readiness["periodSeconds"] * readiness["failureThreshold"]

    def test_is_probed_where_the_configuration_has_a_listener_for_that(self, configuration: Path) -> None:
        settings = load(configuration)
        ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
        assert ports == {"http": settings.server.port, "management": settings.management.port}
        for probe, path in {"startupProbe": 0, "readinessProbe": 1, "livenessProbe": 0}.items():
            assert CONTAINER[probe]["httpGet"] == {"path": HEALTH_PATHS[path], "port": "management"}
        liveness = CONTAINER["livenessProbe"]
        assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 60
        assert POD["metadata"]["annotations"]["prometheus.io/port"] == str(settings.management.port)

    def test_can_use_no_more_memory_than_it_may(self, configuration: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["check", "--config", str(configuration)]) == 0
        bound = re.search(r"([\d.]+) MiB  for .* beside the process itself", capsys.readouterr().out)
        assert bound is not None
        memory = CONTAINER["resources"]["limits"]["memory"]
        assert float(bound[1]) + 100 <= int(memory.removesuffix("Gi")) * 1024
        assert CONTAINER["resources"]["requests"]["memory"] == memory

    def test_mounts_each_of_its_volumes_and_each_is_bounded_or_somebody_elses(self) -> None:
        volumes = {volume["name"]: volume for volume in POD["spec"]["volumes"]}
        assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == volumes.keys()
        assert volumes["configuration"]["configMap"]["name"] == MANIFESTS["ConfigMap"]["metadata"]["name"]
        assert volumes["secrets"]["secret"]["secretName"] == MANIFESTS["Secret"]["metadata"]["name"]
        assert all("sizeLimit" in one["emptyDir"] for one in volumes.values() if "emptyDir" in one)

    def test_has_its_credentials_from_the_secret_and_none_in_a_manifest(self) -> None:
        env = {variable["name"]: variable for variable in CONTAINER["env"]}
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            source = env[name]["valueFrom"]["secretKeyRef"]
            assert source["name"] == MANIFESTS["Secret"]["metadata"]["name"]
            assert MANIFESTS["Secret"]["stringData"][source["key"]] == "replace-me"
        assert set(re.findall(r'sha256 = "(\w+)"', MANIFESTS["Secret"]["stringData"]["keys.toml"])) == {"0" * 64}


def test_the_keys_of_the_secret_are_what_the_gateway_reads(configuration: Path) -> None:
    keys = load(configuration).access.keys
    assert keys is not None
    assert ApiKeys(Path(keys.file))
    assert tomllib.loads(Path(keys.file).read_text()).keys() == {"nobody"}


def test_the_service_leads_to_uploads_and_not_to_metrics() -> None:
    (port,) = MANIFESTS["Service"]["spec"]["ports"]
    assert port["targetPort"] == "http"


def test_a_pod_may_always_go_and_is_never_the_last(configuration: Path) -> None:
    scaler = MANIFESTS["HorizontalPodAutoscaler"]["spec"]
    assert scaler["minReplicas"] > MANIFESTS["PodDisruptionBudget"]["spec"]["maxUnavailable"]
    assert scaler["scaleTargetRef"]["name"] == MANIFESTS["Deployment"]["metadata"]["name"]
    assert "replicas" not in MANIFESTS["Deployment"]["spec"]
    (policy,) = scaler["behavior"]["scaleDown"]["policies"]
    assert policy["periodSeconds"] > load(configuration).server.drain_seconds
