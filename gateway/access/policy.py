"""Who may use a route: any one of its kinds of credentials that fits, and then what the application's own hook says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
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
        return await AnyPolicy([self]).admit(asked)

    async def of(self, shown: _Shown) -> Identity:
        """The same, of what others may look at, too."""
        if self.is_open:
            return ANYBODY
        identity = await self._identify(shown)
        if self._hook is not None:
            identity = await shown.to_hook(self._hook, identity)
        elif identity is None:
            raise Unauthenticated
        _check_scope(identity, shown.asked)
        return identity

    async def give_back(self, identity: Identity) -> None:
        """Nothing came of what was admitted."""
        await AnyPolicy([self]).give_back(identity)

    @property
    def signed(self) -> SignedUrls | None:
        """The kind whose credentials are used up, if it is one of these."""
        return next((kind for kind in self._kinds if isinstance(kind, SignedUrls)), None)

    def without_keys(self, headers: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
        """What goes on: keys that are for this gateway do not, wherever they were sent."""
        any_key = "keys" in self._names
        return [(name, value) for name, value in headers if not is_key(name, value, any_key=any_key)]

    def without_signature(self, query: str) -> str:
        """Likewise of a query, in which everything else stays as it came."""
        if "signed" not in self._names or not query:
            return query
        return "&".join(piece for piece in query.split("&") if not is_signature(piece))

    async def _identify(self, shown: _Shown) -> Identity | None:
        """By the first kind that fits, and is for this; None where there is no credential."""
        problem: GatewayError | None = None
        for kind in self._kinds:
            try:
                identity = await shown.to(kind)
                if identity is not None:
                    _check_scope(identity, shown.asked)
                    return identity
            except (Unauthenticated, Forbidden) as error:
                problem = problem or error
        if problem is not None:
            raise problem
        if self._for_anybody and self._hook is None and _shows_something(shown.asked):
            raise Unauthenticated
        return ANYBODY if self._for_anybody else None


class AnyPolicy:
    """Those of several routes: whoever may by one of them may, and is who each of them says."""

    def __init__(self, policies: Sequence[Policy]) -> None:
        self._policies = policies
        self.is_open = all(policy.is_open for policy in policies)

    async def admit(self, asked: Asked) -> Identity:
        """As a Policy's. One that cannot be asked keeps nobody away whom another one lets in."""
        shown = _Shown(asked)
        try:
            return await self._admitted(shown)
        except BaseException:
            await self._give_back(shown.used())
            raise

    async def give_back(self, identity: Identity) -> None:
        """As a Policy's."""
        await self._give_back({one.use for one in (identity, *identity.others) if one.use})

    async def _admitted(self, shown: _Shown) -> Identity:
        problem: GatewayError | None = None
        found: list[Identity] = []
        for policy in self._policies:
            try:
                found.append(await policy.of(shown))
            except GatewayError as error:
                if problem is None or isinstance(problem, Unauthenticated):  # any other says more
                    problem = error
        known = [identity for identity in found if identity.by != ANYBODY.by]
        is_broken = isinstance(problem, Forbidden) or _shows_something(shown.asked)
        if problem is not None and (not found or (not known and is_broken)):
            raise problem
        known = known or found
        return replace(known[0], others=tuple(known[1:])) if len(known) > 1 else known[0]

    async def _give_back(self, uses: set[str]) -> None:
        signed = next((policy.signed for policy in self._policies if policy.signed is not None), None)
        if signed is not None:
            for use in uses:
                await signed.give_back(use)


class _Shown:
    """What one request shows: each kind looks at it once, and the hook once for each identity, whichever policies want
    to know. So a signed url is used once.
    """

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self._found: dict[object, Identity | Refused | None] = {}

    async def to(self, kind: Kind) -> Identity | None:
        """Who that is to this kind, as its `identify` says."""
        return await self._once(kind, lambda: kind.identify(self.asked))

    async def to_hook(self, hook: Hook, identity: Identity | None) -> Identity:
        """Who that is to the application. Raises as its `ask` does."""
        name = identity.name if identity is not None else None
        try:
            found = await self._once((hook, name), lambda: hook.ask(self.asked, identity))
        except Refused as error:
            error.identity = name or ""
            raise
        assert found is not None
        return found

    def used(self) -> set[str]:
        """What was used up by looking at it."""
        return {found.use for found in self._found.values() if isinstance(found, Identity) and found.use}

    async def _once(self, key: object, look: Callable[[], Awaitable[Identity | None]]) -> Identity | None:
        if key not in self._found:
            try:
                self._found[key] = await look()
            except Refused as error:
                self._found[key] = error
        found = self._found[key]
        if isinstance(found, Refused):
            raise found
        return found


def _check_scope(identity: Identity, asked: Asked) -> None:
    if asked.scope not in identity.scopes:
        error = Forbidden(f"these credentials are not for this: they have no scope {asked.scope}")
        error.identity = identity.name
        raise error


def _shows_something(asked: Asked) -> bool:
    """Whether there is a credential, which nobody knows: a broken one comes in by `none` as little as elsewhere."""
    return HEADER in asked.headers or bearer(asked) is not None
