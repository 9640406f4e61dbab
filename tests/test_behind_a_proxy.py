"""The recipes of config/ for proxies, each with the proxy that it is for: a client forges what it can."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import ssl
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urljoin

import pytest

from gateway.http.origin import names_origin
from tests.conftest import StartGateway
from tests.support.certificates import Authority
from tests.support.clients import chunked, file, form
from tests.support.destinations import serving
from tests.support.doubles import HonestUpstream
from tests.support.ports import free_port
from tests.support.recipes import command_of, placed
from tests.test_docs import block

pytestmark = [
    pytest.mark.sockets,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made by openssl"),
]

HOST = "uploads.example.org"
PROXIES = ["nginx", "haproxy", "caddy"]
COMMANDS = {
    "nginx": "-c {0} -p {1}/ -e stderr -g",
    "haproxy": "-db -f {0}",
    "caddy": "run --adapter caddyfile --config {0}",
}
BOTH = ("gateway-1:8080", "gateway-2:8080")
NAMES = """
X-Forwarded X-Forwarded-Prefix X-Forwarded-Port X-Forwarded-Server X-Forwarded-Ssl X-Forwarded-Scheme X-Forwarded-Uri
X-Forwarded-Method X-Forwarded-User X-Forwarded-Client-Cert Forwarded-For X-Real-IP x-real-ip X-Client-IP Client-IP
X-Cluster-Client-IP X-Originating-IP X-ProxyUser-IP X-Azure-ClientIP X-Azure-SocketIP True-Client-IP TRUE-CLIENT-IP
Fastly-Client-IP Fly-Client-IP DO-Connecting-IP X-NF-Client-Connection-IP CF-Connecting-IP CF-Connecting-IPv6
CF-Pseudo-IPv4 CF-IPCountry CF-Visitor Proxy-Client-IP WL-Proxy-Client-IP X-Appengine-User-IP X-Vercel-Forwarded-For
X-Host X-Original-Host X-HTTP-Host-Override X-HTTP-Method X-HTTP-Method-Override X-Method-Override X-Original-URL
X-Original-URI X-Original-Method X-Original-Forwarded-For X-Rewrite-URL X-Scheme X-Url-Scheme Front-End-Https
Remote-User Remote-Groups X-Remote-User X-WebAuth-User X-Authenticated-User X-Auth-Request-Email X-Authentik-Username
X-Goog-Authenticated-User-Email X-Goog-IAP-JWT-Assertion X-Amzn-Oidc-Identity X-Amzn-Mtls-Clientcert
X-MS-Client-Principal CF-Access-Jwt-Assertion X-Client-Cert X-Client-DN X-Client-Verify Client-Cert Client-Cert-Chain
X-SSL X-SSL-Cert X-SSL-Client-Cert X-SSL-Client-Verify X-SSL-Client-DN X-SSL-Client-S-DN X-SSL-Client-CN
X-SSL-Client-SHA1 SSL-Client-Cert SSL-Client-Verify X-TLS-Client-Cert X-ARR-ClientCert X-Envoy-Original-Path
"""
FORGED = [
    ("Forwarded", "for=6.6.6.6;host=evil;proto=http"),
    ("FORWARDED", "for=6.6.6.6;by=evil"),
    ("X-Forwarded-For", "6.6.6.6"),
    ("x-forwarded-for", "6.6.6.6, 127.0.0.1"),
    ("X-Forwarded-Proto", "evil"),
    ("X-Forwarded-Host", "evil"),
    ("X-FORWARDED-HOST", "evil, evil"),
    ("X_Forwarded_For", "6.6.6.6"),
    ("X-Forwarded_Proto", "evil"),
    ("X_Real_IP", "6.6.6.6"),
    ("Remote_User", "evil"),
    ("Proxy", "http://evil"),
    ("Connection", "close, X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host, Host"),
]


@contextmanager
def proxy(name: str, upstream: str, directory: Path, certificate: tuple[Path, Path]) -> Iterator[int]:
    """The port of one that is configured by its file, with its host, port, certificate and gateway put in."""
    command = command_of(name)
    port = free_port()
    listen = f"127.0.0.1:{port}"
    cert, key = certificate
    words = dict.fromkeys(BOTH, upstream.removeprefix("http://"))
    arguments = COMMANDS[name]
    further = []
    match name:
        case "nginx":
            other = f"server {{ listen {listen} ssl default_server; return 444; }}"
            words |= {
                "listen 8000;": f"listen {listen} ssl; server_name {HOST};",
                "server_tokens off;": f"ssl_certificate {cert}; ssl_certificate_key {key}; {other}",
            }
            further = ["daemon off;" + (" user root;" if os.geteuid() == 0 else "")]
            file = placed(name, directory, words) / "nginx.conf"
        case "haproxy":
            both = directory / "both.pem"
            both.write_text(cert.read_text() + key.read_text())
            file = placed(name, directory, {**words, ":443 ": f"{listen} ", "/etc/haproxy/site.pem": str(both)})
            file /= "haproxy.cfg"
        case "caddy":
            site = f"https://{HOST}:{port} {{\nbind 127.0.0.1\ntls {cert} {key}\n"
            file = placed(name, directory, {**words, f"{HOST} {{\n": site}) / "Caddyfile"
            file.write_text("{\nadmin off\nauto_https disable_redirects\n}\n" + file.read_text())
    with serving([command, *arguments.format(file, directory).split(), *further], directory / "log", port=port):
        yield port


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


async def sent(port: int, authority: Authority, *pieces: bytes, pause: float = 0) -> bytes:
    """What came back until the end of the connection."""
    context = ssl.create_default_context(cafile=authority.ca)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=HOST)
    async with asyncio.timeout(20):
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(pause)
        answer = await reader.read()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return answer


def request(start: str, host: str, *headers: str, body: bytes, chunk: bool = False) -> bytes:
    framing = "Transfer-Encoding: chunked" if chunk else f"Content-Length: {len(body)}"
    lines = [
        f"{start} HTTP/1.1",
        f"Host: {host}",
        *headers,
        framing,
        "Content-Type: multipart/form-data; boundary=b0undary",
        "",
        "",
    ]
    # with trailers that a careless hop would take for fields
    trailer = b"0\r\nX-Forwarded-For: 6.6.6.6\r\nX-Real-IP: evil\r\n\r\n"
    return "\r\n".join(lines).encode() + (chunked(body).removesuffix(b"0\r\n\r\n") + trailer if chunk else body)


@pytest.mark.parametrize("name", PROXIES)
async def test_with_the_recipe_a_destination_learns_the_truth_whatever_is_forged(
    start_gateway: StartGateway, tmp_path: Path, authority: Authority, name: str
) -> None:
    server = tomllib.loads(block("toml", "trusted_header"))["server"]
    body = form(file(b"data"))
    async with HonestUpstream(200, b"{}") as upstream:
        origin = urljoin(upstream.url, "/").rstrip("/")
        download = {"allow": [f"{origin}/*"], "allow_private": ["127.0.0.0/8"]}
        gateway = await start_gateway(api=upstream.url, server=server, download=download)
        with proxy(name, gateway.url, tmp_path, authority.issue(name, f"DNS:{HOST}")) as port:
            names = NAMES.split()
            batches = [names[number::3] for number in range(3)]  # HAProxy takes a hundred fields
            forged = [f"{field}: {value}" for field, value in FORGED]
            for batch in batches:
                more = [*(f"{field}: evil" for field in batch), "X-Kept: as it is"]
                sending = request("POST /proxy", HOST, *forged, *more, body=body, chunk=batch is batches[0])
                assert (await sent(port, authority, sending)).startswith(b"HTTP/1.1 200 ")
            for start, host in ((f"POST http://{HOST}/proxy", "evil"), ("POST http://evil/proxy", HOST)):
                await sent(port, authority, request(start, host, *forged, "Connection: close", body=body))
            for url in (f"{origin}/a%2Fb?c=%2F/", quote(f"{origin}/a%2Fb?c=%2F/", safe="")):
                fetching = f"GET /download/{url} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"
                fetched = await sent(port, authority, fetching.encode())
                assert fetched.startswith(b"HTTP/1.1 200 "), fetched
                assert upstream.exchanges.pop().target == "/a%2Fb?c=%2F/"
            slowly = request("POST /selftest/buffering?seconds=1", HOST, "Connection: close", body=b"12")
            told = await sent(port, authority, slowly[:-1], slowly[-1:], pause=1)
    assert b'"buffered": false' in told
    assert len(upstream.exchanges) >= len(batches)
    for number, exchange in enumerate(upstream.exchanges):
        headers = dict(exchange.headers)
        said = "\n".join(f"{field}: {value}" for field, value in exchange.headers)
        assert not re.search(r"evil|6\.6\.6\.6|^[^:]*[_.][^:]*:", said, re.MULTILINE), said
        assert len(headers) == len(exchange.headers)
        assert headers["x-forwarded-for"] == "127.0.0.1, 127.0.0.1"
        assert (headers["x-forwarded-proto"], headers["x-forwarded-host"]) == ("https", HOST)
        hops = [f"for=127.0.0.1;host={HOST};proto={scheme}" for scheme in ("https", "http")]
        assert headers["forwarded"] == ", ".join(hops)
        assert number >= len(batches) or headers["x-kept"] == "as it is"
        told_by = {field for field in headers if names_origin(field)}
        assert told_by == {"forwarded", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"}
