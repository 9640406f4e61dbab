"""API keys: 256 random bits each, of which a file has the SHA-256. They cannot be guessed, so a slow hash, which is for
passwords, would only cost time.

A line of the file is a key's name, its hash, what it is for, and when it ends:

    ci = { sha256 = "9f86…", scopes = ["upload"], expires = 2027-01-01T00:00:00Z }
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import secrets
import time
import tomllib
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from gateway.access.asked import SCOPES, Asked, Identity, bearer
from gateway.errors import Unauthenticated

__all__ = ["HEADER", "PREFIX", "ApiKeys", "is_key", "new_key"]

log = logging.getLogger("gateway.access")

PREFIX = "gw_"
"""By which a key is told from another token, and found where it should not be."""
HEADER = "X-API-Key"
_LOOK_SECONDS = 1.0
"""As often is the file looked at, at most, and that late is a change of it heard of."""


class _Key(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: frozenset[str] = frozenset(SCOPES)
    expires: datetime | None = None

    def has_ended(self, now: float) -> bool:
        return self.expires is not None and self.expires.timestamp() <= now


_KEYS = TypeAdapter(dict[str, _Key])


class ApiKeys:
    """Those of a file, which is read anew when it has changed. Raises ValueError or OSError for one that cannot be."""

    kind = "keys"

    def __init__(self, file: str | Path) -> None:
        self._path = Path(file)
        self._keys, self._seen = _read(self._path)
        self._looked_at = time.monotonic()

    async def identify(self, asked: Asked) -> Identity | None:
        """`Authorization: Bearer` or `X-API-Key`. Raises Unauthenticated for a key that is none, or has ended."""
        given = asked.headers.getall(HEADER, [])
        token = bearer(asked)
        if token is not None and token.startswith(PREFIX):
            given = [*given, token]
        if not given:
            return None
        await self._look()
        if len(given) > 1:
            raise Unauthenticated
        digest = hashlib.sha256(given[0].encode("utf-8", "surrogateescape")).hexdigest()
        found = None
        for name, key in self._keys.items():  # all, so that the time tells nothing
            if hmac.compare_digest(digest, key.sha256):
                found = name, key
        if found is None or found[1].has_ended(time.time()):
            raise Unauthenticated
        return Identity(f"key:{found[0]}", self.kind, found[1].scopes)

    async def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = now
        try:
            changed = await asyncio.to_thread(_changed, self._path, self._seen)
        except (OSError, ValueError) as error:
            if self._seen is not None:  # once
                log.warning("the keys that were read before stay: %s", error)
            self._seen = None
            return
        if changed is not None:
            self._keys, self._seen = changed
            log.info("%d keys were read from %s", len(self._keys), self._path)


def _changed(path: Path, seen: object) -> tuple[dict[str, _Key], object] | None:
    return None if _version(path) == seen else _read(path)


def _read(path: Path) -> tuple[dict[str, _Key], object]:
    version = _version(path)
    try:
        document: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
        keys = _KEYS.validate_python(document)
    except ValidationError as error:
        places = [f"{path}: {'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise ValueError("; ".join(places)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None
    for name, key in keys.items():
        if wrong := sorted(key.scopes - set(SCOPES)):
            raise ValueError(f"{path}: {name}.scopes: {wrong[0]} is not one of {', '.join(SCOPES)}")
        if key.expires is not None and key.expires.tzinfo is None:
            raise ValueError(f"{path}: {name}.expires: a time zone is needed: 2027-01-01T00:00:00Z")
    return keys, version


def _version(path: Path) -> object:
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size, status.st_ino


def is_key(name: str, value: str, *, any_key: bool = True) -> bool:
    """Whether a header has a key; of X-API-Key one of ours, or `any_key`."""
    scheme, _, token = value.strip().partition(" ")
    if name.lower() == HEADER.lower():
        return any_key or value.strip().startswith(PREFIX)
    return name.lower() == "authorization" and scheme.lower() == "bearer" and token.strip().startswith(PREFIX)


def new_key(name: str, scopes: tuple[str, ...], expires: datetime | None = None) -> tuple[str, str]:
    """(the key, which is to be had only now; the line of the file)."""
    key = PREFIX + secrets.token_urlsafe(32)
    digest = hashlib.sha256(key.encode()).hexdigest()
    listed = ", ".join(f'"{scope}"' for scope in scopes)
    ending = f", expires = {expires:%Y-%m-%dT%H:%M:%SZ}" if expires else ""
    return key, f'{name} = {{ sha256 = "{digest}", scopes = [{listed}]{ending} }}'
