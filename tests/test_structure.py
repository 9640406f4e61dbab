"""The house as it is described: import direction, a test file per room, bans, and tables equal to the code."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from gateway.config.access import CorsSettings, HookSettings, JwtSettings, KeysSettings, QuotasSettings, SignedSettings
from gateway.config.listening import ServerSettings
from gateway.config.load import load
from gateway.config.settings import MatchSettings, PartsSettings, RouteSettings
from gateway.config.sinks import DiscardSettings, DiskSettings, ObjectsSettings, RelaySettings, TlsSettings
from gateway.config.tracing import TracingSettings
from gateway.errors import LEAVES
from gateway.model import Limits

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PACKAGE = ROOT / "gateway"
DEFAULTS = ROOT / "config" / "gateway.toml"
ERRORS = ROOT / "docs" / "errors.md"

FLOORS = [
    {"errors", "model"},
    {"concurrency"},
    {"manifest", "digests"},
    {"http"},
    {"multipart"},
    {"flows", "sinks", "intake"},
    {"access"},
    {"upload", "downloads"},
    {"config"},
    {"server", "client"},
    {"cli"},
    {"__main__"},
]
"""The wings, and the rooms that are in none, from the ground up: each imports from the floors below it only.

`gateway/__init__.py` is the map: anybody may read it, and it names lazily what users of the library want.
"""
FLOOR = {wing: number for number, wings in enumerate(FLOORS) for wing in wings}
PURE = {
    "errors",
    "model",
    "manifest",
    "multipart.codec",
    "multipart.content_type",
    "multipart.encoder",
    "multipart.filenames",
    "multipart.headers",
    "multipart.rendering",
    "multipart.transfer_encoding",
    "upload.routes",
    "http.conditions",
    "http.forwarding",
    "http.answer_heads",
    "http.origin",
    "http.query",
    "http.target",
    "http.request_bodies",
    "http.request_heads",
    "http.urls",
    "downloads.guard",
}

TESTED_ELSEWHERE = {
    "access.certificates": ("server.test_tls", "shown in a handshake"),
    "http.tls": ("server.test_tls", "over sockets, and what is said of files"),
    "cli.access": ("test_cli", "keys and signed urls, as a person makes them"),
    "cli.arguments": ("test_cli", "configurations that are named twice"),
    "cli.checking": ("test_cli", "what is printed of configurations, and the exit code"),
    "cli.program": ("test_cli", "commands that there are, or are not, and what they import"),
    "cli.serving": ("test_cli", "processes that listen until they are told"),
    "client.watching": ("client.test_bars", "beside what a destination has counted"),
    "config.access": ("config.test_policies", "what each key makes, and what is wrong with it"),
    "config.listening": ("config.test_mistakes", "what may not be written; what is made of it: the tests of server"),
    "__main__": ("server.test_serve", "two lines, which every process of these tests runs"),
    "config.make": ("config.test_load", "sinks and flows of the user's that cannot be made"),
    "config.environment": ("config.test_mistakes", "variables that are misspelt, or somebody else's"),
    "config.messages": ("config.test_mistakes", "each line as it is printed"),
    "config.tracing": ("config.test_mistakes", "what is to be installed"),
    "config.settings": ("config.test_load", "what is loaded is what can be configured"),
    "config.sinks": ("config.test_load", "the same for sinks"),
    "downloads.presence": ("downloads.test_remote", "clients and servers that go away in the middle"),
    "http.conditions": ("downloads.test_stored", "beside nginx, which is asked the same over a socket"),
    "http.lent_connection": ("multipart.test_writer", "the writer that it was made for"),
    "http.obs_text": ("http.test_answering", "fields both ways, over sockets"),
    "http.sockets": ("sinks.relay.test_misbehaving_destinations", "an answer that a reset is close behind"),
    "model": ("upload.test_routes", "nouns without behaviour"),
    "multipart.encoder": ("multipart.test_codec", "what it writes is read back"),
    "multipart.part_reader": ("multipart.test_reader", "a reader makes it"),
    "server.app": ("server.test_serve", "it is built in every test over a socket"),
    "server.board": ("server.test_watching", "what it tells, to whoever watches"),
    "server.middleware": ("server.test_handlers", "what every answer says, over a socket"),
    "server.page_handlers": ("server.test_page", "over a socket; signed links: test_page_in_browser"),
    "server.record": ("server.test_handlers", "a line and counts for each upload over a socket"),
    "server.reloading": ("server.test_restarts", "SIGHUP to processes, also under load"),
    "server.results": ("server.test_handlers", "what the client reads, over a socket"),
    "server.services": ("server.test_handlers", "what they share"),
    "server.slots": ("server.test_workers", "between processes"),
    "server.uploads": ("server.test_handlers", "uploads over a socket"),
    "server.worker": ("server.test_workers", "the other half of them"),
    "sinks.disk.delivery": ("sinks.disk.test_sink", "one upload is what a disk sink is opened for"),
    "sinks.disk.incoming": ("sinks.disk.test_failing_disk", "made, published, taken back, removed"),
    "sinks.disk.layout": ("sinks.disk.test_sink", "where things lie"),
    "sinks.disk.volume": ("sinks.disk.test_failing_disk", "what is left, and swept"),
    "sinks.disk.jobs": ("sinks.disk.test_sink", "what is on disk, and when it is durable"),
    "sinks.disk.upload_directory": ("downloads.test_stored_expiry", "locks, sweeps and removals"),
    "sinks.objects.delivery": ("sinks.objects.test_sink", "one upload is what it is opened for"),
    "sinks.objects.upload_prefix": ("sinks.objects.test_stored", "what is given back, and removed"),
    "sinks.objects.writer": ("sinks.objects.test_faults", "objects that do not come to their end"),
    "sinks.relay.per_upload": ("sinks.relay.test_sink", "the one request of an upload is what a relay is, by default"),
    "sinks.relay.sending.request": (
        "sinks.relay.sending.test_exchange",
        "the question before the body, and old connections",
    ),
    "sinks.relay.sending.sender": ("sinks.relay.sending.test_connect", "what all uploads of a relay share"),
    "concurrency.tasks": ("upload.test_dispatch_failures", "uploads that fail while parts begin"),
    "upload.backlog": ("upload.test_besteffort", "what waits for such a sink"),
    "upload.handover": ("upload.test_pump", "the pump that it is made for; flows: test_flows"),
    "upload.part_limits": ("upload.test_pump", "to the byte"),
    "upload.required_lane": ("upload.test_lanes", "parts handed over, in batches and one by one"),
    "upload.plans": ("upload.test_routes", "the rules that they are made of; where files go: test_dispatch"),
    "upload.commits": ("upload.test_dispatch_failures", "what is committed, and told; best effort: test_besteffort"),
    "upload.failures": ("upload.test_garbage", "what is let go of; which is told: test_dispatch_failures"),
    "upload.flow_run": ("flows.test_flows", "what flows do to a file on its way"),
    "upload.progress": ("server.test_watching", "what is told, against what destinations have read"),
    "upload.standing": ("server.test_watching", "what is told of files and sinks"),
    "upload.stalls": ("upload.test_dispatch_failures", "sinks that are stuck, and who is blamed"),
}
"""Why a module has no test file of its name in the folder of its wing, and which one tests it."""


def _modules() -> dict[str, Path]:
    """`sinks.disk` -> its file."""
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}


MODULES = _modules()

each_module = pytest.mark.parametrize("name", MODULES)


@cache
def _tree(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text("utf-8"))


@cache
def _imports(name: str) -> frozenset[str]:
    """Everything a module imports, absolute: `asyncio`, `gateway.sinks.disk.sink`. TYPE_CHECKING does not excuse."""
    found: set[str] = set()
    for node in ast.walk(_tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            assert node.module is not None
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            ours = {module for module in submodules if _ours(module) is not None}
            found |= ours or {node.module}
    return frozenset(found)


def _ours(module: str) -> str | None:
    """`gateway.sinks` -> `sinks.__init__`; None for other people's."""
    top, _, rest = module.partition(".")
    if top != "gateway":
        return None
    return next((name for name in (rest, f"{rest}.__init__", "__init__" if not rest else "") if name in MODULES), None)


def _neighbours(name: str) -> set[str]:
    return {ours for module in _imports(name) if (ours := _ours(module)) is not None}


def _reachable(name: str) -> set[str]:
    seen: set[str] = set()
    pending = [name]
    while pending:
        seen |= (new := _neighbours(pending.pop()) - seen)
        pending += new
    return seen


# -- imports


def _upwards(neighbours: Callable[[str], set[str]], names: Iterable[str]) -> list[str]:
    """Imports that lead to the same floor of another wing, or to a higher one; wings without a floor."""
    found = []
    for name in names:
        wing = name.partition(".")[0]
        if wing not in FLOOR:
            found.append(f"{wing} is not among the wings")
            continue
        for other in sorted(neighbours(name)):
            theirs = other.partition(".")[0]
            if theirs not in (wing, "__init__") and FLOOR.get(theirs, len(FLOORS)) >= FLOOR[wing]:
                found.append(f"{name} imports {other}")
    return found


def _rooms() -> list[str]:
    return [name for name in MODULES if name != "__init__"]


def test_imports_lead_down_only() -> None:
    assert _upwards(_neighbours, _rooms()) == []
    assert set(FLOOR) == {name.partition(".")[0] for name in _rooms()}


@pytest.mark.parametrize(
    ("name", "imports", "complaint"),
    [
        ("sinks.discard", "upload.lanes", "sinks.discard imports upload.lanes"),
        ("upload.lanes", "downloads.stored", "upload.lanes imports downloads.stored"),
        ("attic.trunk", "errors", "attic is not among the wings"),
        ("sinks.discard", "attic.trunk", "sinks.discard imports attic.trunk"),
    ],
)
def test_an_import_upwards_or_a_wing_without_a_floor_would_be_found(name: str, imports: str, complaint: str) -> None:
    assert _upwards(lambda _: {imports}, [name]) == [complaint]


def test_the_modules_are_found() -> None:
    assert {"errors", "multipart.codec", "server.handlers", "sinks.__init__", "sinks.disk.sink"} <= MODULES.keys()
    assert _neighbours("sinks.disk.delivery") >= {"sinks.__init__", "model", "sinks.disk.volume"}


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_rooms_import_no_event_loop_and_no_system_not_even_through_others(name: str) -> None:
    for module in {name} | _reachable(name):
        tops = {imported.partition(".")[0] for imported in _imports(module)}
        assert not tops & {"asyncio", "aiohttp", "os", "socket", "threading"}, f"{name} gets them from {module}"


@each_module
def test_nobody_but_the_command_line_knows_the_demo_destination(name: str) -> None:
    if name != "cli.serving":
        assert "server.demo_destination" not in _neighbours(name)


def test_imports_make_no_circle() -> None:
    TopologicalSorter({name: _neighbours(name) for name in MODULES}).prepare()


NOT_AT_THE_DOOR = {"server.demo_destination", "multipart.reader", "multipart.writer"}
"""Rooms that are had by their own names: what is for trying out, and what brings aiohttp to those who only parse."""


@each_module
def test_what_other_wings_use_of_a_wing_is_said_at_its_door(name: str) -> None:
    for node in ast.walk(_tree(name)):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("gateway."):
            continue
        wing, _, room = (node.module or "").removeprefix("gateway.").partition(".")
        if name == "__init__" or wing in (name.partition(".")[0], "sinks", "flows") or not room:
            continue
        if f"{wing}.{room}" not in NOT_AT_THE_DOOR:
            # a function that is named as its room is: the door's name would hide the room
            assert {alias.name for alias in node.names} - {room} <= set(_exported(f"{wing}.__init__"))


def test_the_top_of_the_package_can_be_seen_at_a_glance() -> None:
    assert len([path for path in PACKAGE.iterdir() if path.name != "__pycache__"]) <= 20


# -- every room


@each_module
def test_every_module_has_tests_of_its_name(name: str) -> None:
    if name.endswith("__init__"):
        return
    wing, _, room = name.rpartition(".")
    expected = TESTED_ELSEWHERE[name][0] if name in TESTED_ELSEWHERE else f"{wing}.test_{room}".lstrip(".")
    assert (HERE / f"{expected.replace('.', '/')}.py").is_file()


@each_module
def test_every_room_says_what_it_is_for_and_what_it_gives(name: str) -> None:
    if name == "__main__":
        return
    assert ast.get_docstring(_tree(name))
    if name.endswith("__init__"):
        return
    assert _exported(name), f"{name} has no __all__"
    assert set(_exported(name)) <= set(_defined(name))


def _exported(name: str) -> list[str]:
    for node in _tree(name).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            names: list[str] = ast.literal_eval(node.value)
            return names
    return []


def _defined(name: str) -> Iterator[str]:
    for node in _tree(name).body:
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                yield node.name
            case ast.Assign():
                names = [name for target in node.targets for name in ast.walk(target)]
                yield from (name.id for name in names if isinstance(name, ast.Name))
            case ast.AnnAssign(target=ast.Name() as target):
                yield target.id


# -- bans


def _calls(name: str) -> Iterator[tuple[ast.Call, str]]:
    """Calls by dotted name: `self._session.post`."""
    for node in ast.walk(_tree(name)):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


@each_module
def test_no_task_is_left_to_itself(name: str) -> None:
    for call, called in _calls(name):
        last = called.rpartition(".")[2]
        assert last != "ensure_future", f"line {call.lineno}"
        assert called not in ("asyncio.create_task", "create_task"), f"line {call.lineno}"
        if name != "concurrency.tasks":  # it holds them
            assert not re.search(r"(loop|get_running_loop\(\))\.create_task$", called), f"line {call.lineno}"


@each_module
def test_no_queue_is_unbounded(name: str) -> None:
    for call, called in _calls(name):
        if called.rpartition(".")[2] in ("Queue", "LifoQueue", "PriorityQueue", "SimpleQueue"):
            bound = [*call.args[:1], *(keyword.value for keyword in call.keywords if keyword.arg == "maxsize")]
            assert bound, f"line {call.lineno}"
            assert not (isinstance(bound[0], ast.Constant) and not bound[0].value), f"line {call.lineno}"


@each_module
def test_no_body_of_a_request_is_read_whole(name: str) -> None:
    for call, called in _calls(name):
        owner, _, method = called.rpartition(".")
        if method == "post":
            assert owner.rpartition(".")[2].endswith("session"), f"line {call.lineno}"
        if owner.rpartition(".")[2] in ("request", "_request"):
            assert method not in ("read", "text", "json", "multipart"), f"line {call.lineno}"


# -- the documents


def test_the_page_on_errors_has_every_one_with_its_status() -> None:
    names = {leaf.slug(): leaf.__name__ for leaf in LEAVES} | {leaf.__name__: leaf.__name__ for leaf in LEAVES}
    rows = re.findall(r"^\|\s*`([A-Za-z-]+)`\s*\|\s*(\d{3})\s*\|", ERRORS.read_text("utf-8"), re.MULTILINE)
    table = [(names.get(name, name), int(status)) for name, status in rows]
    assert len(table) == len(dict(table)), "an error is listed twice"
    assert dict(table) == {leaf.__name__: leaf.status for leaf in LEAVES}


def _documented() -> list[tuple[str, str, Any]]:
    """(table, key, value) of config/gateway.toml, those that are commented out as well; sinks go by their type."""
    found: list[tuple[str, str, Any]] = []
    table: list[tuple[str, str, Any]] = []
    name = ""
    for line in DEFAULTS.read_text("utf-8").splitlines():
        line = line.lstrip("# ")
        if header := re.match(r"\[\[?([\w.]+)\]\]?", line):
            found += _typed(table)
            table, name = [], header[1]
            parent, _, key = name.rpartition(".")
            if parent == "routes":
                found.append((parent, key, []))
            if parent.startswith("sinks."):
                found.append(("relay", key, {}))
                name = key
        elif re.match(r"[a-z_]+ *= *\S", line):
            try:
                ((key, value),) = tomllib.loads(line).items()
            except tomllib.TOMLDecodeError:  # a sentence
                continue
            table.append((name, key, value))
    return found + _typed(table)


def _typed(table: list[tuple[str, str, Any]]) -> list[tuple[str, str, Any]]:
    kind = next((value for name, key, value in table if name.startswith("sinks.") and key == "type"), None)
    return [(kind or name, key, value) for name, key, value in table]


TABLES: dict[str, type[BaseModel] | type[Limits]] = {
    "server": ServerSettings,
    "limits": Limits,
    "disk": DiskSettings,
    "objects": ObjectsSettings,
    "relay": RelaySettings,
    "tls": TlsSettings,
    "discard": DiscardSettings,
    "access.keys": KeysSettings,
    "access.jwt": JwtSettings,
    "access.signed": SignedSettings,
    "access.hook": HookSettings,
    "cors": CorsSettings,
    "tracing": TracingSettings,
    "quotas": QuotasSettings,
    "routes": RouteSettings,
    "routes.parts": PartsSettings,
}


def _defaults(table: str) -> dict[str, Any]:
    """Key -> its default, or what the default sink of that type has; None for one that has to be given."""
    kind = TABLES[table]
    if kind is Limits:
        return {one.name: one.default for one in fields(kind)}
    assert issubclass(kind, BaseModel)
    given: Any = next((sink for sink in load().sinks.values() if sink.type == table), None)
    return {
        key: getattr(given, key, None) if field.is_required() else field.default
        for key, field in kind.model_fields.items()
    }


@pytest.mark.parametrize(("table", "key"), [(table, key) for table in TABLES for key in _defaults(table)])
def test_the_default_configuration_names_every_key_with_its_default(table: str, key: str) -> None:
    values = [value for documented, name, value in _documented() if (documented, name) == (table, key)]
    assert values
    default = _defaults(table)[key]
    if isinstance(default, BaseModel):
        default = default.model_dump(exclude_none=True)
    elif isinstance(default, tuple):
        default = list(default)
    assert default is None or default in values


def test_the_default_configuration_shows_what_a_match_may_name() -> None:
    shown = [value for table, key, value in _documented() if (table, key) == ("routes.parts", "match")]
    assert set().union(*shown) == set(MatchSettings.model_fields)
