"""What the README and the pages of docs/ say to type is typed here, and their tables are compared with the code."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import json
import os
import pkgutil
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
from typing import Any, Literal, get_args, get_origin

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gateway.config.access import (
    AccessSettings,
    CorsSettings,
    HookSettings,
    JwtSettings,
    KeysSettings,
    QuotasSettings,
    SignedSettings,
)
from gateway.config.listening import ListeningTlsSettings, ManagementSettings, ServerSettings
from gateway.config.load import load
from gateway.config.settings import (
    BUILT_IN_FLOWS,
    DownloadSettings,
    FlowSettings,
    MatchSettings,
    PageSettings,
    PartsSettings,
    RouteSettings,
    Settings,
    SinkUseSettings,
)
from gateway.config.sinks import (
    BUILT_IN_SINKS,
    DiscardSettings,
    DiskSettings,
    ObjectsSettings,
    OwnSinkSettings,
    RelaySettings,
    TlsSettings,
)
from gateway.config.tracing import TracingSettings
from gateway.model import Limits
from gateway.sinks import Delivery, Sink
from gateway.sinks.store import Store
from tests.support.processes import Process, gateway_process
from tests.test_structure import FLOORS

__all__ = ["needs_curl", "status_of"]

REPOSITORY = Path(__file__).resolve().parent.parent
README = REPOSITORY / "README.md"
CHANGELOG = REPOSITORY / "CHANGELOG.md"
PAGES = sorted((REPOSITORY / "docs").glob("*.md"))
TEXTS = {path: path.read_text("utf-8") for path in [README, CHANGELOG, *PAGES]}
DEFAULTS = (REPOSITORY / "config" / "gateway.toml").read_text("utf-8")

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def blocks(language: str) -> list[str]:
    """All code of that language, of the README and of every page that was written: test_openapi.py runs the others."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.DOTALL | re.MULTILINE)
    return [block for path, text in TEXTS.items() if path.stem != "reference" for block in pattern.findall(text)]


def block(language: str, containing: str) -> str:
    """The one that has this in it."""
    (found,) = (block for block in blocks(language) if containing in block)
    return found


def page(name: str) -> str:
    """A page of docs/."""
    return TEXTS[REPOSITORY / "docs" / f"{name}.md"]


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


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """What `make serve` runs, on ports that are free."""
    directory = tmp_path_factory.mktemp("serving")
    env = {"GATEWAY_SERVER__PORT": "0", "GATEWAY_SINKS__DISK__ROOT": str(directory / "uploads")}
    config = str(REPOSITORY / "config" / "demo.toml")
    with Process("serve", "--config", config, "--with-receiver", "0", log=directory / "serve.log", env=env) as process:
        yield process


@pytest.fixture
def demo(serving: Process, tmp_path: Path) -> Process:
    """The same, beside files of the names that the README sends."""
    (tmp_path / "README.md").write_text("read me\n" * 1000)
    (tmp_path / "LICENSE").write_text("take me\n" * 100)
    return serving


def aimed(script: str, process: Process) -> str:
    return script.replace("http://127.0.0.1:8080", process.url)


# -- what is typed


@pytest.mark.sockets
@needs_curl
def test_the_first_lines_give_what_they_say(demo: Process, tmp_path: Path) -> None:
    lines = aimed(block("sh", "8080/both"), demo).splitlines()
    assert [status_of(line, tmp_path) for line in lines] == ["201", "201", "200", "503", "201", "200", "200"]


@pytest.mark.sockets
@needs_curl
def test_what_convert_answers_has_the_members_that_are_shown(demo: Process, tmp_path: Path) -> None:
    (line,) = (line for line in aimed(block("sh", "8080/both"), demo).splitlines() if "/convert" in line)
    answer = json.loads(shell(line, tmp_path))
    shown = json.loads(block("json", '"output"'))
    assert [entry["index"] for entry in answer] == [entry["index"] for entry in shown] == [0, 1]
    assert members(answer[0]) == members(shown[0])


@pytest.mark.sockets
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


@pytest.mark.sockets
@needs_curl
def test_what_was_kept_is_fetched_and_removed_as_shown(demo: Process, tmp_path: Path) -> None:
    script = aimed(block("sh", "archive.zip"), demo).replace("curl ", "curl -sSf ")
    licence = (tmp_path / "LICENSE").read_text()
    assert shell(script, tmp_path) == licence + licence[:100]
    (archive,) = tmp_path.glob("*.zip")
    assert zipfile.ZipFile(archive).namelist() == ["README.md", "LICENSE"]
    with pytest.raises(urllib.error.HTTPError, match="404"):
        fetch(f"{demo.url}/uploads/{archive.stem}")


@pytest.mark.sockets
def test_what_is_sent_and_fetched_in_a_terminal_goes_as_shown(demo: Process, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("a")
    env = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "GATEWAY_URL": demo.url}
    sending = aimed(block("sh", "gateway send README.md LICENSE"), demo).splitlines()
    *quiet, told = [shell(line, tmp_path, **env) for line in sending]
    assert quiet == ["", ""]
    assert json.loads(told)["files"][0]["verified"] is True
    send, *fetching = aimed(block("sh", "gateway get"), demo).splitlines()
    upload = shell(f"{send}\necho $id", tmp_path, **env)
    for line in fetching:
        shell(f"id={upload}{line}", tmp_path, **env)
    assert (tmp_path / "copies").read_text() == (tmp_path / "0").read_text() == (tmp_path / "README.md").read_text()


@pytest.mark.sockets
@needs_curl
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_a_declared_digest_is_confirmed_or_refused_as_shown(demo: Process, tmp_path: Path) -> None:
    script = aimed(block("sh", "Content-Digest"), demo).replace("curl ", "curl -s ")
    decoder = json.JSONDecoder()
    answer = shell(script, tmp_path)
    right, end = decoder.raw_decode(answer)
    wrong, _ = decoder.raw_decode(answer[end:].lstrip())
    assert right["parts"][0]["verified"] == ["sha256"]
    assert (wrong["status"], wrong["type"]) == (400, "/problems/digest-mismatch")


@pytest.mark.sockets
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


@pytest.mark.sockets
def test_the_shortest_sink_works_as_pasted(tmp_path: Path) -> None:
    code = block("python", "class Shout")
    assert len([line for line in code.splitlines() if line]) <= 15
    (tmp_path / "shout.py").write_text(code)
    with gateway_process(tmp_path, block("toml", "[sinks.shout]"), PYTHONPATH=str(tmp_path)) as process:
        manifest = put(f"{process.url}/upload/a.txt", b"hello")
        assert [receipt["sink"] for receipt in manifest["parts"][0]["receipts"]] == ["disk", "shout"]
        assert "\na.txt 5\n" in process.log.read_text()


@pytest.mark.sockets
def test_the_sink_that_keeps_something_works_as_pasted(tmp_path: Path) -> None:
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


@pytest.mark.sockets
@needs_curl
def test_the_flow_works_as_pasted(redacting: Process, tmp_path: Path) -> None:
    (entry,) = json.loads(shell(aimed(block("sh", "/redact"), redacting), tmp_path))
    assert entry["input"]["filename"] == "note.txt"
    assert entry["findings"] == {"redact": {"hits": 1}}
    assert (entry["output"]["filename"], entry["output"]["size"]) == ("redacted-note.txt", 9)
    assert fetch(redacting.url + entry["output"]["location"]) == b"a ******\n"


@pytest.mark.sockets
def test_the_flow_misses_no_word_wherever_chunks_meet_or_the_file_ends(redacting: Process) -> None:
    body = b"a secret in a line\n" * 200_000 + b"secret"
    (entry,) = put(f"{redacting.url}/redact/a.txt", body)
    assert entry["findings"] == {"redact": {"hits": 200_001}}
    assert fetch(redacting.url + entry["output"]["location"]) == body.replace(b"secret", b"******")
    (entry,) = put(f"{redacting.url}/redact/empty.txt", b"")
    assert entry["output"]["size"] == 0


@pytest.mark.sockets
def test_the_flow_holds_no_line_without_an_end(redacting: Process) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        put(f"{redacting.url}/redact/a.txt", bytes(4_000_000))
    assert json.load(refused.value)["type"] == "/problems/rejected"
    refused.value.close()


def test_every_configuration_that_is_shown_can_be_used(tmp_path: Path) -> None:
    for number, config in enumerate(config for config in blocks("toml") if not re.search("tally:|shout:", config)):
        path = tmp_path / f"{number}.toml"
        path.write_text(config)
        load(path)


def run_python(code: str, directory: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.sockets
def test_the_parser_works_as_pasted(tmp_path: Path) -> None:
    assert run_python(block("python", "import Decoder"), tmp_path) == "part file a.txt b'hello'\nCLOSE\n"


@pytest.mark.sockets
def test_the_reader_works_as_pasted(tmp_path: Path) -> None:
    port = free_port()
    code = block("python", "import StreamingMultipartReader").replace("8083", str(port))
    (tmp_path / "a.txt").write_text("hello")
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.DEVNULL) as server:
        try:
            wait_for(port)
            with (tmp_path / "a.txt").open("rb") as file:
                answer = requests.post(f"http://127.0.0.1:{port}/", files={"file": file}, timeout=10)
        finally:
            server.terminate()
    assert answer.json() == {"a.txt": 5}


@pytest.mark.sockets
def test_the_writer_works_as_pasted(demo: Process, tmp_path: Path) -> None:
    code = aimed(block("python", "import StreamingMultipartWriter"), demo)
    status, _, body = run_python(code, tmp_path).partition(" ")
    (part,) = json.loads(body)["parts"]
    lines = "".join(f"line {number}\n" for number in range(1000))
    assert (status, part["filename"], part["size"]) == ("201", "naïve ☃.txt", len(lines))


@pytest.mark.sockets
@needs_curl
@pytest.mark.skipif(shutil.which("tar") is None, reason="tar is not installed")
def test_curls_recipes_give_what_they_say(demo: Process, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    field, made, raw = (
        json.loads(shell(line.partition("   #")[0].replace("curl", "curl -sSf"), tmp_path))
        for line in aimed(block("sh", "licence.txt"), demo).splitlines()
    )
    assert [(part["name"], part["filename"]) for part in field["parts"]] == [("note", None), ("file", "licence.txt")]
    assert (made["parts"][0]["filename"], made["parts"][0]["size"] > 0) == ("docs.tar", True)
    assert [(part["name"], part["content_type"]) for part in raw["parts"]] == [("file", "text/plain")]


@pytest.mark.sockets
def test_the_recipe_in_python_gives_what_it_says(demo: Process, tmp_path: Path) -> None:
    lines = run_python(aimed(block("python", "import requests"), demo), tmp_path).splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["note", "None", "5"],
        ["file", "README.md", "8000"],
        ["file", "LICENSE", "800"],
    ]


@pytest.mark.sockets
def test_the_recipe_in_javascript_gives_what_it_says(demo: Process, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node")
    script = tmp_path / "upload.mjs"
    script.write_text(aimed(block("js", "FormData"), demo))
    assert shell(f"{node} {script}", tmp_path).replace(" ", "") == "201[5,800]\n"


@pytest.mark.sockets
@needs_curl
def test_an_error_looks_as_shown(demo: Process, tmp_path: Path) -> None:
    script = aimed(block("sh", "8080/nowhere"), demo).replace("curl", "curl -s")
    assert json.loads(shell(script, tmp_path)) == json.loads(block("json", "/problems/not-found"))


@pytest.mark.sockets
def test_a_proxy_that_does_not_buffer_is_told_from_the_self_test_as_shown(demo: Process, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    script = aimed(block("sh", "/selftest/buffering"), demo).replace("curl", "curl -s")
    answer = json.loads(shell(script, tmp_path))
    assert (answer["bytes"], answer["buffered"]) == (4, False)


def test_every_example_in_python_is_python() -> None:
    for code in blocks("python"):
        compile(code, "docs", "exec")


def test_every_target_that_is_named_can_be_made() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = {
        target
        for text in TEXTS.values()
        for target in re.findall(r"(?:^|`)(?:\w+=\S+ )*make (?:[A-Z]\S+ )?([a-z][a-z-]*)", text, re.MULTILINE)
    }
    assert named >= {"serve", "test", "docs", "lint", "bench"}
    assert named <= targets


# -- where to find what


def test_the_readme_can_be_read_in_one_sitting() -> None:
    assert len(TEXTS[README].splitlines()) <= 200


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_says_first_whom_it_is_for(path: Path) -> None:
    title, empty, first, *_ = TEXTS[path].splitlines()
    assert re.fullmatch(r"# \S.*", title)
    assert (empty, first.split()[0]) == ("", "For")


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_every_link_leads_to_a_page_and_to_a_heading_of_it(path: Path) -> None:
    for target in links(TEXTS[path]):
        name, _, anchor = target.partition("#")
        if name.startswith("pictures/"):
            assert (path.parent / name).is_file(), f"{target}: no picture (make screenshots)"
            continue
        to = (path.parent / name).resolve() if name else path
        assert to in TEXTS or (path not in PAGES and to.is_file()), f"{target}: no page"
        assert path not in PAGES or to.parent == path.parent, f"{target}: the site has pages of docs/ only"
        assert not anchor or anchor in anchors(TEXTS[to]), f"{target}: no heading"


def links(text: str) -> list[str]:
    """Where the relative links of a page lead."""
    targets = re.findall(r"\]\(([^)\s]+)\)", without_code(text))
    return [target for target in targets if not target.startswith(("http://", "https://"))]


def anchors(text: str) -> list[str]:
    """The headings of a page, as GitHub makes anchors of them."""
    headings = re.findall(r"^#+ (.+)$", without_code(text), re.MULTILINE)
    return [re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_site_has_the_same_anchors(path: Path) -> None:
    """It makes one dash of several, and numbers a heading that comes twice in another way."""
    found = anchors(TEXTS[path])
    assert len(found) == len(set(found))
    assert not any("--" in anchor for anchor in found)


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("directory", [README.parent, REPOSITORY / "docs"], ids=["README", "index"])
def test_every_page_can_be_found_from_the_first(directory: Path) -> None:
    first = README if directory == README.parent else directory / "index.md"
    linked = {(directory / target.partition("#")[0]).resolve() for target in links(TEXTS[first])}
    assert linked >= {path for path in PAGES if path.stem != "index"}


def test_every_page_is_in_the_sites_menu() -> None:
    menu = (REPOSITORY / "config" / "mkdocs.yml").read_text("utf-8").partition("\nnav:\n")[2]
    assert sorted(re.findall(r": (\S+\.md)$", menu, re.MULTILINE)) == [path.name for path in PAGES]


def test_every_file_that_is_named_is_there() -> None:
    """The pages name files of the repository without linking them, since the site has none of them."""
    for path, text in TEXTS.items():
        for name in re.findall(r"`((?:gateway|tests|config|docs|\.ci)/[\w./-]*)`", text):
            assert (REPOSITORY / name).exists(), f"{path.name} names {name}"


def test_what_is_named_in_a_file_is_in_it() -> None:
    """`` `_sink` in `gateway/server/app.py` ``: names of code come with their file."""
    named = re.findall(r"`(\w+)`\s+(?:of|in)\s+`([\w/.]+\.py)`", page("how-it-is-built"))
    assert named
    for name, path in named:
        assert re.search(rf"\b{name}\b", (REPOSITORY / path).read_text("utf-8")), f"{name} is not in {path}"


def test_the_functions_on_the_way_of_a_chunk_are_there() -> None:
    """Where one is not, `python -m tests.bench.frames` prints the way as it is now."""
    text = section(page("how-it-is-built"), "One chunk, function by function")
    shown = "".join(re.findall(r"^```text\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    names = [line.split()[0] for line in shown.splitlines()]
    assert len(names) > 30
    for name in names:
        pkgutil.resolve_name(f"gateway.{name}")  # an error if there is none


def test_every_module_and_every_logger_that_is_named_is_there() -> None:
    code = "".join(path.read_text("utf-8") for path in (REPOSITORY / "gateway").rglob("*.py"))
    moved = TEXTS[CHANGELOG].partition("#### Where modules are now")[2].partition("\n#")[0]
    moved = "".join(line.split("|")[2] for line in moved.splitlines() if line.startswith("|"))
    assert moved
    for text in [*(TEXTS[path] for path in [README, *PAGES]), moved]:
        for name in re.findall(r"`(gateway\.[a-z_.]+)`", text):
            assert f'"{name}"' in code or importlib.util.find_spec(name), name


# -- what is listed; the table of errors is in test_structure


def rows(text: str, *, columns: int) -> list[list[str]]:
    """The lines of tables, without their heads."""
    found = ([cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|"))
    return [row for row in found if len(row) == columns and row[0].startswith("`")]


def section(text: str, heading: str) -> str:
    """What stands below a heading, up to the next one."""
    (found,) = re.findall(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text, re.DOTALL | re.MULTILINE)
    return str(found)


TABLES: dict[str, type[BaseModel] | type[Limits]] = {
    "Server": ServerSettings,
    "TLS of the listener": ListeningTlsSettings,
    "Management": ManagementSettings,
    "Page": PageSettings,
    "Tracing": TracingSettings,
    "Limits": Limits,
    "disk": DiskSettings,
    "objects": ObjectsSettings,
    "relay": RelaySettings,
    "TLS": TlsSettings,
    "discard": DiscardSettings,
    "A sink of yours": OwnSinkSettings,
    "Flows": FlowSettings,
    "Downloads": DownloadSettings,
    "keys": KeysSettings,
    "jwt": JwtSettings,
    "signed": SignedSettings,
    "hook": HookSettings,
    "CORS": CorsSettings,
    "Quotas": QuotasSettings,
    "A route": RouteSettings,
    "A rule": PartsSettings,
    "A match": MatchSettings,
    "A sink in a rule": SinkUseSettings,
}
"""Headings of the page on configuration, and what the table below each of them is about."""


@pytest.mark.parametrize("heading", TABLES)
def test_the_configuration_has_every_key_with_its_default(heading: str) -> None:
    listed = {
        key.strip("`").rpartition(".")[2]: default
        for key, default, _ in rows(section(page("configuration"), heading), columns=3)
    }
    fields = fields_of(TABLES[heading])
    assert sorted(listed) == sorted(fields)
    for key, default in listed.items():
        wanted = default_of(fields[key])
        if wanted is not None:
            assert tomllib.loads(f"x = {default.strip('`')}")["x"] == wanted, key
        else:
            assert re.match(r'none|that of|`\["sha256"\]`; on', default), f"{key} has no default"


def fields_of(table: type[BaseModel] | type[Limits]) -> dict[str, FieldInfo]:
    if issubclass(table, BaseModel):
        return table.model_fields
    return {field.name: FieldInfo(annotation=float, default=field.default) for field in dataclasses.fields(table)}


def default_of(field: FieldInfo) -> Any:
    """As it stands in a configuration; None for what has to be given, is not there, or follows from other keys."""
    if get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1:
        return get_args(field.annotation)[0]  # the type of a sink
    if field.is_required():
        return None
    default = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(default, BaseModel):
        return default.model_dump(exclude_none=True)
    return list(default) if isinstance(default, tuple) else default


def test_the_configuration_leaves_no_table_out() -> None:
    assert models_of(Settings) - {Settings, AccessSettings} == set(TABLES.values())  # the latter is but its tables


def models_of(annotation: Any) -> set[type]:
    """All tables in it, and in those."""
    if annotation is Limits:
        return {annotation}
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return set().union(*(models_of(argument) for argument in get_args(annotation)))
    return {annotation}.union(*(models_of(field.annotation) for field in annotation.model_fields.values()))


def test_the_sinks_are_listed() -> None:
    listed = {row[0].strip('`"') for row in rows(section(page("sinks"), "Sinks"), columns=2)}
    assert listed == {*BUILT_IN_SINKS, "module:Class"}


def test_what_a_sink_and_a_delivery_may_have_is_listed() -> None:
    text = section(page("sinks"), "What else it may have")
    of_sink = re.findall(r"`(\w+)`", " ".join(row[0] for row in rows(text, columns=2)))
    of_delivery = re.findall(r"`(\w+)`", " ".join(row[0] + row[1] for row in rows(text, columns=3)))
    assert {*of_sink, "name", "open"} == verbs(Sink)
    assert {*of_delivery, "accept", "commit"} - {"can_drop"} == verbs(Delivery)


def test_what_a_store_has_beyond_that_is_listed() -> None:
    listed = rows(section(page("sinks"), "A store: a sink that gives back"), columns=2)
    assert {name for row in listed for name in re.findall(r"`(\w+)`", row[0])} == verbs(Store) - {"stage"}


def verbs(contract: type) -> set[str]:
    return {name for name in vars(contract) if not name.startswith("_") or name in ("__aenter__", "__aexit__")}


def test_the_flows_are_listed_with_the_defaults_of_their_options_here_and_in_the_configuration_file() -> None:
    listed = {row[0].strip('`"'): options_of(row[1]) for row in rows(page("flows"), columns=3)}
    commented = commented_flows()
    assert listed.keys() == BUILT_IN_FLOWS.keys()
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


@pytest.mark.sockets
def test_the_metrics_are_listed_with_their_labels(demo: Process) -> None:
    put(f"{demo.url}/upload/a.txt", b"hello")
    text = fetch(f"{demo.url}/metrics").decode()
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    listed = {row[0].strip("`"): row for row in rows(page("metrics"), columns=5)}
    assert listed.keys() == kinds.keys()
    for name, kind in kinds.items():
        words = {other for other in ("gauge", "histogram") if f"a {other}" in listed[name][2]}
        assert words == {kind} - {"counter"}, name
        assert name in listed[name][4]
    shown: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = re.sub("_(bucket|sum|count)$", "", sample.name)
            shown.setdefault(name, set()).update(sample.labels.keys() - {"le"})
    unprovoked = ("sink_dropped", "deletes", "downloads", "reads")
    histograms = ("destination_first_byte_seconds",)
    named = {f"gateway_{name}_total" for name in unprovoked} | {f"gateway_{name}" for name in histograms}
    assert shown.keys() >= kinds.keys() - named
    assert shown == {name: set(re.findall(r"`(\w+)`", listed[name][1])) for name in shown}


def test_the_wings_are_listed_on_their_floors() -> None:
    text = section(page("how-it-is-built"), "The wings")
    found = ([cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| "))
    listed = [(int(row[0]), wing) for row in found if row[0].isdigit() for wing in re.findall(r"`(\w+)`", row[1])]
    assert sorted(listed) == sorted((number, wing) for number, wings in enumerate(FLOORS) for wing in wings)


def options_of(cell: str) -> dict[str, Any]:
    """`` `level = 6`, `x = "y"` `` -> its keys and values."""
    return tomllib.loads("\n".join(code for code in re.findall(r"`([^`]*)`", cell) if "=" in code))


def commented_flows() -> dict[str, dict[str, Any]]:
    """The tables of flows in config/gateway.toml, which stand there as comments."""
    section = DEFAULTS[DEFAULTS.index("\n[flows]\n") : DEFAULTS.index("\n[download]\n")]
    lines = [line[2:] for line in section.splitlines() if re.match(r"# (\[flows|[a-z_]+ = )", line)]
    found: dict[str, dict[str, Any]] = tomllib.loads("\n".join(lines))["flows"]
    return found
