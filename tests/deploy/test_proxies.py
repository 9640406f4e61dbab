"""The proxies' files as programs read them, and what they do when a gateway is gone: tests/test_behind_a_proxy.py
forges headers behind them.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import StartGateway
from tests.support.certificates import Authority
from tests.support.clients import ask, file, form
from tests.support.destinations import serving
from tests.support.ports import closed_port, free_port
from tests.support.recipes import CONFIG, command_of, placed
from tests.test_docs import blocks

pytestmark = pytest.mark.sockets

NAMES = {"gateway-1:8080": "127.0.0.1:1", "gateway-2:8080": "127.0.0.1:2"}
NGINX = ("-e", "stderr", "-g", "daemon off;" + (" user root;" if os.geteuid() == 0 else ""))


def accepted(command: str, *arguments: str | Path) -> str:
    """What it says of a file that it takes."""
    done = subprocess.run([command_of(command), *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_nginx_takes_its_file(tmp_path: Path) -> None:
    folder = placed("nginx", tmp_path, NAMES)
    said = accepted("nginx", "-t", "-p", f"{tmp_path}/", "-c", folder / "nginx.conf", *NGINX)
    assert "warn" not in said


def test_haproxy_takes_its_file(tmp_path: Path) -> None:
    command_of("openssl")
    cert, key = Authority(tmp_path).issue("site", "DNS:uploads.example.org")
    (tmp_path / "site.pem").write_text(cert.read_text() + key.read_text())
    words = {**NAMES, "/etc/haproxy/site.pem": str(tmp_path / "site.pem")}
    assert "WARNING" not in accepted("haproxy", "-c", "-f", placed("haproxy", tmp_path, words) / "haproxy.cfg")


def test_caddy_takes_its_file(tmp_path: Path) -> None:
    path = placed("caddy", tmp_path, NAMES) / "Caddyfile"
    assert "Valid configuration" in accepted("caddy", "validate", "--adapter", "caddyfile", "--config", path)


def test_what_the_page_says_of_nginx_stands_in_its_files() -> None:
    files = [path.read_text("utf-8") for path in (CONFIG / "nginx").iterdir()]
    written = {line.partition("#")[0].strip() for text in files for line in text.splitlines()}
    said = [block for block in blocks("nginx") if "http://gateways;" in block or "client_max_body_size" in block]
    assert len(said) == 2
    assert {line.partition("#")[0].strip() for block in said for line in block.splitlines()} <= written | {""}


async def test_nginx_goes_on_with_one_gateway_where_one_is_gone(start_gateway: StartGateway, tmp_path: Path) -> None:
    gateway = await start_gateway()
    port = free_port()
    words = {
        "gateway-1:8080": f"127.0.0.1:{closed_port()}",
        "gateway-2:8080": f"127.0.0.1:{gateway.port}",
        "listen 8000;": f"listen 127.0.0.1:{port};",
    }
    folder = placed("nginx", tmp_path, words)
    command = [command_of("nginx"), "-p", f"{tmp_path}/", "-c", f"{folder}/nginx.conf", *NGINX]
    with serving(command, tmp_path / "log", port=port):
        for _ in range(4):
            answer = await ask(port, "/upload", "POST", form(file(b"hello")))
            assert answer.status == 201
        assert (await ask(port, "/nginx-health")).body == b"ok\n"
