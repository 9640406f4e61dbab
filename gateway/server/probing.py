"""Whether sinks can be used as they are configured: each is opened, and each store is given something small to keep."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator

from gateway.errors import GatewayError, SinkRefused, SinkUnavailable
from gateway.http.ulids import new_ulid
from gateway.model import Part, Upload
from gateway.sinks import Sink
from gateway.sinks.store import Store

__all__ = ["probe"]

_DATA = b"written by gateway check --probe"


async def probe(sink: Sink) -> str:
    """What was found, in words; nothing of it stays. Raises GatewayError, and OSError for a sink that cannot start.

    No upload expires by it: the configuration is looked at, and may be wrong.
    """
    if isinstance(sink, Store):
        sink.sweeps = False
    async with sink:
        await sink.check()
        if not isinstance(sink, Store):
            return "it opens"
        upload_id = new_ulid()
        await _write(sink, upload_id)
        try:
            await _read(sink, upload_id)
        except BaseException:
            with contextlib.suppress(GatewayError):  # the first error is the one to tell
                await _remove(sink, upload_id)
            raise
        await _remove(sink, upload_id)
        found = f"{len(_DATA)} bytes were written, read and removed"
        return "; ".join(filter(None, [found, await _refuses_chosen_ids(sink), sink.remark]))


async def _refuses_chosen_ids(store: Store) -> str:
    """Why clients cannot choose ids there; empty: they can."""
    try:
        async with store.open(Upload(new_ulid(), "/", id_chosen=True)):
            return ""
    except SinkRefused as error:
        return f"X-Upload-ID is refused: {error}"


async def _write(store: Store, upload_id: str) -> None:
    async with store.open(Upload(upload_id, "/")) as delivery:
        await delivery.accept(Part(0, b"file", b"probe.txt", b"text/plain", is_file=True), _chunks())
        delivery.keep_manifest(json.dumps({"upload": upload_id, "parts": []}).encode())
        await delivery.commit()


async def _chunks() -> AsyncIterator[bytes]:
    yield _DATA


async def _read(store: Store, upload_id: str) -> None:
    async with store.opened(upload_id) as kept:
        file = None if kept is None else await kept.open(0)
        read = None if file is None else await file.read(file.size, 0)
    if read != _DATA:
        raise SinkUnavailable(f"sink {store.name} gives back other bytes than those that were written")


async def _remove(store: Store, upload_id: str) -> None:
    async with store.removal(upload_id) as removal:
        if removal is not None:
            await removal.remove()
    async with store.opened(upload_id) as kept:
        if kept is not None:
            raise SinkUnavailable(f"sink {store.name} still has what was removed")
