"""The page, its files, what machines are told at `/`, and links to what is stored that a browser can follow.

Where a key is needed, files are had by links that are signed when they are clicked, for `_LINK_SECONDS`: a browser
sends no key when it follows one.
"""

from __future__ import annotations

from aiohttp import hdrs, web

from gateway.access import signed_url
from gateway.downloads.locations import ARCHIVE_PATH
from gateway.downloads.stored import stored_owner
from gateway.http.prefix import PREFIX
from gateway.server.page import ASSETS, HEADERS, Page, prefers_html
from gateway.server.services import SERVICES

__all__ = ["LINK_PATH", "get_asset", "get_link", "get_page", "get_root"]

LINK_PATH = "/uploads/{id}/links/{what}"
_LINK_SECONDS = 60


async def get_root(request: web.Request) -> web.Response:
    """The page for who asks for HTML, which browsers do; for anybody else the routes."""
    page = _page(request)
    if not prefers_html(request):
        headers = {hdrs.VARY: "Accept", hdrs.CACHE_CONTROL: "no-cache"}
        return web.json_response(page.described(request[PREFIX]), headers=headers)
    return page.shown(request, None)


async def get_page(request: web.Request) -> web.Response:
    """The page of one route. Raises NotFound."""
    return _page(request).shown(request, f"/{request.match_info['route']}")


async def get_asset(request: web.Request) -> web.Response:
    """What the page is made of."""
    name = request.path.rpartition("/")[2]
    return web.Response(body=_page(request).assets[name], content_type=ASSETS[name], charset="utf-8", headers=HEADERS)


async def get_link(request: web.Request) -> web.Response:
    """A signed address of what is stored, for who may read it. Raises NotFound."""
    services, upload_id, what = request.app[SERVICES], request.match_info["id"], request.match_info["what"]
    is_archive = what == "archive.zip"
    owner = await stored_owner(request, None if is_archive else what)
    path = ARCHIVE_PATH.format(id=upload_id) if is_archive else f"/files/{upload_id}/{what}"
    if services.policies.signing:
        # As its owner: who asks may be that, and somebody else, too.
        path = signed_url(services.policies.signing, path, expires_seconds=_LINK_SECONDS, identity=owner)
    return web.json_response({"url": request[PREFIX] + path}, headers={hdrs.CACHE_CONTROL: "no-store"})


def _page(request: web.Request) -> Page:
    page = request.app[SERVICES].page
    assert page is not None  # or these are not served
    return page
