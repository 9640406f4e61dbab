"""The page without a browser: when it is there, under which policy, in which language, and what it is instead of."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest

from gateway.errors import LEAVES
from gateway.manifest import results_json
from gateway.model import Receipt
from gateway.server import page as page_module
from tests.conftest import RunningGateway, StartGateway
from tests.support.clients import Answer, ask, file, form
from tests.support.doubles import RefusingUpstream

STATIC = Path(page_module.__file__).with_name("static")
ONLY = [{"path": "/upload", "parts": [{"sinks": ["disk"], "match": {"content_type": "image/*"}}]}]
HTML = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
"""As browsers write it."""


async def shown(gateway: RunningGateway, target: str = "/", **headers: str) -> Answer:
    return await ask(gateway.port, target, **{"accept": HTML, **headers})  # type: ignore[arg-type]


def told(answer: Answer) -> dict[str, object]:
    """What the page's script is told."""
    found = re.search(r"data-page='([^']*)'", answer.body.decode())
    assert found is not None
    document: dict[str, object] = json.loads(unescape(found[1]))
    return document


async def test_it_is_there_unless_routes_are_configured_and_then_if_somebody_wants_it(
    start_gateway: StartGateway,
) -> None:
    default, configured = await start_gateway(), await start_gateway(routes=ONLY)
    wanted = await start_gateway(routes=ONLY, page={"enabled": True})
    unwanted = await start_gateway(page={"enabled": False})
    for gateway, status in ((default, 200), (configured, 404), (wanted, 200), (unwanted, 404)):
        for target in ("/", "/page/upload", "/page/page.js", "/page/page.css"):
            assert (await shown(gateway, target)).status == status
    assert (await shown(wanted, "/page/none")).status == 404
    assert (await ask(wanted.port, "/", "POST")).status == 405
    for target in ("/page/pageXjs", "/page/page.cssx", "/page/x/page.js"):
        assert (await shown(wanted, target)).status == 404


async def test_it_lets_in_nothing_but_its_own_files_and_is_small(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    answers = [await shown(gateway, target) for target in ("/", "/page/page.js", "/page/page.css")]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
    text = answers[0].body.decode()
    assert re.findall(r"<script(?![^>]* src=)|style=|\son\w+=|https?://", text) == []
    assert sum(len(answer.body) for answer in answers) < 30_000
    assert sum(file.stat().st_size for file in STATIC.iterdir()) < 30_000


@pytest.mark.parametrize(
    ("languages", "lang", "title"),
    [
        ("", "en", "Send files"),
        ("de-AT,de;q=0.9,en;q=0.5", "de", "Dateien senden"),
        ("fr,en;q=0.5,de;q=0.4", "en", "Send files"),
        ("fr", "en", "Send files"),
    ],
)
async def test_it_speaks_the_reader_s_language(
    start_gateway: StartGateway, languages: str, lang: str, title: str
) -> None:
    answer = await shown(await start_gateway(), accept_language=languages)
    assert f'<html lang="{lang}">' in answer.body.decode()
    assert f"<h1>{title}</h1>" in answer.body.decode()
    assert "Accept-Language" in answer.headers["vary"]


def test_its_words_are_in_one_place_and_the_same_in_each_language() -> None:
    strings = json.loads((STATIC / "strings.json").read_text("utf-8"))
    english, *others = strings.values()
    for other in others:
        assert other.keys() == english.keys()
        assert other["problems"].keys() == english["problems"].keys()
        for name, word in english.items():
            if isinstance(word, str):
                assert sorted(re.findall(r"\{\w+\}", other[name])) == sorted(re.findall(r"\{\w+\}", word)), name
    assert english["problems"].keys() <= {leaf.slug() for leaf in LEAVES}
    script = (STATIC / "page.js").read_text("utf-8")
    assert set(re.findall(r"(?:say\(|words\.|words\[)'?(\w+)", script)) - {"isSame", "name", "state"} <= {*english}


async def test_below_a_prefix_all_its_addresses_are(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(server={"base_path": "/gw"})
    for target in ("/gw/", "/gw/page/upload"):
        answer = await shown(gateway, target)
        assert told(answer)["prefix"] == "/gw"
        addresses = re.findall(r'(?:href|src|action)="([^"]*)"', answer.body.decode())
        assert all(address.startswith("/gw/") for address in addresses if address != "data:,")


async def test_machines_are_told_the_routes_and_no_version_and_no_secret(start_gateway: StartGateway) -> None:
    sinks = {"api": {"url": "http://h/x", "headers": {"Authorization": "u:p"}}}
    limits = {"max_file_bytes": 1000}
    gateway = await start_gateway(routes=ONLY, page={"enabled": True}, limits=limits, sinks=sinks)
    answer = await ask(gateway.port, "/", accept="application/json")
    document = answer.json()
    upload = document["routes"][0]
    assert (answer.headers["content-type"].partition(";")[0], upload["path"]) == ("application/json", "/upload")
    assert (upload["accepted_types"], upload["methods"]) == (["image/*"], ["POST", "PUT"])
    assert document["limits"]["max_file_bytes"] == 1000
    assert document["progress"] == "/uploads/{id}/progress"
    assert b"u:p" not in answer.body
    assert b"http://" not in answer.body


@pytest.mark.parametrize("accept", ["*/*", "", "application/json", "application/json, text/html"])
async def test_it_is_for_who_names_html(start_gateway: StartGateway, accept: str) -> None:
    gateway = await start_gateway()
    assert (await ask(gateway.port, "/", accept=accept)).json()["routes"][0]["path"] == "/upload"
    assert (await ask(gateway.port, "/")).json()["routes"][0]["path"] == "/upload"


async def test_where_nothing_takes_a_post_there_is_none_and_machines_are_told_all_the_same(
    start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.conftest.DEFAULT_ROUTES", [])
    route = {"path": "/raw", "kind": "opaque", "methods": ["PUT"], "parts": [{"sinks": ["disk"]}]}
    gateway = await start_gateway(routes=[route], page={"enabled": True})
    assert (await shown(gateway)).status == 404
    (told,) = (await ask(gateway.port, "/")).json()["routes"]
    assert (told["path"], told["methods"]) == ("/raw", ["PUT"])
    kept = await ask(gateway.port, "/raw", "PUT", b"hello", accept=HTML)
    assert (kept.status, kept.json()["parts"][0]["size"]) == (201, 5)
    refused = await ask(gateway.port, "/raw", "PUT", b"hello", accept=HTML, content_length="5x")
    assert refused.status == 400
    assert (await ask(gateway.port, "/raw", "POST", b"hello", accept=HTML)).status == 405


class TestWithoutJavaScript:
    async def test_a_post_is_answered_with_a_page_where_html_is_asked_for(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway(server={"base_path": "/gw"})
        body = form(file(b"hello", "<i>a</i>.txt"))
        answer = await ask(gateway.port, "/upload", "POST", body, accept=HTML, accept_language="de")
        text = answer.body.decode()
        assert (answer.status, answer.headers["content-type"]) == (201, "text/html; charset=utf-8")
        assert "<h1>Sicher</h1>" in text
        assert "&lt;i&gt;a&lt;/i&gt;.txt</a> (5 B)" in text
        assert "<i>" not in text
        (place,) = re.findall(r'href="(/gw/files/[^"]*)"', text)
        assert (await ask(gateway.port, place)).body == b"hello"
        assert (await ask(gateway.port, "/upload", "POST", body)).json()["parts"][0]["size"] == 5

    async def test_a_problem_is_told_in_words_and_has_its_status(self, start_gateway: StartGateway) -> None:
        async with RefusingUpstream(503) as refusing:
            routes = [{"path": "/upload", "parts": [{"sinks": ["disk", "api"]}]}]
            gateway = await start_gateway(api=refusing.url, routes=routes, page={"enabled": True})
            answer = await ask(gateway.port, "/upload", "POST", form(file(b"hello")), accept=HTML)
        assert answer.status == 502
        assert "Where it should go, it was refused. (sink api answered 503)" in answer.body.decode()
        assert 'href="/page/upload"' in answer.body.decode()

    async def test_what_is_refused_before_its_body_has_words_too(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway(limits={"max_body_bytes": 10})
        answer = await ask(gateway.port, "/upload", "POST", form(file(b"hello")), accept=HTML)
        assert (answer.status, answer.headers.get("connection")) == (413, "close")
        assert "It is larger than allowed." in answer.body.decode()

    async def test_a_long_answer_is_made_while_others_are_served(
        self, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        threads: list[bool] = []

        def noted(make: Callable[..., object]) -> Callable[..., object]:
            def noting(*given: object) -> object:
                threads.append(threading.current_thread() is threading.main_thread())
                return make(*given)

            return noting

        monkeypatch.setattr(page_module.Page, "_answer", noted(page_module.Page._answer))
        monkeypatch.setattr("gateway.server.results.results_json", noted(results_json))
        gateway = await start_gateway()
        for count, is_here in ((1, True), (900, False)):
            threads.clear()
            body = form(*(file(b"hello", f"{number}.txt") for number in range(count)))
            answer = await ask(gateway.port, "/convert", "POST", body, accept=HTML)
            assert (answer.status, answer.body.count(b"<li>")) == (200, count)
            assert threads == [is_here, is_here]

    async def test_a_place_that_is_not_here_is_no_link(
        self, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A sink of one's own may say anything."""
        monkeypatch.setattr("gateway.sinks.discard.Receipt", lambda part, sink: Receipt(part, sink, "//elsewhere/x"))
        routes = [{"path": "/upload", "parts": [{"sinks": ["else"]}]}]
        gateway = await start_gateway(sinks={"else": {"type": "discard"}}, routes=routes, page={"enabled": True})
        answer = await ask(gateway.port, "/upload", "POST", form(file(b"hello", "a.txt")), accept=HTML)
        assert "<li>a.txt (5 B)" in answer.body.decode()
        assert (await ask(gateway.port, "/upload", "POST", form(file(b"hello")))).json()["parts"][0]["receipts"] == [
            {"sink": "else", "location": "//elsewhere/x"}
        ]

    async def test_without_a_page_there_is_no_html(self, start_gateway: StartGateway) -> None:
        gateway = await start_gateway(routes=ONLY)
        answer = await ask(gateway.port, "/upload", "POST", form(file(b"hello", "a.bin")), accept=HTML)
        assert (answer.status, answer.headers["content-type"]) == (422, "application/problem+json")
