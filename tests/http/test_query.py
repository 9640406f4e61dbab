"""What of a client's query goes on, and that nobody reads the operator's parameters from a client."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from gateway.http.query import with_query
from tests.conftest import StartGateway
from tests.support.clients import ask, file, form
from tests.support.doubles import HonestUpstream


@pytest.mark.parametrize(
    ("url", "query", "asked"),
    [
        ("http://h/", "a=1", "http://h/?a=1"),
        ("http://h/", "", "http://h/"),
        ("http://h/?", "a=1", "http://h/?a=1"),
        ("http://h/?k=1", "", "http://h/?k=1"),
        ("http://h/?k=1", "a=1", "http://h/?k=1&a=1"),
        ("http://h/?k", "a", "http://h/?k&a"),
        ("http://h/?k=1&a=2", "b=3&a=4&c=5", "http://h/?k=1&a=2&b=3&c=5"),
    ],
)
def test_it_is_appended_to_the_urls_own(url: str, query: str, asked: str) -> None:
    assert with_query(url, query) == asked


@pytest.mark.parametrize(
    "query",
    [
        "a=%2f%2F&b=+&c=%C3%A9&c=2&c",
        "=x&&=&&a=",
        "a=b=c;d?e/f:@!$'()*,%zz%",
        "MODE=1&Mode=2&modes=3&x[mode]=4&amode=5",
        "x=mode=unsafe&y=%26mode=unsafe",
        "&",
    ],
)
def test_all_else_goes_on_as_it_came(query: str) -> None:
    assert with_query("http://h/?mode=safe", query) == f"http://h/?mode=safe&{query}"
    assert with_query("http://h/", query) == f"http://h/?{query}"


@pytest.mark.parametrize(
    "piece",
    [
        "mode=unsafe",
        "mode",
        "mode=",
        "mo%64e=unsafe",
        "%6D%6F%64%65=unsafe",
        "mode%00x=unsafe",
        "mode[]=unsafe",
        "mode%5b%5D=unsafe",
        "mode[x][y]=unsafe",
        "mode[=unsafe",
        "[mode]=unsafe",
        "%5Bmode%5D[x]=unsafe",
        "+mode=unsafe",
        "%20mode=unsafe",
        "a=1;mode=unsafe",
        "mode=unsafe;a=1",
        "a;mo%64e=unsafe",
    ],
)
def test_a_parameter_of_the_urls_own_name_stays_here_however_it_is_written(piece: str) -> None:
    url = "http://h/?mode=safe&tag=1"
    assert with_query(url, piece) == url
    assert with_query(url, f"a=1&{piece}&b=%32") == f"{url}&a=1&b=%32"
    assert with_query(url, f"tag=2&{piece}&{piece}&tag") == url


@pytest.mark.parametrize(
    ("own", "theirs"),
    [
        *(("a%20b=1", "a+b=2"), ("a+b=1", "a%20b=2"), ("a+b=1", "a%2Bb=2"), ("a+b=1", "a_b=2"), ("a_b=1", "a.b=2")),
        *(
            ("a.b=1", "a_b=2"),
            ("m%6Fde=1", "mode=2"),
            ("mode[]=1", "mode=2"),
            ("a=1;b=2", "b=3"),
            ("caf%C3%A9", "caf%c3%a9=1"),
        ),
    ],
)
def test_names_are_compared_as_they_are_read_and_not_as_they_are_written(own: str, theirs: str) -> None:
    assert with_query(f"http://h/?{own}", theirs) == f"http://h/?{own}"


@pytest.mark.parametrize(
    ("allowed", "asked"),
    [
        (True, "?a=1&b=2&%61=3&a+b=4&a%20b=5&c;a=6&A=7&&=8"),
        (False, ""),
        ([], ""),
        (["a"], "?a=1&%61=3"),
        (["a b"], "?a%20b=5"),
        (["a+b"], "?a+b=4"),
        (["b", "A"], "?b=2&A=7"),
        (["c", "a"], "?a=1&%61=3&c;a=6"),
        (["d"], ""),
    ],
)
def test_all_goes_on_or_nothing_or_what_is_on_a_list(allowed: bool | Collection[str], asked: str) -> None:
    assert with_query("http://h/", "a=1&b=2&%61=3&a+b=4&a%20b=5&c;a=6&A=7&&=8", allowed) == f"http://h/{asked}"


def test_what_is_on_the_list_does_not_replace_the_urls_own_either() -> None:
    assert with_query("http://h/?a=safe", "a=1&b=2", ["a", "b"]) == "http://h/?a=safe&b=2"


@pytest.mark.parametrize(
    ("allowed", "asked"),
    [(True, "?mode=safe&x=%2F+&y"), (False, "?mode=safe"), (["y"], "?mode=safe&y")],
)
@pytest.mark.parametrize("target", ["/proxy", "http://g.example/proxy"])
async def test_a_destination_is_asked_so(
    start_gateway: StartGateway, target: str, allowed: bool | list[str], asked: str
) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await start_gateway(api=f"{upstream.url}?mode=safe", sinks={"api": {"forward_query": allowed}})
        sending = f"{target}?x=%2F+&mo%64e=unsafe&y&mode[]=unsafe"
        assert (await ask(gateway.port, sending, "POST", form(file(b"data")))).status == 200
    assert upstream.exchanges[0].target.partition("?")[1:] == ("?", asked[1:])
