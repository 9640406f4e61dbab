"""A real S3 server for tests: OpenStack Swift with its s3api, of one replica in one directory. Not for anybody's data.

    python tests/swift/serve.py DIRECTORY [PORT]

It runs on the interpreter of an environment that has what requirements.txt beside it says (`make .venv/.swift` makes
one), and imports nothing of ours. It prints the endpoint when it answers, and ends with its standard input, or by a
SIGTERM. Key `test:tester`, secret `testing`, or what SWIFT_KEY (ACCOUNT:USER) and SWIFT_SECRET say; region us-east-1,
path style. Four processes of some 57 MB; two seconds.
"""

from __future__ import annotations

import ctypes
import getpass
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

_COMMON = """[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 1
user = {user}
swift_dir = {directory}
devices = {directory}/srv
mount_check = false
log_address = /nonexistent
log_level = ERROR
db_preallocation = off
fallocate_reserve = 0
disable_fallocate = true
"""
_STORAGE = """[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
auto_create_account_prefix = .
"""
_PROXY = """[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck cache listing_formats bulk s3api tempauth slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:1
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:s3api]
use = egg:swift#s3api
s3_acl = false
location = us-east-1
check_bucket_owner = false
dns_compliant_bucket_names = false
min_segment_size = 5242880
[filter:tempauth]
use = egg:swift#tempauth
user_{account} = {secret} .admin
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
"""
_SWIFT = """[swift-hash]
swift_hash_path_prefix = tests
swift_hash_path_suffix = tests
[storage-policy:0]
name = only
default = yes
"""
_SECONDS = 30
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None)


def main(directory: Path, port: int) -> None:
    """Serve until the standard input ends."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # before there is anything that would stay
    directory = directory.resolve()
    (directory / "srv" / "d1").mkdir(parents=True, exist_ok=True)
    (directory / "swift.conf").write_text(_SWIFT)
    ports = {kind: _free_port() for kind in ("account", "container", "object")}
    _make_rings(directory, ports)
    servers: list[subprocess.Popen[bytes]] = []
    try:
        for kind, number in {**ports, "proxy": port}.items():
            servers.append(_start(directory, kind, number))
        _wait_for([*ports.values(), port], servers)
        print(f"http://127.0.0.1:{port}", flush=True)
        sys.stdin.read()
    finally:
        for server in servers:
            server.terminate()
        for server in servers:
            server.wait()


def _start(directory: Path, kind: str, port: int) -> subprocess.Popen[bytes]:
    values = {"kind": kind, "port": port, "directory": directory, "user": getpass.getuser()}
    values["account"] = os.environ.get("SWIFT_KEY", "test:tester").replace(":", "_")
    values["secret"] = os.environ.get("SWIFT_SECRET", "testing")
    rest = _PROXY if kind == "proxy" else _STORAGE
    path = directory / f"{kind}.conf"
    path.write_text((_COMMON + rest).format(**values))
    program = Path(sys.executable).parent / f"swift-{kind}-server"
    with open(directory / f"{kind}.log", "ab") as log:
        return subprocess.Popen(
            [program, path], stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_die_with_parent
        )


def _die_with_parent() -> None:
    """However this program ends, also where it is being told to while it starts one."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _make_rings(directory: Path, ports: dict[str, int]) -> None:
    """What swift-ring-builder does, without an interpreter for each of its nine steps."""
    from swift.common.ring import RingBuilder  # type: ignore[import-not-found]

    for kind, port in ports.items():
        ring = RingBuilder(4, 1, 1)
        ring.add_dev(
            {"region": 1, "zone": 1, "ip": "127.0.0.1", "port": port, "device": "d1", "weight": 1, "meta": ""}
            | {"replication_ip": "127.0.0.1", "replication_port": port}
        )
        ring.rebalance(seed=1)
        ring.get_ring().save(str(directory / f"{kind}.ring.gz"))


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _wait_for(ports: list[int], servers: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + _SECONDS
    while True:
        if any(server.poll() is not None for server in servers) or time.monotonic() > deadline:
            sys.exit("Swift does not start; its log is in its directory")
        try:
            for port in ports:
                socket.create_connection(("127.0.0.1", port), 5).close()
        except OSError:
            time.sleep(0.05)
        else:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else _free_port())
