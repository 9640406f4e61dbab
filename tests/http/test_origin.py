"""Who a request comes from: whom that is believed of, and what destinations are told."""

from __future__ import annotations

import pytest

from gateway.http.forwarding import believed
from gateway.http.origin import Family, TrustedNetworks, client_address, names_origin, peer_address
from tests.http.test_forwarding import sent, upload

FORGED = [
    *("Forwarded", "X-Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Prefix"),
    *("X-Forwarded-Port", "X-Forwarded-User", "X-Forwarded-Anything", "X-Real-IP", "X-Client-IP", "True-Client-IP"),
    *("CF-Connecting-IP", "X-Original-URL", "X-Original-Host", "X-Rewrite-URL", "X-HTTP-Method-Override"),
    *(
        "X-Method-Override",
        "Remote-User",
        "Remote-Groups",
        "X-Remote-User",
        "X-SSL-Client-Verify",
        "X-SSL",
        "SSL-Client-Cert",
    ),
    *("X-ARR-ClientCert", "X-Auth-Request-Email", "Client-Cert", "Front-End-Https"),
]


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8::ffff:1", "2001:db8::ffff:1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("::1", "::1"),
    ],
)
def test_a_peer_by_ipv4_is_called_by_that_address_on_whatever_socket(name: str, address: str) -> None:
    assert peer_address(name) == address


class TestTrustedNetworks:
    @pytest.mark.parametrize(
        ("peer", "trusted"),
        [
            ("10.1.2.3", True),
            ("10.2.0.1", False),
            ("::ffff:10.1.2.3", True),
            ("2001:db8::1", True),
            ("2001:db9::1", False),
            ("", False),
            ("localhost", False),
        ],
    )
    def test_a_peer_lies_in_one_or_not(self, peer: str, trusted: bool) -> None:
        assert (peer in TrustedNetworks(["10.1.0.0/16", "2001:db8::/32"])) is trusted

    @pytest.mark.parametrize("network", ["10.1.0.1/16", "10.0.0.0/33", "example.org", ""])
    def test_what_is_no_network_is_named(self, network: str) -> None:
        with pytest.raises(ValueError, match="is not a range of addresses"):
            TrustedNetworks([network])


class TestBelieved:
    def test_nobody_else_is_believed(self) -> None:
        claims = [("X-Forwarded-For", "1.2.3.4"), ("X-Real-IP", "1.2.3.4"), ("A", "b")]
        assert believed([*claims, ("Forwarded", "for=_x")], trusted=False) == [("A", "b")]
        assert believed(claims, trusted=True) == claims

    @pytest.mark.parametrize("name", FORGED)
    def test_whatever_tells_who_somebody_is_or_what_he_asked_for_is_a_proxys_to_say(self, name: str) -> None:
        assert names_origin(name.lower())
        assert believed([(name.upper(), "x")], trusted=False) == []

    @pytest.mark.parametrize(
        "name", ["X-Api-Key", "Traceparent", "X-Forward", "Origin", "Referer", "User-Agent", "Via"]
    )
    def test_what_says_nothing_of_that_goes_on_from_anybody(self, name: str) -> None:
        assert believed([(name, "x")], trusted=False) == [(name, "x")]

    @pytest.mark.parametrize(
        ("family", "kept"),
        [
            ("x-forwarded", ["X-Forwarded-For", "x-forwarded-Prefix", "X-Real-IP"]),
            ("forwarded", ["forwarded", "X-Real-IP"]),
        ],
    )
    def test_of_the_two_families_the_one_that_the_proxy_writes(self, family: Family, kept: list[str]) -> None:
        names = ["forwarded", "X-Forwarded-For", "x-forwarded-Prefix", "X-Forwarded", "X-Real-IP"]
        got = [name for name, _ in believed([(name, "x") for name in names], trusted=True, family=family)]
        assert [name for name in got if name != "X-Forwarded"] == kept
        assert ("X-Forwarded" in got) is (family == "x-forwarded")

    @pytest.mark.parametrize("trusted", [True, False])
    @pytest.mark.parametrize(
        "name", ["X_Forwarded_For", "X-Forwarded_For", "x_api_key", "X.Api.Key", "Proxy", "proxy", "A~"]
    )
    def test_a_name_that_a_cgi_takes_for_another_never_goes_on(self, name: str, trusted: bool) -> None:
        assert believed([(name, "x"), ("A", "b")], trusted=trusted) == [("A", "b")]

    def test_a_client_cannot_take_away_what_its_proxy_says_by_naming_it_in_connection(self) -> None:
        claims = [("X-Forwarded-For", "192.0.2.9"), ("X-Real-IP", "192.0.2.9")]
        named = ("Connection", "close, X-Forwarded-For, x-real-ip, forwarded")
        assert believed([named, *claims], trusted=True) == claims


class TestWhatDestinationsAreTold:
    def test_it_is_made_of_the_connection(self) -> None:
        headers = sent(upload())
        assert headers["forwarded"] == 'for=192.0.2.7;host="g:8080";proto=http'
        assert headers["x-forwarded-for"] == "192.0.2.7"
        assert (headers["x-forwarded-proto"], headers["x-forwarded-host"]) == ("http", "g:8080")

    def test_an_ipv6_address_is_quoted_in_one_form_and_bare_in_the_other(self) -> None:
        headers = sent(upload(peer="2001:db8::1", host="[::1]:8080", scheme="https"))
        assert headers["forwarded"] == 'for="[2001:db8::1]";host="[::1]:8080";proto=https'
        assert headers["x-forwarded-for"] == "2001:db8::1"

    def test_the_zone_of_a_link_local_address_is_ours_alone(self) -> None:
        headers = sent(upload(peer="fe80::1%eth0"))
        assert headers["forwarded"].startswith('for="[fe80::1]"')
        assert headers["x-forwarded-for"] == "fe80::1"

    @pytest.mark.parametrize(("host", "said"), [('a"b\\c', ';host="a\\"b\\\\c"'), ("", ""), ("a b", ""), ("ä", "")])
    def test_a_host_is_quoted_or_left_out(self, host: str, said: str) -> None:
        assert sent(upload(host=host))["forwarded"] == f"for=192.0.2.7{said};proto=http"

    def test_a_connection_without_an_address_is_unknown(self) -> None:
        headers = sent(upload(peer=""))
        assert headers["forwarded"] == 'for=unknown;host="g:8080";proto=http'
        assert "x-forwarded-for" not in headers

    def test_what_is_believed_is_appended_to(self) -> None:
        newer = sent(upload(("Forwarded", 'for="[2001:db8::9]:80";proto=https'), ("forwarded", "for=_hidden")))
        ours = 'for=192.0.2.7;host="g:8080";proto=http'
        assert newer["forwarded"] == f'for="[2001:db8::9]:80";proto=https, for=_hidden, {ours}'
        older = sent(
            upload(
                ("X-Forwarded-For", "2001:db8::9"),
                ("x-forwarded-for", "10.0.0.1"),
                ("X-Forwarded-Proto", "https"),
                ("X-Forwarded-Host", "www.example.org"),
                ("X-Forwarded-Prefix", "/files"),
            )
        )
        assert older["x-forwarded-for"] == "2001:db8::9, 10.0.0.1, 192.0.2.7"
        assert (older["x-forwarded-proto"], older["x-forwarded-host"]) == ("https", "www.example.org")
        assert older["x-forwarded-prefix"] == "/files"

    def test_of_the_older_form_the_newer_one_is_made(self) -> None:
        older = "2001:db8::9, 10.0.0.1:4711,, [2001:db8::8]:1, _hidden, some words"
        said = sent(upload(("X-Forwarded-For", older), ("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "w.org")))
        assert said["forwarded"].split(", ") == [
            'for="[2001:db8::9]";host=w.org;proto=https',
            'for="10.0.0.1:4711"',
            'for="[2001:db8::8]:1"',
            "for=_hidden",
            "for=unknown",
            'for=192.0.2.7;host="g:8080";proto=http',
        ]

    def test_of_the_newer_form_the_older_one_is_made(self) -> None:
        first = 'For="[2001:db8::9]";Proto=https;by=10.0.0.9;host="w.org:81"'
        headers = sent(upload(("Forwarded", f'{first}, for="10.0.0.1:80", for="[::1]:_p", for=_x')))
        assert headers["x-forwarded-for"] == "2001:db8::9, 10.0.0.1, ::1, _x, 192.0.2.7"
        assert headers["x-forwarded-proto"] == "https"
        assert headers["x-forwarded-host"] == "w.org:81"

    def test_a_host_that_is_told_but_is_none_is_not_told_on_in_the_older_form(self) -> None:
        headers = sent(upload(("Forwarded", 'for=192.0.2.9;host="a\\"b,for=6.6.6.6"')))
        assert headers["x-forwarded-host"] == "g:8080"

    @pytest.mark.parametrize(
        "chain",
        [
            "for",
            "for=a b",
            'for="a',
            "for=1.2.3.4;for=5.6.7.8",
            "for=1.2.3.4,",
            ",for=1.2.3.4",
            "for=[::1]",
            'for="a"b',
            ";",
        ],
    )
    def test_a_chain_that_cannot_be_read_says_nothing(self, chain: str) -> None:
        assert sent(upload(("Forwarded", chain)))["forwarded"] == 'for=192.0.2.7;host="g:8080";proto=http'
        assert sent(upload(("Forwarded", chain)))["x-forwarded-for"] == "192.0.2.7"

    @pytest.mark.parametrize("value", ["http, https", "https;x", "ht tp", '"https"'])
    def test_a_scheme_that_is_given_twice_or_is_none_says_nothing(self, value: str) -> None:
        headers = sent(upload(("X-Forwarded-For", "192.0.2.9"), ("X-Forwarded-Proto", value)))
        assert headers["x-forwarded-proto"] == "http"
        assert headers["forwarded"].startswith("for=192.0.2.9, ")

    @pytest.mark.parametrize(
        "value", ["a.org, b.org", "a.org;proto=https", 'a"b', "a.org/x", "u@a.org", "[::1", "a:99999"]
    )
    def test_a_host_that_is_given_twice_or_is_none_says_nothing(self, value: str) -> None:
        headers = sent(upload(("X-Forwarded-For", "192.0.2.9"), ("X-Forwarded-Host", value)))
        assert headers["x-forwarded-host"] == "g:8080"
        assert headers["forwarded"].startswith("for=192.0.2.9, ")

    def test_one_that_is_given_twice_and_the_same_is_one(self) -> None:
        twice = [("X-Forwarded-Host", "A.org"), ("x-forwarded-host", "a.org")]
        assert sent(upload(("X-Forwarded-For", "192.0.2.9"), *twice))["x-forwarded-host"] == "a.org"

    def test_a_proxy_that_tells_the_scheme_alone_is_believed(self) -> None:
        headers = sent(upload(("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "w.org")))
        assert (headers["x-forwarded-proto"], headers["x-forwarded-host"]) == ("https", "w.org")
        assert headers["forwarded"] == 'host=w.org;proto=https, for=192.0.2.7;host="g:8080";proto=http'


class TestClientAddress:
    TRUSTED = TrustedNetworks(["10.0.0.0/8", "2001:db8::/32"])

    def _client(self, *headers: tuple[str, str], peer: str = "10.0.0.1", family: Family = "x-forwarded") -> str:
        return client_address(headers, peer, trusted=self.TRUSTED, family=family)

    @pytest.mark.parametrize(
        ("value", "client"),
        [
            ("192.0.2.9", "192.0.2.9"),
            ("192.0.2.66, 192.0.2.9", "192.0.2.9"),  # what stands before, an untrusted one wrote
            ("192.0.2.9, 10.1.1.1", "192.0.2.9"),
            ("10.1.1.2, 10.1.1.1", "10.1.1.2"),
            ("192.0.2.9:4711", "192.0.2.9"),
            ("[2001:db9::1]:4711", "2001:db9::1"),
            ("192.0.2.9, 2001:db8::1", "192.0.2.9"),
            ("unknown", "10.0.0.1"),
            ("192.0.2.9, <b>, 10.1.1.1", "10.1.1.1"),
            ("", "10.0.0.1"),
        ],
    )
    def test_is_the_last_one_that_no_trusted_proxy_has(self, value: str, client: str) -> None:
        assert self._client(("X-Forwarded-For", value)) == client

    def test_of_several_headers_the_last_says_who_came_last(self) -> None:
        twice = [("X-Forwarded-For", "192.0.2.66"), ("x-forwarded-for", "192.0.2.9")]
        assert self._client(*twice) == "192.0.2.9"

    @pytest.mark.parametrize(
        ("value", "client"),
        [
            ("for=192.0.2.9;proto=https", "192.0.2.9"),
            ('for=192.0.2.9, for="[2001:db8::1]:80"', "192.0.2.9"),
            ("for=192.0.2.9, for=_hidden", "10.0.0.1"),
            ("proto=https", "10.0.0.1"),
            ('for="', "10.0.0.1"),
        ],
    )
    def test_the_other_family_likewise(self, value: str, client: str) -> None:
        both = [("X-Forwarded-For", "192.0.2.66"), ("Forwarded", value)]
        assert self._client(*both, family="forwarded") == client

    def test_who_is_not_trusted_speaks_for_nobody(self) -> None:
        assert self._client(("X-Forwarded-For", "192.0.2.9"), peer="192.0.2.1") == "192.0.2.1"
        assert self._client(("Forwarded", "for=192.0.2.9")) == "10.0.0.1"
