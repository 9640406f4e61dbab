from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from multidict import CIMultiDict

from gateway.access import tokens as tokens_module
from gateway.access.asked import Asked, Identity
from gateway.access.tokens import JwksKeys, KeySource, Tokens, fixed_key
from gateway.errors import AccessUnavailable, Unauthenticated
from tests.conftest import StartDestination
from tests.support.processes import imported_by_default

RSA = rsa.generate_private_key(65537, 2048)
OTHER_RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()


def public(key: Any) -> bytes:
    return bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def private(key: Any) -> bytes:
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def claims(**more: Any) -> dict[str, Any]:
    now = int(time.time())
    usual = {"iss": "https://login.example.org", "aud": "gateway", "sub": "alice", "exp": now + 60, "scope": "upload"}
    return {name: value for name, value in {**usual, **more}.items() if value is not None}


def signed(key: Any = RSA, algorithm: str = "RS256", headers: dict[str, Any] | None = None, **more: Any) -> str:
    return jwt.encode(claims(**more), key, algorithm, headers)


def the_tokens(keys: KeySource | None = None, algorithms: tuple[str, ...] = ("RS256",)) -> Tokens:
    return Tokens(
        keys or fixed_key(public(RSA), algorithms),
        issuer="https://login.example.org",
        audience="gateway",
        algorithms=algorithms,
        leeway_seconds=30,
        scope_claim="scope",
    )


async def identified(token: str, tokens: Tokens | None = None) -> Identity | None:
    headers = CIMultiDict(Authorization=f"Bearer {token}")
    return await (tokens or the_tokens()).identify(Asked("upload", "/upload", headers=headers))


async def is_refused(token: str, tokens: Tokens | None = None) -> bool:
    """By this kind, or by the policy, which refuses a bearer token that no kind knows."""
    try:
        return await identified(token, tokens) is None
    except Unauthenticated as error:
        return error.detail == ""


class TestTokens:
    async def test_a_good_one_says_who_and_what_for(self) -> None:
        identity = await identified(signed(scope="openid upload  read other"))
        assert identity is not None
        assert (identity.name, identity.by, identity.scopes) == ("jwt:alice", "jwt", frozenset(["upload", "read"]))

    @pytest.mark.parametrize(
        ("scope", "right"),
        [(["read", 1, None], {"read"}), (None, set()), ("", set()), (7, set()), ({"read": 1}, set())],
    )
    async def test_scopes_are_a_text_or_a_list_and_anything_else_is_none(self, scope: Any, right: set[str]) -> None:
        identity = await identified(signed(scope=scope))
        assert identity is not None
        assert identity.scopes == right

    async def test_no_token_and_an_api_key_are_not_ours(self) -> None:
        assert await the_tokens().identify(Asked("upload", "/upload")) is None
        assert await identified("gw_" + "x" * 43) is None

    @pytest.mark.parametrize(
        "more",
        [
            *[{"exp": -31}, {"nbf": 90}, {"iat": 90}],  # seconds from now
            *[{"iss": "https://evil.example.org"}, {"aud": "other"}, {"aud": ["other", "another"]}],
            *[{"exp": None}, {"sub": None}, {"iss": None}, {"aud": None}, {"exp": "soon"}],
            *[{"sub": ""}, {"sub": "x" * 300}],
        ],
        ids=str,
    )
    async def test_expired_early_foreign_or_incomplete_ones_are_refused(self, more: dict[str, Any]) -> None:
        now = int(time.time())
        later: dict[str, Any] = {key: now + at if isinstance(at, int) else at for key, at in more.items()}
        assert await is_refused(signed(**later))

    async def test_clocks_may_differ_a_little(self) -> None:
        assert await identified(signed(exp=int(time.time()) - 20, nbf=int(time.time()) + 20)) is not None

    async def test_one_of_several_audiences_will_do(self) -> None:
        assert await identified(signed(aud=["x", "gateway"])) is not None

    async def test_altered_in_any_byte_it_is_refused(self) -> None:
        token = signed()
        for place in range(0, len(token) - 1, 3):
            altered = token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]
            assert await is_refused(altered), place

    async def test_no_algorithm_but_those_that_are_configured(self) -> None:
        assert await is_refused(jwt.encode(claims(), "", "none"))
        assert await is_refused(signed(OTHER_RSA))
        assert await is_refused(signed(algorithm="RS512"))
        assert await is_refused(signed(EC, "ES256"))
        # signed with the public key as a secret: the classic confusion, by hand, since PyJWT refuses to make one
        head, body, _ = signed().split(".")
        forged = jwt.utils.base64url_encode(json.dumps({"alg": "HS256", "typ": "JWT"}).encode()).decode()
        mac = hmac.new(public(RSA), f"{forged}.{body}".encode(), hashlib.sha256).digest()
        assert await is_refused(f"{forged}.{body}.{jwt.utils.base64url_encode(mac).decode()}")
        assert head

    @pytest.mark.parametrize(
        "token", ["", "x", "a.b.c", ".", "..", "e30.e30.", "[]", "x" * 20_000, "\u00e9.\u00e9.\u00e9", "e30" * 100]
    )
    async def test_what_is_no_token_is_refused(self, token: str) -> None:
        assert await is_refused(token)

    @pytest.mark.parametrize(
        ("key", "algorithm"), [(EC, "ES256"), (ED, "EdDSA"), (RSA, "PS256")], ids=["ES256", "EdDSA", "PS256"]
    )
    async def test_other_algorithms(self, key: Any, algorithm: str) -> None:
        tokens = the_tokens(fixed_key(public(key), (algorithm,)), (algorithm,))
        assert await identified(signed(key, algorithm), tokens) is not None

    async def test_a_shared_secret(self) -> None:
        secret = b"s" * 40
        tokens = the_tokens(fixed_key(secret + b"\n", ("HS256",)), ("HS256",))
        assert await identified(signed(secret, "HS256"), tokens) is not None
        assert await is_refused(signed(b"t" * 40, "HS256"), tokens)


@pytest.mark.parametrize(
    ("data", "algorithms", "problem"),
    [
        (public(RSA), ("HS256",), "a secret, and this is a key in PEM"),
        (b"short", ("HS256",), "32 bytes"),
        (b"no key at all, but long enough for one", ("RS256",), "no key for RS256"),
        (public(EC), ("RS256",), "no key for RS256"),
        (public(RSA), ("ES256",), "no key for ES256"),
    ],
    ids=["a public key as a secret", "a short secret", "no key", "another kind", "another kind again"],
)
def test_a_key_that_cannot_be_used_is_told(data: bytes, algorithms: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        fixed_key(data, algorithms)


def jwk(key: Any, **more: Any) -> dict[str, Any]:
    algorithm = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    return {**json.loads(algorithm.to_jwk(key.public_key())), **more}


class Issuer:
    """Serves a key set, and counts how often."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer: Callable[[], web.Response] = lambda: web.json_response({"keys": []})
        self.seconds = 0.0
        self.app = web.Application()
        self.app.router.add_get("/jwks", self._get)

    def has(self, *keys: dict[str, Any]) -> None:
        self.answer = lambda: web.json_response({"keys": list(keys)})

    async def _get(self, request: web.Request) -> web.Response:
        self.asked += 1
        await asyncio.sleep(self.seconds)
        return self.answer()


class TestJwks:
    @pytest.fixture
    def issuer(self) -> Issuer:
        return Issuer()

    @pytest.fixture
    async def tokens(self, issuer: Issuer, start_destination: StartDestination) -> Tokens:
        destination = await start_destination(issuer.app)
        return the_tokens(JwksKeys(f"{destination.url}/jwks", ("RS256",)))

    async def test_a_set_is_fetched_once_for_many_at_a_time(self, issuer: Issuer, tokens: Tokens) -> None:
        issuer.has(jwk(RSA, kid="1"), jwk(OTHER_RSA, kid="2"))
        issuer.seconds = 0.1
        one, two = signed(headers={"kid": "1"}), signed(OTHER_RSA, headers={"kid": "2"})
        found = await asyncio.gather(*(identified(token, tokens) for token in [one, two] * 20))
        assert None not in found
        assert issuer.asked == 1

    @pytest.mark.parametrize("keys", [5, None, "x", [5], [[]]])
    async def test_a_set_that_is_none_is_a_503_and_not_asked_for_each_time(
        self, issuer: Issuer, tokens: Tokens, keys: object
    ) -> None:
        issuer.answer = lambda: web.json_response({"keys": keys})
        for _ in range(5):
            with pytest.raises(AccessUnavailable):
                await identified(signed(headers={"kid": "1"}), tokens)
        assert issuer.asked == 1

    async def test_a_key_is_for_the_algorithm_that_it_names(
        self, issuer: Issuer, start_destination: StartDestination
    ) -> None:
        destination = await start_destination(issuer.app)
        both = ("RS256", "PS256")
        tokens = the_tokens(JwksKeys(f"{destination.url}/jwks", both), both)
        issuer.has({**jwk(RSA, kid="1"), "alg": "RS256"})
        assert await identified(signed(headers={"kid": "1"}), tokens)
        assert await is_refused(signed(RSA, "PS256", headers={"kid": "1"}), tokens)

    async def test_an_unknown_key_has_it_fetched_again_once_a_minute_at_most(
        self, issuer: Issuer, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        issuer.has(jwk(RSA, kid="1"))
        assert await identified(signed(headers={"kid": "1"}), tokens)
        for number in range(20):
            assert await is_refused(signed(OTHER_RSA, headers={"kid": f"made-up-{number}"}), tokens)
        assert issuer.asked == 1, "it was fetched just now"
        monkeypatch.setattr(tokens_module, "_AGAIN_SECONDS", 0)
        issuer.has(jwk(RSA, kid="1"), jwk(OTHER_RSA, kid="2"))
        assert await identified(signed(OTHER_RSA, headers={"kid": "2"}), tokens)
        assert issuer.asked == 2

    async def test_a_key_that_was_withdrawn_is_believed_until_the_set_is_old(
        self, issuer: Issuer, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        issuer.has(jwk(RSA, kid="1"))
        assert await identified(signed(headers={"kid": "1"}), tokens)
        issuer.has(jwk(OTHER_RSA, kid="2"))
        assert await identified(signed(headers={"kid": "1"}), tokens)
        monkeypatch.setattr(tokens_module, "_AGAIN_SECONDS", 0)
        monkeypatch.setattr(tokens_module, "_OLD_SECONDS", 0)
        assert await is_refused(signed(headers={"kid": "1"}), tokens)

    async def test_an_issuer_that_is_gone_is_our_trouble_until_there_are_keys_and_then_nobodys(
        self, issuer: Issuer, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        good = signed(headers={"kid": "1"})
        monkeypatch.setattr(tokens_module, "_RETRY_SECONDS", 0)
        for answer in (
            web.Response(status=500),
            web.Response(text="no json"),
            web.json_response([]),
            web.json_response({"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "1"}]}),
            web.Response(body=b"{" + b" " * (2 << 20) + b"}"),
            web.Response(status=302, headers={"Location": "/jwks"}),
        ):
            issuer.answer = lambda answer=answer: answer  # type: ignore[misc]
            with pytest.raises(AccessUnavailable):
                await identified(good, tokens)
        issuer.has(jwk(RSA, kid="1"))
        assert await identified(good, tokens)
        monkeypatch.setattr(tokens_module, "_OLD_SECONDS", 0)
        monkeypatch.setattr(tokens_module, "_AGAIN_SECONDS", 0)
        issuer.answer = lambda: web.Response(status=500)
        assert await identified(good, tokens)

    async def test_when_it_is_looked_at_again_what_was_fetched_is_believed_until_there_is_another(
        self, issuer: Issuer, start_destination: StartDestination, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keys = JwksKeys(f"{(await start_destination(issuer.app)).url}/jwks", ("RS256",))
        tokens, good = the_tokens(keys), signed(headers={"kid": "1"})
        issuer.has(jwk(RSA, kid="1"))
        assert await identified(good, tokens)
        issuer.answer = lambda: web.Response(status=500)
        keys.look_again()
        assert await identified(good, tokens)
        assert issuer.asked == 2
        monkeypatch.setattr(tokens_module, "_RETRY_SECONDS", 0)
        issuer.has(jwk(OTHER_RSA, kid="2"))
        assert await is_refused(good, tokens)
        assert await identified(signed(OTHER_RSA, headers={"kid": "2"}), tokens)
        assert issuer.asked == 3

    async def test_without_a_name_the_only_key_is_meant(self, issuer: Issuer, tokens: Tokens) -> None:
        issuer.has(jwk(RSA))
        assert await identified(signed(), tokens)

    async def test_without_a_name_none_of_two_is(self, issuer: Issuer, tokens: Tokens) -> None:
        issuer.has(jwk(RSA, kid="1"), jwk(OTHER_RSA, kid="2"))
        assert await is_refused(signed(), tokens)

    async def test_keys_for_something_else_are_passed_over(self, issuer: Issuer, tokens: Tokens) -> None:
        issuer.has(jwk(RSA, kid="1", use="enc"), jwk(EC, kid="1"), {"kty": "?"}, jwk(OTHER_RSA, kid="2"))
        assert await is_refused(signed(headers={"kid": "1"}), tokens)
        assert await identified(signed(OTHER_RSA, headers={"kid": "2"}), tokens)


@pytest.mark.sockets
def test_where_there_are_no_tokens_nothing_that_reads_them_is_imported() -> None:
    assert imported_by_default("jwt", "cryptography") == []
