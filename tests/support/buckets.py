"""Places for an object sink: this memory, a directory, moto, and a real server that speaks S3; and who lists them."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
from botocore.config import Config  # type: ignore[import-untyped]
from moto.server import ThreadedMotoServer

from gateway.sinks.objects.sink import ObjectSink
from tests.support.destinations import absent
from tests.support.ports import free_port

__all__ = ["Place", "in_directory", "in_memory", "moto_place", "swift_place"]

_BUCKET = "uploads"
_KEY, _SECRET = "test:tester", "testing"
_ROOT = Path(__file__).resolve().parent.parent
SWIFT = _ROOT.parent / ".venv" / "swift"
"""Where `make .venv/.swift` has installed it."""


@dataclass(frozen=True)
class Place:
    """Where objects are kept. `endpoint` is that of a server; its credentials are the environment's, as ever."""

    url: str
    endpoint: str | None = None
    prefix: str = field(default_factory=lambda: f"tests/{uuid.uuid4().hex}")

    def elsewhere(self) -> Place:
        """The same store with another prefix, so that nobody meets what others have there."""
        return replace(self, prefix=f"tests/{uuid.uuid4().hex}")

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs that is to reach it."""
        if self.endpoint is None:
            return {}
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": _KEY,
            "AWS_SECRET_ACCESS_KEY": _SECRET,
            "AWS_REGION": "us-east-1",
        }

    @property
    def settings(self) -> dict[str, Any]:
        """As a sink has them."""
        return {"type": "objects", "url": self.url, "prefix": self.prefix}

    def sink(self, **settings: Any) -> ObjectSink:
        """A sink there."""
        return ObjectSink(**{"name": "bucket", "url": self.url, "prefix": self.prefix, **settings})

    def client(self, endpoint: str | None = None) -> Any:
        """boto3's."""
        return boto3.client(
            "s3",
            endpoint_url=endpoint or self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=_KEY,
            aws_secret_access_key=_SECRET,
            config=Config(s3={"addressing_style": "path"}),
        )

    def left(self) -> list[str]:
        """What somebody else lists there: objects, and multipart uploads that are open."""
        if self.endpoint is None:
            raise LookupError("there is no server: ask the sink")
        client = self.client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=_BUCKET, Prefix=f"{self.prefix}/")
        objects = [one["Key"].removeprefix(f"{self.prefix}/") for page in pages for one in page.get("Contents", ())]
        uploads = client.list_multipart_uploads(Bucket=_BUCKET, Prefix=f"{self.prefix}/").get("Uploads", ())
        return objects + [f"open: {one['Key']}" for one in uploads]


def in_memory() -> Place:
    return Place("memory://")


def in_directory(path: Path) -> Place:
    return Place(path.as_uri())


@contextmanager
def moto_place() -> Iterator[Place]:
    """The one that is quick."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield _made(Place(f"s3://{_BUCKET}", f"http://{host}:{port}"))
    finally:
        server.stop()


@contextmanager
def swift_place(directory: Path) -> Iterator[Place]:
    """The real one. Skips where it is not installed."""
    python = SWIFT / "bin" / "python"
    if not python.exists():
        absent("Swift is not installed: make .venv/.swift")
    command = [str(python), str(_ROOT / "swift" / "serve.py"), str(directory), str(free_port())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        endpoint = server.stdout.readline().decode().strip()
        assert endpoint, "Swift did not start"
        try:
            yield _made(Place(f"s3://{_BUCKET}", endpoint))
        finally:
            server.terminate()


def _made(place: Place) -> Place:
    place.client().create_bucket(Bucket=_BUCKET)
    return place
