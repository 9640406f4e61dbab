"""What an answer means for whoever sent something."""

from __future__ import annotations

import json
from email.utils import formatdate
from time import time

import pytest

from gateway.client.outcomes import Code, refused


@pytest.mark.parametrize(
    ("status", "problem", "code", "state"),
    [
        (400, {"title": "t", "type": "/gw/problems/digest-mismatch"}, Code.DIFFERS, "failed"),
        (502, {"title": "t", "kept": ["disk"]}, Code.PARTLY, "partly"),
        (502, {"title": "t", "kept": []}, Code.FAILED, "failed"),
        (507, {"title": "t"}, Code.FAILED, "failed"),
        (503, {"title": "t", "kept": ["disk"]}, Code.PARTLY, "partly"),
        (503, {"title": "t", "may_have_acted": True}, Code.UNKNOWN, "unknown"),
        (504, {"title": "t", "may_have_acted": True}, Code.UNKNOWN, "unknown"),
        (502, {"title": "t", "kept": ["disk"], "may_have_acted": True}, Code.PARTLY, "partly"),
        (499, [], Code.REFUSED, "failed"),
    ],
)
def test_a_problem_is_told_by_its_kind(status: int, problem: object, code: Code, state: str) -> None:
    failed = refused(status, {}, json.dumps(problem).encode())
    assert (failed.code, failed.state, failed.problem["status"], failed.pause) == (code, state, status, None)


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff", b'{"title": 3}', b"[" * 100_000])
def test_an_answer_that_is_no_problem_has_a_title_all_the_same(body: bytes) -> None:
    assert refused(404, {}, body).problem == {"title": "Not Found", "status": 404}


@pytest.mark.parametrize(
    ("retry_after", "least", "most"),
    [
        ("7", 7, 7),
        (formatdate(0), 0, 0),
        ("soon", 0, 0),
        ("-1", 0, 0),
    ],
)
def test_when_to_come_again_is_seconds_or_a_date(retry_after: str, least: float, most: float) -> None:
    in_a_while = refused(503, {"Retry-After": formatdate(time() + 100, usegmt=True)}, b"").pause
    assert in_a_while is not None
    assert 90 < in_a_while <= 100
    pause = refused(503, {"Retry-After": retry_after}, b"").pause
    assert pause is not None
    assert least <= pause <= most
