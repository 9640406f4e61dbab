"""URLs that others write: what is refused and in which words, and what a request is made of."""

from __future__ import annotations

import pytest

from gateway.http.urls import SplitUrl, authority, destination_url, origin_path, split_url, without_secrets


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("http://127.0.0.1:8081/upload", "http://127.0.0.1:8081/upload"),
        ("HTTP://LocalHost/Upload", "http://localhost/Upload"),
        ("http://host", "http://host/"),
        ("http://host?x=1", "http://host/?x=1"),
        ("http://host:80/", "http://host:80/"),
        ("https://my_host.example.:65535/", "https://my_host.example.:65535/"),
        ("http://bücher.example/über?q=ü", "http://xn--bcher-kva.example/%C3%BCber?q=%C3%BC"),
        ("http://straße.example/", "http://xn--strae-oqa.example/"),
        ("http://xn--bcher-kva.example/", "http://xn--bcher-kva.example/"),
        ("http://[::1]:8081/a", "http://[::1]:8081/a"),
        ("http://[2001:DB8:0::1]/", "http://[2001:db8::1]/"),
        ('http://h/a|b"c', "http://h/a%7Cb%22c"),
        ("http://h/a/../b//c/%2F%c3?x=/?", "http://h/a/../b//c/%2F%c3?x=/?"),
        ("http://h/a@b?c=@d:e", "http://h/a@b?c=@d:e"),
    ],
)
def test_a_destination_is_asked_in_ascii_and_otherwise_as_it_was_written(written: str, sent: str) -> None:
    assert destination_url(written) == sent
    assert destination_url(sent) == sent


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("", "http://"),
        ("host/upload", "http://"),
        ("ftp://host/", "http://"),
        ("http:/host/", "http://"),
        ("http:///a", "host"),
        ("http://:8081/a", "host"),
        ("http://a..b/", "host"),
        ("http://-/", "host"),
        ("http://a b/", "white space"),
        ("http://a%20b/", "host"),
        ("http://127.1/", "host"),
        ("http://256.0.0.1/", "host"),
        ("http://2130706433/", "host"),
        ("http://0x7f.1/", "host"),
        ("http://::1/", "host"),
        ("http://[::1/", "host"),
        ("http://[fe80::1%25eth0]/", "host"),
        ("http://[127.0.0.1]/", "host"),
        ("http://" + "a" * 64 + "/", "host"),
        ("http://" + "a." * 127 + "aa/", "host"),
        ("http://host:/", "port"),
        ("http://host:0/", "port"),
        ("http://host:65536/", "port"),
        ("http://host:99999999/", "port"),
        ("http://host:abc/", "port"),
        ("http://host:٣/", "port"),
        ("http://user:hunter2@host/", "user info"),
        ("http://hunter2@host/", "user info"),
        ("http://host/#hunter2", "fragment"),
        ("http://host/a b", "white space"),
        ("http://host/a\r\nX-Evil: 1", "white space"),
        ("http://host/a\x01", "control"),
        ("http://host\\a", "backslash"),
        ("http://host/100%", "%25"),
        ("http://host/?x=%zz", "%25"),
    ],
)
def test_a_url_that_is_none_or_has_two_readings_is_refused_in_words_and_never_quoted(written: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        destination_url(written)
    assert "hunter2" not in str(caught.value)
    assert "65536" not in str(caught.value)


def test_a_url_is_taken_apart() -> None:
    assert split_url("HTTPS://A.example:8443/p%2f?") == SplitUrl("https", "a.example", 8443, "/p%2f", "")
    assert split_url("http://a") == SplitUrl("http", "a", None, "", None)


def test_a_path_begins_with_one_slash_and_is_encoded() -> None:
    assert origin_path("/healthz?full=1") == "/healthz?full=1"
    assert origin_path("/ü|") == "/%C3%BC%7C"
    for wrong in ("", "healthz", "//host/healthz", "/a b", "/a#b", "/a\\b", "/100%", "http://host/"):
        with pytest.raises(ValueError, match=r"path|URL"):
            origin_path(wrong)


def test_an_address_of_ipv6_has_brackets_where_it_stands_beside_a_port() -> None:
    assert authority("::1", 80) == "[::1]:80"
    assert authority("127.0.0.1", 80) == "127.0.0.1:80"
    assert authority("localhost", 80) == "localhost:80"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://h/p", "http://h/p"),
        ("http://user:pw@h/p?sig=x", "http://h/p"),
        ("http://h?sig=x", "http://h"),
        ("https://u%40v:p%3A@h:8443/?a=1&sig=x y?z", "https://h:8443/ y?z"),
        ("at \"http://h/?a\", and URL('http://u@h/?b')", 'at "http://h/", and URL(\'http://h/'),
        ("first http://a/?x\nthen ftp://u:p@b/?y", "first http://a/\nthen ftp://b/"),
        ("what? a@b, /p?sig=x", "what? a@b, /p?sig=x"),
        ("http://h/p?a=\\x\u00e9y", "http://h/p"),
    ],
)
def test_a_text_is_told_without_the_secrets_of_its_urls(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
