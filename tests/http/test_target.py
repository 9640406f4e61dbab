"""What a request asks for: which host, by its target or its Host, and what is none."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest

from gateway.errors import Malformed
from gateway.http.target import is_host, origin_form, requested_host
from tests.conftest import StartGateway
from tests.support.clients import Client, file, form
from tests.support.doubles import HonestUpstream

HOSTS = [
    "a",
    "a.example",
    "A_b.example.",
    "a:8080",
    "a:",
    "127.0.0.1:1",
    "[::1]",
    "[2001:db8::1]:65535",
    "xn--bcher-kva",
]
NO_HOSTS = [
    *(
        'a"b',
        "a b",
        "a,b",
        "a;b",
        "a=b",
        "a/b",
        "a?b",
        "a#b",
        "a@b",
        "user:pw@a",
        "a\\b",
        "a%20b",
        "a%2eb",
        "ä",
        "a\x7f",
    ),
    *(
        "a:b",
        "a:65536",
        "a:123456",
        "a:-1",
        "a:٨",
        "a:1:2",
        "::1",
        "[::1",
        "[::1]x",
        "[::g]",
        "[v1.x]",
        "[fe80::1%25e]",
    ),
    *("a:٨", "ä", "a\x7f", "*", "{a}", "<a>", "a'b", "a\tb", "a\x00b", "http://a", "\udcff"),
]


@pytest.mark.parametrize("host", HOSTS)
def test_a_name_or_an_address_is_a_host_with_a_port_or_without(host: str) -> None:
    assert is_host(host)
    assert requested_host("/", [host]) == host


@pytest.mark.parametrize("host", NO_HOSTS)
def test_what_has_another_meaning_somewhere_is_none_and_never_quoted(host: str) -> None:
    assert not is_host(host)
    for target, hosts in (("/", [host]), (f"http://{host}/", ["a"]), ("http://a/", [host])):
        if host in ("a/b", "a?b", "a#b", "http://a") and target != "/" and hosts == ["a"]:
            continue  # there it ends the host
        with pytest.raises(Malformed) as caught:
            requested_host(target, hosts)
        assert host == "*" or host not in caught.value.detail


@pytest.mark.parametrize(
    ("target", "hosts", "host"),
    [
        ("/", [], ""),
        ("/", [""], ""),
        ("/", [" a "], "a"),
        ("/http://b/", ["a"], "a"),
        ("*", ["a"], "a"),
        ("http://b", ["a"], "b"),
        ("HTTP://b:81?x", ["a"], "b:81"),
        ("https://[::1]:8/x", [""], "[::1]:8"),
    ],
)
def test_an_absolute_target_goes_before_host(target: str, hosts: Sequence[str], host: str) -> None:
    assert requested_host(target, hosts) == host


@pytest.mark.parametrize(
    ("target", "hosts"),
    [("/", ["a", "a"]), ("/", ["a", "b"]), ("ftp://a/", ["a"]), ("http:///x", ["a"]), ("http://u@a/", ["a"])],
)
def test_two_hosts_and_targets_of_elsewhere_are_refused(target: str, hosts: Sequence[str]) -> None:
    with pytest.raises(Malformed):
        requested_host(target, hosts)


@pytest.mark.parametrize(
    ("target", "form"),
    [
        ("/a?b", "/a?b"),
        ("http://h/a?b", "/a?b"),
        ("http://h", "/"),
        ("http://h?b", "/?b"),
        ("*", "*"),
        ("//h/a", "//h/a"),
    ],
)
def test_the_path_is_the_same_in_either_form(target: str, form: str) -> None:
    assert origin_form(target) == form


# -- over sockets


def _request(target: str, *fields: bytes) -> bytes:
    body = form(file(b"data"))
    head = [b"POST %s HTTP/1.1" % target.encode(), *fields, b"Content-Type: multipart/form-data; boundary=b0undary"]
    return b"\r\n".join([*head, b"Content-Length: %d" % len(body), b"", body])


@pytest.mark.parametrize("path", ["/proxy", "/upload", "/healthz", "/uploads/x", "/nowhere"])
@pytest.mark.parametrize("host", [b'evil";proto=https;x="', b"a,b", b"a b", b"user:hunter2@a", b"a:99999"])
async def test_a_host_that_is_none_is_a_400_on_every_path_before_the_body(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture, path: str, host: bytes
) -> None:
    caplog.set_level(logging.INFO)
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await start_gateway(api=upstream.url)
        async with Client(gateway.port) as client:
            await client.send(_request(path, b"Host: " + host))
            answer = await client.answer()
    assert (answer.status, answer.json()["type"]) == (400, "/problems/malformed")
    assert upstream.exchanges == []
    assert host not in answer.body
    assert host.decode() not in caplog.text
    assert "hunter2" not in caplog.text


async def test_the_authority_of_the_target_replaces_host_where_a_destination_is_told(
    start_gateway: StartGateway,
) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await start_gateway(api=upstream.url)
        async with Client(gateway.port) as client:
            await client.send(_request("http://gw.example:81/proxy?a=1", b"Host: other"))
            assert (await client.answer()).status == 200
    headers = dict(upstream.exchanges[0].headers)
    assert headers["x-forwarded-host"] == "gw.example:81"
    assert headers["forwarded"] == 'for=127.0.0.1;host="gw.example:81";proto=http'
