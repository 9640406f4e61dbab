from __future__ import annotations

from dataclasses import dataclass

import pytest

from gateway.access.asked import ANYBODY, Asked, Identity
from gateway.access.hook import Hook
from gateway.access.policy import AnyPolicy, Policy
from gateway.errors import AccessUnavailable, Forbidden, GatewayError, RefusedByHook, Unauthenticated

ASKED = Asked("upload", "/upload")
CI = Identity("key:ci", "keys")


@dataclass(eq=False)
class Kind:
    """Finds this."""

    found: Identity | GatewayError | None
    kind: str = "keys"

    async def identify(self, asked: Asked) -> Identity | None:
        if isinstance(self.found, GatewayError):
            raise self.found
        return self.found


async def test_an_open_one_looks_at_nothing() -> None:
    policy = Policy(for_anybody=True)
    assert policy.is_open
    assert await policy.admit(ASKED) is ANYBODY


async def test_any_kind_that_fits_will_do() -> None:
    for kinds in (
        [Kind(CI)],
        [Kind(None), Kind(CI)],
        [Kind(Unauthenticated()), Kind(CI)],
        [Kind(Forbidden("x")), Kind(CI)],
    ):
        policy = Policy(kinds)
        assert not policy.is_open
        assert await policy.admit(ASKED) is CI


async def test_no_credential_is_refused_unless_anybody_may() -> None:
    with pytest.raises(Unauthenticated):
        await Policy([Kind(None), Kind(None)]).admit(ASKED)
    assert await Policy([Kind(None)], for_anybody=True).admit(ASKED) is ANYBODY


@pytest.mark.parametrize("error", [Unauthenticated(), Forbidden("used up"), AccessUnavailable("x")])
async def test_a_broken_one_is_refused_also_where_anybody_may(error: GatewayError) -> None:
    with pytest.raises(type(error)) as refused:
        await Policy([Kind(None), Kind(error), Kind(None)], for_anybody=True).admit(ASKED)
    assert refused.value is error


async def test_the_scope_has_to_be_among_theirs() -> None:
    reader = Identity("key:ci", "keys", frozenset(["read", "delete", "download"]))
    with pytest.raises(Forbidden, match="no scope upload"):
        await Policy([Kind(reader)]).admit(ASKED)
    assert await Policy([Kind(reader)]).admit(Asked("read", "/x")) is reader


def test_keys_and_signatures_stay_here_where_they_are_for_us() -> None:
    headers = [("X-API-Key", "gw_x"), ("Authorization", "Bearer gw_x"), ("Authorization", "Bearer ey"), ("X-B", "c")]
    assert Policy([Kind(None)]).without_keys(headers) == headers[2:]
    other = [("X-API-Key", "somebody else's"), *headers[2:]]
    assert Policy([Kind(None, "jwt")]).without_keys([*headers[:2], *other]) == other
    query = "a=b&signature=x&c=%20d&&signature"
    assert Policy([Kind(None, "signed")]).without_signature(query) == "a=b&c=%20d&"
    assert Policy([Kind(None)]).without_signature(query) == query
    assert Policy([Kind(None, "signed")]).without_signature("") == ""


class RefusingHook(Hook):
    """Says no, and counts how often."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:9/", timeout_seconds=1, lets_in_on_error=False, forward=())
        self.asked = 0

    async def ask(self, asked: Asked, identity: Identity | None) -> Identity:
        self.asked += 1
        raise RefusedByHook("pay first")


async def test_of_several_policies_each_looks_once_and_the_one_that_says_most_is_heard() -> None:
    hook, keys = RefusingHook(), Kind(None)
    several = AnyPolicy([Policy([keys]), Policy(hook=hook), Policy([keys], hook=hook)])
    with pytest.raises(RefusedByHook, match="pay first"):
        await several.admit(ASKED)
    assert hook.asked == 1
    assert await AnyPolicy([Policy(hook=hook), Policy([Kind(CI)])]).admit(ASKED) == CI


async def test_who_is_somebody_to_two_routes_is_both() -> None:
    alice = Identity("jwt:alice", "jwt")
    both = await AnyPolicy([Policy(for_anybody=True), Policy([Kind(CI)]), Policy([Kind(alice)])]).admit(ASKED)
    assert [both.may_see(owner) for owner in ("key:ci", "jwt:alice", "key:other", "")] == [True, True, False, True]
