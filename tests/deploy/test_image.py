"""The image, without an engine: the Dockerfile's steps on a bare root file system, and what they make, run as it is."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import requests
import yaml

from tests.support.images import Image, build, instructions, listed, network, why_not
from tests.support.ports import free_port
from tests.support.recipes import command_of

ROOT = Path(__file__).resolve().parents[2]
STEPS = instructions((ROOT / "Dockerfile").read_text("utf-8"))
FINAL = STEPS[max(number for number, step in enumerate(STEPS) if step.name == "FROM") :]
IGNORED = (ROOT / ".dockerignore").read_text("utf-8").splitlines()

PLACES = ("/data/a", "/tmp/a", "/a", "/opt/gateway/a", "/etc/gateway/a", "/usr/local/a")
COMPILED = """
import gateway.server, sys
print(*{cached for module in sys.modules.values() if (cached := getattr(module, "__cached__", None))})
"""

pytestmark = pytest.mark.timeout(600)
sockets = pytest.mark.sockets


def _of(name: str) -> str:
    (step,) = (step for step in FINAL if step.name == name)
    return step.text


class TestTheDockerfile:
    def test_what_is_run_is_made_of_what_another_stage_has_built(self) -> None:
        assert [step.text.partition(" AS ")[2] for step in STEPS if step.name == "FROM"] == ["build", ""]
        assert [step.text for step in FINAL if step.options.get("from") == "build"] == ["/opt/gateway /opt/gateway"]
        said = " ".join(step.text for step in FINAL if step.name == "RUN")
        assert not {"pip", "apt-get", "gcc", "make", "curl"} & set(said.split())

    def test_its_user_is_a_number_so_that_kubernetes_can_tell_that_it_is_not_root(self) -> None:
        assert _of("USER") == "10001:10001"

    def test_each_command_is_a_list_so_that_no_shell_stands_between_signals_and_the_gateway(self) -> None:
        assert listed(_of("ENTRYPOINT")) == ["gateway"]
        assert listed(_of("CMD"))[0] == "serve"
        assert listed(_of("HEALTHCHECK").removeprefix("CMD "))

    def test_what_it_copies_is_let_through_to_the_builder_and_nothing_else(self) -> None:
        copied = {path for step in STEPS if step.name == "COPY" and not step.options for path in step.words()[:-1]}
        assert {line[1:] for line in IGNORED if line.startswith("!")} == copied
        assert "*" in IGNORED


CURL = ("-sS", "-F", f"file=@{ROOT / 'pyproject.toml'}", "http://127.0.0.1:8080/proxy")


@contextmanager
def _running(
    image: Image,
    data: Path,
    log: Path,
    *inside: str,
    command: Sequence[str] = (),
    volumes: Mapping[str, Path] | None = None,
    env: Mapping[str, str],
) -> Iterator[subprocess.Popen[bytes]]:
    words = command or [*image.entrypoint, *image.command]
    command = [*inside, *image.process(words, volumes=volumes or {"/data": data}, env=env)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while not re.search("listen(ing|s) on http", log.read_text()):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield process
    finally:
        if process.poll() is None:
            # Its child first: who has become another user is not told any more that its parent is gone (prctl(2)).
            with suppress(OSError, ValueError):
                _signal(process, signal.SIGKILL)
            process.kill()
        process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    """To the process with the number 1, as an engine does: it is the child of the one that made its namespaces."""
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), number)


def _done(image: Image, data: Path, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        image.process(command, volumes={"/data": data}, env=env),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    directory = tmp_path_factory.mktemp("image")
    yield build(ROOT, directory)
    shutil.rmtree(directory)  # some hundred megabytes


@sockets
@pytest.mark.skipif(why_not() is not None, reason=f"{why_not()}")
class TestWhatItMakes:
    @pytest.fixture
    @staticmethod
    def data(image: Image, tmp_path: Path) -> Path:
        """A volume as an engine makes it: with what the image has there, and whose that is."""
        subprocess.run(["cp", "-a", image.root / "data", tmp_path / "data"], check=True)
        return tmp_path / "data"

    def test_it_serves_as_its_user_on_a_root_that_is_read_only_and_a_drain_ends_with_0(
        self, image: Image, data: Path, tmp_path: Path
    ) -> None:
        port = free_port()
        env = {"GATEWAY_SERVER__PORT": str(port)}
        log = tmp_path / "log"
        with _running(image, data, log, env=env) as process:
            healthy = _done(image, data, *image.health, **env)
            assert (healthy.returncode, healthy.stdout) == (0, f"alive at http://127.0.0.1:{port}/healthz\n")
            kept = requests.post(f"http://127.0.0.1:{port}/upload", files={"file": ("a.txt", b"hello")}, timeout=10)
            assert kept.status_code == 201
            (file,) = (path for path in data.rglob("*") if path.is_file() and path.read_bytes() == b"hello")
            assert (file.stat().st_uid, file.stat().st_gid) == (10001, 10001)

            begun = socket.create_connection(("127.0.0.1", port), timeout=30)
            body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="b.txt"\r\n\r\nhello\r\n--b--\r\n'
            head = f"Host: a\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: {len(body)}\r\n\r\n"
            begun.sendall(f"POST /upload HTTP/1.1\r\n{head}".encode() + body[:-9])
            while requests.get(f"http://127.0.0.1:{port}/metrics", timeout=5).text.find("in_flight 1.0") < 0:
                time.sleep(0.05)
            _signal(process, signal.SIGTERM)
            while "drain" not in log.read_text().rpartition("listening on")[2]:
                time.sleep(0.05)
            begun.sendall(body[-9:])
            assert begun.recv(12) == b"HTTP/1.1 201"
            begun.close()
            assert process.wait(30) == 0
            assert "Traceback" not in log.read_text()
        sick = _done(image, data, *image.health, **env)
        assert sick.returncode == 1
        assert "Connection refused" in sick.stderr

    def test_several_workers_need_no_more_than_one(self, image: Image, data: Path, tmp_path: Path) -> None:
        env = {"GATEWAY_SERVER__PORT": str(free_port()), "GATEWAY_SERVER__WORKERS": "2"}
        with _running(image, data, tmp_path / "log", env=env) as process:
            assert _done(image, data, *image.health, **env).returncode == 0
            _signal(process, signal.SIGTERM)
            assert process.wait(30) == 0

    def test_it_may_write_to_its_volume_and_its_temporary_directory_and_nowhere_else(
        self, image: Image, data: Path
    ) -> None:
        for path, may in {
            "/data/a": True,
            "/tmp/a": True,
            "/a": False,
            "/opt/gateway/a": False,
            "/etc/a": False,
        }.items():
            assert (_done(image, data, "touch", path).returncode == 0) is may, path
        status = _done(image, data, "cat", "/proc/self/status").stdout
        assert "NoNewPrivs:\t1" in status
        assert "CapBnd:\t0000000000000000" in status
        assert "Uid:\t10001\t10001\t10001\t10001" in status
        assert _done(image, data, "id").stdout.startswith("uid=10001(gateway) gid=10001(gateway) groups=10001")

    def test_the_small_picture_of_the_compose_file_is_well_and_passes_uploads_on(
        self, image: Image, data: Path, tmp_path: Path
    ) -> None:
        services = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]
        small = {name: service for name, service in services.items() if "profiles" not in service}
        assert small.keys() == {"gateway", "receiver"}
        hosts = tmp_path / "hosts"
        hosts.write_text("127.0.0.1 localhost receiver\n")
        volumes = {"/data": data, "/etc/hosts": hosts}
        with network() as inside, ExitStack() as stack:
            for name in ("receiver", "gateway"):  # as they depend on each other
                service = small[name]
                command = [*image.entrypoint, *service.get("command", image.command)]
                env = service["environment"]
                log = tmp_path / name
                running = _running(image, data, log, *inside, command=command, volumes=volumes, env=env)
                stack.enter_context(running)
                check = service["healthcheck"]["test"][1:]
                asked = [*inside, *image.process(check, volumes=volumes, env=env)]
                said = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
                assert said.returncode == 0, said.stderr
            sent = subprocess.run(
                [*inside, command_of("curl"), *CURL], capture_output=True, text=True, timeout=60, check=True
            ).stdout
            assert json.loads(sent)["parts"][0]["filename"] == "pyproject.toml"
            assert "x-forwarded-for" in {name.lower() for name, _ in json.loads(sent)["headers"]}

    def test_nothing_in_it_installs_or_builds(self, image: Image) -> None:
        names = {path.name for path in (image.root / "opt/gateway").rglob("*")}
        assert "aiohttp" in names
        assert not names & {"pip", "setuptools", "flit_core", "wheel", "pip3"}

    def test_it_has_compiled_all_that_a_start_imports_for_a_root_that_is_read_only_keeps_nothing(
        self, image: Image, data: Path
    ) -> None:
        compiled = _done(image, data, "python", "-c", COMPILED).stdout.split()
        assert len(compiled) > 300
        assert [path for path in compiled if not (image.root / path.lstrip("/")).exists()] == []

    def test_its_labels_say_what_it_is(self, image: Image) -> None:
        said = {name.removeprefix("org.opencontainers.image."): value for name, value in image.labels.items()}
        assert {name: said[name] for name in ("title", "licenses", "version", "revision")} == {
            "title": "multipart-relay-gateway",
            "licenses": "MIT",
            "version": "unreleased",
            "revision": "unknown",
        }
        assert json.dumps(said["description"])

    def test_a_file_that_is_mounted_in_place_of_its_own_is_all_that_counts(
        self, image: Image, data: Path, tmp_path: Path
    ) -> None:
        port = free_port()
        mine = tmp_path / "gateway.toml"
        mine.write_text(f'[server]\nport = {port}\n[sinks.disk]\nroot = "/data/mine"\n')
        command = image.process(image.health, volumes={"/data": data, "/etc/gateway/gateway.toml": mine})
        asked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert f"http://127.0.0.1:{port}/healthz: " in asked.stderr
