"""Flask, for gunicorn or any other WSGI server: fields and files are two lists there, each in the order of the wire."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flask import Flask, Request, request
from werkzeug.datastructures import ImmutableMultiDict

from tests.support.destinations.manifest import field_entry, file_entry

__all__ = ["application"]


class Ordered(ImmutableMultiDict[str, Any]):
    """A multi-dict groups by key what came in some order; this one remembers it."""

    def __init__(self, mapping: Any = None) -> None:
        self.in_order: list[tuple[str, Any]] = list(mapping) if isinstance(mapping, Iterable) else []
        super().__init__(self.in_order)


class OrderedRequest(Request):
    parameter_storage_class = Ordered
    max_form_parts = None  # 1000 by default
    max_form_memory_size = None  # 500 kB by default


def application() -> Flask:
    app = Flask(__name__)
    app.request_class = OrderedRequest

    def upload() -> dict[str, Any]:
        fields = [field_entry(name, value) for name, value in in_order(request.form)]
        files = [file_entry(name, each.filename, each.stream) for name, each in in_order(request.files)]
        return {"parts": [*fields, *files]}

    app.add_url_rule("/<path:path>", view_func=lambda path: upload(), methods=["POST"], endpoint="upload")
    return app


def in_order(values: Any) -> list[tuple[str, Any]]:
    assert isinstance(values, Ordered)
    return values.in_order
