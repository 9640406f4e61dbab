"""`gateway check --alive`: whoever answers there is asked as the configuration says that it listens."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from yarl import URL

from gateway.cli import main
from gateway.config.settings import Settings
from gateway.server.alive import ask_alive
from tests.conftest import StartGateway
from tests.support.doubles import HonestUpstream
from tests.support.ports import closed_port
from tests.support.processes import gateway_process
from tests.support.signing import Authority

pytestmark = pytest.mark.sockets


def test_it_asks_the_port_that_is_configured_and_exits_with_1_where_nobody_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mounted = tmp_path / "mounted.toml"
    with gateway_process(tmp_path) as process:
        mounted.write_text(
            f'[server]\nhost = "0.0.0.0"\nport = {process.port}\n[[routes]]\npath = "/x"\naccess = ["none"]\n'
        )
        assert main(["check", "--alive", "--config", str(mounted)]) == 0
        assert capsys.readouterr().out == f"alive at {process.url}/healthz\n"
    assert main(["check", "--alive", "--config", str(mounted)]) == 1
    assert f"{process.url}/healthz: " in capsys.readouterr().err


async def test_over_tls_it_does_not_mind_whose_name_the_certificate_has(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    pair = Authority(tmp_path).pair("server")
    tls = {"cert": str(pair.cert), "key": str(pair.key)}
    gateway = await start_gateway(tls=tls)
    settings = Settings.model_validate({"server": {"port": gateway.port}, "tls": tls})
    assert await asyncio.to_thread(ask_alive, settings) == f"https://127.0.0.1:{gateway.port}/healthz"


async def test_the_listener_for_operators_is_asked_where_there_is_one_for_it_outlasts_the_drain(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(management={"port": 0})
    assert gateway.runner.management is not None
    port = gateway.runner.management.addresses[0][1]
    settings = Settings.model_validate({"server": {"port": closed_port()}, "management": {"port": port}})
    assert await asyncio.to_thread(ask_alive, settings) == f"http://127.0.0.1:{port}/healthz"


async def test_somebody_else_who_listens_there_is_no_gateway() -> None:
    async with HonestUpstream(404) as upstream:
        settings = Settings.model_validate({"server": {"port": URL(upstream.url).port}})
        with pytest.raises(OSError, match="the answer is a 404"):
            await asyncio.to_thread(ask_alive, settings)

    async def close(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.org\r\n")
        writer.close()

    async with await asyncio.start_server(close, "127.0.0.1", 0) as server:
        settings = Settings.model_validate({"server": {"port": server.sockets[0].getsockname()[1]}})
        with pytest.raises(OSError, match="/healthz: 220 mail"):
            await asyncio.to_thread(ask_alive, settings)


@pytest.mark.sockets
async def test_a_path_is_asked_too_and_what_only_systemd_knows_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    config = f'server.listen = ["unix:{path}"]\n'
    with gateway_process(tmp_path, config, GATEWAY_SERVER__PORT=""):
        settings = Settings.model_validate({"server": {"listen": [f"unix:{path}"]}})
        assert await asyncio.to_thread(ask_alive, settings) == f"unix:{path}"
    with pytest.raises(OSError, match="No such file"):
        await asyncio.to_thread(ask_alive, settings)
    route = {"path": "/upload", "access": ["none"], "parts": [{"sinks": ["disk"]}]}
    settings = Settings.model_validate({"server": {"listen": ["fd://"]}, "routes": [route]})
    with pytest.raises(OSError, match="nothing that could be asked here"):
        await asyncio.to_thread(ask_alive, settings)
