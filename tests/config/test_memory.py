"""The bound that `gateway check` prints, beside what bad inputs take of a process: the small form of `make bound`."""

from __future__ import annotations

import pytest

from tests.bench.bound import CASES, CONNECTED, INPUTS, of_connections, of_reads, of_uploads, of_watchers

pytestmark = pytest.mark.sockets


def test_the_largest_manifests_take_no_more_than_the_bound_and_a_third_of_it_at_least() -> None:
    grown, bound, answers = of_uploads(CASES["disk"], INPUTS["names of 16 KB"], uploads=2)
    assert answers == "201 201"
    assert grown <= bound <= 3 * grown


def test_what_is_held_while_sinks_take_nothing_is_no_more_than_the_bound_and_a_third_of_it_at_least() -> None:
    grown, bound, answers = of_uploads(CASES["relay"], INPUTS["values and heads, then files"], uploads=2, patience=0.5)
    assert answers == "... ..."
    assert grown <= bound <= 3 * grown


def test_archives_that_nobody_reads_take_no_more_than_the_bound_and_a_third_of_it_at_least() -> None:
    grown, bound, answers = of_reads("archives", reads=16)
    assert answers == "200"
    assert grown <= bound <= 3 * grown


def test_answers_that_nobody_reads_take_no_more_than_the_bound() -> None:
    grown, bound, answers = of_connections(CONNECTED["requests for metrics"], connections=50)
    assert answers == "200"
    assert grown <= bound


def test_who_watches_an_upload_and_reads_nothing_takes_no_more_than_the_bound() -> None:
    grown, bound, answers = of_watchers(uploads=2, connections=50)
    assert answers == "200"
    assert grown <= bound
