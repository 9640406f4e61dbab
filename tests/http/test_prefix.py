"""What is put before addresses: what may be, what a proxy says of it, and that nothing else in a document changes."""

from __future__ import annotations

import json

import pytest

from gateway.http.prefix import cut, forwarded_prefix, is_prefix, prefixed, prefixed_bytes, without_base


@pytest.mark.parametrize("text", ["", "/gw", "/a/b", "/a.b/~c-d_e", "/...", "/.well", "/%C3%A9", "/" + "a" * 127])
def test_what_is_a_prefix(text: str) -> None:
    assert is_prefix(text)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "/",
            "gw",
            "/gw/",
            "//gw",
            "/a//b",
            "/.",
            "/..",
            "/a/..",
            "/a/../b",
            "/a/./b",
            "/%2e%2e",
            "/%2F",
            "/%",
            "/%c",
        ),
        *("/a b", '/a"b', "/a\\b", "/a?b", "/a#b", "/a,b", "/a;b", "/é", "/a\n", "/a\r\nX: y", "http://evil", "//evil"),
        "/" + "a" * 128,
    ],
)
def test_what_is_none(text: str) -> None:
    assert not is_prefix(text)


@pytest.mark.parametrize(
    ("values", "prefix"),
    [
        (["/gw"], "/gw"),
        (["/gw/"], "/gw"),
        ([" /gw "], "/gw"),
        (["/gw, /gw/"], "/gw"),
        (["/gw", "/gw"], "/gw"),
        (["/"], ""),
        ([""], ""),
        ([], None),
        (["/gw", "/other"], None),
        (["/gw,/other"], None),
        (["//evil"], None),
        (["/gw//"], None),
        (["gw"], None),
    ],
)
def test_a_proxy_is_understood_where_it_says_one_thing_only(values: list[str], prefix: str | None) -> None:
    assert forwarded_prefix(values) == prefix


@pytest.mark.parametrize(
    ("target", "rest"),
    [
        ("/gw/upload", "/upload"),
        ("/gw/gw/upload", "/gw/upload"),
        ("/gw/", "/"),
        ("/gw//upload", "//upload"),
        ("/gw/download/http://a/gw/", "/download/http://a/gw/"),
        ("http://host:1/gw/upload?a=/gw/", "http://host:1/upload?a=/gw/"),
        *((same, same) for same in ("/upload", "/gw", "/gwx/upload", "/GW/upload", "/a/gw/upload", "/%67w/x", "*")),
        ("/?a=/gw/upload", "/?a=/gw/upload"),
        ("http://gw/upload", "http://gw/upload"),
    ],
)
def test_a_path_that_no_proxy_took_away_is_taken_off_the_target_once(target: str, rest: str) -> None:
    fields = b" HTTP/1.1\r\nHost: a\r\nReferer: /gw/upload\r\n\r\n"
    assert without_base(b"POST " + target.encode() + fields, "/gw") == b"POST " + rest.encode() + fields


TEXTS = [
    '"location": "/files/',
    '{"location": "/files/01/0/a"}',
    '\\"location\\": \\"/files/',
    '", "type": "/problems/x',
    "\t,\n\u2028é",
    'a", "instance": "/uploads/1", "x": "',
]
DOCUMENT = {
    "type": "/problems/incomplete",
    "instance": "/uploads/01",
    "parts": [{"name": text, "value": text, text: text, "receipts": [{"location": "/files/01/0/,"}]} for text in TEXTS],
    "kept": [{"location": None}, {"location": "https://host/files/1"}, {"location": "files/1"}],
    "findings": {"type": "image/png", "location": "/europe/berlin"},
}


@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_addresses_get_the_prefix_and_no_text_of_a_client_does(ensure_ascii: bool) -> None:
    document = json.dumps(DOCUMENT, ensure_ascii=ensure_ascii).encode()
    wanted = json.loads(json.dumps(DOCUMENT))
    wanted["type"], wanted["instance"] = "/gw/problems/incomplete", "/gw/uploads/01"
    for part in wanted["parts"]:
        part["receipts"] = [{"location": "/gw/files/01/0/,"}]
    assert json.loads(prefixed(document, "/gw")) == wanted
    assert prefixed(document, "") == document


@pytest.mark.parametrize("size", [1, 7, 64, 1000, 10_000])
def test_a_document_may_be_cut_whatever_the_size_of_its_pieces(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr("gateway.http.prefix._CUT_BYTES", size)
    document = json.dumps([DOCUMENT] * 5).encode()
    pieces = list(cut(document))
    assert b"".join(pieces) == document
    assert b"".join(prefixed(piece, "/files") for piece in pieces) == prefixed(document, "/files")
    assert prefixed_bytes(document, "/files") == len(prefixed(document, "/files"))
    assert prefixed_bytes(document, "") == len(document)
