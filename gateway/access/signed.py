"""Signed urls: what may be done with them stands in them, and whoever has the secret has said so (itsdangerous).

    /upload?signature=eyJyIjoi…

The signature covers the route, the methods, how long, how often, and the caps of what comes. Several secrets are
believed, so that one can be changed for another: the newest signs.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from itsdangerous import BadData, URLSafeSerializer
from itsdangerous.encoding import base64_decode, base64_encode

from gateway.access.asked import Asked, Caps, Identity
from gateway.access.counts import Counts, MemoryCounts
from gateway.errors import AccessUnavailable, Forbidden

__all__ = ["PARAMETER", "SignedUrls", "is_signature", "read_secrets", "signed_url"]

log = logging.getLogger("gateway.access")

PARAMETER = "signature"
_SALT = "gateway.signed-url"
_LEAST_SECRET = 32
_READS = ("/uploads/", "/files/")
_MAX_TOKEN = 4096


class SignedUrls:
    """What was signed with one of these secrets, the newest first."""

    kind = "signed"

    def __init__(self, keys: Sequence[str], counts: Counts | None = None) -> None:
        self._serializer = _serializer(keys)
        self._counts = counts or MemoryCounts()

    async def identify(self, asked: Asked) -> Identity | None:
        """The query's `signature`. Raises Forbidden, which says whether it is wrong, over, used up, or for another."""
        given = [value for name, value in parse_qsl(asked.query, keep_blank_values=True) if name == PARAMETER]
        if not given:
            return None
        if len(given) > 1 or len(given[0]) > _MAX_TOKEN:
            raise Forbidden("the signature of this url is not right")
        try:
            signed = self._serializer.loads(given[0])
            if not _is_canonical(given[0]):
                raise ValueError
        except (BadData, ValueError, RecursionError):
            raise Forbidden("the signature of this url is not right") from None
        if signed["e"] <= time.time():
            raise Forbidden("this signed url has expired")
        if signed["r"] != asked.route or asked.method not in signed["m"]:
            raise Forbidden("this url was signed for something else")
        use = ""
        if most := signed.get("n"):
            use = signed["j"]
            if not await self._counts.add(f"url {use}", 1, most=most, until=signed["e"]):
                raise Forbidden("this signed url has been used as often as it may be")
        caps = Caps.of(max_bytes=signed.get("b"), types=signed.get("t", ()), filename=signed.get("f"))
        return Identity(signed.get("i", ""), self.kind, frozenset([asked.scope]), caps, use=use)

    async def give_back(self, use: str) -> None:
        """Nothing came of it: it may be used again, unless that cannot be counted now."""
        try:
            await self._counts.take_back(f"url {use}", 1)
        except AccessUnavailable as error:
            log.warning("a use of a signed url was not given back: %s", error)


def _is_canonical(token: str) -> bool:
    """Whether the signature at its end is spelt as it was made: of its last character some bits mean nothing."""
    signature = token.rpartition(".")[2]
    return base64_encode(base64_decode(signature)) == signature.encode()


def is_signature(piece: str) -> bool:
    """Whether a piece of a query, between two `&`, is the signature."""
    return any(name == PARAMETER for name, _ in parse_qsl(piece, keep_blank_values=True))


def _serializer(keys: Sequence[str]) -> URLSafeSerializer:
    kwargs = {"digest_method": hashlib.sha256, "key_derivation": "hmac"}
    return URLSafeSerializer(list(reversed(keys)), salt=_SALT, signer_kwargs=kwargs)


def signed_url(
    keys: Sequence[str],
    route: str,
    *,
    expires_seconds: float,
    max_bytes: int | None = None,
    types: Sequence[str] = (),
    count: int = 0,
    name: str | None = None,
    identity: str = "",
    methods: Sequence[str] = (),
) -> str:
    """`route?signature=…`: who has it may do that for so long, and `count` times (0: as often as they like).

    `route` is that of uploads, or what is to be read: `/uploads/{id}`, `/uploads/{id}/archive.zip`,
    `/files/{id}/{index}`. `max_bytes` are of the whole body, `types` globs on the media types of files, and `name` the
    only file name. What is uploaded belongs to `identity`, as it is called in manifests (`key:ci`).
    """
    is_read = route.startswith(_READS)
    signed: dict[str, Any] = {
        "r": route,
        "m": list(methods) or (["GET", "HEAD"] if is_read else ["POST", "PUT", "PATCH"]),
        "e": int(time.time() + expires_seconds),
    }
    if count:
        signed |= {"n": count, "j": secrets.token_urlsafe(12)}
    caps: Mapping[str, Any] = {"b": max_bytes, "t": list(types), "f": name, "i": identity}
    signed |= {key: value for key, value in caps.items() if value}
    return f"{route}?{PARAMETER}={_serializer(keys).dumps(signed)!s}"


def read_secrets(file: str | Path) -> list[str]:
    """The lines of a file, the newest first. Raises OSError, ValueError."""
    lines = [line.strip() for line in Path(file).read_text("utf-8").splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise ValueError("there is no secret in it: a line of 32 random characters and more")
    if any(len(one) < _LEAST_SECRET for one in found):
        raise ValueError(f"a secret in it has fewer than {_LEAST_SECRET} characters")
    return found
