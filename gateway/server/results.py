"""What the client reads of an upload that was kept: the manifest, or the list of results."""

from __future__ import annotations

from aiohttp import hdrs, web

from gateway.downloads.locations import upload_location
from gateway.manifest import manifest_json, results_json
from gateway.model import Manifest

__all__ = ["converted", "created"]


def created(manifest: Manifest, stored_manifest: bytes | None) -> web.Response:
    """201 and the manifest, or 207 if a part has a problem.

    `stored_manifest` is that one as it was stored, and so can be fetched again; None: no store keeps it.
    """
    headers = None if stored_manifest is None else {hdrs.LOCATION: upload_location(manifest.upload)}
    body = manifest_json(manifest) if stored_manifest is None else stored_manifest
    return web.Response(
        status=207 if manifest.partial else 201, body=body, content_type="application/json", headers=headers
    )


def converted(manifest: Manifest, stored_manifest: bytes | None) -> web.Response:
    """200 and the list of results, one per file, in the order of the wire; 207 if one has a problem."""
    status = 207 if manifest.partial else 200
    response = web.Response(status=status, body=results_json(manifest), content_type="application/json")
    if stored_manifest is not None:
        response.headers[hdrs.LOCATION] = upload_location(manifest.upload)
    return response
