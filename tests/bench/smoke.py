"""A quick look at throughput: python -m tests.bench.smoke (or make bench-smoke).

Two bodies, one of large files and one of many small ones, go to a sink that drops them, to disk and through
the relay, each gateway a process of its own. Every answer is checked; a crash or a wrong answer fails the run,
a number never does. CPU time is the gateway's own: wall time on a busy machine says little.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.processes import Process, gateway_process, receiver_process

BOUNDARY = b"smoke"
CONFIG = """
[limits]
max_parts = 10000
[sinks.disk]
fsync = false
[[routes]]
path = "/discard"
parts = [{ sinks = ["none"] }]
"""
BODIES = {"8 x 8 MiB": (8, 8 << 20), "2000 x 1 KiB": (2000, 1 << 10)}
TARGETS = {"/discard": 201, "/upload": 201, "/proxy": 200}
ROUNDS = 3
_SEND_BYTES = 1 << 20


class Body:
    """A form of `count` files of `size` bytes each, the same on every run."""

    def __init__(self, count: int, size: int) -> None:
        source = random.Random(f"{count} x {size}")
        contents = [source.randbytes(size) for _ in range(count)]
        self.digests = [hashlib.sha256(content).hexdigest() for content in contents]
        self.size = size
        self.data = b"".join(
            b'--%s\r\nContent-Disposition: form-data; name="file"; filename="%d.bin"\r\n\r\n%s\r\n'
            % (BOUNDARY, index, content)
            for index, content in enumerate(contents)
        )
        self.data += b"--%s--\r\n" % BOUNDARY

    def pieces(self) -> Iterator[bytes]:
        view = memoryview(self.data)
        return (bytes(view[start : start + _SEND_BYTES]) for start in range(0, len(view), _SEND_BYTES))


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="gateway-smoke-") as name:
        directory = Path(name)
        with (
            receiver_process(directory) as receiver,
            gateway_process(directory, CONFIG, GATEWAY_SINKS__API__URL=f"{receiver.url}/upload") as gateway,
        ):
            print(f"{'':24}{'MB/s':>10}{'MB per CPU second':>20}")
            for what, (count, size) in BODIES.items():
                body = Body(count, size)
                for path, status in TARGETS.items():
                    rate, per_cpu_second = measure(gateway, path, status, body)
                    print(f"{what:14}{path:10}{rate:10.0f}{per_cpu_second:>20}", flush=True)
            print(f"peak memory of the gateway: {gateway.peak_rss_bytes() / 2**20:.0f} MiB")
    return 0


def measure(gateway: Process, path: str, status: int, body: Body) -> tuple[float, str]:
    """(MB/s, MB per second of the gateway's CPU time) over the best of a few rounds, and over all of them."""
    seconds = []
    cpu_before = cpu_seconds(gateway.pid)
    for _ in range(ROUNDS):
        began = time.perf_counter()
        check(send(gateway, path, body), status, path, body)
        seconds.append(time.perf_counter() - began)
    cpu = cpu_seconds(gateway.pid) - cpu_before
    megabytes = len(body.data) / 1e6
    return megabytes / min(seconds), f"{ROUNDS * megabytes / cpu:.0f}" if cpu else "too little to tell"


def send(gateway: Process, path: str, body: Body) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=60)
    try:
        headers = {
            "Content-Type": f"multipart/form-data; boundary={BOUNDARY.decode()}",
            "Content-Length": str(len(body.data)),
        }
        connection.request("POST", path, body=body.pieces(), headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def check(answer: tuple[int, bytes], status: int, path: str, body: Body) -> None:
    """Raises SystemExit where the answer is not the manifest of what was sent."""
    got_status, text = answer
    if got_status != status:
        sys.exit(f"{path} answered {got_status}: {text[:500].decode(errors='replace')}")
    parts = json.loads(text)["parts"]
    got = [(part["filename"], part["size"], part["sha256"]) for part in parts]
    if got != [(f"{index}.bin", body.size, digest) for index, digest in enumerate(body.digests)]:
        sys.exit(f"{path} answered a wrong manifest of {len(got)} parts")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far (Linux: fields 14 and 15 of its stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
