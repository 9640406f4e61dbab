"""ULIDs: 26 digits of Crockford's base 32."""

from __future__ import annotations

import time

import pytest

from gateway.http.ulids import ULID, began_at, new_ulid

DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def test_ids_are_ulids_of_now_and_none_is_there_twice() -> None:
    ids = [new_ulid() for _ in range(10_000)]
    assert len(set(ids)) == 10_000
    assert all(ULID.fullmatch(one) for one in ids)
    milliseconds = sum(DIGITS.index(digit) << 5 * place for place, digit in enumerate(reversed(ids[-1][:10])))
    assert abs(milliseconds / 1000 - time.time()) < 5
    assert all(len({one[place] for one in ids}) == 32 for place in range(10, 26))


def test_an_identifier_says_when_its_upload_began() -> None:
    assert abs(began_at(new_ulid()) - time.time()) < 5
    assert began_at("0" * 26) == 0


@pytest.mark.parametrize("text", ["8" * 26, "0" * 25, "0" * 27, "0" * 25 + "U", "0" * 25 + "a", "0" * 25 + "\n", "."])
def test_what_is_none(text: str) -> None:
    assert ULID.fullmatch(text) is None
