"""What the README says to type is typed here, and its tables are compared with the code."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.config.load import load
from gateway.config.settings import BUILT_IN_FLOWS
from gateway.config.sinks import BUILT_IN_SINKS
from tests.support.processes import Process, gateway_process

__all__ = ["needs_curl", "status_of"]

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text("utf-8")
DEFAULTS = (REPOSITORY / "config" / "gateway.toml").read_text("utf-8")

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def block(language: str, containing: str) -> str:
    (found,) = (block for block in blocks(language) if containing in block)
    return found


def shell(script: str, directory: Path, **env: str) -> str:
    done = subprocess.run(
        ["sh", "-ec", script],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, **env},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def status_of(curl: str, directory: Path) -> str:
    return shell(f"{curl.partition('  #')[0]} -s -o /dev/null -w '%{{http_code}}'", directory)


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        body: bytes = answer.read()
        return body


def put(url: str, data: bytes) -> Any:
    request = urllib.request.Request(url, data=data, method="PUT")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Process]:
    """What `make serve` runs, on ports that are free, beside files of the names that the README sends."""
    (tmp_path / "README.md").write_text("read me\n" * 1000)
    (tmp_path / "LICENSE").write_text("take me\n" * 100)
    env = {"GATEWAY_SERVER__PORT": "0", "GATEWAY_SINKS__DISK__ROOT": str(tmp_path / "uploads")}
    config = str(REPOSITORY / "config" / "demo.toml")
    with Process("serve", "--config", config, "--with-receiver", "0", log=tmp_path / "serve.log", env=env) as process:
        yield process


def aimed(script: str, process: Process) -> str:
    return script.replace("http://127.0.0.1:8080", process.url)


# -- what is typed


@needs_curl
def test_the_first_lines_give_what_they_say(demo: Process, tmp_path: Path) -> None:
    lines = aimed(block("sh", "8080/both"), demo).splitlines()
    assert [status_of(line, tmp_path) for line in lines] == ["201", "201", "200", "503", "201", "200", "200"]


@needs_curl
def test_what_convert_answers_has_the_members_that_are_shown(demo: Process, tmp_path: Path) -> None:
    (line,) = (line for line in aimed(block("sh", "8080/both"), demo).splitlines() if "/convert" in line)
    answer = json.loads(shell(line, tmp_path))
    shown = json.loads(block("json", '"output"'))
    assert [entry["index"] for entry in answer] == [entry["index"] for entry in shown] == [0, 1]
    assert members(answer[0]) == members(shown[0])


@needs_curl
def test_what_upload_answers_has_the_members_that_are_shown(demo: Process, tmp_path: Path) -> None:
    line = aimed(block("sh", "8080/both"), demo).splitlines()[0]
    answer = json.loads(shell(line, tmp_path))
    shown = json.loads(block("json", '"receipts"'))
    assert answer.keys() == shown.keys()
    assert members(answer["parts"][0]) == members(shown["parts"][0])


def members(value: object) -> object:
    """A document without its values, members in their order."""
    if isinstance(value, dict):
        return [(key, members(member)) for key, member in value.items()]
    return [members(item) for item in value] if isinstance(value, list) else None


@needs_curl
def test_what_was_kept_is_fetched_and_removed_as_shown(demo: Process, tmp_path: Path) -> None:
    script = aimed(block("sh", "archive.zip"), demo).replace("curl ", "curl -sSf ")
    licence = (tmp_path / "LICENSE").read_text()
    assert shell(script, tmp_path) == licence + licence[:100]
    (archive,) = tmp_path.glob("*.zip")
    assert zipfile.ZipFile(archive).namelist() == ["README.md", "LICENSE"]
    with pytest.raises(urllib.error.HTTPError, match="404"):
        fetch(f"{demo.url}/uploads/{archive.stem}")


@needs_curl
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_a_declared_digest_is_confirmed_or_refused_as_shown(demo: Process, tmp_path: Path) -> None:
    script = aimed(block("sh", "Content-Digest"), demo).replace("curl ", "curl -s ")
    decoder = json.JSONDecoder()
    answer = shell(script, tmp_path)
    right, end = decoder.raw_decode(answer)
    wrong, _ = decoder.raw_decode(answer[end:])
    assert right["parts"][0]["verified"] == ["sha256"]
    assert (wrong["status"], wrong["type"]) == (400, "/problems/digest-mismatch")


@needs_curl
def test_a_file_of_this_machine_is_downloaded_as_shown(tmp_path: Path) -> None:
    serve_files, serve, download = block("sh", "/download/").splitlines()
    env = dict(re.findall(r"(GATEWAY_\w+)='(.*?)'", serve))
    (tmp_path / "README.md").write_text("read me\n")
    target = tmp_path / "target"
    target.mkdir()
    port = free_port()
    _, *arguments = serve_files.replace("9000", str(port)).split()
    env = {name: value.replace(":9000", f":{port}") for name, value in env.items()}
    with subprocess.Popen(
        [sys.executable, *arguments], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            wait_for(port)
            with gateway_process(tmp_path, **env) as process:
                shell(aimed(download, process).replace(":9000", f":{port}").replace("curl", "curl -sSf"), target)
        finally:
            server.terminate()
    assert (target / "README.md").read_text() == "read me\n"


def free_port() -> int:
    """A port that was free just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def wait_for(port: int) -> None:
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"nothing listens on port {port}")


# -- what is pasted


def test_the_sink_works_as_pasted(tmp_path: Path) -> None:
    (tmp_path / "tally.py").write_text(block("python", "class Tally"))
    tally = tmp_path / "tally.txt"
    config = block("toml", "[sinks.tally]")
    with gateway_process(tmp_path, config, PYTHONPATH=str(tmp_path), GATEWAY_SINKS__TALLY__FILE=str(tally)) as process:
        manifest = put(f"{process.url}/upload/a.txt", b"hello")
    assert [receipt["sink"] for receipt in manifest["parts"][0]["receipts"]] == ["disk", "tally"]
    assert tally.read_text() == f"{manifest['upload']} 0 a.txt 5\n"


@pytest.fixture
def redacting(tmp_path: Path) -> Iterator[Process]:
    """A gateway with the flow, as it is told to be saved and configured."""
    (tmp_path / "acme_flows.py").write_text(block("python", "def redact"))
    with gateway_process(tmp_path, block("toml", "[flows.redact]"), PYTHONPATH=str(tmp_path)) as process:
        yield process


@needs_curl
def test_the_flow_works_as_pasted(redacting: Process, tmp_path: Path) -> None:
    (entry,) = json.loads(shell(aimed(block("sh", "/redact"), redacting), tmp_path))
    assert entry["input"]["filename"] == "note.txt"
    assert entry["findings"] == {"redact": {"hits": 1}}
    assert (entry["output"]["filename"], entry["output"]["size"]) == ("redacted-note.txt", 9)
    assert fetch(redacting.url + entry["output"]["location"]) == b"a ******\n"


def test_the_flow_misses_no_word_wherever_chunks_meet_or_the_file_ends(redacting: Process) -> None:
    body = b"a secret in a line\n" * 200_000 + b"secret"
    (entry,) = put(f"{redacting.url}/redact/a.txt", body)
    assert entry["findings"] == {"redact": {"hits": 200_001}}
    assert fetch(redacting.url + entry["output"]["location"]) == body.replace(b"secret", b"******")
    (entry,) = put(f"{redacting.url}/redact/empty.txt", b"")
    assert entry["output"]["size"] == 0


def test_the_flow_holds_no_line_without_an_end(redacting: Process) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        put(f"{redacting.url}/redact/a.txt", bytes(4_000_000))
    assert json.load(refused.value)["type"] == "/problems/rejected"
    refused.value.close()


def test_the_other_examples_are_right(tmp_path: Path) -> None:
    for number, config in enumerate(config for config in blocks("toml") if "tally" not in config):
        path = tmp_path / f"{number}.toml"
        path.write_text(config)
        load(path)
    for code in blocks("python"):
        compile(code, "README.md", "exec")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block("python", "gateway.multipart.codec")],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout == "part file a.txt b'hello'\nCLOSE\n"


# -- what is listed; the table of errors is in test_structure


def rows(*, columns: int) -> list[list[str]]:
    found = ([cell.strip() for cell in line.split("|")[1:-1]] for line in README.splitlines() if line.startswith("|"))
    return [row for row in found if len(row) == columns]


def test_the_table_of_keys_has_the_defaults() -> None:
    keys = ((row[0].strip("`"), row[1].strip("`")) for row in rows(columns=3) if re.fullmatch(r"`\w+\.\w+`", row[0]))
    listed = {key: tomllib.loads(f"default = {default}")["default"] for key, default in keys}
    settings = load().model_dump()
    assert listed == {
        f"{table}.{key}": list(value) if isinstance(value, tuple) else value
        for table in ("server", "limits", "download")
        for key, value in settings[table].items()
    }


def test_the_table_of_sinks_has_every_type_with_the_defaults_of_its_keys() -> None:
    listed = {row[0].strip('`"'): options_of(row[1]) for row in rows(columns=3) if row[0].startswith('`"')}
    defaults = load().model_dump()["sinks"]
    assert listed.keys() >= set(BUILT_IN_SINKS)
    for sink in defaults.values():
        # what is not given follows from other keys
        kept = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in sink.items()
            if key not in ("type", "url", "urls") and value is not None
        }
        assert listed[sink["type"]] == kept


def test_the_flows_are_listed_with_the_defaults_of_their_options_here_and_in_the_configuration_file() -> None:
    listed = {row[0].strip('`"'): options_of(row[1]) for row in rows(columns=3) if row[0].startswith('`"')}
    commented = commented_flows()
    for name, path in BUILT_IN_FLOWS.items():
        module, _, attribute = path.partition(":")
        parameters = inspect.signature(getattr(importlib.import_module(module), attribute)).parameters.values()
        options = {
            parameter.name: list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
            for parameter in parameters
            if parameter.kind is parameter.KEYWORD_ONLY
        }
        assert listed[name] == options
        assert commented[name] == options


def options_of(cell: str) -> dict[str, Any]:
    """`` `level = 6`, `x = "y"` `` -> its keys and values."""
    return tomllib.loads("\n".join(code for code in re.findall(r"`([^`]*)`", cell) if "=" in code))


def commented_flows() -> dict[str, dict[str, Any]]:
    """The tables of flows in config/gateway.toml, which stand there as comments."""
    section = DEFAULTS[DEFAULTS.index("\n[flows]\n") : DEFAULTS.index("\n[download]\n")]
    lines = [line[2:] for line in section.splitlines() if re.match(r"# (\[flows|[a-z_]+ = )", line)]
    found: dict[str, dict[str, Any]] = tomllib.loads("\n".join(lines))["flows"]
    return found
