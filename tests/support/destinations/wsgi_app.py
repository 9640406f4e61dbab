"""The Flask application under the standard library's server, which reads HTTP/1.0 and no transfer coding.

A body without a Content-Length is an empty one there: 411 says so, as servers of that kind do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from tests.support.destinations.flask_app import application

__all__ = ["length_required"]


def length_required(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    def wrapped(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("HTTP_TRANSFER_ENCODING") or not environ.get("CONTENT_LENGTH"):
            start_response("411 Length Required", [("Content-Type", "text/plain"), ("Content-Length", "4")])
            return [b"411\n"]
        return app(environ, start_response)

    return wrapped


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


if __name__ == "__main__":
    with make_server("127.0.0.1", 0, length_required(application()), handler_class=_Silent) as server:
        print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()
