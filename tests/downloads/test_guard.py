"""The two fences of downloads: tables of what must not pass, and of what must."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yarl import URL

from gateway.downloads.guard import AddressGuard, UrlRules, redirect_target, target_of
from gateway.errors import Forbidden

# -- addresses

_REFUSED = [
    *("0.0.0.0", "0.0.0.1", "0.255.255.255"),
    *("10.0.0.0", "10.0.0.1", "10.255.255.255"),
    *("100.64.0.0", "100.100.100.200", "100.127.255.255"),
    *("127.0.0.0", "127.0.0.1", "127.1.2.3", "127.255.255.255"),
    *("169.254.0.1", "169.254.169.254", "169.254.255.255", "168.63.129.16"),
    *("172.16.0.1", "172.31.255.255"),
    *("192.0.0.1", "192.0.0.9", "192.0.0.170", "192.0.0.192"),
    *("192.0.2.1", "198.51.100.1", "203.0.113.255"),
    *("192.88.99.1", "192.168.0.1", "192.168.255.255"),
    *("198.18.0.1", "198.19.255.255"),
    *("224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "0:0:0:0:0:0:0:1", "::2"),
    *("::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:10.0.0.1", "::ffff:169.254.169.254"),
    *("::ffff:8.8.8.8", "::ffff:0:8.8.8.8"),
    *("64:ff9b::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1", "64:ff9b:1:ffff::1"),
    *("2002::", "2002:7f00:1::", "2002:808:808::1"),
    *("2001::1", "2001:0:4136:e378:8000:63bf:80ff:fffe", "2001:2::1", "2001:10::1", "2001:20::1", "2001:db8::1"),
    *("100::1", "100:0:0:1::1", "3fff::1", "3fff:fff::1", "5f00::1", "4000::1"),
    *("fc00::1", "fd00::1", "fd00:ec2::254", "fdff:ffff::1"),
    *("fe80::1", "fe80::1%eth0", "febf::1", "fec0::1", "feff::1", "fe80::%1", "2606:4700::1%eth0"),
    *("ff00::1", "ff02::1", "ff0e::1"),
    *("", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.0.0.1 ", "1.2.3.4/32", "\u0661.1.1.1"),
]

_PUBLIC = [
    *("1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "93.184.216.34", "100.63.255.255", "100.128.0.0"),
    *("126.255.255.255", "128.0.0.1", "168.63.129.15", "169.253.255.255", "172.15.255.255", "172.32.0.0"),
    *("192.0.1.1", "192.0.3.1", "192.167.255.255", "198.17.255.255", "198.20.0.0", "223.255.255.255"),
    *("2606:4700:4700::1111", "2001:200::1", "2001:4860:4860::8888", "2a00:1450:4001:800::200e", "2003::1", "3ffe::1"),
]


def _passes(guard: AddressGuard, address: str) -> bool:
    try:
        guard.check(address)
    except Forbidden:
        return False
    return True


@pytest.mark.parametrize("address", _REFUSED)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    with pytest.raises(Forbidden):
        AddressGuard().check(address)


@pytest.mark.parametrize("address", _PUBLIC)
def test_a_public_address_passes(address: str) -> None:
    AddressGuard().check(address)


@given(st.ip_addresses())
def test_the_guard_is_never_more_liberal_than_the_standard_library(address: IPv4Address | IPv6Address) -> None:
    if _passes(AddressGuard(), str(address)):
        assert address.is_global
        assert not address.is_multicast


@pytest.mark.parametrize(
    ("opened", "passes", "refused"),
    [
        (["10.1.0.0/16"], ["10.1.0.0", "10.1.255.255", "::ffff:10.1.2.3"], ["10.0.255.255", "10.2.0.0", "127.0.0.1"]),
        (["127.0.0.0/8"], ["127.0.0.1", "::ffff:127.0.0.1"], ["::1", "::127.0.0.1", "64:ff9b::7f00:1", "0.0.0.0"]),
        (["169.254.169.254"], ["169.254.169.254"], ["169.254.169.253"]),
        (["::1/128"], ["::1"], ["127.0.0.1", "::ffff:127.0.0.1", "::", "fe80::1"]),
        (["::/0"], ["::1", "fd00::1", "64:ff9b::7f00:1"], ["::ffff:127.0.0.1", "127.0.0.1", "fe80::1%eth0"]),
        (["64:ff9b::/96"], ["64:ff9b::7f00:1"], ["64:ff9b:1::1", "127.0.0.1"]),
        (["10.0.0.0/8", "fd00::/8"], ["10.9.9.9", "fd00:ec2::254"], ["192.168.0.1", "fc00::1"]),
    ],
)
def test_allow_private_opens_exactly_its_ranges(opened: list[str], passes: list[str], refused: list[str]) -> None:
    guard = AddressGuard(opened)
    assert [address for address in passes if not _passes(guard, address)] == []
    assert [address for address in refused if _passes(guard, address)] == []
    assert _passes(guard, "8.8.8.8")


@pytest.mark.parametrize("text", ["10.1.2.3/16", "10.1.0.0/33", "example.org", "", "::ffff:10.0.0.0/104", "10.1.*"])
def test_a_range_that_is_none_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="range of") as caught:
        AddressGuard(["10.0.0.0/8", text])
    assert text in str(caught.value)


# -- targets

_HOSTILE = [
    # no URL of ours
    *("", "/", "example.org/x", "//example.org/x", "ftp://example.org/x", "file:///etc/passwd", "gopher://h/_x"),
    *("javascript:alert(1)", "data:,x", "unix:///run/x.sock", "httpx://example.org/", "http", "http:", "http://"),
    *("http:example.org/x",),
    *(
        "http:/\\example.org/x",
        "http:\\\\example.org/x",
        "view-source:http://example.org/",
        "http\u017f://example.org/",
    ),
    # user info, fragments, backslashes
    *("http://user@example.org/", "http://user:pw@example.org/", "http://example.org@127.0.0.1/", "http://@h/"),
    *("http://example.org:80@127.0.0.1/", "http://a%40b@h/", "http://h/#x", "http://h#@example.org/", "http://h/?q#"),
    *("http://example.org\\@127.0.0.1/", "http://h/a\\b", "http://h/?a\\b", "http://h\\x/"),
    # ports
    *("http://h:/", "http://h:0/", "http://h:00080/", "http://h:65536/", "http://h:99999999999/", "http://h:-1/"),
    *("http://h:80:80/", "http://h:http/", "http://h:8 0/", "http://h:٨٠/", "http://h:+80/", "http://h:8_0/"),
    # hosts that some take for addresses
    *("http://2130706433/", "http://0x7f000001/", "http://0x7F.0.0.1/", "http://0177.0.0.1/", "http://017700000001/"),
    *("http://127.1/", "http://127.0.1/", "http://0/", "http://0x/", "http://127.0.0.01/", "http://256.0.0.1/"),
    *("http://1.2.3.4.5/", "http://127.0.0.0x1/", "http://127.0.0.1..", "http://99999999999/", "http://a.0x7f/"),
    *("http://\uff11\uff12\uff17.1/", "http://127。1/", "http://0x7f。1/", "http://example.1/", "http://example.1./"),
    # hosts that are none
    *("http://.", "http://../", "http://a..b/", "http://.example.org/", "http://-a.org/", "http://a-.org/"),
    *("http://exa mple.org/", "http://exa%6dple.org/", "http://exa%00mple.org/", "http://*/", "http://a,b/"),
    *("http://[::1/", "http://::1/", "http://[]/", "http://[127.0.0.1]/", "http://[::1]x/", "http://x[::1]/"),
    *("http://[fe80::1%25eth0]/", "http://[fe80::1%eth0]/", "http://[::1%25]/", "http://[v1.x]/", "http://[::g]/"),
    *("http://xn--/", "http://xn--a/", "http://xn--0.org/", "http://☃.net/", "http://a\uff0fb.org/", "http://ex℀.org/"),
    *("http://" + "a" * 64 + ".org/", "http://" + "a." * 127 + "org/", "http://ab\u00adcd.org/", "http://\u202eorg/"),
    *("http://" + "a" * 5000 + "é/", "http://h\u2028/", "http://{h}/", "http://h;x/", "http://h&x/"),
    # paths that are read in two ways
    *(
        "http://h/%2e%2e/x",
        "http://h/%2E%2e/x",
        "http://h/.%2e/x",
        "http://h/%2E./x",
        "http://h/%2e/x",
        "http://h/a/%2e",
    ),
    *("http://h/a%5cb", "http://h/a%5Cb", "http://h/..;/x", "http://h/..;a=b/x"),
    *("http://h/%2e%2e;/x", "http://h/.;/x", "http://h/a%2e%2eb", "http://h/..%2fx", "http://h/..%5cx"),
    *("http://h/%252e%252e/x", "http://h/a%25255cb", "http://h/%c0%ae%c0%ae/x", "http://h/%C0%AFx"),
    *(
        "http://h/%e0%80%af",
        "http://h/%f0%80%80%af",
        "http://h/%u002e%u002e/",
        "http://h/%zz",
        "http://h/%",
        "http://h/%a",
    ),
    *("http://h/%00", "http://h/a%0d%0aHost:x", "http://h/%1f", "http://h/%7f"),
    # white space and controls
    *(" http://h/", "http://h/ ", "http://h/a b", "http://h/a\tb", "http://h/a\nb", "\nhttp://h/", "http://h/\r\nX: y"),
    *("http://h/\x00", "http://h/\x7f", "http://h/\u00a0", "http://h/\u3000", "http://h/?a b", "ht\ntp://h/"),
    *("http://h/\u200b", "http://h/\ud800", "http://h/?\udcff"),
]


@pytest.mark.parametrize("url", _HOSTILE)
def test_a_hostile_target_is_refused_as_it_is_and_encoded(url: str) -> None:
    rules = UrlRules(["http://*/*", "https://*/*"])
    with pytest.raises(Forbidden):
        rules.check(url)
    with pytest.raises(Forbidden):
        rules.check(target_of(url))
    if url.isprintable():
        with pytest.raises(Forbidden):
            rules.check(target_of(quote(url, safe="")))


@pytest.mark.parametrize(
    ("target", "url"),
    [
        ("http://h/a", "http://h/a"),
        ("http://h/a?b=c%26d&e=http://x/", "http://h/a?b=c%26d&e=http://x/"),
        ("http%3A%2F%2Fh%2Fa", "http://h/a"),
        ("http%3a%2f%2fh%2fa%3Fb%3Dc%2526d", "http://h/a?b=c%26d"),
        ("https:%2F%2Fh%2Fa%2520b", "https://h/a%20b"),
        ("https%3A//h/a?b=%2525", "https://h/a?b=%25"),
        ("%68ttp://h/a", "http://h/a"),
        ("http%3A%2F%2Fh%2F%C3%A9", "http://h/é"),
        ("HTTP://H/a", "HTTP://H/a"),
        ("http://h/%25", "http://h/%25"),
        ("https:/h/a//b?c=http:/d", "https://h/a//b?c=http:/d"),  # merged slashes
        ("HTTP:///h/a", "HTTP://h/a"),
        ("http%3A%2Fh%2Fa%3Fb", "http://h/a?b"),
        ("http:%2Fh", "http://h"),
    ],
)
def test_a_target_is_taken_literally_or_decoded_once(target: str, url: str) -> None:
    assert target_of(target) == url


@pytest.mark.parametrize(
    "target",
    [
        "http%253A%252F%252Fh%252Fa",  # encoded twice
        "http%3A%2F%2Fh%2F%252e%252e%2Fx",
        "http%3A%2F%2Fh%2Fa%0D%0Ab",
        "http%3A%2F%2Fh%2F%00",
        "http%3A%2F%2Fh%2F%ff",  # no UTF-8
        "http%3A%2F%2Fu%40h%2F",
        "http%3A%2F%2Fh%2F%23",
        "http%3A%2F%2Fh%5C%2F",
        "http%3A%2F%2F127%E3%80%821%2F",
        "%20http%3A%2F%2Fh%2F",
        "file%3A%2F%2F%2Fetc%2Fpasswd",
        "http%3Ah",
        "http%3A%5C%5Ch",
    ],
)
def test_what_hides_behind_one_decoding_is_refused(target: str) -> None:
    with pytest.raises(Forbidden):
        target_of(target)


@pytest.mark.parametrize("url", ["https:/example.org/x", "http:///example.org/x", "http:////example.org/x", "https:/x"])
def test_slashes_are_mended_in_what_a_client_asks_for_and_nowhere_else(url: str) -> None:
    rules = UrlRules(["http://*/*", "https://*/*"])
    with pytest.raises(Forbidden):
        rules.check(url)
    assert rules.check(target_of(url)) == rules.check(target_of(quote(url, safe="")))


# -- rules


@pytest.mark.parametrize(
    ("pattern", "covered", "not_covered"),
    [
        (
            "https://example.org/files/*",
            [
                "https://example.org/files/a",
                "https://example.org/files/",
                "https://example.org/files/a/b?token=x",
                "HTTPS://EXAMPLE.ORG:443/files/a",
                "https://example.org./files/a",
                "https://example.org/x/../files/a",
                "https://example.org/./files/a/../b",
                "https://\uff45xample。org/files/a",
            ],
            [
                "http://example.org/files/a",
                "https://example.org/files",
                "https://example.org/filesystem",
                "https://example.org/Files/a",
                "https://example.org/files/../secret",
                "https://example.org/files/a/../../secret",
                "https://example.org/%66iles/a",
                "https://example.org//files/a",
                "https://example.org:8443/files/a",
                "https://example.org:80/files/a",
                "https://www.example.org/files/a",
                "https://example.org.evil.test/files/a",
                "https://evilexample.org/files/a",
                "https://evil.test/https://example.org/files/a",
                "https://evil.test/?https://example.org/files/a",
                "https://example.com/files/a",
            ],
        ),
        (
            "http://127.0.0.1:9000/*",
            ["http://127.0.0.1:9000", "http://127.0.0.1:9000/", "http://127.0.0.1:9000/a?b"],
            ["http://127.0.0.1/a", "http://127.0.0.2:9000/a", "http://localhost:9000/a", "http://[::1]:9000/a"],
        ),
        (
            "https://*/x/*",
            ["https://example.org/x/a", "https://1.2.3.4/x/", "https://[::1]/x/a", "https://any/x/a"],
            ["https://example.org/a", "http://example.org/x/a", "https://example.org:444/x/a"],
        ),
        ("http://*:8080/*", ["http://h:8080/a"], ["http://h/a", "http://h:80/a", "https://h:8080/a"]),
        ("http://*", ["http://h", "http://h/", "http://h/?a"], ["http://h/a"]),
        (
            "https://example.org/a.bin",
            ["https://example.org/a.bin", "https://example.org/a.bin?version=2"],
            ["https://example.org/a.bin/", "https://example.org/a.bin.old", "https://example.org/"],
        ),
        ("http://h/v1-*", ["http://h/v1-", "http://h/v1-a/b"], ["http://h/v1", "http://h/v2-a", "http://h/x/v1-"]),
        (
            "https://Bücher.example/é/*",
            ["https://xn--bcher-kva.example/%C3%A9/a", "https://bücher.example/%c3%a9/a", "https://BÜCHER.example./é/"],
            ["https://bucher.example/é/a", "https://xn--bcher-kva.example/e/a"],
        ),
        (
            "http://[::0001]/*",
            ["http://[::1]/a", "http://[0:0:0:0:0:0:0:1]/a"],
            ["http://[::2]/a", "http://127.0.0.1/a"],
        ),
        ("http://my_service:80/*", ["http://my_service/a", "http://MY_SERVICE/a"], ["http://my-service/a"]),
        ("https://r3---sn-x.example/*", ["https://R3---sn-x.example/a"], ["https://r3--sn-x.example/a"]),
    ],
)
def test_a_pattern_covers_what_it_names_and_nothing_else(
    pattern: str, covered: list[str], not_covered: list[str]
) -> None:
    rules = UrlRules(["https://other.test/*", pattern])
    for url in covered:
        rules.check(url)
    for url in not_covered:
        with pytest.raises(Forbidden):
            rules.check(url)


def test_no_pattern_covers_nothing() -> None:
    assert not UrlRules([])
    with pytest.raises(Forbidden):
        UrlRules([]).check("http://example.org/")


@pytest.mark.parametrize(
    "pattern",
    [
        *("", "*", "example.org", "example.org/*", "//example.org/*", "ftp://example.org/*", "*://example.org/*"),
        *("http://", "http:///*", "https://*.example.org/*", "https://example.*/*", "https://example.org*"),
        *("https://example.org:*/*", "https://example.org/*/x", "https://example.org/**", "https://example.org/*.zip"),
        *("https://**/x", "https://*x/y", "https://example.org/?*", "https://example.org/a?b", "https://h/#x"),
        *("https://user@example.org/*", "https://example.org/a b/*", "https://example.org/../*", "https://h/a/..*"),
        *(
            "https://h/a/./*",
            "https://h/%2e%2e/*",
            "https://h/%2f*",
            "https://h/%*",
            "https://h:0/*",
            "https://127.1/*",
        ),
        *("https://xn--a/*", "https://a..b/*", "https://h\\x/*", " https://h/*"),
    ],
)
def test_a_bad_pattern_is_refused_by_name_but_for_what_may_be_a_secret(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"http|pattern|\*|query|segment") as caught:
        UrlRules(["http://h/*", pattern])
    user, _, rest = pattern.rpartition("@")
    shown = rest.partition("?")[0]
    assert str(caught.value).startswith(f"{shown} ")
    assert not user or user not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "dialled"),
    [
        ("HTTP://Example.ORG.:80/a/./b/../c?Q=%41&é", "http://example.org/a/c?Q=%41&%C3%A9"),
        ("https://h:443", "https://h/"),
        ("https://h:80/..", "https://h:80/"),
        ("http://h/a/..", "http://h/"),
        ("http://h/a/.", "http://h/a/"),
        ("http://h//a//b", "http://h//a//b"),
        ("http://h/é\"<>`{|}^'[]", "http://h/%C3%A9%22%3C%3E%60%7B%7C%7D%5E'[]"),
        ("http://h/a%c3%a9%20%7e?%c3", "http://h/a%C3%A9%20%7E?%c3"),
        ("http://h?q", "http://h/?q"),
        ("http://h/a?http://b/../c?d", "http://h/a?http://b/../c?d"),
        ("http://[0:0::1]:8080/", "http://[::1]:8080/"),
        ("http://faß.de/", "http://xn--fa-hia.de/"),
    ],
)
def test_what_is_dialled_is_what_was_compared(url: str, dialled: str) -> None:
    rules = UrlRules(["http://*/*", "https://*/*", "https://*:80/*", "http://*:8080/*"])
    assert str(rules.check(url)) == dialled


_ANYTHING = UrlRules(["http://*/*", "https://*/*", "http://h:8080/*"])
_PIECES = st.sampled_from(
    [
        *("http://", "https://", "h", "h:8080", "/", "//", "..", ".", "%2e", "%", "25", "2f", "?", "#", "@", ":", "\\"),
        *("[::1]", "127.0.0.1", "0x7f", "1", "a", "xn--", "%C3%A9", ";", "*", " ", "\t", "&=", "\u00e9", "\u3002"),
        *("\uff0f", "\u2100"),
    ]
)


@given(
    st.one_of(st.text(), st.lists(_PIECES).map("".join), st.lists(_PIECES).map(lambda all: "http://h/" + "".join(all)))
)
@example("http://h/\udcff")
def test_whatever_comes_is_refused_or_becomes_a_url_that_means_the_same_to_everybody(text: str) -> None:
    try:
        url = _ANYTHING.check(target_of(text))
    except Forbidden:
        return
    assert _ANYTHING.check(url) == url  # nothing left to normalise
    assert str(url) == str(URL(str(url), encoded=True))
    assert str(url).isascii()
    assert url.user is None
    assert url.raw_fragment == ""
    assert url.raw_host
    assert url.raw_path.startswith("/")
    assert not {"..", "."} & set(url.raw_path.split("/"))


@given(st.lists(_PIECES).map("".join))
def test_nothing_leads_out_of_a_path(text: str) -> None:
    try:
        url = UrlRules(["http://h/files/*"]).check(f"http://h/files/{text}")
    except Forbidden:
        return
    assert url.raw_host == "h"
    assert url.port == 80
    assert url.raw_path.startswith("/files/")


# -- redirects


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("https://other/x", "https://other/x"),
        ("//other/x", "https://other/x"),
        ("/x?y", "https://h:8443/x?y"),
        ("x", "https://h:8443/a/x"),
        ("../x", "https://h:8443/a/../x"),
        ("?y", "https://h:8443/a/b?y"),
        ("", "https://h:8443/a/b?q"),
        ("/x#fragment", "https://h:8443/x"),
        ("https://other/x#fragment", "https://other/x"),
    ],
)
def test_a_location_is_resolved_against_where_it_came_from(location: str, url: str) -> None:
    assert redirect_target(URL("https://h:8443/a/b?q", encoded=True), location) == url


@pytest.mark.parametrize(
    "location",
    [
        *("http://other/x", "http://h:8443/a/c", "HTTP://other/x", "ftp://other/x", "file:///etc/passwd", "https:x"),
        *("https:/x", "///other/x", "//user@other/x", "//127.1/", "//"),
        *("/%2e%2e/x", "javascript:x", "a:b", "https://other:0/", "//other\udcff/", "/%00"),
    ],
)
def test_a_location_that_is_hostile_or_leaves_https_is_refused(location: str) -> None:
    with pytest.raises(Forbidden):
        redirect_target(URL("https://h:8443/a/b?q", encoded=True), location)


@pytest.mark.parametrize(
    "location", ["\\\\other\\x", "/\\other/x", "/a\tb", "/a\x00", "/a\x7fb", "/x?a\\b", "https:\\\\h"]
)
def test_a_location_that_is_no_url_to_all_is_its_servers_fault(location: str) -> None:
    with pytest.raises(ValueError, match="control character or a backslash"):
        redirect_target(URL("https://h:8443/a/b?q", encoded=True), location)


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("/a b", "https://h:8443/a%20b"),
        ("  /a  ", "https://h:8443/a"),
        ("https://other/a b?c d#e f", "https://other/a%20b?c%20d"),
        ("a b", "https://h:8443/a/a%20b"),
        ("?a b", "https://h:8443/a/b?a%20b"),
        ("/\u0444\u00a0", "https://h:8443/%D1%84%C2%A0"),
        ("/caf\udce9", "https://h:8443/caf%E9"),
        ('/a|b"<>^`{}', "https://h:8443/a%7Cb%22%3C%3E%5E%60%7B%7D"),
        ("/100%.pdf?50%", "https://h:8443/100%25.pdf?50%25"),
        ("/a%20b%2Fc", "https://h:8443/a%20b%2Fc"),
        ("//b\u00fccher.example/\u00fc", "https://b\u00fccher.example/%C3%BC"),
    ],
)
def test_what_a_server_writes_loosely_is_percent_encoded(location: str, url: str) -> None:
    assert redirect_target(URL("https://h:8443/a/b?q", encoded=True), location) == url


def test_what_was_encoded_for_a_server_passes_the_same_rules() -> None:
    with pytest.raises(Forbidden):
        redirect_target(URL("https://h/"), "/..;/a b")
    with pytest.raises(Forbidden):
        redirect_target(URL("https://h/"), "//a b/")


def test_an_encoded_slash_passes_where_every_path_of_a_host_does() -> None:
    for pattern in ("http://h/*", "http://*/*"):
        for path in ("a%2fb", "group%2Fname/x", "a%252Fb", "%2F"):
            assert UrlRules([pattern]).check(f"http://h/{path}").raw_path == f"/{path}".replace("%2f", "%2F")
    for pattern in ("http://h/a/*", "http://h/a*", "http://h/a/x"):
        with pytest.raises(Forbidden, match="encoded slash"):
            UrlRules([pattern]).check("http://h/a/%2Fx")
    for hidden in ("..%2fx", "a/..%2F", "%2f..", "x%2F..;a", "a%252f..%252f", "%2f%2e", "a%5c%2f"):
        with pytest.raises(Forbidden):
            UrlRules(["http://h/*"]).check(f"http://h/{hidden}")


def test_a_location_may_lead_from_http_to_https() -> None:
    assert redirect_target(URL("http://h/"), "https://h/") == "https://h/"
