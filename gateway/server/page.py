"""The page: what a browser is shown at `/` and at `/page` with a route's path behind it, and what a form's POST without
JavaScript is answered. The files that it is made of are in `static/`; all words are in `strings.json`, by language.

1. The page works under a policy that lets nothing in but its own files (`HEADERS`). Nothing that a client wrote gets
   into it without being escaped.
2. HTML is for who asks for it by Accept, before JSON; anybody else gets JSON, as if there were no page.
3. A page is of a route that takes POST, for a form sends nothing else; machines are told of all.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from aiohttp import hdrs, web

from gateway.errors import NotFound
from gateway.http.prefix import PREFIX
from gateway.model import Limits
from gateway.upload.routes import Route

__all__ = ["ASSETS", "HEADERS", "Page", "prefers_html"]

_STATIC = Path(__file__).with_name("static")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    hdrs.CACHE_CONTROL: "no-cache",
    hdrs.VARY: "Accept, Accept-Language",
}
ASSETS = {"page.js": "text/javascript", "page.css": "text/css"}
_KEYS = {"keys", "jwt", "hook"}
"""Kinds of access for which a person can type something in."""
_OF_THE_BODY = {"content-type", "content-length"}
_LONG_BYTES = 64 << 10
_PLACE = re.compile(r"\{\{(\w+)\}\}")


class Page:
    """What the page says of these routes. `access` are the kinds of each, by path: who may use it."""

    def __init__(self, routes: Sequence[Route], limits: Limits, access: Mapping[str, Sequence[str]]) -> None:
        self.assets = {name: (_STATIC / name).read_bytes() for name in ASSETS}
        self._templates = {name: (_STATIC / f"{name}.html").read_text("utf-8") for name in ("page", "answer")}
        self._strings: dict[str, dict[str, Any]] = json.loads((_STATIC / "strings.json").read_text("utf-8"))
        self._all_routes = routes
        self._routes = {route.path: route for route in routes if "POST" in route.methods}
        self._limits = limits
        self._access = access

    def shown(self, request: web.Request, path: str | None) -> web.Response:
        """The page of the route with that path; None: of the first. Raises NotFound."""
        if path is None:
            path = next(iter(self._routes), None)
        if path is None or path not in self._routes:
            raise NotFound("there is no page for this path")
        prefix, (lang, strings), limits = request[PREFIX], self._language(request), self._limits
        needs_key = self._needs_key(path)
        told = {
            "prefix": prefix,
            "path": path,
            "kind": self._routes[path].kind,
            "key": needs_key,
            "lang": lang,
            "max_parts": limits.max_parts,
            "max_file_bytes": limits.max_file_bytes,
            "max_body_bytes": limits.max_body_bytes,
            "strings": strings,
        }
        words = {name: escape(word) for name, word in strings.items() if isinstance(word, str)}
        most = limits.max_file_bytes or limits.max_body_bytes
        which = "terms_file" if limits.max_file_bytes else "terms_body" if most else "terms_any"
        places = {
            **words,
            "lang": lang,
            "prefix": escape(prefix),
            "path": escape(path),
            "page": escape(json.dumps(told, ensure_ascii=False), quote=False).replace("'", "&#39;"),
            "nav": self._nav(prefix, path, strings),
            "terms": escape(strings[which].format(path=path, size=_size(most, lang))),
            "no_script": f'<p class="no-js">{words["no_script"]}</p>' if needs_key else "",
        }
        return self._html("page", places)

    async def in_place_of(self, request: web.Request, response: web.Response) -> web.Response:
        """What a browser is shown that has sent a form, in place of a manifest, results or a problem; anybody else, and
        who asks for JSON, gets that.
        """
        if request.method != hdrs.METH_POST or not prefers_html(request) or not isinstance(response.body, bytes):
            return response
        # Not here, or whoever else is served would wait for a long manifest.
        is_long = len(response.body) > _LONG_BYTES
        given = (request, response.status, response.body)
        shown = await asyncio.to_thread(self._answer, *given) if is_long else self._answer(*given)
        for name, value in response.headers.items():
            if name.lower() not in _OF_THE_BODY:
                shown.headers[name] = value
        if response.keep_alive is False:
            shown.force_close()
        return shown

    def _answer(self, request: web.Request, status: int, document: bytes) -> web.Response:
        route = request.path if request.path in self._routes else next(iter(self._routes))
        lang, strings = self._language(request)
        told, prefix = json.loads(document), request[PREFIX]
        if status >= 400:
            body = f'<p class="problem">{escape(_in_words(told, strings))}</p>'
        else:
            parts = told if isinstance(told, list) else told["parts"]
            body = f"<ul>{''.join(_listed(part, prefix, strings) for part in parts)}</ul>"
        title = strings["failed"] if status >= 400 else strings["partial"] if status == 207 else strings["kept"]
        places = {
            "lang": lang,
            "title": escape(title),
            "prefix": escape(prefix),
            "path": escape(route),
            "again": escape(strings["again"]),
            "body": body,
        }
        return self._html("answer", places, status=status)

    def described(self, prefix: str) -> dict[str, Any]:
        """The routes for machines, so that clients can configure themselves: no version, and no secrets."""
        return {
            "routes": [self._described(route, prefix) for route in self._all_routes],
            "limits": asdict(self._limits),
            "progress": f"{prefix}/uploads/{{id}}/progress",
        }

    def _described(self, route: Route, prefix: str) -> dict[str, Any]:
        types = [rule.match.content_type or "*/*" for rule in route.rules] or ["*/*"]
        return {
            "path": prefix + route.path,
            "kind": route.kind,
            "methods": list(route.methods),
            "accepted_types": list(dict.fromkeys(types)),
            "sinks": list(route.sinks),
            "digests": list(route.digests),
            "keep": "each" if route.keep_each else "all",
            "access": list(self._access[route.path]),
        }

    def _needs_key(self, path: str) -> bool:
        kinds = self._access[path]
        return "none" not in kinds and not _KEYS.isdisjoint(kinds)

    def _nav(self, prefix: str, path: str, strings: Mapping[str, Any]) -> str:
        if len(self._routes) == 1:
            return ""
        links = ""
        for one in map(escape, self._routes):
            current = ' aria-current="page"' if one == path else ""
            links += f'<a href="{escape(prefix)}/page{one}"{current}>{one}</a>'
        return f'<nav aria-label="{escape(strings["nav"])}">{links}</nav>'

    def _language(self, request: web.Request) -> tuple[str, Mapping[str, Any]]:
        """The first of those that we have, in the order of the header, which browsers write by preference."""
        for one in request.headers.get(hdrs.ACCEPT_LANGUAGE, "").split(","):
            lang = one.partition(";")[0].strip().lower().partition("-")[0]
            if lang in self._strings:
                return lang, self._strings[lang]
        return "en", self._strings["en"]

    def _html(self, template: str, places: Mapping[str, str], status: int = 200) -> web.Response:
        text = _PLACE.sub(lambda place: places[place[1]], self._templates[template])
        return web.Response(status=status, text=text, content_type="text/html", headers=HEADERS)


def prefers_html(request: web.Request) -> bool:
    """Whether Accept names HTML, and JSON not before it: browsers that follow a link, or send a form."""
    named = [one.partition(";")[0].strip().lower() for one in request.headers.get(hdrs.ACCEPT, "").split(",")]
    if "text/html" not in named:
        return False
    return "application/json" not in named or named.index("text/html") < named.index("application/json")


def _in_words(problem: Mapping[str, Any], strings: Mapping[str, Any]) -> str:
    known = strings["problems"].get(str(problem.get("type", "")).rpartition("/")[2], problem.get("title", ""))
    detail = problem.get("detail")
    return f"{known} ({detail})" if detail else str(known)


def _listed(part: Mapping[str, Any], prefix: str, strings: Mapping[str, Any]) -> str:
    """A line about one part, of a manifest or of results. Its places have no prefix yet."""
    came = part.get("input", part)
    if came.get("filename") is None:
        return ""
    name = escape(came["filename"])
    if (problem := part.get("problem")) is not None:
        return f'<li>{name}: <span class="problem">{escape(_in_words(problem, strings))}</span></li>'
    output = part.get("output") or {}
    places = [output.get("location"), *(receipt.get("location") for receipt in part.get("receipts", ()))]
    place = next((place for place in places if place and place.startswith("/files/")), None)
    link = name if place is None else f'<a href="{escape(prefix + place)}">{name}</a>'
    digest = came.get("sha256")
    return f"<li>{link} ({came['size']} B){f'<br><small>SHA-256 {digest}</small>' if digest else ''}</li>"


def _size(size: int, lang: str) -> str:
    """For people."""
    number, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 999.5 or unit == "TB":
            break
        number /= 1000
    text = f"{number:.3g}"
    return f"{text.replace('.', ',') if lang == 'de' else text} {unit}"
