"""Both legs of an upload: what was sent, as our side knows it, and what is safe, as the gateway tells it (docs/api.md).

What is safe is never guessed: without a gateway that tells there is one leg.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
from yarl import URL

from gateway.client.answers import is_progress
from gateway.client.outcomes import parsed
from gateway.client.remote import CONNECTION_ERRORS, Remote, below

__all__ = ["FINAL", "Legs", "watch"]

FINAL = ("kept", "failed")
_LINE_BYTES = 4 << 20
"""Of one event; a snapshot tells 1000 parts at most."""
_FIRST_SECONDS, _PAUSE_SECONDS, _LATER_SECONDS = 0.05, 0.25, 1.0
_MOST_MISSES = 40
_NOT_OVER = 0.99
"""So far goes the second bar before everything is committed."""


@dataclass(slots=True)
class Legs:
    """How far an upload, or a fetch, is."""

    name: str
    size: int | None = None
    """Of all files; None where it is not known."""
    arrived: Callable[[], float] = lambda: 0.0
    """The part of the body that the other end's system has taken, or bytes where the size is not known."""
    told: dict[str, Any] | None = None
    """What the gateway said last."""
    is_kept: bool = False
    is_watched: bool = True

    @property
    def sent(self) -> float:
        """0 to 1; bytes where the size is not known."""
        return 1.0 if self.is_kept and self.size is not None else self.arrived()

    @property
    def safe(self) -> float | None:
        """0 to 1, and 1 only when it is kept; None as long as nobody tells."""
        if self.told is None:
            return None
        if self.is_kept:
            return 1.0
        parts = self.told["parts"]
        received = sum(part["received"] for part in parts)
        whole = self.size or max(received, self.told["expected"] or 0)
        return min(_NOT_OVER, sum(map(_least, parts)) / whole) if whole else 0.0

    @property
    def sinks(self) -> str:
        """In words: how far each sink is."""
        return " · ".join(f"{one['sink']}: {self._in_words(one)}" for one in (self.told or {}).get("sinks", ()))

    def _in_words(self, sink: dict[str, Any]) -> str:
        if self.is_kept and sink["state"] != "dropped":
            return "kept"
        if sink["state"] in ("dropped", "kept", "failed"):
            return str(sink["state"])
        return f"{min(99, int(100 * sink['delivered'] / self.size))}%" if self.size else str(sink["state"])


def _least(part: dict[str, Any]) -> int:
    """What all of its sinks have, as far as they still count."""
    delivered = [sink["delivered"] for sink in part["sinks"] if sink["state"] != "dropped"]
    return min([part["received"], *delivered]) if delivered else 0


async def watch(remote: Remote, bases: list[URL], upload_id: str, legs: Legs) -> None:
    """Keep `legs` up to date for as long as the upload goes on; it ends by being cancelled, or when nobody tells."""
    number = 0
    while legs.is_watched:
        if not legs.arrived():  # it is not known there yet
            await asyncio.sleep(_FIRST_SECONDS)
            continue
        pause = _PAUSE_SECONDS
        url = below(bases[number % len(bases)], f"/uploads/{upload_id}/progress")
        try:
            headers = remote.headers(accept="text/event-stream")
            async with remote.session.get(url, headers=headers, allow_redirects=False) as response:
                if response.status in (401, 403):
                    return  # this key is not for reading
                if response.status == 200 and response.content_type == "text/event-stream":
                    async for told in _events(response.content):
                        legs.told = told
                else:
                    number += 1  # it has not begun, or it is below another one, or known to another replica
                    if number == _MOST_MISSES and legs.told is None:
                        return
        except (*CONNECTION_ERRORS, ValueError):
            pause = _LATER_SECONDS
        await asyncio.sleep(pause)


async def _events(content: aiohttp.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """Raises ValueError for what is none of ours."""
    text = bytearray()
    async for chunk in content.iter_any():
        text += chunk
        *whole, rest = text.split(b"\n\n")
        text = bytearray(rest)
        if len(text) > _LINE_BYTES:
            raise ValueError("an event without an end")
        for one in whole:
            if one.startswith(b"data: "):
                told = parsed(one[6:])
                if not is_progress(told):
                    raise ValueError("no progress of an upload")
                yield told
