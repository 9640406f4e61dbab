"""What can be configured of who may: the keys of `[access]`, and what they make."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field
from yarl import URL

from gateway.access import (
    ANY,
    ApiKeys,
    ClientCertificates,
    Cors,
    Counts,
    Hook,
    JwksKeys,
    KeySource,
    Kind,
    SignedUrls,
    Tokens,
    check_host,
    check_origin,
    fixed_key,
    is_loopback,
    read_secrets,
)
from gateway.config.sinks import Table
from gateway.http.origin import TOKEN
from gateway.http.urls import destination_url
from gateway.model import Count, Seconds

__all__ = [
    "ACCESS_KINDS",
    "AccessKind",
    "AccessSettings",
    "CorsSettings",
    "HookSettings",
    "HostNames",
    "JwtSettings",
    "KeysSettings",
    "QuotasSettings",
    "SignedSettings",
]

AccessKind = Literal["keys", "jwt", "signed", "certificate", "hook", "none"]
ACCESS_KINDS: tuple[str, ...] = get_args(AccessKind)

# fmt: off
_Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "HS256", "HS384", "HS512",
]
# fmt: on


def _postgres(url: str) -> str:
    if url and not url.startswith(("postgresql://", "postgres://")):
        raise ValueError("no url such as postgresql://host/database")
    if url and importlib.util.find_spec("asyncpg") is None:
        raise ValueError("it needs the package asyncpg")
    return url


def _confidential(url: str) -> str:
    """Keys, and what is asked of an application, go over TLS, or do not leave the machine."""
    destination_url(url)
    parsed = URL(url)
    if parsed.scheme != "https" and not is_loopback(parsed.host or ""):
        raise ValueError("it has to begin with https://, but for this machine's own (127.0.0.1)")
    return url


def _one_or_any(names: tuple[str, ...]) -> tuple[str, ...]:
    if ANY in names and len(names) > 1:
        raise ValueError(f'"{ANY}" is all of them: it stands alone')
    return names


def _field_name(name: str) -> str:
    if not TOKEN.fullmatch(name) or name == ANY:
        raise ValueError("the name of a header")
    return name


HostNames = Annotated[tuple[Annotated[str, AfterValidator(check_host)], ...], AfterValidator(_one_or_any)]
"""What a gateway is asked under."""


class KeysSettings(Table):
    """`[access.keys]`: API keys."""

    file: Annotated[str, Field(min_length=1)]


class JwtSettings(Table):
    """`[access.jwt]`: tokens of one issuer."""

    issuer: Annotated[str, Field(min_length=1)]
    audience: Annotated[str, Field(min_length=1)]
    algorithms: Annotated[tuple[_Algorithm, ...], Field(min_length=1)] = ("RS256",)
    """What most issuers sign with; whatever a token says of itself, it is checked with none but these."""
    key_file: str = ""
    jwks_url: Annotated[str, AfterValidator(lambda url: url and _confidential(url))] = ""
    leeway_seconds: Annotated[Seconds, Field(le=600)] = 30
    """What clocks differ by that nobody looks after."""
    scope_claim: Annotated[str, Field(min_length=1)] = "scope"
    """RFC 8693 4.2."""


class SignedSettings(Table):
    """`[access.signed]`: signed urls."""

    secrets_file: Annotated[str, Field(min_length=1)]


class HookSettings(Table):
    """`[access.hook]`: an application that decides."""

    url: Annotated[str, AfterValidator(_confidential)]
    timeout_seconds: Annotated[Seconds, Field(gt=0, le=60)] = 5
    """A client waits that long before a byte of its body is taken."""
    on_error: Literal["refuse", "allow"] = "refuse"
    """What cannot be asked is not allowed."""
    forward: tuple[str, ...] = ("Authorization",)
    """By what it can know who that is, mostly."""


class QuotasSettings(Table):
    """`[quotas]`: what each identity may have; 0 is unlimited."""

    uploads: Count = 0
    """How much is too much is somebody's decision, here and below."""
    requests_per_minute: Count = 0
    bytes_per_day: Count = 0
    stored_bytes: Count = 0
    file: str = ""
    """Counts of one process are forgotten with it; a file outlives it."""
    postgres: Annotated[str, AfterValidator(_postgres)] = ""
    """Replicas have no file together."""


class CorsSettings(Table):
    """`[cors]`, or a route's own: whose pages may use what is here."""

    origins: Annotated[tuple[Annotated[str, AfterValidator(check_origin)], ...], AfterValidator(_one_or_any)] = ()
    """Nobody's: a page that may read answers may read all that its visitor may."""
    headers: tuple[Annotated[str, AfterValidator(_field_name)], ...] = ()
    """Those that the gateway reads are always allowed."""
    credentials: bool = False
    """Cookies, and what else a browser adds by itself, mean nothing to the gateway; to a destination they may."""

    def contradiction(self) -> str | None:
        """What is wrong with `credentials`."""
        if self.credentials and ANY in self.origins:
            return 'with origins = ["*"] any page could use what its visitors may: name them'
        return None

    def made(self) -> Cors | None:
        """None where there are no origins."""
        return Cors(frozenset(self.origins), self.headers, self.credentials) if self.origins else None


class AccessSettings(Table):
    """`[access]`: the kinds of credentials that routes name."""

    keys: KeysSettings | None = None
    jwt: JwtSettings | None = None
    signed: SignedSettings | None = None
    hook: HookSettings | None = None

    def contradictions(self) -> list[str]:
        """A line for each, led by the key."""
        jwt = self.jwt
        if jwt is None or bool(jwt.key_file) != bool(jwt.jwks_url):
            mixed = jwt is not None and len({name.startswith("HS") for name in jwt.algorithms}) > 1
            secret = jwt is not None and jwt.jwks_url and any(name.startswith("HS") for name in jwt.algorithms)
            if mixed:
                return ["access.jwt.algorithms: HS… are signed with a secret, the others with a key pair; not both"]
            if secret:
                return ["access.jwt.algorithms: HS… needs key_file, for a key set is public"]
            return []
        if jwt.key_file:
            return ["access.jwt.key_file: there is a jwks_url, too; one of them has the keys"]
        return ["access.jwt.key_file: needed, or jwks_url"]

    def made(
        self, names: Sequence[str], problems: list[str], counts: Counts | None, key_set: JwksKeys | None = None
    ) -> dict[str, Kind]:
        """The kinds of these names that have a table here, but for the hook. What cannot be made is a problem.
        `key_set` is one that was fetched before.
        """
        made: dict[str, Kind] = {}
        for name in names:
            try:
                if (kind := self._made(name, counts, key_set)) is not None:
                    made[name] = kind
            except (OSError, ValueError) as error:
                told = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
                problems.append(f"access.{name}.{_FILES[name]}: {told}")
        return made

    def _made(self, name: str, counts: Counts | None, key_set: JwksKeys | None) -> Kind | None:
        if name == "keys" and self.keys is not None:
            return ApiKeys(self.keys.file)
        if name == "certificate":
            return ClientCertificates()
        if name == "signed" and self.signed is not None:
            return SignedUrls(read_secrets(self.signed.secrets_file), counts)
        if name == "jwt" and (jwt := self.jwt) is not None:
            keys: KeySource = (
                key_set or JwksKeys(jwt.jwks_url, jwt.algorithms)
                if jwt.jwks_url
                else fixed_key(Path(jwt.key_file).read_bytes(), jwt.algorithms)
            )
            return Tokens(
                keys,
                issuer=jwt.issuer,
                audience=jwt.audience,
                algorithms=jwt.algorithms,
                leeway_seconds=jwt.leeway_seconds,
                scope_claim=jwt.scope_claim,
            )
        return None

    def made_hook(self) -> Hook | None:
        """The hook, if there is one."""
        if (hook := self.hook) is None:
            return None
        return Hook(
            hook.url,
            timeout_seconds=hook.timeout_seconds,
            lets_in_on_error=hook.on_error == "allow",
            forward=hook.forward,
        )


_FILES = {"keys": "file", "jwt": "key_file", "signed": "secrets_file"}
