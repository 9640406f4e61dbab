from __future__ import annotations

import pytest
from multidict import CIMultiDict

from gateway.access.asked import ANYBODY, Asked, Caps, Identity, bearer, is_loopback
from gateway.errors import Forbidden, NotMultipart, Unauthenticated
from gateway.model import Limits, Part


def a_file(content_type: bytes | None, filename: bytes | None = b"a.txt") -> Part:
    return Part(0, b"file", filename, content_type, is_file=True)


class TestCaps:
    def test_no_cap_changes_nothing(self) -> None:
        limits = Limits()
        assert Caps().applied(limits) is limits
        assert not Caps().are_of_files

    @pytest.mark.parametrize(
        ("configured", "cap", "right"), [(0, 10, 10), (5, 10, 5), (10, 5, 5), (10, None, 10), (10, 0, 1), (0, 0, 1)]
    )
    def test_the_stricter_size_holds(self, configured: int, cap: int | None, right: int) -> None:
        assert Caps.of(max_bytes=cap).applied(Limits(max_body_bytes=configured)).max_body_bytes == right

    @pytest.mark.parametrize(
        ("content_type", "allowed"),
        [
            (b"image/png", True),
            (b"IMAGE/PNG; x=y", True),
            (b"application/pdf", True),
            (b"image", False),
            (b"image/png, text/html", False),
            (b"image/png text/html", False),
            (b"image/", False),
            (b"text/html", False),
            (b"text/html; image/png", False),
            (b"", False),
            (None, False),
        ],
    )
    def test_types_are_of_files_and_their_parameters_do_not_count(
        self, content_type: bytes | None, allowed: bool
    ) -> None:
        caps = Caps.of(types=["image/*", "application/PDF"])
        assert caps.are_of_files
        caps.check(Part(0, b"field", None, None))
        if allowed:
            caps.check(a_file(content_type))
        else:
            with pytest.raises(NotMultipart):
                caps.check(a_file(content_type))

    @pytest.mark.parametrize("filename", [b"b.bin", b"A.BIN", b"a.bin ", b"", None])
    def test_the_name_is_that_one(self, filename: bytes | None) -> None:
        caps = Caps.of(filename="a.bin")
        caps.check(a_file(None, b"a.bin"))
        with pytest.raises(Forbidden):
            caps.check(a_file(None, filename))

    def test_of_two_what_both_allow(self) -> None:
        both = Caps.of(max_bytes=10, types=["image/*"]).and_also(Caps.of(max_bytes=20, types=["*/png"], filename="a"))
        assert both.max_bytes == 10
        both.check(a_file(b"image/png", b"a"))
        for content_type, filename in ((b"image/gif", b"a"), (b"text/png", b"a"), (b"image/png", b"b")):
            with pytest.raises((NotMultipart, Forbidden)):
                both.check(a_file(content_type, filename))


class TestWhoMaySee:
    def test_nobodys_is_for_all_and_somebodys_for_that_one(self) -> None:
        for one in (ANYBODY, Identity("key:ci", "keys"), Identity("", "signed")):
            assert one.may_see("")
        assert Identity("key:ci", "keys").may_see("key:ci")
        for other in (ANYBODY, Identity("key:c", "keys"), Identity("jwt:ci", "jwt"), Identity("key:no", "signed")):
            assert not other.may_see("key:ci")
        assert Identity("", "signed").may_see("key:ci"), "whoever has the secret said so"


class TestBearer:
    @pytest.mark.parametrize("value", ["Bearer abc", "bearer abc", "BEARER  abc ", " Bearer abc"])
    def test_the_token(self, value: str) -> None:
        assert bearer(Asked("read", "/", headers=CIMultiDict(Authorization=value))) == "abc"

    @pytest.mark.parametrize("value", [None, "", "Basic abc", "Bearerabc", "abc"])
    def test_none(self, value: str | None) -> None:
        headers = CIMultiDict({} if value is None else {"Authorization": value})
        assert bearer(Asked("read", "/", headers=headers)) is None

    def test_two_of_them_are_refused(self) -> None:
        headers = CIMultiDict([("Authorization", "Bearer a"), ("authorization", "Bearer b")])
        with pytest.raises(Unauthenticated):
            bearer(Asked("read", "/", headers=headers))


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *[("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True)],
        *[("0.0.0.0", False), ("::", False), ("192.0.2.1", False), ("example.org", False), ("", False)],
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
