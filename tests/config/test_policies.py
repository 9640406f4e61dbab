from __future__ import annotations

from pathlib import Path

import pytest

from gateway.access import new_key
from gateway.config.load import load
from gateway.config.messages import ConfigError
from gateway.config.policies import make_browsers, make_policies, open_to_others

KEYS = '[access.keys]\nfile = "keys.toml"\n'
SIGNED = '[access.signed]\nsecrets_file = "signing.keys"\n'
JWT = '[access.jwt]\nissuer = "i"\naudience = "a"\n'
OUT = '[server]\nhost = "0.0.0.0"\n'


def route(access: str = "", path: str = "/upload") -> str:
    line = f"access = {access}\n" if access else ""
    return f'[[routes]]\npath = "{path}"\n{line}[[routes.parts]]\nsinks = ["none"]\n'


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("keys.toml").write_text(new_key("ci", ("upload",))[1])
    Path("signing.keys").write_text("s" * 32)
    Path("jwt.key").write_text("j" * 32)
    Path("broken.toml").write_text("ci = 1")


def problems(document: str) -> list[str]:
    Path("gateway.toml").write_text(document)
    try:
        make_policies(load("gateway.toml"))
    except ConfigError as error:
        return error.problems
    return []


HOW = 'who may use /upload? access = ["keys"], for one, or ["none"] for anybody'
REACHED = 'others than this machine reach server.host = "0.0.0.0"'
MISTAKES = {
    "nothing said where others can ask": (OUT + route(), [f"routes.0.access: needed, for {REACHED}: {HOW}"]),
    "the same behind a proxy": (
        '[server]\ntrusted_networks = ["10.0.0.0/8"]\n' + route(),
        [f"routes.0.access: needed, for server.trusted_networks has proxies, which bring others: {HOW}"],
    ),
    "the default routes": (
        OUT,
        [f"routes: the default ones let anybody in, and {REACHED}: write [[routes]], each with its access"],
    ),
    "one of two": (
        OUT + route('["none"]') + route(path="/b"),
        [f"routes.1.access: needed, for {REACHED}: {HOW.replace('/upload', '/b')}"],
    ),
    "downloads": (
        OUT + route('["none"]') + '[download]\nallow = ["https://example.org/*"]\n',
        [f"download.access: needed, for {REACHED}: {HOW.replace('/upload', '/download')}"],
    ),
    "a kind without its table": (
        route('["keys", "hook"]'),
        [
            "routes.0.access: keys needs the table [access.keys]",
            "routes.0.access: hook needs the table [access.hook]",
        ],
    ),
    "keys that are not there": (
        '[access.keys]\nfile = "no.toml"\n' + route('["keys"]'),
        ["access.keys.file: no.toml: No such file or directory"],
    ),
    "secrets that are not there": (
        '[access.signed]\nsecrets_file = "no.keys"\n' + route('["signed"]'),
        ["access.signed.secrets_file: no.keys: No such file or directory"],
    ),
    "no key for tokens": (JWT + route('["jwt"]'), ["access.jwt.key_file: needed, or jwks_url"]),
    "two places of keys": (
        JWT + 'key_file = "k"\njwks_url = "https://i/"\n' + route('["jwt"]'),
        ["access.jwt.key_file: there is a jwks_url, too; one of them has the keys"],
    ),
    "a secret that is public": (
        JWT + 'algorithms = ["HS256"]\njwks_url = "https://i/"\n' + route('["jwt"]'),
        ["access.jwt.algorithms: HS… needs key_file, for a key set is public"],
    ),
    "secrets and key pairs": (
        JWT + 'algorithms = ["HS256", "RS256"]\nkey_file = "jwt.key"\n' + route('["jwt"]'),
        ["access.jwt.algorithms: HS… are signed with a secret, the others with a key pair; not both"],
    ),
}


@pytest.mark.parametrize(("document", "right"), MISTAKES.values(), ids=MISTAKES)
def test_what_is_wrong_names_the_key_and_what_to_write(document: str, right: list[str]) -> None:
    assert problems(document) == right


@pytest.mark.parametrize(
    ("document", "key"),
    [
        ('[access.keys]\nfile = "broken.toml"\n' + route('["keys"]'), "access.keys.file: broken.toml: ci"),
        (JWT + 'key_file = "jwt.key"\n' + route('["jwt"]'), "access.jwt.key_file: it is no key for RS256"),
        (JWT + 'jwks_url = "http://login.example.org/"\n' + route(), "access.jwt.jwks_url: it has to begin with https"),
        ('[access.hook]\nurl = "http://example.org/may"\n' + route(), "access.hook.url: it has to begin with https"),
        (JWT + 'algorithms = ["none"]\nkey_file = "x"\n' + route(), "access.jwt.algorithms"),
        (route('["key"]') + KEYS, "routes.0.access"),
        (route("[]"), "routes.0.access"),
    ],
)
def test_values_that_cannot_be_are_told_by_their_keys(document: str, key: str) -> None:
    assert any(line.startswith(key) for line in problems(document))


@pytest.mark.parametrize(
    "document",
    [
        route(),
        '[server]\nhost = "localhost"\n' + route(),
        '[server]\nhost = "::1"\n' + route(),
        OUT + route('["none"]'),
        OUT + KEYS + route('["keys"]'),
        OUT + SIGNED + KEYS + route('["keys", "signed", "none"]'),
        JWT + 'key_file = "jwt.key"\nalgorithms = ["HS256"]\n' + route('["jwt"]'),
        '[access.hook]\nurl = "http://127.0.0.1:9000/may"\n' + route('["hook"]'),
        '[access.hook]\nurl = "http://[::1]:9000/may"\n' + route('["hook"]'),
    ],
)
def test_what_is_sound(document: str) -> None:
    assert problems(document) == []


def test_keys_that_no_route_names_are_not_read() -> None:
    assert problems('[access.keys]\nfile = "no.toml"\n' + route()) == []


def test_reading_is_for_whoever_may_use_any_route() -> None:
    Path("gateway.toml").write_text(KEYS + SIGNED + route('["keys"]') + route('["signed"]', "/b"))
    policies = make_policies(load("gateway.toml"))
    assert not policies.reading.is_open
    assert policies.downloading.is_open
    assert [policy._names for policy in policies.reading._policies] == [{"keys"}, {"signed"}]


def test_what_is_asked_of_others_is_taken_over_by_those_that_are_made_anew() -> None:
    """The hook's connections, and keys that its issuer may not be able to give now."""
    hook = '[access.hook]\nurl = "https://app.example/may"\n'
    document = JWT + 'jwks_url = "https://login.example/jwks"\n' + hook + route('["jwt", "hook"]')
    Path("gateway.toml").write_text(document)
    settings = load("gateway.toml")
    before = make_policies(settings)
    after = make_policies(settings, before=before)
    assert before.hook is not None
    assert before.key_set is not None
    assert (after.hook, after.key_set) == (before.hook, before.key_set)
    assert after.routes != before.routes


@pytest.mark.parametrize(
    ("document", "right"),
    [
        (route(), None),
        (OUT + KEYS + route('["keys"]'), None),
        (OUT + route('["none"]'), f"anybody may use /upload, and {REACHED}"),
    ],
)
def test_that_anybody_may_is_a_warning_where_others_can_ask(document: str, right: str | None) -> None:
    Path("gateway.toml").write_text(document)
    assert open_to_others(load("gateway.toml")) == right


def test_of_cors_what_contradicts_itself_or_is_no_origin_is_named_by_its_key() -> None:
    any_origin = 'origins = ["*"]\ncredentials = true\n'
    wrong = 'with origins = ["*"] any page could use what its visitors may: name them'
    assert problems(f"[cors]\n{any_origin}{route()}") == [f"cors.credentials: {wrong}"]
    own = route().replace("[[routes.parts]]", f"[routes.cors]\n{any_origin}[[routes.parts]]")
    assert problems(own) == [f"routes.0.cors.credentials: {wrong}"]
    assert problems('[cors]\norigins = ["https://a.example/"]\n' + route())[0].startswith("cors.origins.0")
    assert problems('[cors]\norigins = ["*", "https://a.example"]\n' + route())[0].startswith("cors.origins")
    assert problems('[cors]\nheaders = ["a b"]\n' + route())[0].startswith("cors.headers.0")
    assert problems('[server]\nhosts = ["a:80"]\n' + route())[0].startswith("server.hosts.0")


@pytest.mark.parametrize(
    ("document", "takes"),
    [
        ("", True),
        ('[server]\nhosts = ["*"]\n', True),
        ('[server]\ntrusted_networks = ["10.0.0.0/8"]\n', True),
        ('[server]\nhost = "0.0.0.0"\n', True),
        ('[server]\nhost = "0.0.0.0"\nhosts = ["a.example"]\n', False),
    ],
)
def test_any_name_will_do_unless_names_are_given(document: str, takes: bool) -> None:
    Path("gateway.toml").write_text(document + route('["none"]'))
    assert make_browsers(load("gateway.toml")).takes("evil.example") is takes
