"""The memory that the worst inputs take, beside the bound that `gateway check` prints: `make bound`, minutes long.

Each configuration has one route, and each input a server of its own, a process, whose peak of resident memory is looked
at: what it grew by while as many clients as there are slots sent the same, to sinks that take nothing, or nothing more.
The table is in docs/attacks.md.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KIB, MIB = 1 << 10, 1 << 20
UPLOADS = 4
B = b"bound"
TOO_WIDE = "\U0001f600".encode()
"""One character that makes each of a Python text four bytes."""
BASE = """
[server]
port = 0
max_uploads = {uploads}
max_uploads_per_address = 0
max_reads = {reads}
max_connections = {connections}
[sinks.disk]
root = "{place}/uploads"
[sinks.api]
type = "relay"
url = "http://127.0.0.1:{deaf}/"
failures_to_open = 0
"""
Sending = Iterator[bytes | None]
"""Pieces of a body; None: from here on the sinks take nothing."""


# -- what is sent


def field(name: bytes, value: bytes) -> bytes:
    return b'--%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (B, name, value)


def begin_file(filename: bytes, more: bytes = b"", name: bytes = b"f") -> bytes:
    head = b'--%b\r\nContent-Disposition: form-data; name="%b"; filename="%b"\r\n%b\r\n'
    return head % (B, name, filename, more)


def file(filename: bytes, data: bytes, more: bytes = b"") -> bytes:
    return begin_file(filename, more) + data + b"\r\n"


def end() -> bytes:
    return b"--%b--\r\n" % B


BLOCK = os.urandom(MIB)
JUNK = b"X-Junk: %b\r\n" % (b"j" * 15 * KIB)


def large_file() -> Sending:
    yield None
    yield begin_file(b"a")
    for _ in range(100):
        yield BLOCK
    yield b"\r\n" + end()


def files_of(size: int) -> Callable[[], Sending]:
    def send() -> Sending:
        yield None
        for _ in range(min(100 * MIB // size, 900)):
            yield file(b"a", (BLOCK * 2)[:size])
        yield end()

    return send


def values(value: bytes, count: int) -> Callable[[], Sending]:
    def send() -> Sending:
        for _ in range(count):
            yield field(b"f", value)
        yield file(b"a", b"x") + end()

    return send


def small_files(filename: bytes, count: int, more: bytes = b"") -> Callable[[], Sending]:
    def send() -> Sending:
        for _ in range(count):
            yield file(filename, b"x", more)
        yield end()

    return send


def everything() -> Sending:
    """Values, then heads, and then files when the sinks take nothing."""
    for _ in range(127):
        yield field(b"f", b"\xc3\xbc" * 32 * KIB)
    for _ in range(500):
        yield file(b"a" * 80, b"x", JUNK)
    yield None
    for _ in range(10):
        yield file(b"a", (BLOCK * 2)[: 1400 * KIB])
    yield end()


INPUTS: dict[str, Callable[[], Sending]] = {
    "a file of 100 MiB": large_file,
    "files of 1 MiB": files_of(MIB),
    "files of 1.4 MiB": files_of(1400 * KIB),
    "files of 200 KiB": files_of(200 * KIB),
    "8 values of 1 MiB": values(b"v" * (MIB - 8), 8),
    "128 values of 64 KiB": values(b"v" * 64 * KIB, 127),
    "42 values of control characters": values(b"\x01" * 64 * KIB, 42),
    "128 values, one character outside latin-1 in each": values(TOO_WIDE + b"v" * (64 * KIB - 4), 127),
    "names of 16 KB": small_files(b"n" * 16000, 980),
    "names, one character outside latin-1 in each": small_files(TOO_WIDE + b"n" * 15900, 980),
    "names of 7 KB": small_files(b"n" * 7000, 980),
    "1,000 heads of 16 KB": small_files(b"a", 1000, JUNK),
    "values and heads, then files": everything,
}


# -- whom it is sent to


ROUTE = '[[routes]]\npath = "/upload"\n'
CASES = {
    "disk": ROUTE + 'parts = [{ sinks = ["disk"] }]',
    "relay": ROUTE + 'kind = "relay"\nparts = [{ sinks = ["api"] }]',
    "disk and relay": ROUTE + 'parts = [{ sinks = ["disk", "api"] }]',
    "relay, a request for each file": 'per = "part"\nmax_outbound_ratio = 0\n'
    + ROUTE
    + 'keep = "each"\nparts = [{ sinks = ["api"] }]',
    "the same, spooled": 'per = "part"\nmax_outbound_ratio = 0\nlength = "spool"\n'
    + ROUTE
    + 'parts = [{ sinks = ["api"] }]',
    "relay, spooled": 'length = "spool"\n' + ROUTE + 'kind = "relay"\nparts = [{ sinks = ["api"] }]',
    "relay, passthrough": 'length = "passthrough"\n' + ROUTE + 'kind = "relay"\nparts = [{ sinks = ["api"] }]',
    "relay, fields first": f"fields_first_bytes = {8 * MIB}\n"
    + ROUTE
    + 'kind = "relay"\nparts = [{ sinks = ["api"] }]',
    "disk, and relay as best effort": ROUTE + 'parts = [{ sinks = ["disk", { sink = "api", mode = "best_effort" }] }]',
    "gzip to disk": ROUTE + 'kind = "convert"\nparts = [{ flows = ["sniff", "gzip"], sinks = ["disk"] }]',
}
"""The rest of the table of the relay, and a route."""


class Destination:
    """Reads and answers, until it is `deaf`: then it takes nothing more."""

    def __init__(self) -> None:
        self.deaf = False
        self._accepted: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * KIB)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                one = self._listener.accept()[0]
                self._accepted.append(one)
                threading.Thread(target=self._read, args=(one,), daemon=True).start()

    def _read(self, one: socket.socket) -> None:
        last = b""
        with suppress(OSError):
            while not self.deaf and (data := one.recv(256 * KIB)):
                last = (last + data)[-7:]
                if last.endswith((b"\r\n0\r\n\r\n", b"--\r\n")):
                    one.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    def close(self) -> None:
        self._listener.close()
        for one in self._accepted:
            one.close()


class Server:
    """The gateway as a process, on a disk that can hang."""

    def __init__(
        self, case: str, place: Path, destination: Destination, *, uploads: int, reads: int, connections: int
    ) -> None:
        config = place / "gateway.toml"
        base = BASE.format(uploads=uploads, reads=reads, connections=connections, place=place, deaf=destination.port)
        config.write_text(f"{base}{case}\n")
        self.hangs = place / "hangs"
        self._destination = destination
        self._log = place / "log"
        python = [sys.executable, "-m"]
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [*python, "tests.bench.hanging_disk", str(self.hangs), "serve", "--config", str(config)],
                cwd=ROOT,
                stdout=output,
                stderr=output,
            )
        checked = subprocess.run(
            [*python, "gateway", "check", "--config", str(config)], cwd=ROOT, capture_output=True, text=True, check=True
        )
        found = re.search(r"^ *([\d.]+) MiB  for ", checked.stdout, re.MULTILINE)
        assert found is not None, checked.stdout
        self.bound_bytes = int(float(found[1]) * MIB)
        found = re.search(r"^ *([\d.]+) MiB  per upload", checked.stdout, re.MULTILINE)
        assert found is not None, checked.stdout
        self.upload_bytes = int(float(found[1]) * MIB)
        """Of the bound, for one upload."""
        self.port = self._port()

    def _port(self) -> int:
        for _ in range(600):
            if match := re.search(r"listen\w* on http://127\.0\.0\.1:(\d+)", self._log.read_text()):
                return int(match[1])
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError(self._log.read_text())

    def connect(self) -> socket.socket:
        """A client that reads next to nothing."""
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * KIB)
        one.connect(("127.0.0.1", self.port))
        one.settimeout(3)
        return one

    def memory_bytes(self, key: str) -> int:
        """VmRSS or VmHWM."""
        found = re.search(rf"{key}:\s+(\d+)", Path(f"/proc/{self._process.pid}/status").read_text())
        assert found is not None
        return int(found[1]) << 10

    def begin(self) -> int:
        """What it has now; the peak counts from here."""
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")
        return self.memory_bytes("VmRSS")

    def take_nothing(self) -> None:
        """The disk, and the destination."""
        self.hangs.touch()
        self._destination.deaf = True

    def end(self) -> None:
        self.hangs.unlink(missing_ok=True)
        self._process.kill()
        self._process.wait()


@contextmanager
def server(case: str, *, uploads: int = UPLOADS, reads: int = 1, connections: int = 32) -> Iterator[Server]:
    """One that has had an upload."""
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bound-")))
        destination = Destination()
        stack.callback(destination.close)
        one = Server(case, place, destination, uploads=uploads, reads=reads, connections=connections)
        stack.callback(one.end)
        with one.connect() as client:
            client.sendall(request(b"POST /upload", 0) + chunk(file(b"a", b"x") + end()) + chunk(b""))
            assert client.recv(16).startswith(b"HTTP/1.1 ")
        time.sleep(1)  # its slot is free again
        yield one


def request(line: bytes, padding: int) -> bytes:
    """The head of a request, or of an upload; `padding` makes it larger."""
    pad = b"".join(b"X-Pad-%d: %b\r\n" % (number, b"p" * 7000) for number in range(padding))
    framing = b"Content-Type: multipart/form-data; boundary=%b\r\nTransfer-Encoding: chunked\r\n" % B
    return b"%b HTTP/1.1\r\nHost: a\r\n%b%b\r\n" % (line, framing if line.startswith(b"POST") else b"", pad)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def upload(client: socket.socket, pieces: Sending, wait: Callable[[], object]) -> None:
    """Send until it is over, or nothing was taken for some seconds."""
    with suppress(OSError):
        client.sendall(request(b"POST /upload", 8))
        for piece in pieces:
            if piece is None:
                time.sleep(1)  # what was sent is on its way to the sinks
                wait()
            else:
                client.sendall(chunk(piece))
        client.sendall(chunk(b""))


def of_uploads(
    case: str, make: Callable[[], Sending], *, uploads: int = UPLOADS, patience: float = 6
) -> tuple[int, int, str]:
    """(bytes that it grew by at most, the bound, what the clients were answered, who read nothing until then).

    `patience`: seconds for answers once the sinks take nothing.
    """
    with server(case, uploads=uploads) as one, ExitStack() as stack:
        clients = [stack.enter_context(one.connect()) for _ in range(uploads)]
        barrier = threading.Barrier(uploads, action=one.take_nothing)
        before = one.begin()
        senders = [
            threading.Thread(target=upload, args=(client, make(), partial(barrier.wait, 20))) for client in clients
        ]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        wait_for_answers(clients, patience if one.hangs.exists() else 30)
        grown = one.memory_bytes("VmHWM") - before
        return grown, one.bound_bytes, " ".join(sorted(map(status, clients)))


def wait_for_answers(clients: list[socket.socket], patience: float) -> None:
    """Until each has one, which it does not read."""
    end = time.monotonic() + patience
    while time.monotonic() < end and len(select.select(clients, [], [], 0)[0]) < len(clients):
        time.sleep(0.1)
    time.sleep(0.5)


def status(client: socket.socket) -> str:
    client.settimeout(0.05)
    try:
        return client.recv(16)[9:12].decode()
    except OSError:
        return "..."


def of_reads(what: str, *, reads: int = 32) -> tuple[int, int, str]:
    """The same of clients that ask for something and read nothing."""
    with server(CASES["disk"], uploads=1, reads=reads, connections=reads + 2) as one, ExitStack() as stack:
        with one.connect() as client:
            if what == "manifests":
                upload(client, small_files(b"n" * 15000, 980)(), lambda: None)
            else:
                upload(client, iter([file(b"a", BLOCK * 64) + end()]), lambda: None)
            found = re.search(rb"(?i)location: (\S+)", client.recv(4096))
            assert found is not None
        place = found[1].replace(b"/uploads/", b"/files/") + b"/0/a" if what == "files" else found[1]
        line = b"GET " + place + (b"/archive.zip" if what == "archives" else b"")
        before = one.begin()
        clients = [stack.enter_context(one.connect()) for _ in range(reads)]
        for client in clients:
            client.sendall(request(line, 8))
        time.sleep(2)
        grown = one.memory_bytes("VmHWM") - before
        return grown, one.bound_bytes - one.upload_bytes, " ".join(sorted(set(map(status, clients))))


def of_connections(data: bytes, *, connections: int = 200) -> tuple[int, int, str]:
    """The same of clients that are none of both."""
    with server(CASES["disk"], uploads=1, connections=connections + 2) as one, ExitStack() as stack:
        before = one.begin()
        clients = [stack.enter_context(one.connect()) for _ in range(connections)]
        for client in clients:
            client.settimeout(0.02)
            with suppress(OSError):
                client.sendall(data)
        time.sleep(2)
        grown = one.memory_bytes("VmHWM") - before
        return grown, one.bound_bytes - one.upload_bytes, " ".join(sorted(set(map(status, clients))))


def of_watchers(*, uploads: int = 16, connections: int = 200) -> tuple[int, int, str]:
    """The same of clients that watch uploads of many files with long names, each at another time of one."""
    with server(CASES["disk"], uploads=uploads, connections=connections + uploads + 1) as one, ExitStack() as stack:
        watched = {
            b"01ARZ3NDEKTSV4RRFFQ69G5FA%X" % number: stack.enter_context(one.connect()) for number in range(uploads)
        }
        for upload_id, client in watched.items():
            client.sendall(request(b"POST /upload", 0)[:-2] + b"X-Upload-ID: %b\r\n\r\n" % upload_id)
            for _ in range(9):
                client.sendall(chunk((begin_file(b"f" * 390, name=b"n" * 390) + b"\r\n") * 100))
        while not all(is_known(one, upload_id) for upload_id in watched):
            time.sleep(0.1)
        before = one.begin()
        watchers = [stack.enter_context(one.connect()) for _ in range(connections)]
        for watcher, (upload_id, client) in zip(watchers, itertools.cycle(watched.items()), strict=False):
            client.sendall(chunk(b"x"))  # what is told is another text then
            watcher.sendall(request(b"GET /uploads/%b/progress" % upload_id, 8))
            time.sleep(8 / connections)  # before the first one is left
        grown = one.memory_bytes("VmHWM") - before
        return grown, one.bound_bytes - uploads * one.upload_bytes, " ".join(sorted(set(map(status, watchers))))


def is_known(one: Server, upload_id: bytes) -> bool:
    """Whether that upload goes on."""
    with one.connect() as client:
        client.sendall(b"GET /uploads/%b/progress HTTP/1.1\r\nHost: a\r\nAccept: application/json\r\n\r\n" % upload_id)
        client.settimeout(10)
        return client.recv(16)[9:12] == b"200"


CONNECTED = {
    "heads that do not end": request(b"GET /", 9)[:-2],
    "many small fields in them": b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X-%d: a\r\n" % n for n in range(250)),
    "requests for what is not there": request(b"GET /nowhere", 8) * 100,
    "small requests": request(b"GET /nowhere", 0) * 10000,
    "requests for metrics": request(b"GET /metrics", 8) * 100,
    "uploads that are refused": request(b"POST /nowhere", 8) + chunk(BLOCK) * 4,
}


def main() -> int:
    """Print a table; 1 if a bound was exceeded, or is more than three times the worst."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="some of the configurations")
    parser.add_argument("--input", default="", help="some of the inputs")
    options = parser.parse_args()
    measured: dict[str, dict[str, Callable[[], tuple[int, int, str]]]] = {
        case: {what: partial(of_uploads, CASES[case], make) for what, make in INPUTS.items()} for case in CASES
    }
    measured["reads"] = {what: partial(of_reads, what) for what in ("manifests", "files", "archives")}
    measured["connections"] = {what: partial(of_connections, data) for what, data in CONNECTED.items()}
    measured["connections"]["progress of many files"] = of_watchers
    is_right = True
    for case, inputs in measured.items():
        worst = bound = 0
        for what, measure in inputs.items() if options.only in case else ():
            if options.input in what:
                grown, bound, answers = measure()
                worst = max(worst, grown)
                print(f"| {case} | {what} | {grown / MIB:.0f} | {bound / MIB:.0f} | {answers} |", flush=True)
        if worst:
            is_right = is_right and worst <= bound <= 3 * worst
            print(
                f"| {case} | **the worst** | {worst / MIB:.0f} | {bound / MIB:.0f} | {bound / worst:.1f} |", flush=True
            )
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
