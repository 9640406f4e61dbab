"""Who may use each route, made of the configuration: and what it has to say where others than this machine can ask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from gateway.access import (
    ANY,
    AnyPolicy,
    Browsers,
    Counts,
    Hook,
    JwksKeys,
    Kind,
    Policy,
    SignedUrls,
    Tokens,
    is_loopback,
    read_secrets,
)
from gateway.config.addresses import Inherited, TcpAddress
from gateway.config.messages import ConfigError
from gateway.config.settings import Settings

__all__ = [
    "Policies",
    "access_contradictions",
    "make_browsers",
    "make_management_browsers",
    "make_policies",
    "open_to_others",
]


_HOW = 'access = ["keys"], for one, or ["none"] for anybody'


@dataclass(frozen=True, slots=True)
class Policies:
    """Who may do what; `async with` them, for some have connections."""

    routes: dict[str, Policy]
    """By path."""
    reading: AnyPolicy
    """What was stored is for whoever may use any of the routes, as far as it is theirs."""
    downloading: Policy
    hook: Hook | None
    key_set: JwksKeys | None
    """Of the issuer of tokens."""
    signing: Sequence[str]
    """With what links to what is stored are signed; nothing, where anybody may read, or nobody signs."""
    _stack: AsyncExitStack

    async def __aenter__(self) -> Self:
        if self.hook is not None:
            await self._stack.enter_async_context(self.hook)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.aclose()


def access_contradictions(settings: Settings) -> Iterator[str]:
    """A line for each, led by the key to change."""
    yield from settings.access.contradictions()
    if settings.quotas.file and settings.quotas.postgres:
        yield "quotas.file: there is quotas.postgres, too; one of them counts"
    cors = [("", settings.cors), *((f"routes.{number}.", route.cors) for number, route in enumerate(settings.routes))]
    for where, table in cors:
        if table is not None and (wrong := table.contradiction()):
            yield f"{where}cors.credentials: {wrong}"
    there = {"none", *(name for name in type(settings.access).model_fields if getattr(settings.access, name))}
    if settings.tls is not None and settings.tls.ca is not None:
        there.add("certificate")
    named = [(f"routes.{number}", route.path, route.access) for number, route in enumerate(settings.routes)]
    if settings.download.allow:
        named.append(("download", "/download", settings.download.access))
    reached = _reached(settings)
    if reached and settings.routes == Settings().routes:
        yield f"routes: the default ones let anybody in, and {reached}: write [[routes]], each with its access"
        named = [one for one in named if one[0] == "download"]
    if "signed" in (settings.download.access or ()):
        yield "download.access: signed urls are of routes and what is stored; one of /download would be of everything"
    for where, path, kinds in named:
        if kinds is None and reached:
            yield f"{where}.access: needed, for {reached}: who may use {path}? {_HOW}"
        for kind in kinds or ():
            if kind not in there:
                needed = (
                    "tls.ca, whose certificates those are" if kind == "certificate" else f"the table [access.{kind}]"
                )
                yield f"{where}.access: {kind} needs {needed}"


def _reached(settings: Settings) -> str:
    """How others than this machine can ask, in words; empty where they cannot."""
    server = settings.server
    for address in server.addresses:
        match address:
            case TcpAddress(host) if not is_loopback(host):
                key = f'server.host = "{host}"' if server.listen is None else f"{host} in server.listen"
                return f"others than this machine reach {key}"
            case Inherited():
                return "others than this machine may reach what server.listen takes over as fd://"
    return "server.trusted_networks has proxies, which bring others" if server.trusted_networks else ""


def open_to_others(settings: Settings) -> str | None:
    """A warning where anybody may use a route that others than this machine reach."""
    if not (reached := _reached(settings)):
        return None
    paths = [route.path for route in settings.routes if "none" in (route.access or ("none",))]
    return f"anybody may use {', '.join(paths)}, and {reached}" if paths else None


def make_browsers(settings: Settings) -> Browsers:
    """What other people's pages may have browsers do where uploads are."""
    routes = {route.path: route.cors.made() for route in settings.routes if route.cors is not None}
    return Browsers(settings.cors.made(), routes, frozenset(settings.server.hosts or (ANY,)))


def make_management_browsers(settings: Settings) -> Browsers:
    """The same where operators are: nobody's pages."""
    return Browsers(hosts=frozenset(settings.server.hosts or (ANY,)))


def make_policies(
    settings: Settings, counts: Counts | None = None, secret: str = "", *, before: Policies | None = None
) -> Policies:
    """Those of all routes; the page signs its links with `secret`, unless there are others to sign with. What those
    `before` them have to ask others is taken over: the hook with its connections, and the issuer's keys, which are
    asked for anew, and believed until they come.

    Raises ConfigError for keys and secrets that cannot be read, all at once."""
    by_path = {route.path: route.access or ("none",) for route in settings.routes}
    downloading = settings.download.access or ("none",)
    union = tuple(dict.fromkeys(kind for kinds in by_path.values() for kind in kinds))
    problems: list[str] = []
    names = tuple(dict.fromkeys([*union, *downloading]))
    made = settings.access.made(names, problems, counts, None if before is None else before.key_set)
    if problems:
        raise ConfigError(problems)
    key_set = next((kind.keys for kind in made.values() if isinstance(kind, Tokens)), None)
    if before is not None and isinstance(key_set, JwksKeys):
        key_set.look_again()
    hook = None if before is None else before.hook
    if hook is None and "hook" in {*union, *downloading}:
        hook = settings.access.made_hook()

    signing: Sequence[str] = ()
    if settings.has_page and union != ("none",):
        signed = settings.access.signed if "signed" in union else None
        signing = [secret] if signed is None else read_secrets(signed.secrets_file)
        made.setdefault("signed", SignedUrls(signing))

    def policy(names: Sequence[str]) -> Policy:
        kinds: list[Kind] = [made[name] for name in names if name in made]
        return Policy(kinds, hook=hook if "hook" in names else None, for_anybody="none" in names)

    reading = list(dict.fromkeys(by_path.values())) or [("none",)]
    if signing and "signed" not in union:
        reading.append(("signed",))
    return Policies(
        {path: policy(names) for path, names in by_path.items()},
        AnyPolicy([policy(names) for names in reading]),
        policy(downloading),
        hook,
        key_set if isinstance(key_set, JwksKeys) else None,
        signing,
        AsyncExitStack(),
    )
