from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from gateway.access import Browsers, Cors, check_host, check_origin, is_cross_site, refused_origin

APP = "https://app.example.org"
NAMES = st.sampled_from(["Vary", "vary", "Access-Control-Allow-Origin", "access-control-max-age", "ETag"])
VALUES = st.sampled_from(["*", APP, "Origin", "origin, Accept", "Accept", "", "https://evil.example"])


@given(st.lists(st.tuples(NAMES, VALUES)), st.sampled_from([APP, "null", "", None]), st.booleans(), st.booleans())
def test_whatever_an_answer_says_it_says_of_this_gateway_and_once(
    said: list[tuple[str, str]], origin: str | None, credentials: bool, asks: bool
) -> None:
    headers = CIMultiDict(said)
    Browsers(Cors(frozenset([APP]), (), credentials)).tell(headers, "/x", origin, "POST" if asks else "")
    names = [name.lower() for name in headers]
    told = [name for name in names if name == "vary" or name.startswith("access-control-")]
    assert len(told) == len(set(told))
    assert headers.get("Access-Control-Allow-Origin") == (APP if origin == APP else None)
    assert ("access-control-max-age" in names) is (asks and origin == APP)
    assert [token.strip().lower() for token in headers["Vary"].split(",")].count("origin") == 1
    assert [value for name, value in said if name == "ETag"] == headers.getall("ETag", [])


@pytest.mark.parametrize(
    "origin",
    [APP, "http://127.0.0.1:8000", "http://[::1]:3000", "null", "*", "capacitor://localhost", "https://a:8443"],
)
def test_what_browsers_call_an_origin_is_taken(origin: str) -> None:
    assert check_origin(origin) == origin


@pytest.mark.parametrize(
    "origin",
    [
        *("", "app.example.org", APP + "/", APP + "/x", "https://App.example.org", APP + ":443", "http://a:80"),
        *(
            "https://*.a",
            "https://u@a",
            "https://a b",
            "https://",
            "HTTPS://a",
            "https://a:99999",
            "Null",
            "https://a\n",
        ),
    ],
)
def test_anything_else_is_not(origin: str) -> None:
    with pytest.raises(ValueError, match=r"origin|browsers"):
        check_origin(origin)


@pytest.mark.parametrize("host", ["a", "A.example.org", "127.0.0.1", "[::1]", "*"])
def test_a_host_has_no_port(host: str) -> None:
    assert check_host(host) == host.lower()
    with pytest.raises(ValueError, match="port"):
        check_host(f"{host}:80")


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (b"POST /gw/a?x HTTP/1.1\r\nHost: g\r\nOrigin: https://a\r\nX", ("/a", "https://a")),
        (b"POST /a HTTP/1.1\r\norigin:https://a \r\n", ("/a", "https://a")),
        (b"POST /gwen HTTP/1.1\r\nOrigin: https://a", ("/gwen", None)),  # more of it may have come
        (b"POST /a HTTP/1.1\r\nOrigin: a\r\nOrigin: b\r\n", ("/a", None)),
        (b"\x16\x03\x01", ("", None)),
        (b"", ("", None)),
    ],
)
def test_of_a_head_that_is_refused_as_much_is_read_as_came(head: bytes, found: tuple[str, str | None]) -> None:
    assert refused_origin(head, "/gw") == found


@pytest.mark.parametrize(
    ("site", "mode", "method", "scope", "is_foreign"),
    [
        ("cross-site", "no-cors", "GET", "read", True),
        ("Cross-Site ", "cors", "POST", "upload", True),
        ("cross-site", "navigate", "POST", "upload", True),
        ("cross-site", "navigate", "GET", "delete", True),
        ("cross-site", "navigate", "GET", "read", False),
        ("cross-site", "navigate", "HEAD", "download", False),
        ("same-site", "cors", "POST", "upload", False),
    ],
)
def test_only_links_that_are_followed_come_from_other_sites(
    site: str, mode: str, method: str, scope: str, is_foreign: bool
) -> None:
    headers = CIMultiDict({"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": "document"})
    assert is_cross_site(headers, method, scope) is is_foreign
