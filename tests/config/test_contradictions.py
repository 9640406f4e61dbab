"""Keys that contradict each other, or name what is not there, beside those that test_config has among all mistakes."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from gateway.config.contradictions import contradictions
from gateway.config.load import load
from gateway.config.messages import ConfigError
from gateway.config.settings import Settings


def problems(document: str) -> list[str]:
    settings = Settings.model_validate(tomllib.loads(document))
    return contradictions(settings.sinks, settings.flows, settings.routes)


PART = '[sinks.api]\nper = "part"\n'


def route(sinks: str = '"api"', **members: str) -> str:
    more = "".join(f'{key} = "{value}"\n' for key, value in members.items())
    return f'[[routes]]\npath = "/x"\n{more}parts = [{{sinks = [{sinks}]}}]\n'


# the default route of kind relay names the sink api, too
QUIET = '[[routes]]\npath = "/proxy"\nparts = []\n'


@pytest.mark.parametrize(
    "document",
    [
        "",
        PART + QUIET + route(keep="each"),
        PART + QUIET + route('"disk", "api", "none"', keep="each", kind="convert"),
        PART + 'length = "spool"\n' + QUIET + route(),
        PART + 'length = "spool"\n' + QUIET + route('"disk", {sink = "api", mode = "best_effort"}'),
        PART + 'length = "spool"\n' + QUIET + route('{sink = "api", mode = "best_effort"}', keep="each"),
        PART + 'length = ["known", "spool"]\n' + QUIET + route(keep="each"),
        PART + 'length = "known"\nrename = {a = "b"}\ndrop = ["c"]\n' + QUIET + route(keep="each"),
        '[sinks.api]\nrename = {a = "b"}\ndrop = ["b"]\nadd_before = {"{upload}" = "{{}}"}\nfields_first_bytes = 1\n',
        '[sinks.api]\nadd_after = {"{name}{index}" = "{filename}{content_type}{size}{sha256}{upload}{request_id}"}\n',
    ],
)
def test_what_goes_together(document: str) -> None:
    assert problems(document) == []


@pytest.mark.parametrize(
    ("document", "path"),
    [
        (PART + QUIET + route(), "routes.1.keep"),
        (PART + 'length = ["known", "spool"]\n' + QUIET + route(), "routes.1.keep"),
        (PART + 'length = "known"\n' + QUIET + route(), "routes.1.keep"),
        (PART + 'length = "spool"\n' + route(kind="relay"), "routes.0.kind"),
        (PART + 'length = "spool"\n' + route(kind="opaque"), "routes.0.kind"),
        (PART + 'length = "spool"\n' + route(answer="api"), "routes.0.answer"),
        (PART + 'length = "passthrough"\n' + route(keep="each"), "sinks.api.per"),
        (PART + "fields_first_bytes = 1\n" + route(keep="each"), "sinks.api.fields_first_bytes"),
        (PART + route('"disk", {sink = "api", mode = "best_effort"}'), "routes.0"),
        (PART + route('{sink = "api", mode = "best_effort"}', keep="each"), "routes.0"),
        ('[sinks.api]\nlength = "passthrough"\nrename = {a = "b"}\n', "sinks.api.rename"),
        ('[sinks.api]\nlength = "passthrough"\ndrop = ["a"]\n', "sinks.api.drop"),
        ('[sinks.api]\nlength = ["passthrough", "spool"]\nadd_before = {a = "b"}\n', "sinks.api.add_before"),
        ('[sinks.api]\nlength = "passthrough"\nadd_after = {a = "b"}\n', "sinks.api.add_after"),
        ('[sinks.api]\nlength = "passthrough"\nfields_first_bytes = 1\n', "sinks.api.fields_first_bytes"),
        ('[sinks.api]\ndrop = ["a"]\n' + route(kind="opaque"), "routes.0.kind"),
        ("[sinks.api]\nfields_first_bytes = 9\n" + route(kind="opaque"), "routes.0.kind"),
        ('[sinks.api]\nrename = {a = "b"}\ndrop = ["a"]\n', "sinks.api.drop"),
    ],
)
def test_what_does_not(document: str, path: str) -> None:
    assert path in {problem.partition(": ")[0] for problem in problems(document)}


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ("sinks = 1", "sinks"),
        ("routes = 1", "routes"),
        ("flows = 1", "flows"),
        ("[sinks]\napi = 1", "sinks.api"),
        ('[sinks.api]\nper = "prt"\n' + route(keep="each"), "sinks.api.per"),
        ('[sinks.api]\nurl = ""\nurls = ["http://a/"]', "sinks.api.url"),
        ('routes = [1, {path = "/files"}]', "routes.0"),
        ("[flows]\nx = 1\n" + '[[routes]]\npath = "/x"\nparts = [{flows = ["x"], sinks = ["none"]}]', "flows.x"),
    ],
)
def test_of_a_table_that_is_wrong_in_itself_nothing_else_is_guessed(tmp_path: Path, document: str, path: str) -> None:
    assert path in _paths(tmp_path, document)
    assert _paths(tmp_path, document) <= {path, "routes.1.path"}


def test_what_contradicts_elsewhere_is_said_at_the_same_time(tmp_path: Path) -> None:
    wrong = '[limits]\nidle = 1\n[sinks.bad]\ntype = "relay"\nurl = "x"\n[sinks.new]\ntype = "relay"\n'
    routes = route(kind="relay").replace("api", "none") + route(kind="relay").replace("api", "bad").replace("/x", "/y")
    nix = '[[routes]]\npath = "/z"\nparts = [{sinks = ["bad", "nix"]}]'
    assert _paths(tmp_path, wrong + routes + nix) == {
        "limits.idle",
        "sinks.bad.url",
        "sinks.new.url",
        "routes.0.kind",
        "routes.2.parts.0.sinks",
    }


def _paths(tmp_path: Path, document: str) -> set[str]:
    (tmp_path / "gateway.toml").write_text(document, "utf-8")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "gateway.toml")
    return {problem.partition(": ")[0] for problem in caught.value.problems}


def test_what_a_relay_tells_of_digests_is_computed_whatever_the_route_says() -> None:
    def digests(keys: str, *algorithms: str) -> tuple[str, ...]:
        listed = ", ".join(f'"{one}"' for one in algorithms)
        document = f'[sinks.api]\n{keys}\n[[routes]]\npath = "/x"\ndigests = [{listed}]\nparts = [{{sinks = ["api"]}}]'
        return Settings.model_validate(tomllib.loads(document)).as_routes()[0].digests

    assert digests('add_after = {"d" = "{sha256}"}') == ("sha256",)
    assert digests('add_after = {"{sha256}" = ""}', "md5") == ("md5", "sha256")
    assert digests('add_after = {"d" = "{sha256}"}', "sha256", "md5") == ("sha256", "md5")
    assert digests('add_after = {"d" = "{size}"}') == ()
    # a request for each part hashes what it sends itself
    assert digests('per = "part"\nadd_after = {"d" = "{sha256}"}') == ()
