"""Where it can listen, as it is written, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.cli import main
from gateway.config.addresses import Address, Inherited, TcpAddress, UnixAddress, parsed_address
from gateway.config.load import load


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8080", TcpAddress("127.0.0.1", 8080)),
        ("0.0.0.0:0", TcpAddress("0.0.0.0", 0)),
        ("[::1]:65535", TcpAddress("::1", 65535)),
        ("[fe80::1%eth0]:80", TcpAddress("fe80::1%eth0", 80)),
        ("localhost:8080", TcpAddress("localhost", 8080)),
        ("files-1.example.org:443", TcpAddress("files-1.example.org", 443)),
        ("unix:/run/gateway.sock", UnixAddress("/run/gateway.sock")),
        ("unix:var/a b:c.sock", UnixAddress("var/a b:c.sock")),
        ("unix:/" + 106 * "a", UnixAddress("/" + 106 * "a")),
        ("fd://", Inherited()),
    ],
)
def test_what_it_can_listen_on(text: str, address: Address) -> None:
    assert parsed_address(text) == address
    assert type(parsed_address(text)) is type(address)
    assert address.told("http").removeprefix("http://") == text


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "8080", ":8080", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:http"),
        *("::1:8080", "[::1]", "[127.0.0.1]:80", "[]:80", "127.0.0.256:80", "a b:80", "http://127.0.0.1:80", "*:80"),
        *("unix:", "unix:\0a", "unix:@gateway", "unix:" + 108 * "a", "unix:" + 54 * "ü", "fd:", "fd://3", "FD://"),
    ],
)
def test_what_it_cannot(text: str) -> None:
    with pytest.raises(ValueError, match=r"should be such as|a path is needed|107 bytes|brackets"):
        parsed_address(text)


def _config(tmp_path: Path, lines: str) -> Path:
    path = tmp_path / "my.toml"
    path.write_text(f"{lines}\n")
    return path


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('listen = ["127.0.0.1"]', "server.listen: 127.0.0.1: should be such as 127.0.0.1:8080"),
        ("listen = []", "server.listen: "),
        ('listen = ["127.0.0.1:1"]\nport = 8080', "server.port: server.listen says where it listens"),
        ('listen = ["127.0.0.1:1"]\nhost = "127.0.0.1"', "server.host: server.listen says where it listens"),
        ('listen = ["unix:/a", "127.0.0.1:1", "unix:/a"]', "server.listen: unix:/a is there twice"),
        ('listen = ["127.0.0.1:9"]\n[management]\nport = 9', "management.port: 9 is in server.listen, too"),
        ('listen = ["unix:/a"]\nsocket_mode = "rw"', "server.socket_mode: should be octal"),
        (
            'listen = ["0.0.0.0:80"]',
            "routes: the default ones let anybody in, and others than this machine reach",
        ),
        ('listen = ["fd://"]', "routes: the default ones let anybody in, and others than this machine may reach what"),
        (
            'listen = ["unix:/a"]\ntrusted_networks = ["unix:"]',
            "routes: the default ones let anybody in, and server",
        ),
        ('trusted_networks = ["unix:/a"]', "server.trusted_networks: unix:/a is not a range of addresses"),
        ('log_level = "LOUD"', "server.log_level: "),
        ("drain_delay_seconds = -1", "server.drain_delay_seconds: "),
    ],
)
def test_mistakes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: str, said: str) -> None:
    assert main(["check", "--config", str(_config(tmp_path, f"[server]\n{lines}"))]) == 2
    assert any(line.startswith(said) for line in capsys.readouterr().err.splitlines())


def test_an_environment_can_say_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_SERVER__LISTEN", '["unix:/run/a.sock", "127.0.0.1:0"]')
    assert load().server.addresses == [UnixAddress("/run/a.sock"), TcpAddress("127.0.0.1", 0)]


def test_check_tells_all_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _config(tmp_path, 'server.listen = ["127.0.0.1:8080", "[::1]:8080", "unix:/run/a.sock"]')
    assert main(["check", "--config", str(path)]) == 0
    assert "at http://127.0.0.1:8080, http://[::1]:8080, unix:/run/a.sock:" in capsys.readouterr().out
