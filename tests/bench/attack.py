"""What an attack costs the gateway: `make attack`, some minutes long; the table is in docs/attacks.md.

Each attack has a server of its own. `--root` is another checkout, to compare with; its own .venv is used.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
B = b"attack"
MIB = 1 << 20
NAMED = b'Content-Disposition: form-data; name="f"; filename="'
_TICKS = os.sysconf("SC_CLK_TCK")
CONFIG = """
[server]
port = {port}
max_uploads_per_address = 0
{server}
[limits]
idle_seconds = 5
{limits}
[sinks.disk]
root = "{place}/uploads"
fsync = false
[sinks.self]
type = "relay"
url = "http://127.0.0.1:{port}/loop"
[sinks.each]
type = "relay"
url = "http://127.0.0.1:{other}/"
per = "part"
length = "spool"
[[routes]]
path = "/upload"
parts = [{{ sinks = ["disk"] }}]
[[routes]]
path = "/drop"
parts = [{{ sinks = ["none"] }}]
[[routes]]
path = "/unzstd"
parts = [{{ flows = ["unzstd"], sinks = ["none"] }}]
[[routes]]
path = "/loop"
kind = "relay"
parts = [{{ sinks = ["self"] }}]
[[routes]]
path = "/each"
parts = [{{ sinks = ["each"] }}]
"""


class Gateway:
    """A process of its own, with what it costs."""

    def __init__(self, pid: int, port: int, log: Path) -> None:
        self.pid = pid
        self.port = port
        self.log = log

    @property
    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def memory(self, key: str) -> int:
        """In bytes; VmRSS or VmHWM."""
        found = re.search(rf"{key}:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text())
        assert found is not None
        return int(found[1]) << 10

    def connect(self, receive_bytes: int = 0) -> socket.socket:
        one = socket.socket()
        if receive_bytes:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        one.connect(("127.0.0.1", self.port))
        one.settimeout(120)
        return one

    def post(self, path: str, body: bytes, *, chunk: int = 0) -> bytes:
        """The head of the answer."""
        framing = b"Transfer-Encoding: chunked" if chunk else b"Content-Length: %d" % len(body)
        if chunk:
            body = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
        head = b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=%b\r\n%b\r\n\r\n"
        with self.connect() as one:
            sender = threading.Thread(target=_send, args=(one, head % (path.encode(), B, framing) + body))
            sender.start()
            answer = b""
            with suppress(OSError):
                while b"\r\n\r\n" not in answer and (data := one.recv(65536)):
                    answer += data
            sender.join(60)
        return answer


def _send(one: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        one.sendall(data)


@contextmanager
def gateway(root: Path, other: int = 9, *, server: str = "", limits: str = "") -> Iterator[Gateway]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="attack-") as place:
        config, log = Path(place, "gateway.toml"), Path(place, "log")
        config.write_text(CONFIG.format(port=port, place=place, other=other, server=server, limits=limits))
        command = [str(root / ".venv/bin/python"), "-m", "gateway", "serve", "--config", str(config)]
        with log.open("wb") as output:
            process = subprocess.Popen(command, cwd=root, stdout=output, stderr=output)
        try:
            while True:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                if process.poll() is not None:
                    sys.exit(log.read_text())
                time.sleep(0.05)
            yield Gateway(process.pid, port, log)
        finally:
            process.kill()
            process.wait()


def part(head: bytes, data: bytes = b"x") -> bytes:
    return b"--%b\r\n%b\r\n\r\n%b\r\n" % (B, head, data)


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--%b--\r\n" % B


def cost(root: Path, path: str, body: bytes, *, chunk: int = 0) -> str:
    """MB of a body per second of the processor's time, or how much it took until it was refused."""
    with gateway(root) as server:
        server.post("/drop", form(part(NAMED + b'a"')))
        began = server.cpu_seconds
        status = server.post(path, body, chunk=chunk)[9:12].decode()
        took = max(server.cpu_seconds - began, 1 / _TICKS)
    return f"{len(body) / 1e6 / took:.1f} MB/s ({status})" if status == "201" else f"{status} after {took:.2f} s"


def manifest_of_control_characters(root: Path) -> str:
    field = part(b'Content-Disposition: form-data; name="f"', b"\x01" * (MIB - 8) + "\U0001f600".encode())
    with gateway(root) as server:
        before = server.memory("VmRSS")
        status = server.post("/upload", form(*[field] * 7, part(NAMED + b'a"')))[9:12].decode()
        return f"{(server.memory('VmHWM') - before) / MIB:+.0f} MiB ({status})"


def readers_that_read_nothing(root: Path) -> str:
    field = part(b'Content-Disposition: form-data; name="f"', b"\x01" * (MIB - 8) + "\U0001f600".encode())
    with gateway(root) as server:
        answer = server.post("/upload", form(*[field] * 7, part(NAMED + b'a"')))
        location = re.search(rb"(?i)location: (\S+)", answer)
        assert location is not None
        before = server.memory("VmRSS")
        clients = [server.connect(4096) for _ in range(20)]
        for one in clients:
            one.sendall(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % location[1])
        time.sleep(2)
        grown = server.memory("VmRSS") - before
        began = time.monotonic()
        gone = "never gone"
        while time.monotonic() - began < 20:
            table = Path(f"/proc/{server.pid}/fd")
            if sum(1 for fd in table.iterdir() if _is_socket(fd)) < 10:
                gone = f"gone after {time.monotonic() - began + 2:.0f} s"
                break
            time.sleep(0.5)
        for one in clients:
            one.close()
        return f"{grown / MIB:+.0f} MiB, {gone}"


def _is_socket(descriptor: Path) -> bool:
    try:
        return os.readlink(descriptor).startswith("socket:")
    except OSError:
        return False


def unfinished_heads(root: Path) -> str:
    with gateway(root) as server:
        before = server.memory("VmRSS")
        clients = [server.connect() for _ in range(300)]
        for one in clients:
            one.settimeout(0.2)
            _send(
                one, b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X-%d: %b\r\n" % (n, b"y" * 8000) for n in range(240))
            )
        time.sleep(1)
        each = (server.memory("VmRSS") - before) / 300
        for one in clients:
            one.close()
        return f"{each / 1024:.0f} KiB a connection"


def fields_with_every_file(root: Path) -> str:
    received = 0

    def swallow(listener: socket.socket) -> None:
        nonlocal received
        while True:
            try:
                one, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=read, args=(one,), daemon=True).start()

    def read(one: socket.socket) -> None:
        nonlocal received
        end = b""
        with suppress(OSError), one:
            while data := one.recv(1 << 20):
                received += len(data)
                end = (end + data)[-8:]
                if end.endswith(b"--\r\n"):
                    one.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=swallow, args=(listener,), daemon=True).start()
        field = part(b'Content-Disposition: form-data; name="f"', b"x" * (MIB - 8))
        body = form(*[field] * 7, *[part(NAMED + b'%d"' % number) for number in range(200)])
        with gateway(root, listener.getsockname()[1]) as server:
            status = server.post("/each", body)[9:12].decode()
    return f"{received / len(body):.0f} times as much out as in ({status})"


def a_relay_onto_itself(root: Path) -> str:
    with gateway(root) as server:
        status = server.post("/loop", form(part(NAMED + b'a"')))[9:12].decode()
        time.sleep(0.5)
        count = server.log.read_text().count('"route": "/loop"')
        return f"{count} uploads ({status})"


def slow_uploads(root: Path, *, count: int = 1000, size: int = 256 * MIB) -> str:
    """Each sends 1 KB a second; what two fast ones at a time get of the speed that they have without them."""
    body = form(part(NAMED + b'a"', bytes(size)))
    speeds: dict[int, list[float]] = {0: [], count: []}
    with gateway(root, server="max_uploads = 1100", limits="min_rate_bytes = 0") as server:
        for _ in range(3):
            for slow, measured in speeds.items():
                with _sending_slowly(server, slow) as clients:
                    measured.append(_speed_of_two(server, body))
                    alive = sum(_is_open(one) for one in clients)
                    assert alive == slow, f"{slow - alive} of {slow} were cut off"
    alone, beside = (max(measured) for measured in speeds.values())
    return f"{beside / alone:.2f} of their speed ({alone / 1e6:.0f} MB/s alone)"


def _speed_of_two(server: Gateway, body: bytes) -> float:
    answers: list[bytes] = []
    threads = [threading.Thread(target=lambda: answers.append(server.post("/upload", body))) for _ in range(2)]
    began = time.monotonic()
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert [answer[9:12] for answer in answers] == [b"201"] * 2, answers
    return 2 * len(body) / (time.monotonic() - began)


@contextmanager
def _sending_slowly(server: Gateway, count: int) -> Iterator[list[socket.socket]]:
    """From 250 addresses of this machine."""
    head = b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=%b\r\n" % B
    head += b'Content-Length: 100000000\r\n\r\n--%b\r\n%ba"\r\n\r\n' % (B, NAMED)
    clients: list[socket.socket] = []
    ended = threading.Event()

    def send() -> None:
        while not ended.wait(1):
            for one in clients:
                with suppress(OSError):
                    one.sendall(bytes(1000))

    try:
        for number in range(count):
            one = socket.socket()
            one.bind((f"127.0.{1 + number % 250}.1", 0))
            one.connect(("127.0.0.1", server.port))
            one.sendall(head)
            clients.append(one)
        sender = threading.Thread(target=send)
        sender.start()
        time.sleep(2)
        yield clients
    finally:
        ended.set()
        sender.join()
        for one in clients:
            one.close()


def _is_open(one: socket.socket) -> bool:
    one.setblocking(False)
    try:
        return one.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        one.setblocking(True)


ATTACKS: dict[str, Callable[[Path], str]] = {
    "an honest body": lambda root: cost(root, "/drop", form(part(NAMED + b'a"', os.urandom(MIB) * 256))),
    "empty zstd frames": lambda root: cost(
        root, "/unzstd", form(part(NAMED + b'a.zst"', bytes.fromhex("28b52ffd2000010000") * 200_000))
    ),
    "skippable zstd frames": lambda root: cost(
        root, "/unzstd", form(part(NAMED + b'a.zst"', bytes.fromhex("502a4d1800000000") * 200_000))
    ),
    "file names of escaped quotes": lambda root: cost(root, "/drop", form(part(NAMED + b'\\"' * 7900 + b'"') * 900)),
    "empty parameters": lambda root: cost(root, "/drop", form(part(NAMED + b'a"' + b"; " * 7900) * 900)),
    "chunks of one byte": lambda root: cost(root, "/drop", form(part(NAMED + b'a"', b"x" * 4 * MIB)), chunk=1),
    "look-alikes of the delimiter": lambda root: cost(
        root, "/drop", form(part(NAMED + b'a"', (b"\r\n--" + B + b"x") * 4_000_000))
    ),
    "a manifest of control characters": manifest_of_control_characters,
    "20 readers of it that read nothing": readers_that_read_nothing,
    "300 unfinished heads of 2 MB": unfinished_heads,
    "7 MiB of fields, 200 files, per part": fields_with_every_file,
    "1,000 slow uploads beside two fast ones": slow_uploads,
    "a relay onto itself": a_relay_onto_itself,
}


def main() -> int:
    """Print a table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--root", type=Path, default=ROOT)
    options.add_argument("--only", default="")
    chosen = options.parse_args()
    for name, attack in ATTACKS.items():
        if chosen.only in name:
            print(f"| {name} | {attack(chosen.root.resolve())} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
