"""What `gateway check` says beside "valid": what is served, and what was hardly meant."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.cli import main

OPEN = '[[routes]]\npath = "/x"\naccess = ["none"]\nparts = [{sinks = ["api"]}]\n'


def _checked(tmp_path: Path, document: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    path = tmp_path / "gateway.toml"
    path.write_text(document, "utf-8")
    assert main(["check", "--config", str(path)]) == 0
    return capsys.readouterr().out.splitlines()


ROUTES = """
[sinks.spare]
type = "discard"
[flows.mine]
use = "tests.config.test_doubts:no_generator"
[flows.good]
use = "tests.config.test_doubts:generator"
[[routes]]
path = "/papers"
parts = [
    {match = {filename = "*.pdf", content_type = "application/*"}, flows = ["good"], sinks = ["disk", "api"]},
    {match = {name = "*"}, sinks = ["none"]},
    {match = {name = "b"}, sinks = ["none"]},
    {sinks = ["api"]},
]
[[routes]]
path = "/nothing"
"""


def test_check_prints_each_route_with_its_rules_and_what_is_served_beside_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = _checked(tmp_path, ROUTES, capsys)
    at = lines.index("/papers (upload):")
    assert lines[at + 1 : at + 5] == [
        "    filename *.pdf and content_type application/* through good to disk, api",
        "    name * to none",
        "    name b to none",
        "    every file to api",
    ]
    assert "/nothing (upload): no file" in lines
    assert lines.index("at http://127.0.0.1:8080:") < lines.index("/nothing (upload): no file")
    below = _checked(tmp_path, '[server]\nhost = "::1"\nbase_path = "/gw"\n', capsys)
    assert "at http://[::1]:8080, and below /gw:" in below
    assert "also served: /uploads, /files, /download, /selftest, /healthz, /readyz, /metrics" in lines
    assert not any(line.startswith(("/upload ", "/proxy ", "/convert ")) for line in lines)


@pytest.mark.parametrize(
    ("management", "printed"),
    [
        (
            "metrics = false",
            ["also served: /uploads, /files, /download, /selftest, /page, /openapi.json, /healthz, /readyz"],
        ),
        (
            "port = 9090\nselftest = false",
            [
                "also served: /uploads, /files, /download, /page, /openapi.json, /healthz, /readyz",
                "for management at http://127.0.0.1:9090: /healthz, /readyz, /metrics",
            ],
        ),
        (
            'host = "::1"',
            [
                "also served: "
                "/uploads, /files, /download, /selftest, /page, /openapi.json, /healthz, /readyz, /metrics",
                "warning: management.host: nothing listens there, for there is no management.port",
            ],
        ),
    ],
)
def test_check_prints_what_is_served_for_management_and_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], management: str, printed: list[str]
) -> None:
    lines = _checked(tmp_path, f"[management]\n{management}\n", capsys)
    assert [line for line in lines if "served" in line or "management" in line] == printed


def test_check_warns_of_modes_that_the_umask_narrows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = os.umask(0o027)
    try:
        lines = _checked(tmp_path, '[sinks.disk]\nmode = "0660"\ndirectory_mode = 0o755\n', capsys)
    finally:
        os.umask(before)
    assert [line for line in lines if line.startswith("warning: ")] == [
        "warning: sinks.disk.mode: the umask of this process takes 0020 of it",
        "warning: sinks.disk.directory_mode: the umask of this process takes 0005 of it",
    ]


def test_check_warns_of_what_was_hardly_meant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [line for line in _checked(tmp_path, ROUTES, capsys) if line.startswith("warning: ")] == [
        "warning: routes.0.parts.2: nothing comes as far as this rule, since rule 1 takes every file",
        "warning: routes.0.parts.3: nothing comes as far as this rule, since rule 1 takes every file",
        "warning: routes.1.parts: there is no rule, so no file is taken: 422 NoRoute",
        "warning: sinks.spare: no route names it",
        "warning: flows.mine: no async generator function: what it returns has to be an async iterator of bytes",
    ]


def test_check_warns_of_limits_that_are_never_reached(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = """
    [server]
    max_uploads = 200
    max_connections = 100
    [limits]
    max_file_bytes = 2000
    max_body_bytes = 1000
    max_value_bytes = 100
    deadline_seconds = 20
    [sinks.api]
    connect_seconds = 20
    total_seconds = 15
    """
    assert [line for line in _checked(tmp_path, document, capsys) if line.startswith("warning: ")] == [
        "warning: limits.max_file_bytes: max_body_bytes is less, so it is never reached",
        "warning: sinks.api.connect_seconds: total_seconds is less, so it is never reached",
        "warning: server.max_uploads: server.max_connections is 100, so it is never reached",
    ]


def test_check_warns_of_a_header_that_nobody_may_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = '[server]\ntrusted_header = "forwarded"\n'
    for more, warned in (("", True), ('trusted_networks = ["10.0.0.0/8"]', False)):
        lines = _checked(tmp_path, f"{header}{more}\n{OPEN}", capsys)
        said = "warning: server.trusted_header: nobody is believed, for there are no server.trusted_networks"
        assert (said in lines) is warned


def test_check_warns_of_idle_connections_that_end_before_the_balancer_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trusted = 'trusted_networks = ["10.0.0.0/8"]\n'
    for more, warned in (("", False), (f"{trusted}", False), (f"{trusted}keepalive_seconds = 60", True)):
        lines = _checked(tmp_path, f"[server]\n{more}\n{OPEN}", capsys)
        assert any(line.startswith("warning: server.keepalive_seconds: ") for line in lines) is warned


def test_the_defaults_are_beyond_doubt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for document in ("", '[[routes]]\npath = "/x"\nparts = [{sinks = ["none"]}]'):
        assert not any(line.startswith("warning") for line in _checked(tmp_path, document, capsys))


async def generator(file: object, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield chunk


def no_generator(file: object, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    return chunks


@pytest.mark.parametrize(
    ("host", "url", "is_own"),
    [
        ("127.0.0.1", "http://127.0.0.1:8080/proxy", True),
        ("127.0.0.1", "http://localhost:8080/", True),
        ("0.0.0.0", "http://127.0.0.1:8080/", True),
        ("::", "http://[::1]:8080/", True),
        ("192.0.2.1", "http://192.0.2.1:8080/", True),
        ("192.0.2.1", "http://127.0.0.1:8080/", False),
        ("127.0.0.1", "http://127.0.0.1:8081/", False),
        ("127.0.0.1", "https://127.0.0.1:8080/", False),
        ("127.0.0.1", "http://a.example:8080/", False),
    ],
)
def test_a_url_that_leads_back_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], host: str, url: str, is_own: bool
) -> None:
    lines = _checked(tmp_path, f'server.host = "{host}"\nsinks.api.url = "{url}"\n{OPEN}', capsys)
    assert (f"warning: sinks.api: {url} leads back to this gateway" in lines) == is_own


REALISTIC = """
[server]
host = "0.0.0.0"
workers = 2
[sinks.disk]
root = "uploads"
[sinks.scanner]
type = "relay"
urls = ["https://scan-1.internal/v1", "https://scan-2.internal/v1"]
length = ["known", "spool"]
[sinks.erp]
type = "relay"
url = "https://erp.internal/documents"
keepalive_seconds = 20
[sinks.archive]
type = "relay"
url = "https://archive.internal/"
[flows.pdf]
use = "gateway.flows.sniff:sniff"
policy = "require_match"
allow = ["application/pdf"]
[[routes]]
access = ["none"]
path = "/documents"
[[routes.parts]]
match = { filename = "*.pdf" }
flows = ["pdf"]
sinks = ["disk", "erp", { sink = "archive", mode = "best_effort" }]
[[routes.parts]]
match = { content_type = "image/*" }
sinks = ["disk", "scanner"]
[[routes.parts]]
sinks = ["disk"]
[[routes]]
access = ["none"]
path = "/erp"
kind = "relay"
parts = [{ sinks = ["erp"] }]
[[routes]]
access = ["none"]
path = "/raw"
kind = "opaque"
parts = [{ sinks = ["scanner"] }]
[[routes]]
access = ["none"]
path = "/images"
kind = "convert"
parts = [{ match = { content_type = "image/*" }, flows = ["sniff", "gzip"], sinks = ["disk"] }]
"""


@pytest.mark.parametrize(("document", "rows"), [("", 24), (REALISTIC, 30)])
def test_what_check_prints_is_read_on_one_screen(
    document: str, rows: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = _checked(tmp_path, document, capsys)
    assert sum(-(-len(line) // 80) for line in lines) < rows, "\n".join(lines)
