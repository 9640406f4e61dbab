"""JSON Web Tokens (RFC 7519) of an issuer that is configured: PyJWT checks them, with algorithms that are pinned.

Keys come from a file, or from the issuer's key set (RFC 7517 5), which is fetched with our own client: it is cached,
fetched anew when it is old, and once for a key that is not in it, at most once a minute.

PyJWT is imported where it is needed: with `cryptography` it takes 9 MB and a tenth of a second of each process, and few
have tokens.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from typing import Any, Protocol

import aiohttp

from gateway.access.asked import SCOPES, Asked, Identity, bearer
from gateway.access.keys import PREFIX
from gateway.errors import AccessUnavailable, Unauthenticated

__all__ = ["FixedKey", "JwksKeys", "KeySource", "Tokens", "fixed_key"]

log = logging.getLogger("gateway.access")

_MAX_TOKEN_BYTES = 16 << 10
_MAX_SUBJECT = 256
"""Characters: manifests tell whose they are near their beginning."""
_MAX_SET_BYTES = 1 << 20
_FETCH_SECONDS = 10
_OLD_SECONDS = 600
"""A key that its issuer has withdrawn is believed so long."""
_RETRY_SECONDS = 1
_AGAIN_SECONDS = 60
"""As often is the set fetched at most, whatever keys strangers make up."""


class KeySource(Protocol):
    """Where the keys are."""

    async def key(self, header: Mapping[str, Any]) -> Any:
        """The one for a token with this header. Raises Unauthenticated, AccessUnavailable."""


class Tokens:
    """Those of one issuer, for one audience."""

    kind = "jwt"

    def __init__(
        self,
        keys: KeySource,
        *,
        issuer: str,
        audience: str,
        algorithms: tuple[str, ...],
        leeway_seconds: float,
        scope_claim: str,
    ) -> None:
        import jwt  # noqa: F401 - now, and not while the first request waits

        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._algorithms = list(algorithms)
        self._leeway_seconds = leeway_seconds
        self._scope_claim = scope_claim

    @property
    def keys(self) -> KeySource:
        """What they are checked with."""
        return self._keys

    async def identify(self, asked: Asked) -> Identity | None:
        """`Authorization: Bearer`. Raises Unauthenticated for a token that is not valid, AccessUnavailable."""
        import jwt

        token = bearer(asked)
        if token is None or token.startswith(PREFIX) or token.count(".") != 2:
            return None  # no token of this kind: somebody else's, or a broken one, which the policy sees to
        if len(token) > _MAX_TOKEN_BYTES:
            raise Unauthenticated
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") not in self._algorithms:
                raise Unauthenticated
            claims = jwt.decode(
                token,
                await self._keys.key(header),
                algorithms=self._algorithms,
                issuer=self._issuer,
                audience=self._audience,
                leeway=self._leeway_seconds,
                options={"require": ["exp", "sub", "iss", "aud"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise Unauthenticated from None
        if not 0 < len(claims["sub"]) <= _MAX_SUBJECT:
            raise Unauthenticated
        return Identity(f"jwt:{claims['sub']}", self.kind, _scopes(claims.get(self._scope_claim)))


def _scopes(claim: object) -> frozenset[str]:
    """Of a claim: names between spaces (RFC 8693 4.2), or a list. Those that are not ours say nothing here."""
    names = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else []
    return frozenset(SCOPES) & {name for name in names if isinstance(name, str)}


class FixedKey:
    """One key, whatever a token says."""

    def __init__(self, key: Any) -> None:
        self._key = key

    async def key(self, header: Mapping[str, Any]) -> Any:
        """That one."""
        return self._key


def fixed_key(data: bytes, algorithms: tuple[str, ...]) -> FixedKey:
    """The key of a file: a public one in PEM, or the secret of an HMAC. Raises ValueError for one that is neither, and
    for a public key as a secret: whoever knows it, and all do, could sign (RFC 8725 2.1).
    """
    import jwt

    hashed = [name for name in algorithms if name.startswith("HS")]
    if hashed and b"-----BEGIN" in data:
        raise ValueError(f"{hashed[0]} signs with a secret, and this is a key in PEM")
    secret = data.strip()
    if hashed and len(secret) < 32:
        raise ValueError(f"{hashed[0]} needs a secret of 32 bytes and more")
    for name in algorithms:
        try:
            prepared = jwt.get_algorithm_by_name(name).prepare_key(secret)
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise ValueError(f"it is no key for {name}: {error}") from None
    return FixedKey(prepared)


class JwksKeys:
    """The key set at a url."""

    def __init__(self, url: str, algorithms: tuple[str, ...]) -> None:
        self._url = url
        self._algorithms = algorithms
        self._keys: dict[str, Any] = {}
        self._fetched_at = self._failed_at = float("-inf")
        self._fetching = asyncio.Lock()

    async def key(self, header: Mapping[str, Any]) -> Any:
        """By its `kid`; without one, the only key that there is."""
        identifier = header.get("kid")
        if self._is_wanted(identifier) and not (self._is_known(identifier) and self._fetching.locked()):
            async with self._fetching:
                if self._is_wanted(identifier):
                    await self._fetch()
        if not self._is_known(identifier):
            raise Unauthenticated
        key, algorithm = self._keys[identifier] if identifier is not None else next(iter(self._keys.values()))
        if algorithm not in (None, header.get("alg")):  # RFC 7517 4.4: what it is for
            raise Unauthenticated
        return key

    def look_again(self) -> None:
        """Fetch the set for the next token; until that is done, and where it cannot be had, those that were fetched
        before are believed.
        """
        self._fetched_at = float("-inf")

    def _is_wanted(self, identifier: object) -> bool:
        return not self._is_known(identifier) or time.monotonic() - self._fetched_at > _OLD_SECONDS

    def _is_known(self, identifier: object) -> bool:
        return len(self._keys) == 1 if identifier is None else identifier in self._keys

    async def _fetch(self) -> None:
        import jwt

        now = time.monotonic()
        if now - self._fetched_at < _AGAIN_SECONDS or now - self._failed_at < _RETRY_SECONDS:
            if not self._keys:
                raise AccessUnavailable("the keys of the issuer cannot be had")
            return
        try:
            self._keys = _of_set(await self._load(), self._algorithms)
            self._fetched_at = now
        except (aiohttp.ClientError, OSError, ValueError, TypeError, RecursionError, jwt.PyJWTError) as error:
            log.warning("the key set of the issuer cannot be had: %s", type(error).__name__)
            self._failed_at = now
            if not self._keys:  # else those that there were are believed
                raise AccessUnavailable("the keys of the issuer cannot be had") from None

    async def _load(self) -> dict[str, Any]:
        timeout = aiohttp.ClientTimeout(total=_FETCH_SECONDS)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(self._url, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise ValueError("not 200")
            data = bytearray()
            async for chunk in response.content.iter_any():
                data += chunk
                if len(data) > _MAX_SET_BYTES:
                    raise ValueError("it is too long")
            document = json.loads(data)
            if not isinstance(document, dict):
                raise ValueError("it is no object")
            return document


def _of_set(document: dict[str, Any], algorithms: tuple[str, ...]) -> dict[str, Any]:
    """(key, its algorithm if that is said) by `kid`; those for something else are passed over."""
    import jwt

    keys: dict[str, Any] = {}
    entries = document.get("keys")
    for number, entry in enumerate(entries if isinstance(entries, list) else ()):
        if not isinstance(entry, dict) or entry.get("use", "sig") != "sig" or entry.get("kty") == "oct":
            continue
        try:
            key = jwt.PyJWK.from_dict(entry)
        except (jwt.PyJWTError, ValueError, TypeError):
            continue
        if key.algorithm_name in algorithms or "alg" not in entry:
            keys[str(entry.get("kid", f"#{number}"))] = key.key, entry.get("alg")
    if not keys:
        raise ValueError("it has no key of these algorithms")
    return keys
