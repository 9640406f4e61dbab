"""The description of the API: valid, complete, and what is really answered."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from gateway.config.settings import Settings
from gateway.errors import LEAVES
from gateway.server.openapi import api_description
from tests.conftest import RunningGateway, StartGateway
from tests.support.clients import Answer, ask, file, form
from tests.support.processes import gateway_process, receiver_process

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
HERE = Path(__file__).parents[2]

KEYS = {"keys": {"file": "keys.toml"}, "signed": {"secrets_file": "signing.keys"}}
SETTINGS: list[dict[str, Any]] = [
    {},
    {"page": {"enabled": True}, "management": {"port": 0}, "routes": []},
    {
        "page": {"enabled": True},
        "server": {"base_path": "/gw"},
        "access": KEYS,
        "sinks": {"api": {"type": "relay", "url": "http://127.0.0.1:1/"}},
        "routes": [
            {"path": "/a/b", "access": ["keys", "signed"], "parts": [{"sinks": ["disk"]}]},
            {"path": "/open", "kind": "opaque", "access": ["none", "keys"], "parts": [{"sinks": ["api"]}]},
            {"path": "/on", "kind": "relay", "methods": ["PUT"], "parts": [{"sinks": ["api"]}]},
        ],
    },
]


@pytest.mark.parametrize("document", SETTINGS, ids=["default", "no routes", "routes"])
def test_it_is_valid_whatever_is_configured(document: dict[str, Any]) -> None:
    described = api_description(Settings.model_validate(document))
    validate(described)
    assert "{url}" not in json.dumps(described["paths"]).replace("/download/{url}", "")
    assert not re.search(r'"x-(routes|problems|curl)"', json.dumps(described))


def test_it_has_the_routes_that_are_configured_and_who_may_use_them() -> None:
    paths = api_description(Settings.model_validate(SETTINGS[2]))["paths"]
    assert [sorted(paths[path]) for path in ("/a/b", "/a/b/{filename}", "/open", "/on")] == [
        ["post", "put"],
        ["put"],
        ["patch", "post", "put"],
        ["put"],
    ]
    assert "/upload" not in paths
    assert paths["/a/b"]["post"]["security"] == [{"keys": []}, {"signed": []}]
    assert paths["/open"]["put"]["security"] == [{}, {"keys": []}]
    assert "security" not in paths["/on"]["put"]
    assert paths["/uploads/{id}"]["get"]["security"] == [{"keys": []}, {"signed": []}, {}]


def test_a_path_that_only_begins_like_one_of_ours_is_not_open() -> None:
    routes = [
        {"path": path, "access": ["keys"], "keep": keep, "parts": [{"sinks": ["disk"]}]}
        for path, keep in (("/pages", "each"), ("/metrics2", "all"), ("/readyzes/x", "all"))
    ]
    document = {"page": {"enabled": True}, "access": KEYS, "routes": routes}
    paths = api_description(Settings.model_validate(document))["paths"]
    for route in routes:
        assert paths[route["path"]]["post"]["security"] == [{"keys": []}]
    assert "security" not in paths["/page/{route}"]["get"]
    assert "security" not in paths["/metrics"]["get"]
    # the page's links are signed, whether any route takes signed urls or not
    assert paths["/files/{id}/{index}"]["get"]["security"] == [{"keys": []}, {"signed": []}]
    assert paths["/uploads/{id}/archive.zip"]["get"]["security"] == [{"keys": []}, {"signed": []}]
    assert paths["/uploads/{id}"]["get"]["security"] == [{"keys": []}]
    assert "207" in paths["/pages"]["post"]["responses"]
    assert "207" not in paths["/metrics2"]["post"]["responses"]


def test_every_problem_has_a_schema() -> None:
    schemas = api_description(Settings())["components"]["schemas"]
    assert {f"{leaf.__name__}Problem" for leaf in LEAVES} <= schemas.keys()


async def test_every_path_that_is_served_is_described(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(page={"enabled": True})
    described = (await ask(gateway.port, "/openapi.json")).json()["paths"]
    served = {
        re.sub(r"\{(\w+):(?:[^{}]|\{[^{}]*\})*\}", r"{\1}", resource.canonical)
        for resource in gateway.runner.app.router.resources()
    } - {"/{anything}", "/page/{asset}"}  # a page's own files are no interface
    assert described.keys() == served
    for path, item in described.items():
        resource = next(one for one in gateway.runner.app.router.resources() if one.canonical == path)
        methods = {route.method for route in resource} - {"*", "HEAD"}
        assert {method.upper() for method in item} <= methods
        assert methods - {method.upper() for method in item} <= ({"PUT"} if path.startswith("/selftest") else set())


async def test_it_says_where_it_is_behind_a_prefix(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(page={"enabled": True}, server={"trusted_networks": ["127.0.0.0/8"]})
    described = (await ask(gateway.port, "/openapi.json", x_forwarded_prefix="/gw")).json()
    assert described["servers"] == [{"url": "/gw"}]


async def test_where_it_is_not_wanted_there_is_none(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(page={"enabled": False})
    assert (await ask(gateway.port, "/openapi.json")).status == 404


async def test_what_is_answered_is_what_the_schemas_say(start_gateway: StartGateway) -> None:
    routes = [{"path": "/each", "keep": "each", "parts": [{"match": {"filename": "*.b"}, "sinks": ["disk"]}]}]
    gateway = await start_gateway(page={"enabled": True}, routes=routes)
    described = (await ask(gateway.port, "/openapi.json")).json()

    def check(answer: Answer, path: str, method: str) -> None:
        response = described["paths"][path][method]["responses"].get(str(answer.status))
        assert response is not None, (path, method, answer.status)
        response = _followed(described, response)
        kind = answer.headers["content-type"].partition(";")[0]
        media = response["content"][kind]
        schema = {**media["schema"], "components": described["components"]}
        Draft202012Validator(schema).validate(answer.body.decode() if kind == "text/html" else answer.json())
        if "example" in media:
            Draft202012Validator(schema).validate(media["example"])

    field = b'--b0undary\r\nContent-Disposition: form-data; name="f"\r\n\r\nv\r\n'
    uploaded = await ask(gateway.port, "/upload", "POST", form(file(b"hello"), field))
    check(uploaded, "/upload", "post")
    location = uploaded.headers["location"]
    check(await ask(gateway.port, location), "/uploads/{id}", "get")
    check(await ask(gateway.port, "/convert", "POST", form(file(b"hello" * 1000), field)), "/convert", "post")
    check(await ask(gateway.port, f"{location}/progress", accept="application/json"), "/uploads/{id}/progress", "get")
    check(await ask(gateway.port, "/upload", "POST", b"--b0undary\r\nbroken"), "/upload", "post")
    for path, body, status in (
        ("/upload", form(file(b"hello")), 201),
        ("/convert", form(file(b"hello")), 200),
        ("/upload", b"--b0undary\r\nbroken", 400),
    ):
        page = await ask(gateway.port, path, "POST", body, accept="text/html")
        assert (page.status, page.headers["content-type"].partition(";")[0]) == (status, "text/html")
        check(page, path, "post")
    some = await ask(gateway.port, "/each", "POST", form(file(b"hello", "a.a"), file(b"hello", "a.b")))
    assert some.status == 207
    check(some, "/each", "post")
    progress = f"/uploads/{some.headers['location'].rpartition('/')[2]}/progress"
    told = await ask(gateway.port, progress, accept="application/json")
    assert "problem" in told.json()["parts"][0]
    check(told, "/uploads/{id}/progress", "get")
    described_part = described["components"]["schemas"]["Progress"]["properties"]["parts"]["items"]["properties"]
    assert told.json()["parts"][0].keys() <= described_part.keys()
    check(await ask(gateway.port, "/", accept="text/html"), "/", "get")
    check(await ask(gateway.port, "/uploads/01ARZ3NDEKTSV4RRFFQ69G5FAV"), "/uploads/{id}", "get")
    check(await ask(gateway.port, "/", accept="application/json"), "/", "get")
    check(await ask(gateway.port, f"{location}/links/0"), "/uploads/{id}/links/{what}", "get")
    check(await ask(gateway.port, "/problems/truncated"), "/problems/{slug}", "get")
    check(await ask(gateway.port, "/download/http://127.0.0.1/x"), "/download/{url}", "get")


@needs_curl
@pytest.mark.sockets
async def test_its_commands_do_what_they_say(start_gateway: StartGateway, tmp_path: Path) -> None:
    gateway = await start_gateway(page={"enabled": True})
    uploaded = (await ask(gateway.port, "/upload", "POST", form(file(b"hello", filename="README.md")))).json()
    described = (await ask(gateway.port, "/openapi.json")).json()
    shutil.copy(HERE / "README.md", tmp_path)
    run = 0
    for path, item in sorted(described["paths"].items()):
        for method, operation in item.items():
            for sample in operation.get("x-codeSamples", ()) if method != "delete" and path != "/proxy" else ():
                run += 1
                command = _here(sample["source"], gateway, uploaded["upload"], path)
                done = await _run(command.replace("curl ", "curl -sS -w '%{http_code}' ", 1), tmp_path)
                assert done[-3:] in operation["responses"], command
                assert done[-3:] < "300", command
    assert run > 15
    (sample,) = described["paths"]["/uploads/{id}"]["delete"]["x-codeSamples"]
    assert (
        await _run(_here(sample["source"], gateway, uploaded["upload"], "") + " -sS -w '%{http_code}'", tmp_path)
        == "204"
    )


def _here(command: str, gateway: RunningGateway, upload_id: str, path: str) -> str:
    command = command.replace("01ARZ3NDEKTSV4RRFFQ69G5FAV", upload_id).replace(
        "127.0.0.1:8080", f"127.0.0.1:{gateway.port}"
    )
    return command.replace("/problems/slug", "/problems/truncated")


async def _run(command: str, place: Path) -> str:
    process = await asyncio.create_subprocess_shell(
        command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await process.communicate()
    return output.decode("utf-8", "replace")


def _followed(document: dict[str, Any], one: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in one:
        return one
    for step in one["$ref"].removeprefix("#/").split("/"):
        document = document[step]
    return document


@pytest.mark.sockets
def test_the_page_is_what_is_made_of_it() -> None:
    made = subprocess.run(
        [sys.executable, "-c", "import make_reference as m; print(m.reference(), end='')"],
        cwd=HERE / "docs",
        env={**os.environ, "PYTHONPATH": str(HERE)},
        capture_output=True,
        check=True,
    )
    assert (HERE / "docs/reference.md").read_bytes() == made.stdout, "python docs/make_reference.py"


@pytest.mark.sockets
async def test_whatever_is_asked_the_answer_is_described(tmp_path: Path) -> None:
    with receiver_process(tmp_path) as destination:
        config = (HERE / "config/demo.toml").read_text().replace("http://127.0.0.1:8081", destination.url)
        config = config.replace('root = "var/uploads"', f'root = "{tmp_path}/uploads"')
        with gateway_process(tmp_path, config) as process:
            command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(HERE / "tests/schemathesis.toml")]
            command += ["run", f"{process.url}/openapi.json", "--phases", "examples,coverage,fuzzing", "-n", "5"]
            done = await asyncio.create_subprocess_exec(
                *command,
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(HERE)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            output, _ = await done.communicate()
    assert done.returncode == 0, output.decode("utf-8", "replace")
