"""What is made of answers, whatever they are."""

from __future__ import annotations

from typing import Any

import pytest
from yarl import URL

from gateway.client.answers import PartTold, is_progress, joined, parts_of, sinks_of

ID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
ODD: list[Any] = [None, 3, "x", [], {}, [3], [None], [{}], {"a": [1]}, [[]], True, -1, 10**400]
SINK = {"sink": "disk", "state": "kept", "delivered": 1}
PROGRESS: dict[str, Any] = {"expected": 3, "sinks": [SINK], "parts": [{"received": 1, "sinks": [SINK]}]}


def test_a_manifest_and_results_are_read_by_index() -> None:
    receipts = [
        {"sink": "api", "location": "http://other/1", "dropped": True},
        {"sink": "disk", "location": "/f/0"},
    ]
    one = {"index": 1, "sha256": "ab", "size": 3, "receipts": receipts}
    told = PartTold("ab", 3, location="/f/0", sinks={"api": True, "disk": False})
    assert parts_of({"upload": ID, "parts": [one]}, ID) == {1: told}
    assert sinks_of({1: told}) == [{"sink": "api", "state": "dropped"}, {"sink": "disk", "state": "kept"}]
    assert parts_of({"upload": "another", "parts": [one]}, ID) == {}
    result = {"index": 0, "input": {"verified": ["sha256"]}, "output": {"location": "/f/2"}, "problem": {"title": "t"}}
    assert parts_of([result], ID) == {0: PartTold(None, None, True, {"title": "t"}, "/f/2")}


@pytest.mark.parametrize("odd", ODD)
def test_what_has_another_shape_is_not_said(odd: Any) -> None:
    assert parts_of(odd, ID) == parts_of({"upload": ID, "parts": [odd]}, ID) == {}
    for member in ("verified", "output", "receipts"):
        assert parts_of({"upload": ID, "parts": [{"index": 0, member: odd}]}, ID) == {0: PartTold()}
    assert parts_of([{"index": 0, "input": odd, "output": {"location": odd}}], ID) == {0: PartTold()}
    if not isinstance(odd, str):
        assert parts_of({"upload": ID, "parts": [{"index": 0, "sha256": odd}]}, ID) == {0: PartTold()}
    if not isinstance(odd, int) or not 0 <= odd < 100:
        assert parts_of({"upload": ID, "parts": [{"index": 0, "size": odd}]}, ID) == {0: PartTold()}
        assert parts_of({"upload": ID, "parts": [{"index": odd}]}, ID) == {}
    if not isinstance(odd, dict):
        assert parts_of({"upload": ID, "parts": [{"index": 0, "problem": odd}]}, ID) == {0: PartTold()}


@pytest.mark.parametrize("odd", ODD)
def test_what_is_no_progress_is_taken_for_none(odd: Any) -> None:
    assert is_progress(PROGRESS)
    assert not is_progress(odd)
    for member in ("sinks", "parts"):
        assert is_progress({**PROGRESS, member: odd}) == (odd == [])
    assert is_progress({**PROGRESS, "parts": [{"received": 1, "sinks": odd}]}) == (odd == [])
    if not isinstance(odd, str):
        assert not is_progress({**PROGRESS, "sinks": [{**SINK, "state": odd}]})
        assert not is_progress({**PROGRESS, "sinks": [{**SINK, "sink": odd}]})
    if not isinstance(odd, int) or not 0 <= odd < 100:
        assert not is_progress({**PROGRESS, "sinks": [{**SINK, "delivered": odd}]})
        assert not is_progress({**PROGRESS, "parts": [{"received": odd, "sinks": []}]})


@pytest.mark.parametrize("location", ["http://[bad", "mailto:a@example.org", "http://a..b/", "http://127.0.0.1:99999/"])
def test_a_location_that_is_no_url_of_http_leads_nowhere(location: str) -> None:
    assert joined(URL("http://example.org/a"), location) is None


def test_a_location_leads_on_from_where_it_was_said() -> None:
    assert str(joined(URL("http://example.org/a/b"), "/c?d=%2F")) == "http://example.org/c?d=%2F"
