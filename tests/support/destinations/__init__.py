"""Real destinations, each a process of its own that the tests start, and what each makes of the names it gets.

All of them answer a form with `{"parts": [{"name", "filename", "size", "sha256"}, ...]}`. The gateway writes
names in the WHATWG form, `"` as %22 and all else as it is; these parsers do not agree about what that means:

- the receiver, and nginx before it, decode %22, and a backslash is a backslash;
- Flask (Werkzeug) decodes %22, and drops a backslash, the character after it stays;
- FastAPI (python-multipart) leaves %22, takes two backslashes for one, and of a `C:\\` path the last segment;
- busboy leaves %22, and takes a backslash before a quote or a backslash for an escape.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import pytest

from tests.support.ports import free_port
from tests.support.processes import receiver_process

__all__ = ["DESTINATIONS", "LENGTH_ONLY", "Destination", "absent", "installed_busboy", "nginx_before", "serving"]

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parents[2]
_START_SECONDS = 60
_INSTALL_SECONDS = 180


def absent(reason: str) -> NoReturn:
    """Something of others is not here: a reason to skip, but not where everything has to be tested."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


# -- processes


@contextmanager
def serving(command: Sequence[str | Path], log: Path, *, port: int | None = None) -> Iterator[str]:
    """The URL of a command that says where it listens, or that was told to listen at `port`."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=_ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that it and its children, and they alone, can be ended
        )
    try:
        yield _url(process, log, port)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _url(process: subprocess.Popen[bytes], log: Path, port: int | None) -> str:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        said = re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text(errors="replace"))
        at = port or (int(said[1]) if said else None)
        if at is not None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", at), timeout=1):
                return f"http://127.0.0.1:{at}"
        time.sleep(0.02)
    raise RuntimeError(f"it did not start: {log.read_text(errors='replace')[-2000:]}")


# -- destinations


@contextmanager
def _receiver(directory: Path) -> Iterator[str]:
    with receiver_process(directory) as receiver:
        yield receiver.url


@contextmanager
def nginx_before(url: str, directory: Path, *, buffering: str, others: Sequence[str] = ()) -> Iterator[str]:
    """An nginx that passes requests on to a URL, or to others in turn, with `proxy_request_buffering` "on" or "off"."""
    # Debian keeps it where only root looks
    command = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if command is None:
        absent("nginx is not installed")
    (directory / "tmp").mkdir()
    port = free_port()
    temporary = " ".join(f"{kind}_temp_path tmp;" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    servers = " ".join(f"server {one.partition('://')[2]} max_fails=0;" for one in (url, *others))
    upstream, target = (f"upstream gateways {{ {servers} }}", "http://gateways") if others else ("", url)
    (directory / "nginx.conf").write_text(
        f"{'user root;' if os.geteuid() == 0 else ''} daemon off; worker_processes 1; pid nginx.pid;\n"
        f"error_log stderr; events {{}} http {{ {temporary} access_log off; client_max_body_size 0;\n"
        f"{upstream} server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {target};\n"
        f"proxy_http_version 1.1; proxy_request_buffering {buffering}; }} }} }}\n"
    )
    arguments = ["-p", f"{directory}/", "-c", "nginx.conf", "-e", "stderr"]
    with serving([command, *arguments], directory / "nginx.log", port=port) as own:
        yield own


def _nginx(buffering: str) -> Callable[[Path], contextlib.AbstractContextManager[str]]:
    @contextmanager
    def start(directory: Path) -> Iterator[str]:
        with (
            receiver_process(directory) as receiver,
            nginx_before(receiver.url, directory, buffering=buffering) as url,
        ):
            yield url

    return start


def _needs(*modules: str) -> None:
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        absent(f"without {' and '.join(missing)}")


@contextmanager
def _flask(directory: Path) -> Iterator[str]:
    _needs("flask", "gunicorn")
    command = [sys.executable, "-m", "gunicorn", "--workers", "1", "--threads", "4", "--timeout", "300"]
    command += ["--bind", "127.0.0.1:0", "--no-control-socket", "tests.support.destinations.flask_app:application()"]
    with serving(command, directory / "gunicorn.log") as url:
        yield url


@contextmanager
def _fastapi(directory: Path) -> Iterator[str]:
    _needs("fastapi", "uvicorn", "python_multipart")
    with serving([sys.executable, "-m", "tests.support.destinations.fastapi_app"], directory / "uvicorn.log") as url:
        yield url


@contextmanager
def _wsgiref(directory: Path) -> Iterator[str]:
    _needs("flask")
    with serving([sys.executable, "-m", "tests.support.destinations.wsgi_app"], directory / "wsgiref.log") as url:
        yield url


@contextmanager
def _busboy(directory: Path) -> Iterator[str]:
    with serving(["node", installed_busboy() / "busboy_app.js"], directory / "busboy.log") as url:
        yield url


def installed_busboy() -> Path:
    """A directory below var/ with the application and its modules, which are fetched once."""
    if not (shutil.which("node") and shutil.which("npm")):
        absent("node and npm are not installed")
    target = _ROOT / "var" / "busboy"
    target.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json", "busboy_app.js"):
        shutil.copyfile(_HERE / name, target / name)
    lock, stamp = (_HERE / "package-lock.json").read_text(), target / "installed.json"
    if not stamp.exists() or stamp.read_text() != lock:
        try:
            done = subprocess.run(
                ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
                cwd=target,
                capture_output=True,
                text=True,
                timeout=_INSTALL_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            absent(f"npm had not fetched busboy after {_INSTALL_SECONDS} s")
        else:
            if done.returncode:
                absent(f"npm could not fetch busboy: {(done.stdout + done.stderr).strip()[-300:]}")
            stamp.write_text(lock)
    return target


# -- names


def _as_it_is(name: str) -> str:
    return name


def _werkzeug(name: str) -> str:
    return re.sub(r"\\(.)", r"\1", name)


def _python_multipart(name: str) -> str:
    name = name.replace("\\\\", "\\").replace('"', "%22")
    return name.rpartition("\\")[2] if name[1:3] == ":\\" else name


def _busboy_names(name: str) -> str:
    return name.replace("\\\\", "\\").replace('"', "%22")


@dataclass(frozen=True)
class Destination:
    """`start` gives the URL within a `with` block; `reads` is what the parser makes of a name that means this."""

    name: str
    start: Callable[[Path], contextlib.AbstractContextManager[str]]
    reads: Callable[[str], str] = _as_it_is
    keeps_order: bool = True
    """Whether the application sees fields and files in one order."""
    knows_empty_inputs: bool = True
    """Whether a file name of "" is one, not none."""

    def __str__(self) -> str:
        return self.name


DESTINATIONS = [
    Destination("receiver", _receiver),
    Destination("nginx-buffered", _nginx("on")),
    Destination("nginx-unbuffered", _nginx("off")),
    Destination("flask", _flask, _werkzeug, keeps_order=False),
    Destination("fastapi", _fastapi, _python_multipart),
    Destination("busboy", _busboy, _busboy_names, knows_empty_inputs=False),
]
LENGTH_ONLY = Destination("wsgiref", _wsgiref, _werkzeug, keeps_order=False)
"""Refuses a body without a Content-Length."""
