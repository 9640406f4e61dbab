"""FastAPI with `UploadFile`, on uvicorn: a form is spooled by the framework, then copied by the handler."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from typing import Annotated, Any

import httpx
import uvicorn
from fastapi import FastAPI, File, Response, UploadFile

from tests.bench.peers.common import options, sync_directory

OPTIONS = options()
CLIENT = httpx.Client(timeout=None, trust_env=False)
_CHUNK_BYTES = 1 << 20
Files = Annotated[list[UploadFile], File()]


def discard(file: Files) -> dict[str, Any]:
    for each in file:
        while each.file.read(_CHUNK_BYTES):
            pass
    return _manifest(file)


def disk(file: Files) -> dict[str, Any]:
    directory = OPTIONS.fresh_directory()
    for index, each in enumerate(file):
        with (directory / str(index)).open("xb") as target:
            shutil.copyfileobj(each.file, target, _CHUNK_BYTES)
            if OPTIONS.fsync:
                target.flush()
                os.fsync(target.fileno())
    if OPTIONS.fsync:
        sync_directory(directory)
    return _manifest(file)


def relay(file: Files) -> Response:
    with ExitStack() as stack:
        for each in file:
            stack.callback(each.file.close)
        files = [("file", (each.filename, each.file, each.content_type)) for each in file]
        answer = CLIENT.post(OPTIONS.destination, files=files)
    return Response(answer.content, answer.status_code, media_type="application/json")


def _manifest(files: list[UploadFile]) -> dict[str, Any]:
    return {"parts": [{"name": "file", "filename": each.filename, "size": each.size} for each in files]}


def main() -> None:
    app = FastAPI()
    for handler in (discard, disk, relay):
        # the annotations name types of this module only as strings
        app.add_api_route(f"/{handler.__name__}", handler, methods=["POST"], response_model=None)
    uvicorn.run(app, host="127.0.0.1", port=OPTIONS.port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
