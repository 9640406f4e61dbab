"""Who may use a route: any one of its kinds of credentials that fits, and then what the application's own hook says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gateway.access.asked import ANYBODY, Asked, Identity
from gateway.access.hook import Hook
from gateway.access.keys import is_key
from gateway.access.signed import SignedUrls, is_signature
from gateway.errors import Forbidden, GatewayError, Unauthenticated

__all__ = ["Kind", "Policy"]


class Kind(Protocol):
    """One kind of credentials."""

    kind: str

    async def identify(self, asked: Asked) -> Identity | None:
        """Who that is; None where the request has no credential of this kind. Raises Unauthenticated, Forbidden,
        AccessUnavailable.
        """


class Policy:
    """That of one route. `for_anybody`: who has no credential may, too; who has a broken one may not."""

    def __init__(self, kinds: Sequence[Kind] = (), *, hook: Hook | None = None, for_anybody: bool = False) -> None:
        self._kinds = kinds
        self._names = frozenset(kind.kind for kind in kinds)
        self._hook = hook
        self._for_anybody = for_anybody
        self.is_open = for_anybody and not kinds and hook is None
        """Whether `admit` has nothing to look at."""

    async def admit(self, asked: Asked) -> Identity:
        """Who asks, and may. Raises Unauthenticated, Forbidden, AccessUnavailable, RefusedByHook."""
        if self.is_open:
            return ANYBODY
        identity = await self._identify(asked)
        if self._hook is not None:
            identity = await self._hook.ask(asked, identity)
        elif identity is None:
            raise Unauthenticated
        if asked.scope not in identity.scopes:
            raise Forbidden(f"these credentials are not for this: they have no scope {asked.scope}")
        return identity

    async def give_back(self, identity: Identity) -> None:
        """Nothing came of what was admitted."""
        for kind in self._kinds:
            if isinstance(kind, SignedUrls):
                await kind.give_back(identity)

    def without_keys(self, headers: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
        """What goes on: keys that are for this gateway do not."""
        if "keys" not in self._names:
            return headers
        return [(name, value) for name, value in headers if not is_key(name, value)]

    def without_signature(self, query: str) -> str:
        """Likewise of a query, in which everything else stays as it came."""
        if "signed" not in self._names or not query:
            return query
        return "&".join(piece for piece in query.split("&") if not is_signature(piece))

    async def _identify(self, asked: Asked) -> Identity | None:
        problem: GatewayError | None = None
        for kind in self._kinds:
            try:
                identity = await kind.identify(asked)
            except (Unauthenticated, Forbidden) as error:
                problem = problem or error
                continue
            if identity is not None:
                return identity
        if problem is not None:
            raise problem
        return ANYBODY if self._for_anybody else None
