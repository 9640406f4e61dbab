from __future__ import annotations

import asyncio
import logging
import os
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from multidict import CIMultiDict

from gateway.access import keys as keys_module
from gateway.access.asked import SCOPES, Asked
from gateway.access.keys import ApiKeys, is_key, new_key
from gateway.errors import Unauthenticated


def asked(*fields: tuple[str, str]) -> Asked:
    return Asked("upload", "/upload", headers=CIMultiDict(fields))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def written(file: Path, *lines: str) -> Path:
    file.write_text("\n".join(lines))
    return file


class TestNewKey:
    def test_it_is_256_random_bits_and_the_line_has_its_hash_only(self, file: Path) -> None:
        key, line = new_key("ci", ("upload", "read"), datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC))
        other, _ = new_key("ci", ("upload",))
        assert key != other
        assert len(key) == len("gw_") + 43
        assert key not in line
        assert tomllib.loads(line)["ci"]["scopes"] == ["upload", "read"]
        assert tomllib.loads(line)["ci"]["expires"] == datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


class TestApiKeys:
    @pytest.mark.parametrize("field", ["Authorization", "X-API-Key"])
    async def test_a_key_is_believed_in_either_field(self, file: Path, field: str) -> None:
        key, line = new_key("ci", ("upload",))
        keys = ApiKeys(written(file, line, new_key("other", SCOPES)[1]))
        value = f"Bearer {key}" if field == "Authorization" else key
        identity = await keys.identify(asked((field, value)))
        assert identity is not None
        assert (identity.name, identity.by, identity.scopes) == ("key:ci", "keys", frozenset(["upload"]))

    async def test_no_key_is_none_and_a_token_of_another_kind_is_not_ours(self, file: Path) -> None:
        keys = ApiKeys(written(file, new_key("ci", SCOPES)[1]))
        for fields in ((), (("Authorization", "Basic eHg6eHg="),), (("Authorization", "Bearer ey.ey.sig"),)):
            assert await keys.identify(asked(*fields)) is None

    async def test_altered_in_any_character_it_is_refused_without_a_hint(self, file: Path) -> None:
        key, line = new_key("ci", SCOPES)
        keys = ApiKeys(written(file, line))
        for place in range(len("gw_"), len(key)):
            altered = key[:place] + ("A" if key[place] != "A" else "B") + key[place + 1 :]
            with pytest.raises(Unauthenticated) as refused:
                await keys.identify(asked(("X-API-Key", altered)))
            assert refused.value.detail == ""
        for altered in (key[:-1], key + "A", "", key.upper(), key.removeprefix("gw_"), "\u00e9" + key):
            with pytest.raises(Unauthenticated):
                await keys.identify(asked(("X-API-Key", altered)))

    async def test_two_keys_at_a_time_are_none(self, file: Path) -> None:
        (one, first), (other, second) = new_key("one", SCOPES), new_key("other", SCOPES)
        keys = ApiKeys(written(file, first, second))
        for fields in (
            (("X-API-Key", one), ("X-API-Key", other)),
            (("X-API-Key", one), ("Authorization", f"Bearer {other}")),
            (("X-API-Key", one), ("X-API-Key", one)),
        ):
            with pytest.raises(Unauthenticated):
                await keys.identify(asked(*fields))

    async def test_one_that_has_ended_is_refused(self, file: Path) -> None:
        now = datetime.now(UTC)
        (over, first), (good, second) = (
            new_key("over", SCOPES, now - timedelta(seconds=1)),
            new_key("good", SCOPES, now + timedelta(hours=1)),
        )
        keys = ApiKeys(written(file, first, second))
        assert await keys.identify(asked(("X-API-Key", good))) is not None
        with pytest.raises(Unauthenticated):
            await keys.identify(asked(("X-API-Key", over)))

    async def test_the_file_is_read_anew_when_it_has_changed_and_a_broken_one_changes_nothing(
        self, file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(keys_module, "_LOOK_SECONDS", 0.05)
        (old, first), (new, second) = new_key("old", SCOPES), new_key("new", SCOPES)
        keys = ApiKeys(written(file, first))

        async def is_known(key: str) -> bool:
            await asyncio.sleep(0.06)
            try:
                return await keys.identify(asked(("X-API-Key", key))) is not None
            except Unauthenticated:
                return False

        assert await is_known(old)
        os.replace(written(file.with_name("next"), second), file)
        assert await is_known(new)
        assert not await is_known(old)
        with caplog.at_level(logging.WARNING):
            written(file, second, "broken = {")
            assert await is_known(new)
            file.unlink()
            assert await is_known(new)
        assert len(caplog.records) == 1, "said once"
        written(file, first)
        assert await is_known(old)
        assert not await is_known(new)

    @pytest.mark.parametrize(
        ("line", "problem"),
        [
            ("ci = 1", "ci"),
            ("ci = { sha256 = 'x' }", "ci.sha256"),
            (f"ci = {{ sha256 = '{'0' * 64}', scope = ['read'] }}", "ci.scope"),
            (f"ci = {{ sha256 = '{'0' * 64}', scopes = ['write'] }}", "ci.scopes: write is not one of upload, read"),
            (f"ci = {{ sha256 = '{'0' * 64}', expires = 2027-01-01T00:00:00 }}", "ci.expires: a time zone is needed"),
            ("ci", "Expected"),
        ],
    )
    def test_a_file_that_cannot_be_used_says_which_line_and_quotes_no_hash(
        self, file: Path, line: str, problem: str
    ) -> None:
        with pytest.raises(ValueError, match=r"keys\.toml") as refused:
            ApiKeys(written(file, line))
        assert problem in str(refused.value)
        assert "000000" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value", "ours"),
    [
        *[("X-API-Key", "anything", True), ("x-api-key", "", True), ("Authorization", "Bearer gw_abc", True)],
        *[("authorization", "bearer  gw_abc", True), ("Authorization", "Bearer abc", False)],
        *[("Authorization", "Basic gw_abc", False), ("X-Other", "Bearer gw_abc", False)],
    ],
)
def test_what_has_a_key_is_known_so_that_it_does_not_go_on(name: str, value: str, ours: bool) -> None:
    assert is_key(name, value) is ours
