"""Who may use a route: any one of its kinds of credentials that fits, and then what the application's own hook says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from gateway.access.asked import ANYBODY, Asked, Identity, bearer
from gateway.access.hook import Hook
from gateway.access.keys import HEADER, is_key
from gateway.access.signed import SignedUrls, is_signature
from gateway.errors import Forbidden, GatewayError, Refused, Unauthenticated

__all__ = ["AnyPolicy", "Kind", "Policy"]


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
        try:
            if self._hook is not None:
                identity = await self._hook.ask(asked, identity)
            elif identity is None:
                raise Unauthenticated
            _check_scope(identity, asked)
        except Refused as error:
            if identity is not None:
                error.identity = identity.name
                await self.give_back(identity)
            raise
        return identity

    async def give_back(self, identity: Identity) -> bool:
        """Nothing came of what was admitted. Whether it was admitted here."""
        for kind in self._kinds:
            if isinstance(kind, SignedUrls):
                await kind.give_back(identity)
                return True
        return False

    def without_keys(self, headers: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
        """What goes on: keys that are for this gateway do not, wherever they were sent."""
        any_key = "keys" in self._names
        return [(name, value) for name, value in headers if not is_key(name, value, any_key=any_key)]

    def without_signature(self, query: str) -> str:
        """Likewise of a query, in which everything else stays as it came."""
        if "signed" not in self._names or not query:
            return query
        return "&".join(piece for piece in query.split("&") if not is_signature(piece))

    async def _identify(self, asked: Asked) -> Identity | None:
        """By the first kind that fits, and is for this; None where there is no credential."""
        problem: GatewayError | None = None
        for kind in self._kinds:
            try:
                identity = await kind.identify(asked)
                if identity is not None:
                    _check_scope(identity, asked)
                    return identity
            except (Unauthenticated, Forbidden) as error:
                problem = problem or error
        if problem is not None:
            raise problem
        if self._for_anybody and self._hook is None and _shows_something(asked):
            raise Unauthenticated
        return ANYBODY if self._for_anybody else None


class AnyPolicy:
    """Those of several routes: whoever may by one of them may, and is who each of them says."""

    def __init__(self, policies: Sequence[Policy]) -> None:
        self._policies = policies
        self.is_open = all(policy.is_open for policy in policies)

    async def admit(self, asked: Asked) -> Identity:
        """As a Policy's. One that cannot be asked keeps nobody away whom another one lets in."""
        problem: GatewayError | None = None
        found: list[Identity] = []
        for policy in self._policies:
            try:
                found.append(await policy.admit(asked))
            except GatewayError as error:
                problem = problem or error
        known = [identity for identity in found if identity.by != ANYBODY.by]
        is_broken = isinstance(problem, Forbidden) or _shows_something(asked)
        if problem is not None and (not found or (not known and is_broken)):
            raise problem
        known = known or found
        return replace(known[0], others=tuple(known[1:]))

    async def give_back(self, identity: Identity) -> None:
        """As a Policy's."""
        for one in (identity, *identity.others):
            for policy in self._policies:
                if await policy.give_back(one):
                    break


def _check_scope(identity: Identity, asked: Asked) -> None:
    if asked.scope not in identity.scopes:
        error = Forbidden(f"these credentials are not for this: they have no scope {asked.scope}")
        error.identity = identity.name
        raise error


def _shows_something(asked: Asked) -> bool:
    """Whether there is a credential, which nobody knows: a broken one comes in by `none` as little as elsewhere."""
    return HEADER in asked.headers or bearer(asked) is not None
