"""Settings: every mistake is named by its key path, all at once; defaults, environment, and what the commands say."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import main
from gateway.config.listening import ServerSettings
from gateway.config.load import load
from gateway.config.memory import memory_bound_bytes
from gateway.config.messages import ConfigError
from gateway.config.settings import Settings
from gateway.config.sinks import RelaySettings
from gateway.model import Limits, Upload
from gateway.server.app import build_app
from gateway.server.services import SERVICES
from gateway.sinks import Delivery, Sink
from gateway.upload.routes import BestEffort

SECRET = "hunter2"

Load = Callable[[str], Settings]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No variables of ours, no files of ours, and the loggers as they were: the commands configure them."""
    for name in list(os.environ):
        if name.startswith("GATEWAY_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    root, server = logging.getLogger(), logging.getLogger("aiohttp.server")
    handlers, level, filters = root.handlers[:], root.level, server.filters[:]
    yield
    root.handlers[:], server.filters[:] = handlers, filters
    root.setLevel(level)


@pytest.fixture
def config(tmp_path: Path) -> Load:
    def write_and_load(document: str) -> Settings:
        return load(_write(tmp_path, document))

    return write_and_load


def _write(directory: Path, document: str) -> str:
    path = directory / "gateway.toml"
    path.write_text(document, "utf-8")
    return str(path)


def _problems(config: Load, document: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config(document)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


# -- mistakes


def _sinks(*rules: str, **members: str) -> str:
    """A route with a rule for each of these lists of sinks."""
    more = "".join(f'{key} = "{value}"\n' for key, value in members.items())
    return f'[[routes]]\npath = "/x"\n{more}parts = [{", ".join(f"{{sinks = [{rule}]}}" for rule in rules)}]'


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ("nope = 1", "nope"),
        ("[nope]\nx = 1", "nope"),
        ("_case_sensitive = true", "_case_sensitive"),
        ("server = 1", "server"),
        ('[server]\nport = "http"', "server.port"),
        ("[server]\nport = 65536", "server.port"),
        ("[server]\nhots = 1", "server.hots"),
        ("[server]\nworkers = 0", "server.workers"),
        ("[server]\nworkers = 65", "server.workers"),
        ("[server]\nread_buffer_bytes = 1", "server.read_buffer_bytes"),
        ("[limits]\nmax_parts = -1", "limits.max_parts"),
        ("[limits]\nmax_parts = 1.5", "limits.max_parts"),
        ("[limits]\nidle_seconds = nan", "limits.idle_seconds"),
        ("[limits]\nmax_bytes = 1", "limits.max_bytes"),
        ("sinks = 1", "sinks"),
        ("[sinks]\ndisk = 1", "sinks.disk"),
        ("[sinks.new]", "sinks.new.type"),
        ('[sinks.new]\ntype = "dsik"', "sinks.new.type"),
        ("[sinks.new]\ntype = 1", "sinks.new.type"),
        ("[sinks.disk]\nfsink = true", "sinks.disk.fsink"),
        ("[sinks.disk]\nkeep_seconds = -1", "sinks.disk.keep_seconds"),
        ("[flows.own]\nlevel = 1", "flows.own.use"),
        ('[[routes]]\npath = "/u"\nparts = [{flows = ["gzpi"], sinks = ["disk"]}]', "routes.0.parts.0.flows"),
        ('[download]\nallow = ["ftp://host/*"]', "download.allow"),
        ('[download]\nallow_private = ["10.0.0.0/33"]', "download.allow_private"),
        ('[sinks.api]\nurl = "ftp://host/"', "sinks.api.url"),
        ('[sinks.api]\nurl = "host/upload"', "sinks.api.url"),
        ('[sinks.api]\nurl = "http://host:99999/"', "sinks.api.url"),
        ('[sinks.api]\nurl = "http://user@host/"', "sinks.api.url"),
        ('[sinks.api]\nurls = ["http://a/", "http://user:word@b/"]', "sinks.api.urls.1"),
        ('[sinks.api]\nhealth_path = "//elsewhere/"', "sinks.api.health_path"),
        ("[sinks.api]\nconnect_seconds = 0", "sinks.api.connect_seconds"),
        ('[sinks.new]\ntype = "relay"', "sinks.new.url"),
        ('[sinks.new]\ntype = "relay"\nurl = "http://a/"\nurls = ["http://b/"]', "sinks.new.urls"),
        ('[sinks.api]\nurls = ["http://b/", "b"]', "sinks.api.urls.1"),
        ('[sinks.api]\nlength = "guess"', "sinks.api.length"),
        ("[sinks.api]\nlength = []", "sinks.api.length"),
        ('[sinks.api]\nlength = ["spool", "known"]', "sinks.api.length"),
        ('[sinks.api]\nlength = ["known", "known"]', "sinks.api.length"),
        ('[sinks.api]\nlength = ["known", "passthrough"]', "sinks.api.length"),
        ('[sinks.api]\nhealth_path = "healthz"', "sinks.api.health_path"),
        (
            '[sinks.api]\nlength = "passthrough"\n[[routes]]\npath = "/x"\nparts = [{sinks = ["disk", "api"]}]',
            "routes.0.parts.0.sinks",
        ),
        (
            '[sinks.api]\nlength = "passthrough"\n[[routes]]\npath = "/x"\n'
            'parts = [{match = {name = "a"}, sinks = ["api"]}]',
            "routes.0.parts.0.sinks",
        ),
        (
            '[sinks.api]\nlength = "passthrough"\n[[routes]]\npath = "/x"\n'
            'parts = [{flows = ["sniff"], sinks = ["api"]}]',
            "routes.0.parts.0.sinks",
        ),
        (
            '[sinks.api]\nlength = "passthrough"\n[[routes]]\npath = "/x"\n'
            'parts = [{match = {name = "a"}, sinks = ["disk"]}, {sinks = ["api"]}]',
            "routes.0.parts.1.sinks",
        ),
        (
            '[sinks.api]\nlength = ["known", "spool"]\n[[routes]]\npath = "/x"\n'
            'parts = [{flows = ["gzip"], sinks = ["api"]}]',
            "routes.0.parts.0.flows",
        ),
        ('[server]\ntrusted_networks = ["10.0.0.1/8"]', "server.trusted_networks"),
        ('[sinks.api]\nheaders = {"Content-Length" = "1"}', "sinks.api.headers"),
        ('[sinks.api]\nheaders = {"te" = "1"}', "sinks.api.headers"),
        ('[sinks.api]\nheaders = {"a b" = "1"}', "sinks.api.headers"),
        ('[sinks.api]\nheaders = {"A" = "1", "a" = "2"}', "sinks.api.headers"),
        ('[sinks.api]\nheaders = {"A" = 1}', "sinks.api.headers.A"),
        ('[sinks.api]\nforward_cookies = ["a b"]', "sinks.api.forward_cookies"),
        ("[sinks.api]\nforward_authorization = 2", "sinks.api.forward_authorization"),
        ('[server]\ntrusted_header = "x-real-ip"', "server.trusted_header"),
        ("[server]\nhead_seconds = 0", "server.head_seconds"),
        ("[server]\nkeepalive_seconds = 0", "server.keepalive_seconds"),
        ('[sinks.api]\nforward_query = "a"', "sinks.api.forward_query"),
        ('[sinks.api]\nforward_query = [""]', "sinks.api.forward_query"),
        ("[sinks.api]\nforward_query = 1", "sinks.api.forward_query"),
        ("[sinks.api]\nforward_headers = true", "sinks.api.forward_headers"),
        ('[sinks.api]\nforward_headers = ["X_Api_Version"]', "sinks.api.forward_headers"),
        ('[sinks.api]\nforward_headers = ["Proxy"]', "sinks.api.forward_headers"),
        ('[sinks.api]\nforward_headers = ["Cookie"]', "sinks.api.forward_headers"),
        ('[sinks.api]\nforward_headers = ["Content-Type"]', "sinks.api.forward_headers"),
        ('[sinks.api]\nforward_headers = ["X-Forwarded-For"]', "sinks.api.forward_headers"),
        ('[sinks.api]\nheaders = {"X-A" = "1", "x_a" = "2"}', "sinks.api.headers"),
        ("[sinks.api]\nmax_connections = -1", "sinks.api.max_connections"),
        ('[sinks.api]\nper = "file"', "sinks.api.per"),
        ('[sinks.api]\nrename = {a = ""}', "sinks.api.rename.a"),
        ('[sinks.api]\nrename = ["a"]', "sinks.api.rename"),
        ('[sinks.api]\ndrop = "a"', "sinks.api.drop"),
        ('[sinks.api]\ndrop = [""]', "sinks.api.drop.0"),
        ('[sinks.api]\nadd_before = {a = "{nothing}"}', "sinks.api.add_before"),
        ('[sinks.api]\nadd_before = {a = "{size}"}', "sinks.api.add_before"),
        ('[sinks.api]\nadd_before = {"{name}" = "a"}', "sinks.api.add_before"),
        ("[sinks.api]\nadd_before = {a = 1}", "sinks.api.add_before.a"),
        ('[sinks.api]\nadd_after = {"{name}_{md5}" = "{size}"}', "sinks.api.add_after"),
        ('[sinks.api]\nadd_after = {a = "}"}', "sinks.api.add_after"),
        ("[sinks.api]\nadd_after = {'a\\' = 'x'}", "sinks.api.add_after"),
        ("[sinks.api]\nadd_before = {'a\\;b' = 'x'}", "sinks.api.add_before"),
        ("[sinks.api]\nrename = {'a' = 'b\\'}", "sinks.api.rename"),
        ('[sinks.api]\nrename = {a = "b\\u0001"}', "sinks.api.rename"),
        ("[sinks.api]\nfields_first_bytes = -1", "sinks.api.fields_first_bytes"),
        ('[sinks.api]\nper = "part"\n[[routes]]\npath = "/x"\nparts = [{sinks = ["api"]}]', "routes.0.keep"),
        ('[sinks.api]\nurl = "https://a/"\n[sinks.api.tls]\nkey = "k"', "sinks.api.tls"),
        ('[sinks.api]\nurl = "https://a/"\n[sinks.api.tls]\nca = ""', "sinks.api.tls.ca"),
        ('[sinks.api]\nurl = "http://a/"\n[sinks.api.tls]\nserver_name = "a"', "sinks.api.tls"),
        ("[sinks.none]\nroot = 1", "sinks.none.root"),
        ("routes = 1", "routes"),
        ("routes = [1]", "routes.0"),
        ("[[routes]]\n", "routes.0.path"),
        ('[[routes]]\npath = "upload"', "routes.0.path"),
        ('[[routes]]\npath = "/{x}"', "routes.0.path"),
        ('[[routes]]\npath = "/files"', "routes.0.path"),
        ('[[routes]]\npath = "/metrics"', "routes.0.path"),
        ('[[routes]]\npath = "/x"\n[[routes]]\npath = "/x"', "routes.1.path"),
        ('[[routes]]\npath = "/x"\nkind = "uplaod"', "routes.0.kind"),
        ('[[routes]]\npath = "/x"\nkind = "relay"', "routes.0.kind"),
        ('[[routes]]\npath = "/x"\nkind = "relay"\nparts = [{sinks = ["disk"]}]', "routes.0.kind"),
        ('[[routes]]\npath = "/x"\ndigests = ["sha256", "sha3"]', "routes.0.digests"),
        ('[[routes]]\npath = "/x"\nparts = [{sinks = []}]', "routes.0.parts.0.sinks"),
        ('[[routes]]\npath = "/x"\nparts = [{sinks = ["disk", "nix"]}]', "routes.0.parts.0.sinks"),
        ('[[routes]]\npath = "/x"\nparts = [{sinks = [1]}]', "routes.0.parts.0.sinks.0"),
        (_sinks('{sink = "nix", mode = "best_effort"}'), "routes.0.parts.0.sinks"),
        (_sinks('{sink = "api", mode = "best"}'), "routes.0.parts.0.sinks.0.mode"),
        (_sinks('{sink = "api", mode = "best_effort", lag_bytes = 0}'), "routes.0.parts.0.sinks.0.lag_bytes"),
        (_sinks('{sink = "api", mode = "best_effort", lag_seconds = 0}'), "routes.0.parts.0.sinks.0.lag_seconds"),
        (_sinks('{sink = "api", lag = 1}'), "routes.0.parts.0.sinks.0.lag"),
        (_sinks('{mode = "best_effort"}'), "routes.0.parts.0.sinks.0.sink"),
        (_sinks('{sink = "api", lag_bytes = 1}'), "routes.0.parts.0.sinks"),
        (_sinks('{sink = "api", mode = "best_effort"}', '"api"'), "routes.0.parts.1.sinks"),
        (
            _sinks('{sink = "api", mode = "best_effort"}', '{sink = "api", mode = "best_effort", lag_bytes = 1}'),
            "routes.0.parts.1.sinks",
        ),
        (_sinks('{sink = "disk", mode = "best_effort"}'), "routes.0"),
        (_sinks('{sink = "api", mode = "best_effort"}', kind="relay"), "routes.0"),
        (_sinks('"api"', answer="disk"), "routes.0.answer"),
        (_sinks('{sink = "api", mode = "best_effort"}', answer="api"), "routes.0.answer"),
        (_sinks('"disk"', answer="api"), "routes.0.answer"),
        (_sinks('"api"', answer="api", kind="convert"), "routes.0.answer"),
        (_sinks('"disk"', keep="some"), "routes.0.keep"),
        (_sinks('"disk", "api"', keep="each"), "routes.0.keep"),
        (_sinks('"api"', keep="each", kind="relay"), "routes.0.keep"),
        ('[[routes]]\npath = "/x"\nparts = [{match = {nmae = "x"}, sinks = ["disk"]}]', "routes.0.parts.0.match.nmae"),
    ],
)
def test_a_mistake_is_named_by_its_key_path(config: Load, document: str, path: str) -> None:
    assert path in {problem.partition(": ")[0] for problem in _problems(config, document)}


def test_all_mistakes_come_at_once_a_line_each(config: Load) -> None:
    problems = _problems(
        config,
        """
        nope = 1
        [server]
        port = "http"
        [limits]
        max_parts = -1
        idle = 3
        [sinks.api]
        url = "nowhere"
        [[routes]]
        path = "/files"
        parts = [{sinks = ["nix"]}]
        """,
    )
    paths = [problem.partition(": ")[0] for problem in problems]
    assert sorted(paths) == [
        "limits.idle",
        "limits.max_parts",
        "nope",
        "routes.0.parts.0.sinks",
        "routes.0.path",
        "server.port",
        "sinks.api.url",
    ]
    assert not any("\n" in problem for problem in problems)


@pytest.mark.parametrize(
    "document",
    [
        f'[sinks.api]\nurl = "ftp://user:{SECRET}@host/"',
        f'[sinks.api]\nurl = "http://user:{SECRET}@host/"',
        f'[sinks.api]\nurl = "http://host/?sig={SECRET}%"',
        f'[sinks.api]\nhealth_path = "//{SECRET}"',
        f'[sinks.api]\nurls = ["http://a/", "http://{SECRET}@host/"]',
        f'[download]\nallow = ["https://user:{SECRET}@host/*"]',
        f'[download]\nallow = ["user:{SECRET}@host/*"]',
        f'[download]\nallow = ["https://host/*?sig={SECRET}"]',
        f'[sinks.api]\nurl = "http://user:{SECRET} @host/"\nconnect_seconds = "{SECRET}"',
        f'[sinks.new]\ntype = "nope"\npassword = "{SECRET}"',
        f'[sinks.disk]\npassword = "{SECRET}"',
        f'[server]\nport = "{SECRET}"',
        f'sinks = "{SECRET}"',
        f'[sinks.api]\npassword = "{SECRET}" and more',
        f'[sinks.api]\nheaders = {{"X-Api-Key" = "{SECRET}\\n"}}',
        f'[sinks.api]\nheaders = {{"X-Api-Key" = ["{SECRET}"]}}',
        f'[sinks.api]\nheaders = "{SECRET}"',
    ],
)
def test_a_value_is_never_echoed_for_it_may_be_a_secret(
    tmp_path: Path, document: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--config", _write(tmp_path, document)]) == 2
    output = capsys.readouterr()
    assert output.err
    assert SECRET not in output.out + output.err


def test_the_url_of_a_destination_is_put_into_ascii(config: Load) -> None:
    settings = config('[sinks.api]\nurls = ["http://bücher.example/ü", "http://[::1]:8081"]\nhealth_path = "/ü"')
    api = settings.sinks["api"]
    assert isinstance(api, RelaySettings)
    assert api.all_urls == ("http://xn--bcher-kva.example/%C3%BC", "http://[::1]:8081/")
    assert api.health_path == "/%C3%BC"


def test_credentials_in_a_url_are_told_where_they_go(config: Load) -> None:
    (problem,) = _problems(config, '[sinks.api]\nurl = "http://user:word@host/"')
    assert problem.startswith("sinks.api.url: it has user info: credentials go into headers.Authorization (")
    config('[sinks.api]\nurl = "http://host/@here?to=a@b"')


def test_static_headers_may_come_from_the_environment_and_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_SINKS__API__HEADERS", '{"X-Api-Key": "' + SECRET + '"}')
    settings = load()
    api = settings.sinks["api"]
    assert isinstance(api, RelaySettings)
    assert api.headers == {"X-Api-Key": SECRET}
    assert SECRET not in repr(settings)


def test_a_secret_in_the_environment_is_never_echoed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GATEWAY_SINKS", '{"api": {"url": "http://user:' + SECRET)
    assert main(["check"]) == 2
    output = capsys.readouterr()
    assert "sinks" in output.err
    assert SECRET not in output.out + output.err


def test_a_file_that_is_missing_or_no_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: No such file"):
        load(tmp_path / "nowhere.toml")
    for content in (b"[server\n", b"port = 1\nport = 2", b'host = "\xff"', b"\x00"):
        (tmp_path / "bad.toml").write_bytes(content)
        with pytest.raises(ConfigError, match=r"bad\.toml: "):
            load(tmp_path / "bad.toml")


# -- defaults


def test_the_defaults_are_there_without_a_file_and_under_an_empty_one(config: Load) -> None:
    assert config("") == load(None)
    assert list(load().sinks) == ["disk", "api", "none"]
    assert [(route.path, route.kind, route.digests) for route in load().as_routes()] == [
        ("/upload", "upload", ("sha256",)),
        ("/proxy", "relay", ()),
        ("/convert", "convert", ("sha256",)),
    ]
    assert load().server.host == "127.0.0.1"


def test_sinks_of_the_user_stand_beside_the_default_ones(config: Load) -> None:
    settings = config('[sinks.new]\ntype = "discard"')
    assert set(settings.sinks) == {"disk", "api", "none", "new"}


def test_a_sink_of_a_default_name_overrides_keys_and_keeps_the_others(config: Load) -> None:
    settings = config('[sinks.disk]\nfsync = false\n[sinks.api]\nurl = "http://other/"')
    assert settings.sinks["disk"].model_dump() == {
        "type": "disk",
        "root": "var/uploads",
        "fsync": False,
        "min_free_bytes": 0,
        "keep_seconds": 0,
        "mode": "0640",
        "directory_mode": "0750",
    }
    assert settings.sinks["api"].model_dump()["url"] == "http://other/"


def test_a_sink_of_a_default_name_and_another_type_replaces_it(config: Load) -> None:
    assert config('[sinks.api]\ntype = "discard"\n[[routes]]\npath = "/proxy"').sinks["api"].model_dump() == {
        "type": "discard"
    }


def test_with_routes_of_the_user_there_are_no_others(config: Load) -> None:
    settings = config('[[routes]]\npath = "/mine"\n[[routes]]\npath = "/upload"\ndigests = ["md5", "md5"]')
    routes = settings.as_routes()
    assert [route.path for route in routes] == ["/mine", "/upload"]
    assert routes[1].digests == ("md5",)
    assert routes[1].rules == []
    assert config("routes = []").as_routes() == []


# -- the environment


def test_the_environment_overrides_the_file(config: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_SINKS__API__URL", "http://elsewhere/upload?x=1")
    monkeypatch.setenv("GATEWAY_LIMITS__MAX_PARTS", "7")
    monkeypatch.setenv("GATEWAY_SERVER__PORT", "0")
    settings = config('[sinks.api]\nurl = "http://file/"\n[limits]\nmax_parts = 9\nmax_headers = 5')
    assert settings.sinks["api"].model_dump()["url"] == "http://elsewhere/upload?x=1"
    assert (settings.limits.max_parts, settings.limits.max_headers) == (7, 5)
    assert settings.server.port == 0


@pytest.mark.parametrize(
    ("name", "value", "path"),
    [
        ("GATEWAY_LIMITS__MAX_PARTS", "many", "limits.max_parts"),
        ("GATEWAY_LIMITS__NOPE", "1", "limits.nope"),
        ("GATEWAY_SINKS__API__NOPE", "1", "sinks.api.nope"),
        ("GATEWAY_SINKS__API__URL", "nowhere", "sinks.api.url"),
        ("GATEWAY_LIMTS__MAX_PARTS", "1", "limts"),
    ],
)
def test_a_mistake_in_the_environment_is_named_by_its_key_path(
    config: Load, monkeypatch: pytest.MonkeyPatch, name: str, value: str, path: str
) -> None:
    monkeypatch.setenv(name, value)
    assert any(problem.startswith(path) for problem in _problems(config, ""))


def test_what_an_orchestrator_sets_for_a_service_named_gateway_is_no_mistake(
    config: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GATEWAY_PORT", "GATEWAY_SERVICE_HOST", "GATEWAY_PORT_8080_TCP_ADDR"):
        monkeypatch.setenv(name, "tcp://10.0.0.1:8080")
    assert config("") == load()


def test_a_sink_that_only_the_environment_names_is_known_when_other_keys_are_wrong(
    config: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_SINKS__EXTRA__TYPE", "discard")
    document = '[[routes]]\npath = "/x"\nparts = [{sinks = ["extra"]}]\n'
    assert [rule.sinks for rule in config(document).as_routes()[0].rules] == [("extra",)]
    assert [problem.partition(": ")[0] for problem in _problems(config, document + "[limits]\nnope = 1")] == [
        "limits.nope"
    ]


# -- sinks of the user's


class CountingSink(Sink):
    """What it was made with. It is never opened here."""

    def __init__(self, *, name: str, seconds: float = 0, count: int = 0, words: tuple[str, ...] = ()) -> None:
        self.made_with = {"name": name, "seconds": seconds, "count": count, "words": words}

    def open(self, upload: Upload) -> AbstractAsyncContextManager[Delivery]:
        raise AssertionError


NO_SINK = dict[str, Any]


def test_the_other_keys_of_a_sink_of_the_users_are_its_arguments_numbers_from_the_environment_too(
    config: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_SINKS__SLOW__SECONDS", "0.25")
    monkeypatch.setenv("GATEWAY_SINKS__SLOW__COUNT", "3")
    settings = config(f'[sinks.slow]\ntype = "{__name__}:CountingSink"\nseconds = 1\nwords = ["a"]')
    arguments = settings.sinks["slow"].model_dump()
    assert arguments == {"type": f"{__name__}:CountingSink", "seconds": 0.25, "count": 3, "words": ["a"]}
    assert isinstance(arguments["seconds"], float)
    assert isinstance(arguments["count"], int)
    build_app(settings)


@pytest.mark.parametrize(
    "kind",
    ["acme.nowhere:Sink", "json:Nowhere", "json:loads", f"{__name__}:NO_SINK", f"{__name__}:CountingSink"],
)
def test_a_sink_of_the_users_that_cannot_be_made_is_named(config: Load, kind: str) -> None:
    settings = config(f'[sinks.mine]\ntype = "{kind}"\nnever_heard_of = 1')
    with pytest.raises(ConfigError) as caught:
        build_app(settings)
    (problem,) = caught.value.problems
    assert problem.startswith((f"sinks.mine: {kind} ", "sinks.mine.never_heard_of: ", "sinks.mine.s: "))


class Unrelated:
    """It has the verb, and not the rest of the contract."""

    def open(self, upload: Upload) -> None: ...


def test_a_sink_of_the_users_derives_from_the_contract(config: Load) -> None:
    with pytest.raises(ConfigError, match=r"Unrelated does not derive from gateway\.sinks\.Sink"):
        build_app(config(f'[sinks.mine]\ntype = "{__name__}:Unrelated"'))


def test_a_sink_of_the_users_that_lacks_a_verb_is_a_mistake(config: Load) -> None:
    with pytest.raises(ConfigError, match=r"cannot be made: .*Verbless.*open"):
        build_app(config(f'[sinks.mine]\ntype = "{__name__}:Verbless"'))


class Verbless(Sink):
    """A sink that cannot be opened."""


def test_a_sink_of_the_users_that_does_not_ask_for_its_name_has_it_all_the_same(config: Load) -> None:
    services = build_app(config(f'[sinks.mine]\ntype = "{__name__}:Undropping"'))[SERVICES]
    assert services.sinks["mine"].name == "mine"


# -- the commands


def test_check_says_2_and_what_is_wrong_on_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--config", _write(tmp_path, "[limits]\nmax_parts = -1\nnope = 1")]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert [line.partition(": ")[0] for line in output.err.splitlines()] == ["limits.max_parts", "limits.nope"]


@pytest.mark.parametrize("command", ["check", "serve", "explain"])
def test_every_command_says_2_for_a_file_that_is_missing(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--config", "nowhere.toml"]) == 2
    assert "nowhere.toml: No such file" in capsys.readouterr().err


def test_check_makes_sinks_of_the_users(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--config", _write(tmp_path, '[sinks.mine]\ntype = "acme.nowhere:Sink"')]) == 2
    assert capsys.readouterr().err.startswith("sinks.mine: ")


def test_check_prints_a_bound_and_touches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 0
    total, _ = memory_bound_bytes(load())
    printed = capsys.readouterr().out
    assert f"{total / 2**20:.2f} MiB  per upload" in printed
    assert "for 64 uploads" in printed
    assert list(tmp_path.iterdir()) == []


EXPLAINED = """
[[routes]]
path = "/papers"
parts = [
    {match = {filename = "*.pdf", content_type = "application/pdf"}, sinks = ["disk", "api"]},
    {match = {name = "rest*"}, sinks = ["none"]},
]
[[routes]]
path = "/all"
parts = [{flows = ["sniff"], sinks = ["disk", {sink = "api", mode = "best_effort"}]}]
"""


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--filename", "a.pdf", "--content-type", "Application/PDF; x=y"], 0, ["rule 0", "/papers", "disk, api"]),
        (["--name", "rest1", "--filename", "a.pdf"], 0, ["rule 1", "none"]),
        (["--filename", "a.pdf"], 1, ["no rule", "422"]),
        (["--path", "/all", "--filename", "a.pdf"], 0, ["rule 0", "/all", "disk"]),
        (["--path", "/nowhere"], 1, ["no route /nowhere", "/papers", "/all"]),
    ],
)
def test_explain_says_which_rule_takes_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, words: list[str]
) -> None:
    path = [] if "--path" in options else ["--path", "/papers"]
    assert main(["explain", "--config", _write(tmp_path, EXPLAINED), *path, *options]) == code
    printed = capsys.readouterr().out
    assert [word for word in words if word not in printed] == []


# -- the memory bound


def _bound(**limits: int) -> int:
    return memory_bound_bytes(Settings(limits=Limits(**limits)))[0]


@pytest.mark.parametrize(
    "key", ["window_bytes", "parallel_parts", "max_field_bytes", "max_header_bytes", "max_manifest_bytes"]
)
def test_the_bound_grows_with_what_costs_memory(key: str) -> None:
    value = getattr(load().limits, key)
    assert _bound(**{key: value}) == _bound() < _bound(**{key: value * 4}) < _bound(**{key: value * 8})


def test_the_bound_does_not_know_how_large_files_are() -> None:
    sizes = {"max_file_bytes": 1 << 40, "max_body_bytes": 1 << 40}
    assert _bound(**sizes) == _bound(**dict.fromkeys(sizes, 1)) == _bound()


def test_the_bound_grows_with_what_the_shape_of_requests_holds() -> None:
    def bound(**keys: Any) -> int:
        routes = [{"path": "/x", "kind": "relay", "parts": [{"sinks": ["api"]}]}]
        document: dict[str, Any] = {"sinks": {"api": keys}, "routes": routes}
        return memory_bound_bytes(Settings(**document))[0]

    assert bound(fields_first_bytes=1 << 30) == bound() + (1 << 30)
    assert bound(per="part", replay_bytes=1 << 30) > bound(per="part") + 3 * (1 << 30) > bound() + 3 * (1 << 30)


@pytest.mark.parametrize("buffer", [4096, 262144, 1 << 20])
def test_the_bound_knows_how_much_is_received_in_one_call(buffer: int) -> None:
    _, bounds = memory_bound_bytes(Settings(server=ServerSettings(read_buffer_bytes=buffer)))
    waiting = 2 * buffer  # aiohttp pauses above that, and then a call may have brought as much again (intake.py)
    assert bounds["received, not yet parsed"] == waiting + max(waiting, 256 << 10)


def test_the_bound_is_the_sum_of_what_is_listed() -> None:
    total, bounds = memory_bound_bytes(load())
    assert total == sum(bounds.values())
    assert all(size > 0 for size in bounds.values())


@pytest.mark.parametrize("key", ["window_bytes", "parallel_parts", "max_fields_bytes", "max_header_bytes", "max_parts"])
def test_check_promises_no_bound_where_a_limit_that_bounds_memory_is_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    assert main(["check", "--config", _write(tmp_path, f"[limits]\n{key} = 0")]) == 0
    printed = capsys.readouterr().out
    assert "without bound" in printed
    assert key in printed


def test_a_sink_in_a_rule_may_be_best_effort(config: Load) -> None:
    tables = '{sink = "api", mode = "best_effort", lag_seconds = 1}, {sink = "none"}'
    (route, *_) = config(_sinks(f'"disk", {tables}', '"none"', keep="all")).as_routes()
    assert route.rules[0].sinks == ("disk", "api", "none")
    assert route.best_effort == {"api": BestEffort(lag_bytes=8 << 20, lag_seconds=1)}
    assert (route.answer, route.keep_each) == (None, False)
    assert config(_sinks('"disk", "none"', keep="each")).as_routes()[0].keep_each


def test_a_sink_of_the_users_that_drops_no_parts_is_a_mistake_where_each_is_kept(config: Load) -> None:
    document = '[sinks.own]\ntype = "tests.config.test_load:Undropping"\n' + _sinks('"disk", "own"', keep="each")
    with pytest.raises(ConfigError, match=r"routes\.0\.keep: .* own has no can_drop"):
        build_app(config(document))


class Undropping(Sink):
    def open(self, upload: Upload) -> AbstractAsyncContextManager[Delivery]:
        raise AssertionError
