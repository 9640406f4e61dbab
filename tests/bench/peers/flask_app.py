"""What this gateway replaces: Flask, whose forms are whole before a handler runs, on threads of gunicorn."""

from __future__ import annotations

import os
import sys

import requests
from flask import Flask, Response, request

from tests.bench.peers.common import options, sync_directory

_THREADS = 8
_CHUNK_BYTES = 64 << 10


def application() -> Flask:
    where = options()
    app = Flask(__name__)
    app.config["MAX_FORM_PARTS"] = None  # 1000 by default

    def manifest() -> dict[str, list[dict[str, str | int | None]]]:
        return {
            "parts": [
                {"name": each.name, "filename": each.filename, "size": each.tell()}
                for each in request.files.getlist("file")
            ]
        }

    def discard() -> dict[str, list[dict[str, str | int | None]]]:
        for each in request.files.getlist("file"):
            while each.read(_CHUNK_BYTES):
                pass
        return manifest()

    def disk() -> dict[str, list[dict[str, str | int | None]]]:
        directory = where.fresh_directory()
        for index, each in enumerate(request.files.getlist("file")):
            with (directory / str(index)).open("xb") as target:
                each.save(target)
                if where.fsync:
                    target.flush()
                    os.fsync(target.fileno())
        if where.fsync:
            sync_directory(directory)
        return manifest()

    def relay() -> Response:
        files = [
            ("file", (each.filename or "", each.read(), each.content_type or ""))
            for each in request.files.getlist("file")
        ]
        answer = requests.post(where.destination, files=files, timeout=300)
        return Response(answer.content, answer.status_code, content_type="application/json")

    for handler in (discard, disk, relay):
        app.add_url_rule(f"/{handler.__name__}", view_func=handler, methods=["POST"])
    return app


def main() -> None:
    """gunicorn in place of this process; the application reads the same command line, which is in its environment."""
    where = options()
    os.environ["BENCH_ARGUMENTS"] = "\n".join(sys.argv[1:])
    os.execv(
        sys.executable,
        [
            *(sys.executable, "-m", "gunicorn", "--workers", "1", "--threads", str(_THREADS), "--timeout", "300"),
            *("--bind", f"127.0.0.1:{where.port}", "--log-level", "warning", "--no-control-socket"),
            "tests.bench.peers.flask_app:from_environment()",
        ],
    )


def from_environment() -> Flask:
    sys.argv[1:] = os.environ["BENCH_ARGUMENTS"].split("\n")
    return application()


if __name__ == "__main__":
    main()
