"""The services of docker-compose.yml, profile `full`, as commands for this machine; and all in which they differ."""

from __future__ import annotations

import fnmatch
import re
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

__all__ = ["BUCKET", "DIFFERENCES", "Difference", "Service", "names", "published", "secret_names", "services"]

ROOT = Path(__file__).resolve().parents[2]
_COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
_CLUSTER = tomllib.loads((ROOT / "config" / "cluster.toml").read_text("utf-8"))
BUCKET = urlsplit(_CLUSTER["sinks"]["bucket"]["url"]).netloc
SWIFT = ROOT / ".venv" / "swift" / "bin" / "python"
_ENTRYPOINTS = {"multipart-relay-gateway": ["gateway"], "prom/prometheus": ["prometheus"]}
"""What an image runs, of those whose own entrypoint is used."""
_WITHOUT = ("grafana",)
"""It is in no distribution: whoever runs this asks Prometheus what it would ask."""


@dataclass(frozen=True)
class Difference:
    """What a service has otherwise than in docker-compose.yml. `{name}` is the service, `{secrets}` a directory."""

    services: str
    """A pattern of names."""
    why: str
    environment: dict[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    """More of them."""

    def __str__(self) -> str:
        more = [f"{name}={value}" for name, value in self.environment.items()]
        return f"{self.services}: {', '.join([*more, *self.arguments])} ({self.why})"


DIFFERENCES = (
    Difference(
        "gateway-*",
        "all services share one loopback interface, and these two a port: each listens at its own address",
        environment={"GATEWAY_SERVER__HOST": "{name}", "GATEWAY_MANAGEMENT__HOST": "{name}"},
    ),
    Difference(
        "gateway-*",
        "where nginx connects from; clients here have addresses of 127.0.1.0/24, and are not believed",
        environment={"GATEWAY_SERVER__TRUSTED_NETWORKS": '["127.0.0.1/32"]'},
    ),
    Difference(
        "gateway-*",
        "there is no /run/secrets",
        environment={"GATEWAY_ACCESS__KEYS__FILE": "{secrets}/gateway_keys"},
    ),
    Difference(
        "prometheus",
        "the gateways' management listeners have the same port at other addresses",
        arguments=("--web.listen-address={name}:9090",),
    ),
)
"""All of them, beside paths: what compose mounts at a path is named where it is (`Service.command`)."""


@dataclass(frozen=True)
class Service:
    """How one is started, and how it is told that it has."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    after: tuple[str, ...]
    """Those that have to be well before it is started."""
    health: tuple[str, ...]
    """A command, or the one word of a URL. Empty: it ends by itself, and that is when it is well."""
    stop_signal: str
    stop_seconds: float


def services(directory: Path) -> dict[str, Service]:
    """All that `docker compose --profile full up nginx grafana` starts, but Grafana. What they write is in `directory`,
    where their secrets are already.
    """
    return {name: _service(name, directory) for name in names()}


def names() -> list[str]:
    """Theirs, sorted."""
    wanted = [name for name, service in _COMPOSE["services"].items() if "full" in service.get("profiles", ())]
    for name in wanted:
        wanted += [other for other in _COMPOSE["services"][name].get("depends_on", ()) if other not in wanted]
    return sorted(set(wanted) - set(_WITHOUT))


def published() -> list[tuple[str, str, int]]:
    """(service, address, port) that this machine is to reach, where the port is the same in both places."""
    found = []
    for name in names():
        for ports in _COMPOSE["services"][name].get("ports", ()):
            host, outer, inner = ports.split(":")
            assert outer == inner, ports
            found.append((name, host, int(outer)))
    return found


def secret_names() -> dict[str, str]:
    """Secret -> the name of its file."""
    return {name: Path(secret["file"]).name for name, secret in _COMPOSE["secrets"].items()}


def _service(name: str, directory: Path) -> Service:
    composed = _COMPOSE["services"][name]
    paths = _paths(name, composed, directory)
    differences = [one for one in DIFFERENCES if fnmatch.fnmatch(name, one.services)]
    values = {"name": name, "secrets": directory / "secrets"}
    command = [_moved(word.replace("$$", "$"), paths) for word in _command(composed)]
    environment = dict(composed.get("environment", {}))
    for one in differences:
        command += [word.format(**values) for word in one.arguments]
        environment |= {key: value.format(**values) for key, value in one.environment.items()}
    health = _health(name, [_moved(word, paths) for word in composed.get("healthcheck", {}).get("test", ())])
    match name:
        case "store":
            command, health, environment = _swift(directory)
        case "bucket":
            command = [sys.executable, "-m", "tests.stack.bucket", _endpoint(), str(directory / "secrets")]
    return Service(
        name,
        tuple(command),
        {**environment, "TMPDIR": str(directory / "tmp" / name)},
        tuple(composed.get("depends_on", ())),
        tuple(health),
        composed.get("stop_signal", "SIGTERM"),
        _seconds(composed.get("stop_grace_period", "10s")),
    )


def _command(composed: dict[str, Any]) -> list[str]:
    entrypoint = composed.get("entrypoint") or _ENTRYPOINTS[composed["image"].partition(":")[0]]
    return [*entrypoint, *composed.get("command", ())]


def _paths(name: str, composed: dict[str, Any], directory: Path) -> dict[str, str]:
    """A path in the container -> where the same is here."""
    paths = {"/tmp": str(directory / "tmp" / name)}
    for volume in composed.get("volumes", ()):
        source, target = volume.split(":")[:2]
        paths[target] = str(ROOT / source if source.startswith(".") else directory / "volumes" / source)
    for secret in composed.get("secrets", ()):
        paths[f"/run/secrets/{secret}"] = str(directory / "secrets" / secret_names()[secret])
    return paths


def _moved(word: str, paths: dict[str, str]) -> str:
    """With each path that is mounted in the container as it is here; `/prometheus` is none in `/etc/prometheus`."""
    longest_first = "|".join(re.escape(path) for path in sorted(paths, key=len, reverse=True))
    return re.sub(rf"(?<![\w/.-])({longest_first})(?![\w.-])", lambda found: paths[found[1]], word)


def _health(name: str, test: list[str]) -> list[str]:
    """wget, which few systems have, is done without: a URL in the place of a command."""
    match test:
        case ["CMD", "wget", *_, url]:
            return [url.replace("127.0.0.1", name)]
        case ["CMD", *command]:
            return command
    return []


def _endpoint() -> str:
    """Of the store, as the gateways know it."""
    return str(_COMPOSE["services"]["gateway-1"]["environment"]["AWS_ENDPOINT_URL"])


def _swift(directory: Path) -> tuple[list[str], list[str], dict[str, str]]:
    """OpenStack Swift in the place of SeaweedFS, at the same port and with the same secrets."""
    secret = {key: (directory / "secrets" / f"store_{key}_key").read_text() for key in ("access", "secret")}
    command = [str(SWIFT), str(ROOT / "tests/swift/serve.py"), str(directory / "volumes/store")]
    environment = {"SWIFT_KEY": secret["access"], "SWIFT_SECRET": secret["secret"]}
    return [*command, str(urlsplit(_endpoint()).port)], [f"{_endpoint()}/healthcheck"], environment


def _seconds(text: str) -> float:
    """Of a duration as the compose file writes it."""
    assert text.endswith("s"), text
    return float(text.removesuffix("s"))
