"""What a store has of an upload, asked without a server."""

from __future__ import annotations

from gateway.sinks.store import Store

__all__ = ["kept_manifest", "remove_kept"]


async def kept_manifest(store: Store, upload_id: str) -> bytes | None:
    """The manifest; None if the store does not have it."""
    async with store.opened(upload_id) as upload:
        manifest = None if upload is None else await upload.manifest()
        return None if manifest is None else await manifest.read(manifest.size, 0)


async def remove_kept(store: Store, upload_id: str) -> bool:
    """Remove an upload; False if there is none. Raises Conflict while its own upload has not ended."""
    async with store.removal(upload_id) as upload:
        if upload is None:
            return False
        await upload.remove()
        return True
