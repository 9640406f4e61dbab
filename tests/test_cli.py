"""The command line, as a person runs it: processes, exit codes, what they print."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from gateway import __version__
from gateway.cli import main
from gateway.config.load import load
from gateway.config.settings import Settings
from tests.support.processes import Process, gateway_process, receiver_process
from tests.test_docs import needs_curl, status_of

pytestmark = pytest.mark.sockets

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIG_FILES = [REPOSITORY / "config" / name for name in ("gateway.toml", "demo.toml", "container.toml")]


def gateway(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, **(env or {})},
    )


def get(url: str) -> tuple[int, bytes]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.status, answer.read()


# -- what is imported


def test_who_asks_what_there_is_does_not_wait_for_what_runs_it() -> None:
    program = """
import sys
from gateway.cli import main
try:
    main(["--help"])
except SystemExit:
    print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert "gateway.cli.program" in done.stdout.split()
    assert not {"aiohttp", "pydantic", "gateway.server", "gateway.client", "asyncio"} & set(done.stdout.split())


@pytest.mark.parametrize("command", ["serve", "check", "get"])
def test_ctrl_c_while_it_is_being_imported_is_no_traceback(command: str) -> None:
    program = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # who starts the tests in the background has it ignored
class Pressing:
    def find_spec(self, name, *rest):
        if name == "aiohttp":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Pressing())
from gateway.cli import main
sys.exit(main(sys.argv[1:]))
"""
    done = subprocess.run([sys.executable, "-c", program, command], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (130, "")


# -- output that is not taken


@pytest.mark.parametrize("command", [("check",), ("key", "new", "--name", "a")])
def test_output_that_cannot_be_written_is_told_by_the_exit_code_and_in_words(command: tuple[str, ...]) -> None:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    program = [sys.executable, "-m", "gateway", *command]
    with open("/dev/full", "w") as full:
        done = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, text=True, timeout=30, env=env)
    assert (done.returncode, done.stderr) == (1, "gateway: [Errno 28] No space left on device\n")


def test_who_reads_no_more_of_the_output_has_enough() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with os.fdopen(writing, "w") as output:
        done = subprocess.run(
            [sys.executable, "-m", "gateway", "check"], stdout=output, stderr=subprocess.PIPE, text=True, env=env
        )
    assert (done.returncode, done.stderr) == (1, "")


def test_standard_input_that_is_closed_is_not_sent() -> None:
    program = [sys.executable, "-m", "gateway", "send", "-"]
    done = subprocess.run(program, preexec_fn=lambda: os.close(0), stderr=subprocess.PIPE, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (1, "gateway: standard input is closed\n")


# -- version and mistakes

WRONG = """
[server]
port = "high"
colour = "red"
[[routes]]
path = "/x"
parts = [{ sinks = ["nowhere"] }]
"""


def test_the_version_is_the_packages_own() -> None:
    done = gateway("--version")
    assert (done.returncode, done.stdout) == (0, f"gateway {__version__}\n")


def test_the_console_script_is_the_same_program() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("gateway"), "--version"], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == f"gateway {__version__}\n"


@pytest.mark.parametrize("arguments", [(), ("fly",), ("serve", "--port", "1"), ("receiver", "--port", "x")])
def test_a_wrong_command_line_exits_2_and_shows_the_usage(arguments: tuple[str, ...]) -> None:
    done = gateway(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: gateway")


@pytest.mark.parametrize("command", ["serve", "check", "explain"])
def test_a_wrong_configuration_exits_2_and_names_every_key_path_without_a_traceback(
    command: str, tmp_path: Path
) -> None:
    config = tmp_path / "wrong.toml"
    config.write_text(WRONG)
    done = gateway(command, "--config", str(config))
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["server.port", "server.colour", "routes.0.parts.0.sinks"]


def test_a_configuration_that_is_not_there_exits_2(tmp_path: Path) -> None:
    done = gateway("check", "--config", str(tmp_path / "none.toml"))
    assert (done.returncode, done.stderr) == (2, f"{tmp_path / 'none.toml'}: No such file or directory\n")


def test_an_environment_variable_is_checked_like_a_key() -> None:
    done = gateway("check", env={"GATEWAY_SERVER__PORT": "70000"})
    assert done.returncode == 2
    assert done.stderr.startswith("server.port: ")


# -- check


@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda path: path.name)
def test_check_takes_the_configuration_files_of_this_repository(path: Path) -> None:
    done = gateway("check", "--config", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("the configuration is valid\n")
    assert "MiB  per upload at most" in done.stdout
    assert "for 64 uploads" in done.stdout


def test_the_complete_configuration_file_gives_the_defaults() -> None:
    complete, defaults = load(CONFIG_FILES[0]), load()
    assert complete.as_routes() == defaults.as_routes()
    assert complete.model_dump(exclude={"routes"}) == defaults.model_dump(exclude={"routes"})


def test_the_complete_configuration_file_has_every_key() -> None:
    document = tomllib.loads(CONFIG_FILES[0].read_text())
    defaults = load().model_dump()
    # who may is written as comments: a table that is there is one more that has to be right
    assert {*document, "access", "tls"} == defaults.keys() == Settings.model_fields.keys()
    for table in ("server", "management", "page", "limits", "download", "quotas"):
        assert document[table].keys() == {key for key, value in defaults[table].items() if value is not None}
    for name, sink in defaults["sinks"].items():
        given = {key for key, value in sink.items() if value not in (None, ())}  # others stand there as comments
        assert document["sinks"][name].keys() == given
    for shown, route in zip(document["routes"], defaults["routes"], strict=True):
        followed = set() if route["kind"] == "relay" else {"methods"}  # from the kind
        assert (
            shown.keys() == route.keys() - {"answer", "access", "cors"} - followed
        )  # none by default, so they stand there as comments
        for rule in route["parts"]:
            assert shown["parts"][0].keys() == rule.keys()


def test_check_says_so_where_there_is_no_bound() -> None:
    done = gateway("check", env={"GATEWAY_LIMITS__MAX_PARTS": "0"})
    assert done.returncode == 0
    assert "\nwithout bound, since unlimited: limits.max_parts\n" in done.stdout
    unlimited = {"GATEWAY_SERVER__MAX_UPLOADS": "0", "GATEWAY_LIMITS__WINDOW_BYTES": "0"}
    done = gateway("check", env=unlimited)
    assert "\nwithout bound, since unlimited: server.max_uploads, limits.window_bytes\n" in done.stdout


def test_check_says_that_workers_have_one_bound_together() -> None:
    one, three = (gateway("check", env={"GATEWAY_SERVER__WORKERS": workers}).stdout for workers in ("1", "3"))
    assert three == one.replace("beside the process itself", "beside the 3 workers")


# -- explain

RULES = """
[[routes]]
path = "/mail"
[[routes.parts]]
match = { filename = "*.pdf" }
sinks = ["disk", "api"]
[[routes.parts]]
match = { content_type = "image/*" }
sinks = ["none"]
"""


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--filename", "a.pdf"), 0, "rule 0 of /mail (upload) takes it: to disk, api"),
        (("--content-type", "image/png"), 0, "rule 1 of /mail (upload) takes it: to none"),
        (("--filename", "a.txt"), 1, "no rule of /mail takes it: 422 NoRoute"),
        (("--path", "/elsewhere"), 1, "there is no route /elsewhere; there are /mail"),
    ],
)
def test_explain_says_which_rule_takes_a_file(arguments: tuple[str, ...], code: int, said: str, tmp_path: Path) -> None:
    config = tmp_path / "rules.toml"
    config.write_text(RULES)
    done = gateway("explain", "--config", str(config), "--path", "/mail", *arguments)
    assert (done.returncode, done.stdout.strip()) == (code, said)


# -- serve and receiver


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_ends_with_0_on_a_signal_and_logs_json_lines(number: signal.Signals, tmp_path: Path) -> None:
    with gateway_process(tmp_path) as process:
        assert get(f"{process.url}/readyz") == (200, b"ok\n")
        os.kill(process.pid, number)
        assert process.wait(10) == 0
    for line in process.log.read_text().splitlines():
        assert json.loads(line)["level"] == "INFO"


def test_serve_says_that_a_port_is_taken_and_exits_1(tmp_path: Path) -> None:
    with gateway_process(tmp_path) as process:
        done = gateway(
            "serve", env={"GATEWAY_SERVER__PORT": str(process.port), "GATEWAY_SINKS__DISK__ROOT": str(tmp_path)}
        )
    assert done.returncode == 1
    assert "address already in use" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not socket.has_ipv6, reason="there is no IPv6 here")
@pytest.mark.parametrize("workers", [1, 2])
def test_an_address_of_ipv6_is_printed_in_brackets(workers: int, tmp_path: Path) -> None:
    config = f'[server]\nhost = "::1"\nworkers = {workers}\n'
    with gateway_process(tmp_path, config) as process:
        assert process.url == f"http://[::1]:{process.port}"
        assert get(f"{process.url}/readyz") == (200, b"ok\n")
    with Process("receiver", "--host", "::1", "--port", "0", log=tmp_path / "receiver.log") as process:
        assert get(f"http://[::1]:{process.port}/seen")[0] == 200


def test_the_receiver_says_where_it_listens_and_ends_with_0(tmp_path: Path) -> None:
    with receiver_process(tmp_path) as process:
        assert f"the demo destination listens on {process.url}" in process.log.read_text()
        status, seen = get(f"{process.url}/seen")
        assert (status, json.loads(seen)["completed"]) == (200, 0)
        process.terminate()
        assert process.wait(10) == 0


@needs_curl
def test_serve_with_a_receiver_prints_curl_lines_that_work_and_relays_to_it(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("read me\n")
    (tmp_path / "LICENSE").write_text("take me\n")
    env = {"GATEWAY_SERVER__PORT": "0", "GATEWAY_SINKS__DISK__ROOT": str(tmp_path / "uploads")}
    # any free port: it is not the one of the configuration
    arguments = ("serve", "--config", str(CONFIG_FILES[1]), "--with-receiver", "0")
    with Process(*arguments, log=tmp_path / "serve.log", env=env) as process:
        curls = printed_curl_lines(process.log)
        assert all(process.url in curl for curl in curls)
        assert [status_of(curl, tmp_path) for curl in curls] == ["201", "201", "200", "503", "201", "200", "200"]


def printed_curl_lines(log: Path, *, count: int = 7) -> list[str]:
    """They come right after the line that says where it listens."""
    for _ in range(100):
        lines = [line.strip() for line in log.read_text().splitlines()]
        curls = [line for line in lines if line.startswith("curl ")]
        if len(curls) == count:
            return curls
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def test_the_makefiles_destination_is_where_the_demo_configuration_sends_to() -> None:
    port = re.search(r"^RECEIVER_PORT \?= (\d+)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert port is not None
    assert tomllib.loads(CONFIG_FILES[1].read_text())["sinks"]["api"]["url"] == f"http://127.0.0.1:{port[1]}/upload"


def test_lines_are_for_people_where_the_command_line_says_so_those_of_workers_too(tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text(f'server.port = 0\nserver.workers = 2\nsinks.disk.root = "{tmp_path}/uploads"\n')
    arguments = ("serve", "--log-format", "people", "--config", str(config))
    with Process(*arguments, log=tmp_path / "log") as process, pytest.raises(urllib.error.HTTPError):
        get(f"{process.url}/uploads/01ARZ3NDEKTSV4RRFFQ69G5FAV")
    lines = (tmp_path / "log").read_text().splitlines()
    assert not any(line.startswith("{") for line in lines)
    assert re.search(r"^\d\d:\d\d:\d\d INFO    gateway.workers: listening on http", "\n".join(lines), re.MULTILINE)
    (read,) = [line for line in lines if "gateway.read: read not-found" in line]
    assert re.search(r" worker=[01]\b", read)
    assert " client=127.0.0.1" in read


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        (["--route", "/uplod", "--expires", "1h"], "/uplod is no route with signed in its access (/upload)"),
        (["--route", "upload", "--expires", "1h"], "upload is no route"),
        (["--route", "/upload?x=1", "--expires", "1h"], "is no route"),
        (["--route", "/upload", "--expires", "0s"], "is no time between"),
        (["--route", "/upload", "--expires", "1h", "--count", "0"], "it can be used once, or oftener"),
        (["--route", "/upload", "--expires", "1h", "--count", "-3"], "it can be used once, or oftener"),
        (["--route", "/upload", "--expires", "1h", "--name", ""], "a file has a name"),
        (["--route", "/upload", "--expires", "1h", "--max-bytes", "0"], "no body is that small"),
    ],
)
def test_nothing_is_signed_that_nobody_could_use_or_that_caps_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], wrong: str
) -> None:
    (tmp_path / "signing.keys").write_text("s" * 40)
    config = tmp_path / "gateway.toml"
    config.write_text(
        f'[access.signed]\nsecrets_file = "{tmp_path}/signing.keys"\n'
        '[[routes]]\npath = "/upload"\naccess = ["signed"]\nparts = [{ sinks = ["disk"] }]\n'
    )
    try:
        status = main(["sign", "--config", str(config), *options])
    except SystemExit as error:
        status = int(str(error.code))
    assert status == 2
    assert wrong in capsys.readouterr().err
