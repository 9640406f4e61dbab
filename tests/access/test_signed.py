from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest
from itsdangerous import URLSafeSerializer

from gateway.access.asked import Asked, Identity
from gateway.access.signed import SignedUrls, is_signature, read_secrets, signed_url
from gateway.errors import Forbidden

NEW, OLD = "n" * 40, "o" * 40


def asked(url: str, *, method: str = "POST", route: str | None = None) -> Asked:
    parts = urlsplit(url)
    return Asked("upload", parts.path if route is None else route, method, parts.query)


async def refusal(urls: SignedUrls, request: Asked) -> str:
    with pytest.raises(Forbidden) as refused:
        await urls.identify(request)
    return refused.value.detail


class TestSignedUrls:
    async def test_what_was_signed_is_allowed_with_its_caps(self) -> None:
        url = signed_url(
            [NEW], "/upload", expires_seconds=60, max_bytes=9, types=["image/*"], name="ä.bin", identity="key:ci"
        )
        identity = await SignedUrls([NEW]).identify(asked(url))
        assert identity is not None
        assert (identity.name, identity.by, identity.scopes) == ("key:ci", "signed", frozenset(["upload"]))
        caps = identity.caps
        assert (caps.max_bytes, caps.types, caps.filenames) == (9, (("image/*",),), ("ä.bin",))

    async def test_no_signature_is_none(self) -> None:
        for url in ("/upload", "/upload?x=1", "/upload?Signature=x"):
            assert await SignedUrls([NEW]).identify(asked(url)) is None

    async def test_the_rest_of_the_query_is_the_clients(self) -> None:
        url = signed_url([NEW], "/upload", expires_seconds=60)
        assert await SignedUrls([NEW]).identify(asked(f"{url}&mode=x")) is not None

    async def test_older_secrets_are_believed_until_they_are_taken_away(self) -> None:
        url = signed_url([OLD], "/upload", expires_seconds=60)
        assert await SignedUrls([NEW, OLD]).identify(asked(url)) is not None
        assert await refusal(SignedUrls([NEW]), asked(url)) == "the signature of this url is not right"
        assert await SignedUrls([NEW]).identify(asked(signed_url([NEW, OLD], "/upload", expires_seconds=60)))

    async def test_altered_in_any_byte_it_is_not_right(self) -> None:
        url = signed_url([NEW], "/upload", expires_seconds=60, max_bytes=1000, count=1, identity="key:ci")
        start = url.index("=") + 1
        urls = SignedUrls([NEW])
        for place in range(start, len(url) - 1):  # the last character has bits that no byte has
            altered = url[:place] + ("A" if url[place] != "A" else "B") + url[place + 1 :]
            assert await refusal(urls, asked(altered)) == "the signature of this url is not right"
        for altered in (url[:start], url[:-5], url + "x.y", url + "&signature=x", f"{url[:start]}{'x' * 5000}"):
            assert await refusal(urls, asked(altered)) == "the signature of this url is not right"
        assert await urls.identify(asked(url)) is not None, "none of these used it up"

    async def test_it_expires(self) -> None:
        url = signed_url([NEW], "/upload", expires_seconds=-1)
        assert await refusal(SignedUrls([NEW]), asked(url)) == "this signed url has expired"

    @pytest.mark.parametrize(("method", "route"), [("POST", "/other"), ("DELETE", "/upload"), ("GET", "/upload")])
    async def test_it_is_for_one_route_and_its_methods(self, method: str, route: str) -> None:
        url = signed_url([NEW], "/upload", expires_seconds=60)
        right = "this url was signed for something else"
        assert await refusal(SignedUrls([NEW]), asked(url, method=method, route=route)) == right

    async def test_one_for_reading_is_for_no_writing(self) -> None:
        url = signed_url([NEW], "/files/X/0", expires_seconds=60)
        for method in ("GET", "HEAD"):
            assert await SignedUrls([NEW]).identify(asked(url, method=method)) is not None
        for method in ("POST", "DELETE"):
            assert await refusal(SignedUrls([NEW]), asked(url, method=method))

    async def test_it_is_used_up_and_what_came_to_nothing_is_given_back(self) -> None:
        urls = SignedUrls([NEW])
        url, other = (signed_url([NEW], "/upload", expires_seconds=60, count=2) for _ in range(2))
        first = await urls.identify(asked(url))
        assert await urls.identify(asked(url)) is not None
        assert await refusal(urls, asked(url)) == "this signed url has been used as often as it may be"
        assert await urls.identify(asked(other)) is not None, "another one is counted by itself"
        assert isinstance(first, Identity)
        await urls.give_back(first.use)
        assert await urls.identify(asked(url)) is not None
        assert await refusal(urls, asked(url))

    async def test_what_was_signed_for_another_purpose_with_the_same_secret_is_not_right(self) -> None:
        token = URLSafeSerializer(NEW).dumps({"r": "/upload", "m": ["POST"], "e": 1 << 40})
        assert await refusal(SignedUrls([NEW]), asked(f"/upload?signature={token}"))


@pytest.mark.parametrize(
    ("piece", "ours"),
    [
        *[("signature=x", True), ("signature=", True), ("signature", True), ("%73ignature=x", True)],
        *[("sig=x", False), ("x=signature", False), ("", False)],
    ],
)
def test_a_signature_is_known_in_a_query(piece: str, ours: bool) -> None:
    assert is_signature(piece) is ours


class TestSecrets:
    def test_they_are_lines_the_newest_first(self, tmp_path: Path) -> None:
        (tmp_path / "s").write_text(f"# rotated\n{NEW}\n\n  {OLD}  \n")
        assert read_secrets(tmp_path / "s") == [NEW, OLD]

    @pytest.mark.parametrize(("text", "problem"), [("", "no secret"), ("#", "no secret"), ("short", "fewer than 32")])
    def test_none_or_one_that_can_be_guessed_is_refused(self, tmp_path: Path, text: str, problem: str) -> None:
        (tmp_path / "s").write_text(text)
        with pytest.raises(ValueError, match=problem):
            read_secrets(tmp_path / "s")
