"""What it listens on: ports, a path of this machine, and what another process has opened."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.config.settings import Settings
from gateway.server import binding
from gateway.server.binding import ActivatedListener, bound_listeners, told_addresses
from tests.support.clients import FORM_TYPE, ask, eventually, file, form, head
from tests.support.processes import activated_gateway, gateway_process

pytestmark = pytest.mark.sockets

BODY = form(file(b"hello"))


def _settings(*listen: str, **server: object) -> Settings:
    routes = [{"path": "/upload", "access": ["none"], "parts": [{"sinks": ["disk"]}]}]
    document: dict[str, Any] = {"server": {"listen": listen, **server}, "routes": routes}
    return Settings(**document)


async def test_a_path_is_made_with_its_mode_and_removed_with_its_listener(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    (bound,), _ = await bound_listeners(_settings(f"unix:{path}", socket_mode="0600"))
    assert stat.filemode(path.stat().st_mode) == "srw-------"
    assert told_addresses([bound], []) == f"unix:{path}"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    bound.close()
    assert not path.exists()
    (bound,), _ = await bound_listeners(_settings(f"unix:{path}"))
    assert stat.filemode(path.stat().st_mode) == "srw-rw----"
    bound.close()


async def test_who_is_closed_leaves_what_another_has_put_there(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    (bound,), _ = await bound_listeners(_settings(f"unix:{path}"))
    path.rename(tmp_path / "b.sock")
    path.write_text("another's")
    bound.close()
    assert path.read_text() == "another's"


async def test_what_one_left_that_was_killed_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with closing(socket.socket(socket.AF_UNIX)) as killed:
        killed.bind(str(path))
    with pytest.raises(OSError, match="somebody listens there already"):  # and the first one's is not a stale one
        await bound_listeners(_settings(f"unix:{path}", f"unix:{tmp_path}/./a.sock"))
    assert not path.exists()
    (bound,), _ = await bound_listeners(_settings(f"unix:{path}"))
    with pytest.raises(OSError, match=r"server.listen: unix:.*/a.sock: somebody listens there already"):
        await bound_listeners(_settings(f"unix:{path}"))
    assert path.is_socket()
    bound.close()
    path.write_text("a file")
    with pytest.raises(OSError, match="there is something else of that name"):
        await bound_listeners(_settings(f"unix:{path}"))
    assert path.read_text() == "a file"
    with pytest.raises(OSError, match=r"server.listen: unix:.*nowhere"):
        await bound_listeners(_settings(f"unix:{tmp_path}/nowhere/a.sock"))


async def test_what_was_bound_is_closed_where_another_cannot_be(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        await bound_listeners(_settings(f"unix:{tmp_path}/a.sock", f"127.0.0.1:{taken.getsockname()[1]}"))
    assert list(tmp_path.iterdir()) == []


class TestInherited:
    @pytest.fixture(autouse=True)
    def _nothing_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
            monkeypatch.delenv(name, raising=False)

    @pytest.mark.parametrize(
        "told",
        [
            {},
            {"LISTEN_FDS": "1"},
            {"LISTEN_PID": "1", "LISTEN_FDS": "1"},
            {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "0"},
            {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "-1"},
            {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "one"},
        ],
    )
    async def test_nothing_is_taken_that_is_not_ours(
        self, monkeypatch: pytest.MonkeyPatch, told: dict[str, str]
    ) -> None:
        for name, value in told.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(OSError, match=r"server.listen: fd:// needs a socket unit"):
            await bound_listeners(_settings("fd://"))

    async def test_what_is_taken_is_kept_by_others_and_what_is_bound_beside_it_is_not(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """So that what waits there is left to the next one, or accepted, for nobody else would."""
        with socket.create_server(("127.0.0.1", 0)) as kept:
            self._give(monkeypatch, os.dup(kept.fileno()))
            taken, bound = (await bound_listeners(_settings("fd://", "127.0.0.1:0")))[0]
            assert (type(taken), taken.getsockname()) == (ActivatedListener, kept.getsockname())
            assert type(bound) is socket.socket
            taken.close()
            bound.close()

    @pytest.mark.parametrize(
        ("given", "told"),
        [
            ("a pipe", "fd:// was given something else than sockets: Socket operation on non-socket"),
            ("nothing", "fd:// was given something else than sockets: Bad file descriptor"),
            ("datagrams", "fd:// was given something that does not listen for connections"),
            ("a socket that does not listen", "fd:// was given something that does not listen for connections"),
        ],
    )
    async def test_what_is_no_listener_is_told(self, monkeypatch: pytest.MonkeyPatch, given: str, told: str) -> None:
        reader, writer = os.pipe()
        os.close(writer)
        if given == "nothing":
            os.close(reader)
        elif given != "a pipe":
            kind = socket.SOCK_DGRAM if given == "datagrams" else socket.SOCK_STREAM
            with socket.socket(socket.AF_INET, kind) as made:
                os.dup2(made.fileno(), reader)
        self._give(monkeypatch, reader)
        with pytest.raises(OSError, match=f"^server.listen: {told}$"):
            await bound_listeners(_settings("fd://"))
        if given == "a pipe":
            os.close(reader)

    @staticmethod
    def _give(monkeypatch: pytest.MonkeyPatch, descriptor: int) -> None:
        monkeypatch.setattr(binding, "_FIRST_INHERITED", descriptor)
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
        monkeypatch.setenv("LISTEN_FDS", "1")


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_gateway_listens_on_all_of_them(tmp_path: Path, workers: int) -> None:
    path = tmp_path / "a.sock"
    config = f'[server]\nlisten = ["127.0.0.1:0", "unix:{path}"]\nworkers = {workers}\n'
    with gateway_process(tmp_path, config, GATEWAY_SERVER__PORT="") as process:
        for url, connector in (
            (process.url, aiohttp.TCPConnector()),
            ("http://localhost", aiohttp.UnixConnector(str(path))),
        ):
            async with aiohttp.ClientSession(connector=connector) as session:
                async with session.post(f"{url}/upload", data=BODY, headers={"Content-Type": FORM_TYPE}) as response:
                    assert response.status == 201
                    stored = await response.json()
                async with session.get(f"{url}/files/{stored['upload']}/0") as response:
                    assert await response.read() == b"hello"
        await eventually(lambda: '"client": "unix:"' in process.log.read_text())
        process.terminate()
        assert await asyncio.to_thread(process.wait, 20) == 0
    assert not path.exists()


async def test_who_comes_by_ipv4_to_a_socket_of_both_is_called_by_that_address(tmp_path: Path) -> None:
    """Which is what systemd opens for a port."""
    listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    with listener, activated_gateway(tmp_path, listener) as process:
        assert (await ask(listener.getsockname()[1], "/upload", "POST", BODY)).status == 201
        await eventually(lambda: '"client": "127.0.0.1"' in process.log.read_text())


async def test_a_client_by_a_path_cannot_choose_what_it_is_called_and_a_proxy_there_can_be_trusted(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.sock"
    routes = '[[routes]]\npath = "/upload"\naccess = ["none"]\nparts = [{sinks = ["disk"]}]\n'
    for trusted, called in (("[]", "unix:"), ('["unix:"]', "192.0.2.7")):
        config = f'[server]\nlisten = ["unix:{path}"]\ntrusted_networks = {trusted}\n{routes}'
        with gateway_process(tmp_path, config, GATEWAY_SERVER__PORT="") as process:
            with socket.socket(socket.AF_UNIX) as client:
                client.bind(str(tmp_path / f"127.0.0.1{len(trusted)}"))
                client.connect(str(path))
                client.settimeout(20)
                request = head(content_length=len(BODY), x_forwarded_for="192.0.2.7") + BODY
                await asyncio.to_thread(client.sendall, request)
                assert (await asyncio.to_thread(client.recv, 100)).startswith(b"HTTP/1.1 201")
            await eventually(lambda said=f'"client": "{called}"': said in process.log.read_text())
