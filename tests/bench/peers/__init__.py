"""Who is measured: how each is started, which jobs it does, and what is in its way.

Every peer serves POST /discard, /disk, /relay and /both, as far as it can, and answers what the gateway answers: a
manifest with name, file name and size of each part, or, on /relay, what the destination answered. Files go to
`root/<fresh name>/<index>`.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.bodies import Shape

__all__ = ["PEERS", "Peer", "Setup"]

_HERE = Path(__file__).resolve().parent
_FASTAPI_FILES = 1000
_INSTALL_SECONDS = 180


@dataclass(frozen=True, slots=True)
class Setup:
    """What a server is started for. `scratch` is a directory of its own; `cache` is kept between runs."""

    port: int
    root: Path
    destination: int
    fsync: bool
    scratch: Path
    cache: Path
    workers: int = 1
    max_parts: int | None = 100_000
    """None: the default."""


def _nothing_missing(cache: Path) -> None:
    return None


def _takes_everything(shape: Shape) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Peer:
    """`prepare` makes what it needs and says what is missing, `refuses` says why it cannot take a body."""

    name: str
    title: str
    jobs: frozenset[str]
    command: Callable[[Setup], Sequence[str]]
    prepare: Callable[[Path], str | None] = _nothing_missing
    refuses: Callable[[Shape], str | None] = _takes_everything
    env: Mapping[str, str] | None = None


# -- the gateway


def _gateway(setup: Setup) -> Sequence[str]:
    limits = "" if setup.max_parts is None else f"[limits]\nmax_parts = {setup.max_parts}\n"
    routes = "".join(
        f'[[routes]]\npath = "/{job}"\nkind = "{kind}"\ndigests = {json.dumps(digests)}\n'
        f"parts = [{{ sinks = {json.dumps(sinks)} }}]\n"
        for job, kind, digests, sinks in [
            ("discard", "upload", [], ["none"]),
            ("disk", "upload", ["sha256"], ["disk"]),
            ("relay", "relay", [], ["api"]),
            ("both", "upload", ["sha256"], ["disk", "api"]),
        ]
    )
    workers = f"workers = {setup.workers}\n" if setup.workers != 1 else ""
    config = setup.scratch / "gateway.toml"
    config.write_text(
        f"[server]\nport = {setup.port}\nmax_uploads_per_address = 0\n{workers}{limits}"
        f'[sinks.disk]\ntype = "disk"\nroot = {json.dumps(str(setup.root))}\nfsync = {json.dumps(setup.fsync)}\n'
        f'[sinks.api]\ntype = "relay"\nurl = "http://127.0.0.1:{setup.destination}/upload"\n{routes}'
    )
    return [sys.executable, "-m", "gateway", "serve", "--config", str(config)]


# -- in Python


def _arguments(setup: Setup) -> list[str]:
    return [
        *("--port", str(setup.port)),
        *("--root", str(setup.root)),
        *("--destination", f"http://127.0.0.1:{setup.destination}/upload"),
        *(["--fsync"] if setup.fsync else []),
    ]


def _python(module: str) -> Callable[[Setup], Sequence[str]]:
    return lambda setup: [sys.executable, "-m", f"tests.bench.peers.{module}", *_arguments(setup)]


def _modules(*names: str) -> Callable[[Path], str | None]:
    def missing(cache: Path) -> str | None:
        absent = [name for name in names if importlib.util.find_spec(name) is None]
        return f"without {' and '.join(absent)}" if absent else None

    return missing


def _fastapi_refuses(shape: Shape) -> str | None:
    return f"refuses more than {_FASTAPI_FILES:,} files" if shape.count > _FASTAPI_FILES else None


# -- on other runtimes


def _busboy(setup: Setup) -> Sequence[str]:
    return ["node", str(setup.cache / "node" / "server.js"), *_arguments(setup)]


def _install_busboy(cache: Path) -> str | None:
    if not (shutil.which("node") and shutil.which("npm")):
        return "without node and npm"
    directory = cache / "node"
    directory.mkdir(exist_ok=True)
    stamp = directory / "installed.json"
    lock = (_HERE / "node" / "package-lock.json").read_text()
    for source in (_HERE / "node").iterdir():
        shutil.copyfile(source, directory / source.name)
    if not stamp.exists() or stamp.read_text() != lock:
        if note := _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], directory):
            return f"npm could not install busboy: {note}"
        stamp.write_text(lock)
    return None


def _go(setup: Setup) -> Sequence[str]:
    return [str(setup.cache / "go" / "server"), *_arguments(setup)]


def _build_go(cache: Path) -> str | None:
    if not shutil.which("go"):
        return "without go"
    directory = cache / "go"
    directory.mkdir(exist_ok=True)
    if note := _run(["go", "build", "-o", str(directory / "server"), "main.go"], _HERE / "go"):
        return f"go could not build it: {note}"
    return None


def _run(command: Sequence[str], directory: Path) -> str:
    """The end of what it printed, if it failed."""
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=_INSTALL_SECONDS)
    except subprocess.TimeoutExpired:
        return f"no end after {_INSTALL_SECONDS} s"
    return (done.stdout + done.stderr).strip()[-300:] or "no word" if done.returncode else ""


def _nginx(setup: Setup) -> Sequence[str]:
    temporary = "".join(
        f"    {kind}_temp_path {setup.scratch}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = setup.scratch / "nginx.conf"
    config.write_text(
        f"{'user root;' if os.geteuid() == 0 else ''}\n"
        "daemon off;\nworker_processes 1;\n"
        f"pid {setup.scratch}/nginx.pid;\nerror_log stderr;\nevents {{}}\n"
        f"http {{\n    access_log off;\n{temporary}"
        f"    server {{\n        listen 127.0.0.1:{setup.port};\n        client_max_body_size 0;\n"
        f"        location / {{\n            proxy_pass http://127.0.0.1:{setup.destination};\n"
        "            proxy_http_version 1.1;\n            proxy_request_buffering off;\n        }\n    }\n}\n"
    )
    return [_nginx_binary() or "nginx", "-p", str(setup.scratch), "-c", str(config)]


@functools.cache
def _nginx_binary() -> str | None:
    # Debian keeps it where only root looks
    return shutil.which("nginx") or shutil.which("nginx", path=os.pathsep.join(["/usr/local/sbin", "/usr/sbin"]))


def _find_nginx(cache: Path) -> str | None:
    return None if _nginx_binary() else "without nginx"


PEERS = [
    Peer("gateway", "gateway", frozenset({"discard", "disk", "relay", "both"}), _gateway),
    Peer(
        "raw",
        "aiohttp, raw body (ceiling)",
        frozenset({"discard", "relay"}),
        _python("aiohttp_raw"),
        env={"MALLOC_MMAP_THRESHOLD_": str(64 << 20), "MALLOC_TRIM_THRESHOLD_": str(256 << 20)},
    ),
    Peer("create", "bare file creation (ceiling)", frozenset({"disk"}), _python("create")),
    Peer(
        "stock",
        "aiohttp, stock reader + aiofiles",
        frozenset({"discard", "disk", "relay", "both"}),
        _python("aiohttp_stock"),
    ),
    Peer(
        "fastapi",
        "FastAPI UploadFile, uvicorn",
        frozenset({"discard", "disk", "relay"}),
        _python("fastapi_app"),
        _modules("fastapi", "uvicorn", "python_multipart", "httpx"),
        _fastapi_refuses,
    ),
    Peer(
        "flask",
        "Flask, gunicorn threads (seed)",
        frozenset({"discard", "disk", "relay"}),
        _python("flask_app"),
        _modules("flask", "gunicorn", "requests"),
    ),
    Peer("busboy", "busboy, node", frozenset({"discard", "disk", "relay", "both"}), _busboy, _install_busboy),
    Peer("go", "Go mime/multipart", frozenset({"discard", "disk", "relay", "both"}), _go, _build_go),
    Peer("nginx", "nginx, unbuffered", frozenset({"relay"}), _nginx, _find_nginx),
]
