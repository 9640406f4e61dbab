"""Mistakes, and what is printed of each, to the letter: it names the key or the variable, and says what is right."""

# ruff: noqa: E501 - a line of what is printed is a line here

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.cli import main


@pytest.fixture(autouse=True)
def _in_an_empty_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith("GATEWAY_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    with pytest.MonkeyPatch.context() as loggers:
        loggers.setattr("gateway.cli.configure_logging", lambda level: None)
        yield


def _printed(document: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    Path("my.toml").write_text(document, "utf-8")
    assert main(["check", "--config", "my.toml"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    return output.err.splitlines()


IN_A_FILE = [
    ("prot = 8080", "prot: there is no such key (my.toml)"),
    ("[sever]\nport = 1", "sever: there is no such key; did you mean server? (my.toml)"),
    ('[server]\nhots = "::"', "server.hots: there is no such key; did you mean host? (my.toml)"),
    ('[server]\nport = "http"', "server.port: should be a whole number (my.toml)"),
    ("[server]\nport = 65536", "server.port: should be less than or equal to 65535 (my.toml)"),
    ("[server]\nworkers = 0", "server.workers: should be greater than or equal to 1 (my.toml)"),
    (
        '[server]\ntrusted_networks = ["10.0.0.1/8"]',
        "server.trusted_networks: 10.0.0.1/8 is not a range of addresses such as 10.1.0.0/16: 10.0.0.1/8 has host bits set (my.toml)",
    ),
    ('[server]\ntrusted_networks = "10.0.0.0/8"', "server.trusted_networks: should be a list (my.toml)"),
    ('[server]\nevent_loop = "uv"', "server.event_loop: should be 'asyncio' or 'uvloop' (my.toml)"),
    ("server = 8080", "server: should be a table (my.toml)"),
    ("[limits]\nmax_part = 1", "limits.max_part: there is no such key; did you mean max_parts? (my.toml)"),
    ("[limits]\nmax_parts = -1", "limits.max_parts: should be greater than or equal to 0 (my.toml)"),
    ("[limits]\nmax_parts = 1.5", "limits.max_parts: should be a whole number (my.toml)"),
    ('[limits]\nidle_seconds = "30s"', "limits.idle_seconds: should be a number (my.toml)"),
    ("limits = 1", "limits: should be a table (my.toml)"),
    ('[sinks]\ndisk = "var"', "sinks.disk: should be a table (my.toml)"),
    (
        "[sinks.disk]\nmode = 640",
        'sinks.disk.mode: should be octal, such as "0640", with at least that for the owner (my.toml)',
    ),
    (
        '[sinks.disk]\ndirectory_mode = "0640"',
        'sinks.disk.directory_mode: should be octal, such as "0750", with at least that for the owner (my.toml)',
    ),
    (
        '[sinks.new]\nroot = "var"',
        "sinks.new.type: not one of disk, relay, discard, nor of the form package.module:Class (my.toml)",
    ),
    (
        '[sinks.new]\ntype = "dsik"',
        "sinks.new.type: not one of disk, relay, discard, nor of the form package.module:Class (my.toml)",
    ),
    ('[sinks.disk]\nrooot = "var"', "sinks.disk.rooot: there is no such key; did you mean root? (my.toml)"),
    ('[sinks.disk]\nroot = ""', "sinks.disk.root: should not be empty (my.toml)"),
    ('[sinks.disk]\nfsync = "maybe"', "sinks.disk.fsync: should be true or false (my.toml)"),
    ('[sinks.api]\nurl = "host/upload"', "sinks.api.url: the URL does not begin with http:// or https:// (my.toml)"),
    ('[sinks.api]\nurl = "http://host:99999/"', "sinks.api.url: the URL's port is no number from 1 to 65535 (my.toml)"),
    (
        '[sinks.api]\nurl = "http://a@host/"',
        "sinks.api.url: it has user info: credentials go into headers.Authorization (my.toml)",
    ),
    ('[sinks.api]\nhealth_path = "healthz"', "sinks.api.health_path: the path does not begin with one slash (my.toml)"),
    ('[sinks.new]\ntype = "relay"', "sinks.new.url: needed, or urls"),
    (
        '[sinks.api]\nlength = "guess"',
        "sinks.api.length: not one of chunked, passthrough, spool, known, nor a list of them (my.toml)",
    ),
    (
        '[sinks.api]\nheaders = {"Content-Length" = "1"}',
        "sinks.api.headers: Content-Length is of the connection or of the body, and made by the gateway (my.toml)",
    ),
    (
        '[sinks.api]\nadd_after = {a = "{md5}"}',
        "sinks.api.add_after: '{md5}' has a placeholder that is not one of {upload}, {request_id}, {index}, {name}, {filename}, {content_type}, {size}, {sha256} (my.toml)",
    ),
    (
        '[sinks.api]\nurl = "https://a/"\n[sinks.api.tls]\nca = "nowhere.pem"',
        "sinks.api.tls.ca: nowhere.pem: No such file or directory",
    ),
    (
        '[sinks.api]\nurl = "https://a/"\n[sinks.api.tls]\nserver_name = "a b"',
        "sinks.api.tls.server_name: not a host name or an address (my.toml)",
    ),
    (
        '[sinks.api]\nurl = "https://a/"\n[sinks.api.tls]\ncertificate = "a"',
        "sinks.api.tls.certificate: there is no such key (my.toml)",
    ),
    (
        '[sinks.mine]\ntype = "acme.nowhere:Sink"',
        "sinks.mine: acme.nowhere:Sink cannot be made: ModuleNotFoundError(\"No module named 'acme'\")",
    ),
    (
        "[flows.mine]\nlevel = 1",
        "flows.mine.use: needed, since mine is not one of sniff, gzip, gunzip, zstd, unzstd, lines",
    ),
    ('[flows.mine]\nuse = "acme"', "flows.mine.use: not of the form package.module:name (my.toml)"),
    ("[flows.gzip]\nlevle = 1", "flows.gzip: got an unexpected keyword argument 'levle'"),
    ('[[routes]]\nkind = "upload"', "routes.0.path: needed (my.toml)"),
    (
        '[[routes]]\npath = "upload/"',
        "routes.0.path: not a path: a slash ahead of each segment, none at the end; letters, digits, and . _ ~ - in between (my.toml)",
    ),
    ('[[routes]]\npath = "/files/x"', "routes.0.path: /files/x is the gateway's own"),
    (
        '[[routes]]\npath = "/x"\nkind = "uplaod"',
        "routes.0.kind: should be 'upload', 'relay', 'convert' or 'opaque' (my.toml)",
    ),
    (
        '[[routes]]\npath = "/x"\ndigests = ["sha3"]',
        "routes.0.digests: sha3 is not one of sha256, sha512, sha1, md5, crc32, blake3 (my.toml)",
    ),
    ('[[routes]]\npath = "/x"\nparts = [{sinks = []}]', "routes.0.parts.0.sinks: should not be empty (my.toml)"),
    (
        '[[routes]]\npath = "/x"\nparts = [{sinks = ["dsk"]}]',
        "routes.0.parts.0.sinks: there is no sink dsk; did you mean disk?",
    ),
    (
        '[[routes]]\npath = "/x"\nparts = [{flows = ["gzpi"], sinks = ["disk"]}]',
        "routes.0.parts.0.flows: there is no flow gzpi; did you mean gzip?",
    ),
    (
        '[[routes]]\npath = "/x"\nparts = [{match = {file_name = "*"}, sinks = ["disk"]}]',
        "routes.0.parts.0.match.file_name: there is no such key; did you mean filename? (my.toml)",
    ),
    (
        '[[routes]]\npath = "/x"\nparts = [{sinks = [{sink = "api", mode = "best"}]}]',
        "routes.0.parts.0.sinks.0.mode: should be 'required' or 'best_effort' (my.toml)",
    ),
    (
        '[[routes]]\npath = "/x"\nkind = "relay"\nparts = [{sinks = ["disk"]}]',
        "routes.0.kind: a route of kind relay needs a sink of type relay",
    ),
    (
        '[download]\nallow = ["ftp://host/*"]',
        "download.allow: ftp://host/* does not begin with http:// or https:// (my.toml)",
    ),
    (
        '[download]\nallow_private = ["10.0.0.0/33"]',
        "download.allow_private: 10.0.0.0/33 is not a range of addresses such as 10.1.0.0/16: '10.0.0.0/33' does not appear to be an IPv4 or IPv6 network (my.toml)",
    ),
]
IN_A_VARIABLE = [
    (
        "GATEWAY_SERVER_PORT",
        "9000",
        "server.port: two underscores belong between a table and its key: GATEWAY_SERVER__PORT (GATEWAY_SERVER_PORT)",
    ),
    (
        "GATEWAY_SINKS__API_URL",
        "http://a/",
        "sinks.api.url: two underscores belong between a table and its key: GATEWAY_SINKS__API__URL (GATEWAY_SINKS__API_URL)",
    ),
    (
        "GATEWAY_SINKS_DISK_KEEP_SECONDS",
        "1",
        "sinks.disk.keep_seconds: two underscores belong between a table and its key: GATEWAY_SINKS__DISK__KEEP_SECONDS (GATEWAY_SINKS_DISK_KEEP_SECONDS)",
    ),
    ("GATEWAY_SERVER__PROT", "9000", "server.prot: there is no such key; did you mean port? (GATEWAY_SERVER__PROT)"),
    ("GATEWAY_SEVER__PORT", "9000", "sever: there is no such table; did you mean server? (GATEWAY_SEVER__PORT)"),
    ("GATEWAY_SERVER__PORT", "ninety", "server.port: should be a whole number (GATEWAY_SERVER__PORT)"),
    ("GATEWAY_SINKS", "[{", "sinks: a list or a table is written as JSON, and this is none (GATEWAY_SINKS)"),
    (
        "GATEWAY_DOWNLOAD__ALLOW",
        "https://a/*",
        "download: a list or a table is written as JSON, and this is none (GATEWAY_DOWNLOAD__ALLOW)",
    ),
    (
        "GATEWAY_SINKS__API__URL",
        "a",
        "sinks.api.url: the URL does not begin with http:// or https:// (GATEWAY_SINKS__API__URL)",
    ),
    (
        "GATEWAY_SINKS_NEW_URL",
        "http://b/",
        "sinks.new.url: two underscores belong between a table and its key: GATEWAY_SINKS__NEW__URL (GATEWAY_SINKS_NEW_URL)",
    ),
]


@pytest.mark.parametrize(("document", "line"), IN_A_FILE)
def test_a_mistake_in_a_file_is_a_line_that_names_the_key_and_says_what_is_wrong(
    document: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _printed(document, capsys) == [line]


@pytest.mark.parametrize(("variable", "value", "line"), IN_A_VARIABLE)
def test_a_mistake_in_the_environment_is_a_line_that_names_the_variable(
    variable: str, value: str, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    assert _printed('[sinks.new]\ntype = "relay"\nurl = "http://a/"', capsys) == [line]


def test_mistakes_of_all_kinds_are_printed_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_SERVER_PORT", "9000")
    monkeypatch.setenv("GATEWAY_SERVER__WORKERS", "many")
    document = '[server]\nhots = "a"\n[sinks.new]\ntype = "relay"\n[[routes]]\npath = "/x"\nparts = [{sinks = ["dsk"]}]'
    assert [line.partition(": ")[0] for line in _printed(document, capsys)] == [
        "server.port",
        "server.workers",
        "server.hots",
        "sinks.new.url",
        "routes.0.parts.0.sinks",
    ]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("GATEWAY_PORT", "tcp://10.0.0.1:8080"),
        ("GATEWAY_SERVICE_HOST", "10.0.0.1"),
        ("GATEWAY_SERVICE_PORT_HTTP", "8080"),
        ("GATEWAY_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("GATEWAY_SERVER_PORT", "tcp://10.0.0.1:8080"),  # of a service that is called gateway-server
    ],
)
def test_what_kubernetes_sets_for_a_service_of_our_name_is_neither_a_mistake_nor_worth_a_word(
    variable: str, value: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    assert main(["check"]) == 0
    assert variable not in capsys.readouterr().out


@pytest.mark.parametrize("variable", ["GATEWAY_PORT", "GATEWAY_LOG_LEVEL"])
def test_a_variable_that_begins_like_ours_and_is_nobodys_is_warned_of(
    variable: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "9000")
    assert main(["check"]) == 0
    assert f"warning: {variable} is no variable of the gateway's\n" in capsys.readouterr().out


def test_a_name_that_leads_to_no_address_names_the_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_SERVER__HOST", "nowhere.invalid")
    assert main(["serve"]) == 1
    assert "gateway: server.host: " in capsys.readouterr().err
