"""FastAPI on uvicorn: a form of up to 1000 files and fields by default, spooled before the handler sees it."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from starlette.datastructures import UploadFile

from tests.support.destinations.manifest import field_entry, file_entry

__all__ = ["application"]

_PARTS = 10_000
_FIELD_BYTES = 16 << 20  # 1 MiB by default


async def upload(request: Request) -> dict[str, Any]:
    parts = []
    async with request.form(max_files=_PARTS, max_fields=_PARTS, max_part_size=_FIELD_BYTES) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                parts.append(await asyncio.to_thread(file_entry, name, value.filename, value.file))
            else:
                parts.append(field_entry(name, value))
    return {"parts": parts}


def application() -> FastAPI:
    app = FastAPI()
    # the annotations name types of this module only as strings
    app.add_api_route("/{path:path}", upload, methods=["POST"], response_model=None)
    return app


if __name__ == "__main__":
    uvicorn.run(application(), host="127.0.0.1", port=0, access_log=False, log_level="info")
