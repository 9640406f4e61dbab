"""What the client reads of an upload that was kept: the manifest, or the list of results."""

from __future__ import annotations

import asyncio

from aiohttp import hdrs, web

from gateway.downloads.locations import upload_location
from gateway.manifest import is_long, results_json
from gateway.upload.dispatch import Outcome

__all__ = ["converted", "created"]


async def created(outcome: Outcome, prefix: str) -> web.Response:
    """201 and the manifest, or 207 if a part has a problem."""
    return _told(outcome, outcome.told or b"", prefix, status=201)


async def converted(outcome: Outcome, prefix: str) -> web.Response:
    """200 and the list of results, one per file, in the order of the wire; 207 if one has a problem."""
    manifest = outcome.manifest
    body = await asyncio.to_thread(results_json, manifest) if is_long(manifest) else results_json(manifest)
    return _told(outcome, body, prefix, status=200)


def _told(outcome: Outcome, body: bytes, prefix: str, *, status: int) -> web.Response:
    """Its Location is that of the manifest, where that can be fetched again. The body is still without the prefix."""
    headers = {hdrs.LOCATION: prefix + upload_location(outcome.manifest.upload)} if outcome.is_stored else None
    status = 207 if outcome.manifest.partial else status
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)
