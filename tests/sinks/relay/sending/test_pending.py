"""What is joined, what is withheld, and when a length was not kept to. No event loop."""

from __future__ import annotations

import pytest

from gateway.errors import Malformed
from gateway.sinks.relay.sending.pending import COALESCE_BYTES, Pending

LARGE = b"x" * COALESCE_BYTES


def test_small_pieces_are_joined_and_large_ones_go_as_they_are() -> None:
    pending = Pending(None)
    assert pending.add((b"a",)) == []
    assert pending.add((b"b",)) == []
    assert pending
    due = pending.add((LARGE,))
    assert due == [b"ab", LARGE]
    assert due[1] is LARGE
    assert not pending


def test_what_is_held_back_stays_below_what_is_worth_joining() -> None:
    pending, due = Pending(None), list[bytes]()
    for _ in range(1000):
        due += pending.add((b"y" * 1000,))
    assert all(COALESCE_BYTES - 1000 <= len(one) <= COALESCE_BYTES for one in due)
    assert sum(map(len, due)) + len(pending.take()) == 1_000_000


def test_without_a_length_only_the_tail_is_withheld() -> None:
    pending = Pending(None)
    pending.add((b"abc",))
    assert pending.take() == b"abc"
    pending.finish(b"--b--")
    assert pending.tail == b"--b--"


@pytest.mark.parametrize("cut", range(11))
def test_the_last_byte_of_a_declared_length_is_withheld_however_it_comes(cut: int) -> None:
    pending, body = Pending(10), b"0123456789"
    pending.add((body[:cut],))
    pending.add((body[cut:],))
    pending.add((b"",))
    pending.finish(b"")
    assert (pending.take(), pending.tail) == (body[:-1], b"9")


def test_what_is_withheld_of_a_length_goes_ahead_of_the_tail() -> None:
    pending = Pending(6)
    pending.add((b"abc",))
    pending.finish(b"def")
    assert (pending.take(), pending.tail) == (b"abc", b"def")


@pytest.mark.parametrize("whole", [b"abcde", LARGE + b"abc"])
def test_a_byte_too_many_is_malformed_before_it_is_passed_on(whole: bytes) -> None:
    pending = Pending(len(whole))
    due = pending.add((whole,))
    assert sum(map(len, due)) + (len(pending.take()) if pending else 0) == len(whole) - 1
    with pytest.raises(Malformed, match=f"more than the {len(whole)} bytes"):
        pending.add((b"z",))


def test_a_tail_too_long_is_malformed() -> None:
    pending = Pending(3)
    pending.add((b"ab",))
    with pytest.raises(Malformed):
        pending.finish(b"cd")


def test_a_body_that_ends_early_is_malformed() -> None:
    pending = Pending(4)
    pending.add((b"ab",))
    with pytest.raises(Malformed, match="3 bytes, and was declared to be 4"):
        pending.finish(b"c")


def test_an_empty_body_may_be_declared() -> None:
    pending = Pending(0)
    pending.finish(b"")
    assert pending.tail == b""
    with pytest.raises(Malformed):
        Pending(0).add((b"x",))
