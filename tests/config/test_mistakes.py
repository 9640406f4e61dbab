"""Mistakes, and what is printed of each, to the letter: it names the key or the variable, and says what is right."""

# ruff: noqa: E501 - a line of what is printed is a line here

from __future__ import annotations

import os
import subprocess
import sys
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
        loggers.setattr("gateway.cli.checking.configure_logging", lambda level, **more: None)
        yield


def _printed(document: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    Path("my.toml").write_text(document, "utf-8")
    assert main(["check", "--config", "my.toml"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    return output.err.splitlines()


IN_A_FILE = [
    ("prot = 8080", "prot: there is no such key (my.toml)"),
    ('[management]\nport = "high"', "management.port: should be a whole number (my.toml)"),
    (
        "[management]\nport = 8080",
        "management.port: 8080 is server.port, too; leave it out to have one listener",
    ),
    (
        '[server]\nbase_path = "/gw/"',
        "server.base_path: not a path such as /gw: a slash ahead of each segment, none at the end; letters, digits, and . _ ~ - in between, others percent-encoded; 128 characters at most (my.toml)",
    ),
    (
        '[server]\nbase_path = "/files"',
        "server.base_path: /files is below it, and would be taken for what is behind it",
    ),
    (
        '[server]\nbase_path = "/gw"\n[[routes]]\npath = "/gw/upload"\n[[routes.parts]]\nsinks = ["disk"]',
        "server.base_path: /gw/upload is below it, and would be taken for what is behind it",
    ),
    ("[management]\nmetric = false", "management.metric: there is no such key; did you mean metrics? (my.toml)"),
    ("port = 8080", "port: there is no such key here, but in [server] and [management] (my.toml)"),
    ('[disk]\nroot = "a"', "disk: there is no such key; did you mean sinks.disk? (my.toml)"),
    ("[server]\nmax_parts = 5", "server.max_parts: there is no such key here, but in [limits] (my.toml)"),
    ("[limits]\nmax_uploads = 5", "limits.max_uploads: there is no such key here, but in [server] (my.toml)"),
    (
        "[server]\nidle_seconds = 5",
        "server.idle_seconds: there is no such key here, but in [limits] and [download] (my.toml)",
    ),
    (
        "[limits]\nkeep_seconds = 5",
        "limits.keep_seconds: there is no such key here, but in sinks of type disk (my.toml)",
    ),
    ("[server]\nport = true", "server.port: should be a number, not true or false (my.toml)"),
    ("[server]\nport = 1979-05-27", "server.port: should be a whole number (my.toml)"),
    ("[server]\nport = nan", "server.port: should be a finite number (my.toml)"),
    ("[server]\nhost = 1", "server.host: should be a text (my.toml)"),
    (
        '[server]\nhost = "localhost:8080"',
        'server.host: neither an address, such as "0.0.0.0" or "::", nor a host name; a port has a key of its own (my.toml)',
    ),
    (
        '[server]\nhost = "300.1.1.1"',
        'server.host: neither an address, such as "0.0.0.0" or "::", nor a host name; a port has a key of its own (my.toml)',
    ),
    (
        '[server]\nhost = ""',
        'server.host: neither an address, such as "0.0.0.0" or "::", nor a host name; a port has a key of its own (my.toml)',
    ),
    (
        '[server]\nname = "a b"',
        "server.name: should be 1 to 64 letters, digits, and characters such as - . _ (my.toml)",
    ),
    ("[sever]\nport = 1", "sever: there is no such key; did you mean server? (my.toml)"),
    ('[server]\nhots = "::"', "server.hots: there is no such key; did you mean hosts? (my.toml)"),
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
    ("[limits]\nidle_seconds = inf", "limits.idle_seconds: should be a finite number (my.toml)"),
    ("[limits]\nidle_seconds = true", "limits.idle_seconds: should be a number, not true or false (my.toml)"),
    ("[limits]\nidle_seconds = 1e10", "limits.idle_seconds: should be less than or equal to 1000000000 (my.toml)"),
    ('[limits]\nmax_body_bytes = "1MB"', "limits.max_body_bytes: should be a whole number (my.toml)"),
    (
        "[limits]\nmax_body_bytes = 99999999999999999999",
        "limits.max_body_bytes: should be less than or equal to 9223372036854775807 (my.toml)",
    ),
    ("limits = 1", "limits: should be a table (my.toml)"),
    ('[sinks]\ndisk = "var"', "sinks.disk: should be a table (my.toml)"),
    ("sinks = []", "sinks: should be a table (my.toml)"),
    ("[[server]]\nport = 1", "server: should be a table (my.toml)"),
    ('[routes]\npath = "/x"', "routes: should be a list (my.toml)"),
    ('[sinks."a\\nb"]\ntype = "discard"\nx = 1', "sinks.a\\nb.x: there is no such key (my.toml)"),
    (
        '[sinks.disk]\nurl = "http://a/"',
        "sinks.disk.url: there is no such key here, but in sinks of type relay (my.toml)",
    ),
    ('[sinks.disk]\nroot = "my.toml"', "sinks.disk.root: my.toml is no directory"),
    ('[sinks.disk]\nroot = "a\\u0000b"', "sinks.disk.root: no file name has a zero byte in it (my.toml)"),
    ('[sinks.disk]\nkeep_seconds = "7d"', "sinks.disk.keep_seconds: should be a number (my.toml)"),
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
        "sinks.new.type: needed: disk, objects, relay, discard, or of the form package.module:Class (my.toml)",
    ),
    (
        '[sinks.new]\ntype = "dsik"',
        "sinks.new.type: should be disk, objects, relay, discard, or of the form package.module:Class (my.toml)",
    ),
    (
        '[sinks.b]\ntype = "objects"\nurl = "http://host/bucket"',
        "sinks.b.url: not one of s3://bucket, gs://bucket, az://account/container, file:///directory, memory:// (my.toml)",
    ),
    (
        '[sinks.b]\ntype = "objects"\nurl = "s3://bucket"\nprefix = "/up"',
        "sinks.b.prefix: not segments of letters, digits and !_.*'()=- between slashes (my.toml)",
    ),
    (
        '[sinks.b]\ntype = "objects"\nurl = "s3://bucket"\npart_bytes = 1048576',
        "sinks.b.part_bytes: should be greater than or equal to 5242880 (my.toml)",
    ),
    (
        '[sinks.b]\ntype = "objects"\nurl = "s3://bucket"\nmax_part_bytes = 8388608',
        "sinks.b: max_part_bytes is 8388608, less than part_bytes (my.toml)",
    ),
    (
        '[sinks.b]\ntype = "objects"\nurl = "memory://"\nredirect = true',
        "sinks.b: redirect: nobody can be sent to a directory, or to this memory (my.toml)",
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
        '[sinks.new]\ntype = "relay"\nurl = "http://a/"\nurls = ["http://b/"]',
        "sinks.new.urls: there is a url, too; one of them says where to send",
    ),
    ('[sinks.api]\nurls = "http://a/"', "sinks.api.urls: should be a list (my.toml)"),
    (
        '[sinks.api]\nurl = "http://a/%zz"',
        "sinks.api.url: the URL has a % that begins no escape: a percent sign itself is %25 (my.toml)",
    ),
    (
        '[sinks.api]\nurl = "http://a b/"',
        "sinks.api.url: the URL has white space or control characters in it (my.toml)",
    ),
    ('[sinks.api]\nspool_dir = "nowhere"', "sinks.api.spool_dir: nowhere: No such file or directory"),
    ('[sinks.api]\nspool_dir = "my.toml"', "sinks.api.spool_dir: my.toml: Not a directory"),
    (
        '[sinks.api]\nexpect_continue = "always"',
        'sinks.api.expect_continue: should be true, false or "reused" (my.toml)',
    ),
    ("[sinks.api]\nexpect_seconds = 0", "sinks.api.expect_seconds: should be greater than 0 (my.toml)"),
    (
        '[sinks.api]\nforward_cookies = "session"',
        "sinks.api.forward_cookies: neither true nor false, nor a list of names (my.toml)",
    ),
    (
        '[sinks.api]\nforward_headers = ["Cookie"]',
        "sinks.api.forward_headers: Cookie is a credential, and has a key of its own: forward_cookies (my.toml)",
    ),
    ('[sinks.api]\nheaders = {"a b" = "1"}', "sinks.api.headers: one of the names is no header name (my.toml)"),
    (
        '[sinks.api]\nheaders = {a = "1\\r\\nX: 1"}',
        "sinks.api.headers: the value of a is not printable ASCII, or has white space around it (my.toml)",
    ),
    (
        '[sinks.api]\nheaders = {Via = "1.1 a"}',
        "sinks.api.headers: Via is of the connection or of the body, and made by the gateway (my.toml)",
    ),
    ('[sinks.api]\nrename = {"" = "a"}', "sinks.api.rename: should not be empty (my.toml)"),
    ('[sinks.api]\nrename = {a = "b"}\ndrop = ["a"]', "sinks.api.drop: a is renamed, too"),
    (
        '[sinks.api]\nlength = ["chunked", "spool"]',
        "sinks.api.length: spool comes after chunked, which takes every body",
    ),
    ('[sinks.api]\nlength = "passthrough"\ndrop = ["a"]', "sinks.api.drop: passthrough leaves the body as it is"),
    (
        '[sinks.api]\ntls = {ca = "a"}',
        "sinks.api.tls: only of use to urls of https://, and one here is of http:// (my.toml)",
    ),
    (
        '[sinks.api]\nurl = "https://a/"\ntls = {key = "a"}',
        "sinks.api.tls: a key without the certificate that it belongs to, cert (my.toml)",
    ),
    ('[sinks.api]\nurl = "https://a/"\ntls = {ca = "my.toml"}', "sinks.api.tls.ca: it holds no certificates"),
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
    (
        "[flows.gzpi]\nlevel = 1",
        "flows.gzpi.use: needed, since gzpi is not one of sniff, gzip, gunzip, zstd, unzstd, lines; did you mean gzip?",
    ),
    ("[flows.gzip]\nlevel = 10", "flows.gzip: level is 0 to 9"),
    ("[flows.gzip]\nlevel = true", "flows.gzip: level is 0 to 9"),
    ("[flows.sniff]\nallow = [1]", "flows.sniff: allow is a list of globs"),
    ('[flows.mine]\nuse = "nowhere:x"', "flows.mine: No module named 'nowhere'"),
    (
        '[flows.mine]\nuse = "os:getcwd"',
        "flows.mine: os:getcwd cannot be called as flows are, (file, chunks): too many positional arguments",
    ),
    (
        '[sinks.mine]\ntype = "gateway.sinks.discard:DiscardSink"\nbucket = "a"',
        "sinks.mine.bucket: there is no such key",
    ),
    (
        '[sinks.mine]\ntype = "os:getcwd"',
        "sinks.mine: os:getcwd does not derive from gateway.sinks.Sink, so it is no sink",
    ),
    ("[flows.gzip]\nlevle = 1", "flows.gzip.levle: there is no such key; did you mean level?"),
    ("[management]\nprot = 1", "management.prot: there is no such key; did you mean port? (my.toml)"),
    (
        '[management]\nhost = "a:1"',
        'management.host: neither an address, such as "0.0.0.0" or "::", nor a host name; a port has a key of its own (my.toml)',
    ),
    ('[access.key]\nfile = "a"', "access.key: there is no such key; did you mean keys? (my.toml)"),
    (
        '[access.keys]\nfiles = ["a"]\nfile = "a"',
        "access.keys.files: there is no such key; did you mean file? (my.toml)",
    ),
    (
        '[access.jwt]\nissuer = "a"\naudience = "b"\nkey_file = "a"\nalgorithms = ["none"]',
        "access.jwt.algorithms.0: should be 'RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512', 'ES256', 'ES384', 'ES512', 'EdDSA', 'HS256', 'HS384' or 'HS512' (my.toml)",
    ),
    ("[quotas]\nuploads = true", "quotas.uploads: should be a number, not true or false (my.toml)"),
    ("[quotas]\nupload = 1", "quotas.upload: there is no such key; did you mean uploads? (my.toml)"),
    ('[[routes]]\nkind = "upload"', "routes.0.path: needed (my.toml)"),
    (
        '[[routes]]\npath = "upload/"',
        "routes.0.path: not a path: a slash ahead of each segment, none at the end; letters, digits, and . _ ~ - in between, and not . or .. alone (my.toml)",
    ),
    (
        '[[routes]]\npath = "/../x"',
        "routes.0.path: not a path: a slash ahead of each segment, none at the end; letters, digits, and . _ ~ - in between, and not . or .. alone (my.toml)",
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
    (
        '[[routes]]\npath = "/x"\nkind = "relay"\nmethods = ["GET"]\nparts = [{sinks = ["api"]}]',
        "routes.0.methods.0: should be 'POST', 'PUT' or 'PATCH' (my.toml)",
    ),
    (
        '[[routes]]\npath = "/x"\nanswer = "disk"\nparts = [{sinks = ["disk", "api"]}]',
        "routes.0.answer: disk is no required relay of this route; api is",
    ),
    (
        '[[routes]]\npath = "/x"\nparts = [{sinks = ["disk", "disk"]}]',
        "routes.0.parts.0.sinks: disk is given twice",
    ),
    (
        '[sinks.b]\ntype = "disk"\n[[routes]]\npath = "/x"\nparts = [{sinks = ["disk", "b"]}]',
        "routes.0: disk and b have one root, where an upload can lie only once (sinks.b.root)",
    ),
    (
        '[sinks.a]\ntype = "objects"\nurl = "s3://bucket"\n[sinks.b]\ntype = "objects"\nurl = "s3://bucket/"\n'
        '[[routes]]\npath = "/x"\nparts = [{sinks = ["a", "b"]}]',
        "routes.0: a and b have one prefix, where an upload can lie only once (sinks.b.prefix)",
    ),
    (
        '[sinks.a]\ntype = "objects"\nurl = "s3://bucket"\nkeep_seconds = 5\n'
        '[[routes]]\npath = "/x"\nparts = [{sinks = ["disk", "a"]}]',
        "routes.0: its stores have different keep_seconds, so that an upload would expire in part",
    ),
    (
        '[server]\nworkers = 2\n[sinks.a]\ntype = "objects"\nurl = "memory://"',
        "sinks.a.url: each of the 2 workers would have a memory of its own",
    ),
    ('[[routes]]\npath = "/x"\nparts = [{sinks = "disk"}]', "routes.0.parts.0.sinks: should be a list (my.toml)"),
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
    ("[download]\nmax_redirects = 6", "download.max_redirects: should be less than or equal to 5 (my.toml)"),
    (
        '[download]\nallow = ["https://a*b/*"]',
        "download.allow: https://a*b/* has a * that is neither the whole host nor the end of the path (my.toml)",
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
    ("GATEWAY_SINKS", "[{", "sinks: should be a table, written as JSON (GATEWAY_SINKS)"),
    (
        "GATEWAY_DOWNLOAD__ALLOW",
        "https://a/*",
        "download.allow: should be a list, written as JSON (GATEWAY_DOWNLOAD__ALLOW)",
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
    (
        "GATEWAY_ACCESS_KEYS_FILE",
        "a",
        "access.keys.file: two underscores belong between a table and its key: GATEWAY_ACCESS__KEYS__FILE (GATEWAY_ACCESS_KEYS_FILE)",
    ),
    ("GATEWAY_SERVER__PORT", "", "server.port: should be a whole number (GATEWAY_SERVER__PORT)"),
    ("GATEWAY_SERVER__PORT__X", "1", "server.port: should be a whole number (GATEWAY_SERVER__PORT__X)"),
    ("GATEWAY_SERVER", "8080", "server: should be a table, written as JSON (GATEWAY_SERVER)"),
    ("GATEWAY_ROUTES__0__PATH", "/x", "routes: should be a list, written as JSON (GATEWAY_ROUTES__0__PATH)"),
    (
        "GATEWAY_SINKS__OTHER__URL",
        "http://a/",
        "sinks.other.type: needed: disk, objects, relay, discard, or of the form package.module:Class (GATEWAY_SINKS__OTHER__URL)",
    ),
    (
        "GATEWAY_LIMITS__MAX_UPLOADS",
        "8",
        "limits.max_uploads: there is no such key here, but in [server] (GATEWAY_LIMITS__MAX_UPLOADS)",
    ),
    ("GATEWAY_FLOWS__GZIP__LEVEL", "33", "flows.gzip: level is 0 to 9"),
    (
        "GATEWAY_SINKS__API__FORWARD_COOKIES",
        "session",
        "sinks.api.forward_cookies: neither true nor false, nor a list of names (GATEWAY_SINKS__API__FORWARD_COOKIES)",
    ),
]
NO_TOML = [
    (b"[server\nport = 1", "line 1: Expected ']' at the end of a table declaration"),
    (b"[server]\nport = ", "line 2: no value: a text stands in quotes, and true and false in small letters"),
    (b"[server]\nhost = localhost", "line 2: no value: a text stands in quotes, and true and false in small letters"),
    (b"[server]\nport = 1\nport = 2", "line 3: the key is given twice"),
    (b"[server]\nport = 1\n\n[server]\n", "line 4: the table is given twice"),
    (b"[server]\nport = 08", "line 2: more on the line than one key and its value"),
    (b"port", "line 1: a key without = and a value"),
    (b"a = [1,\n2", "line 2: a list that does not end in ]"),
    (b'[sinks.disk]\nroot = "C:\\users"', "line 2: a backslash in a text in quotes is written twice"),
    (b"# one\n# two: \xff", "line 2: it is not UTF-8, which TOML files are"),
    ("[server]".encode("utf-16"), "line 1: it is not UTF-8, which TOML files are"),
    (b"a = " + b"[" * 5000, "lists or tables in each other, too many of them"),
    (
        b"a = " + b"1" * 5000,
        "line 1: a number of thousands of digits",
    ),
]
MANY = """
port = 1
host = "a"
[disk]
root = "a"
[server]
hots = "::"
host = "a:1"
port = "http"
workers = 0
event_loop = "uv"
trusted_networks = ["proxy"]
max_uploads = true
drain_seconds = inf
name = "a b"
[limits]
max_part = 1
max_parts = -1
idle_seconds = "30s"
max_uploads = 1
[download]
allow = ["ftp://a/"]
max_redirects = 6
[sinks]
text = "disk"
[sinks.disk]
mode = 640
root = ""
rooot = "a"
fsync = "maybe"
[sinks.api]
url = "a"
length = "guess"
expect_continue = "always"
headers = { "a b" = "1" }
health_path = "a"
per = "file"
[sinks.new]
type = "dsik"
[sinks.file]
type = "disk"
root = "my.toml"
[sinks.nowhere]
type = "relay"
[sinks.both]
type = "relay"
url = "http://a/"
urls = ["http://b/"]
[sinks.secret]
type = "relay"
url = "https://a/"
tls = { ca = "nowhere.pem" }
[sinks.spool]
type = "relay"
url = "https://a/"
spool_dir = "nowhere"
[sinks.mine]
type = "acme.nowhere:Sink"
[flows.mine]
level = 1
[flows.gzip]
levle = 1
[[routes]]
kind = "upload"
[[routes]]
path = "upload/"
[[routes]]
path = "/files"
[[routes]]
path = "/kind"
kind = "uplaod"
[[routes]]
path = "/digests"
digests = ["sha3"]
[[routes]]
path = "/sink"
parts = [{ sinks = ["dsk"] }]
[[routes]]
path = "/flow"
parts = [{ flows = ["gzpi"], sinks = ["none"] }]
[[routes]]
path = "/relay"
kind = "relay"
parts = [{ sinks = ["none"] }]
[[routes]]
path = "/none"
parts = [{ sinks = [] }]
"""

LINES_OF_MANY = """\
server.port: two underscores belong between a table and its key: GATEWAY_SERVER__PORT (GATEWAY_SERVER_PORT)
server.host: neither an address, such as "0.0.0.0" or "::", nor a host name; a port has a key of its own (my.toml)
server.port: should be a whole number (my.toml)
server.name: should be 1 to 64 letters, digits, and characters such as - . _ (my.toml)
server.workers: should be greater than or equal to 1 (my.toml)
server.event_loop: should be 'asyncio' or 'uvloop' (my.toml)
server.max_uploads: should be a number, not true or false (my.toml)
server.drain_seconds: should be a finite number (my.toml)
server.trusted_networks: proxy is not a range of addresses such as 10.1.0.0/16: 'proxy' does not appear to be an IPv4 or IPv6 network (my.toml)
server.hots: there is no such key; did you mean hosts? (my.toml)
limits.max_parts: should be greater than or equal to 0 (my.toml)
limits.idle_seconds: should be a number (my.toml)
limits.stall_seconds: should be a number (GATEWAY_LIMITS__STALL_SECONDS)
limits.max_part: there is no such key; did you mean max_parts? (my.toml)
limits.max_uploads: there is no such key here, but in [server] (my.toml)
sinks.disk.root: should not be empty (my.toml)
sinks.disk.fsync: should be true or false (my.toml)
sinks.disk.mode: should be octal, such as "0640", with at least that for the owner (my.toml)
sinks.disk.rooot: there is no such key; did you mean root? (my.toml)
sinks.api.url: the URL does not begin with http:// or https:// (my.toml)
sinks.api.length: not one of chunked, passthrough, spool, known, nor a list of them (my.toml)
sinks.api.health_path: the path does not begin with one slash (my.toml)
sinks.api.expect_continue: should be true, false or "reused" (my.toml)
sinks.api.per: should be 'upload' or 'part' (my.toml)
sinks.api.headers: one of the names is no header name (my.toml)
sinks.text: should be a table (my.toml)
sinks.new.type: should be disk, objects, relay, discard, or of the form package.module:Class (my.toml)
download.allow: ftp://a/ does not begin with http:// or https:// (my.toml)
download.max_redirects: should be less than or equal to 5 (my.toml)
routes.0.path: needed (my.toml)
routes.1.path: not a path: a slash ahead of each segment, none at the end; letters, digits, and . _ ~ - in between, and not . or .. alone (my.toml)
routes.3.kind: should be 'upload', 'relay', 'convert' or 'opaque' (my.toml)
routes.4.digests: sha3 is not one of sha256, sha512, sha1, md5, crc32, blake3 (my.toml)
routes.8.parts.0.sinks: should not be empty (my.toml)
port: there is no such key here, but in [server] and [management] (my.toml)
host: there is no such key here, but in [server] and [management] (my.toml)
disk: there is no such key; did you mean sinks.disk? (my.toml)
flows.mine.use: needed, since mine is not one of sniff, gzip, gunzip, zstd, unzstd, lines
sinks.nowhere.url: needed, or urls
sinks.both.urls: there is a url, too; one of them says where to send
routes.2.path: /files is the gateway's own
routes.5.parts.0.sinks: there is no sink dsk; did you mean disk?
routes.6.parts.0.flows: there is no flow gzpi; did you mean gzip?
routes.7.kind: a route of kind relay needs a sink of type relay
sinks.file.root: my.toml is no directory
sinks.secret.tls.ca: nowhere.pem: No such file or directory
sinks.spool.spool_dir: nowhere: No such file or directory
sinks.mine: acme.nowhere:Sink cannot be made: ModuleNotFoundError("No module named 'acme'")
flows.gzip.levle: there is no such key; did you mean level?
"""


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


@pytest.mark.parametrize(("document", "line"), NO_TOML)
def test_a_file_that_is_no_toml_is_named_with_the_line(
    document: bytes, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("my.toml").write_bytes(document)
    assert main(["check", "--config", "my.toml"]) == 2
    assert capsys.readouterr().err == f"my.toml: {line}\n"


def test_the_mark_that_editors_put_ahead_of_a_file_is_no_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    Path("my.toml").write_bytes(b"\xef\xbb\xbf[server]\r\nport = 1\r\n")
    assert main(["check", "--config", "my.toml"]) == 0


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (".", ".: Is a directory"),
        ("", "--config: Is a directory"),
        ("my.toml/x", "my.toml/x: Not a directory"),
        ("nowhere.toml", "nowhere.toml: No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(name: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("my.toml").touch()
    assert main(["check", "--config", name]) == 2
    assert capsys.readouterr().err == f"{line}\n"


def test_a_second_file_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    Path("my.toml").touch()
    with pytest.raises(SystemExit) as caught:
        main(["check", "--config", "my.toml", "--config", "my.toml"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith("error: --config is given twice\n")


@pytest.mark.sockets
@pytest.mark.parametrize("command", ["check", "serve"])
def test_all_mistakes_are_lines_of_one_process_that_exits_2(command: str) -> None:
    Path("my.toml").write_text(MANY, "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "gateway", command, "--config", "my.toml"],
        env={**os.environ, "GATEWAY_SERVER_PORT": "9000", "GATEWAY_LIMITS__STALL_SECONDS": "soon"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", LINES_OF_MANY)


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


def test_a_name_that_leads_to_no_address_names_the_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(
        'server.host = "nowhere.invalid"\n[[routes]]\npath = "/x"\naccess = ["none"]\nparts = [{sinks = ["none"]}]\n'
    )
    assert main(["serve", "--config", str(path)]) == 1
    assert "gateway: server.host: " in capsys.readouterr().err
