"""Bodies from other projects' test suites and from real clients, through the codec alone, in many cuts.

The cases lie beside the repository (`../shared/conformance`, or where GATEWAY_CONFORMANCE points), with
their own runner, whose comparison rules are used here as they are.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import runpy
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gateway.errors import GatewayError
from gateway.model import Part
from gateway.multipart.codec import Decoder, Kind
from gateway.multipart.content_type import boundary_of
from gateway.multipart.headers import media_type

HERE = Path(__file__).resolve().parent
DIRECTORY = Path(os.environ.get("GATEWAY_CONFORMANCE") or HERE.parents[2] / "shared" / "conformance")
if not (DIRECTORY / "run.py").is_file():
    pytest.skip("the conformance cases are not here: set GATEWAY_CONFORMANCE", allow_module_level=True)

RUNNER = runpy.run_path(str(DIRECTORY / "run.py"))
"""`judge` with its rules of comparison, and `pieces`, which cuts."""

BARE_LINE_ENDS = (
    "refused: whoever takes a bare LF or CR for a line end sees delimiters where others see data, "
    "and two readers must never disagree about where a part ends (codec.py, rule 2)"
)
POLICY_DECISIONS: dict[str, str] = {
    "werkzeug-ie7-full-path-lf": BARE_LINE_ENDS + "; the capture was stored with LF, IE sent CRLF",
    "werkzeug-line-endings-cr": BARE_LINE_ENDS,
    "werkzeug-line-endings-lf": BARE_LINE_ENDS,
}
"""Where projects differ, and we differ from a case's origin: case -> what we do, and why."""

LARGE_BODY_BYTES = 20_000
Case = dict[str, Any]
ManifestRow = tuple[str, str | None, str | None, int, str]


class Outcome(NamedTuple):
    """What became of a body; the members that `judge` looks at, and the error's class."""

    kind: str
    status: int
    detail: str
    manifest: tuple[ManifestRow, ...] | None
    error: str | None = None


def load_cases() -> dict[str, Case]:
    paths = sorted((DIRECTORY / "cases").glob("*.json"))
    return {path.stem: json.loads(path.read_bytes()) for path in paths}


CASES = load_cases()


def row(part: Part, size: int, digest: str) -> ManifestRow:
    content_type = None if part.content_type is None else part.content_type.decode("latin-1")
    return part.name, part.filename, content_type, size, digest


def decode(
    content_type: bytes, pieces: list[bytes], *, keep_raw: bool, one_reading: bool = False
) -> tuple[ManifestRow, ...]:
    """The manifest of a body. Raises GatewayError; also checks `keep_raw` on the way."""
    decoder = Decoder(
        boundary_of(content_type, one_reading=one_reading), max_headers=0, keep_raw=keep_raw, one_reading=one_reading
    )
    rows: list[ManifestRow] = []
    raw: list[bytes] = []
    current: Part | None = None
    size, digest = 0, hashlib.sha256()
    for piece in pieces:
        for event in decoder.receive(piece):
            raw.append(event.raw)
            if event.kind in (Kind.BEGIN, Kind.WHOLE):
                current, size, digest = event.part, 0, hashlib.sha256()
            size += len(event.data)
            digest.update(event.data)
            if event.kind in (Kind.END, Kind.WHOLE):
                assert current is not None
                rows.append(row(current, size, digest.hexdigest()))
    decoder.finish()
    assert b"".join(raw) == (b"".join(pieces) if keep_raw else b"")
    return tuple(rows)


def run(case: Case, pieces: list[bytes], *, keep_raw: bool, one_reading: bool = False) -> Outcome:
    content_type = case["content_type"].encode("utf-8", "surrogateescape")
    if media_type(content_type) != b"multipart/form-data":
        return Outcome("reject", 415, "not a form", None)
    try:
        return Outcome("accept", 201, "", decode(content_type, pieces, keep_raw=keep_raw, one_reading=one_reading))
    except GatewayError as error:
        return Outcome("reject", error.status, error.detail, None, type(error).__name__)


def outcomes(case: Case) -> dict[str, Outcome]:
    """What became of the case's body in each way of cutting it, with and without `keep_raw`."""
    body = (DIRECTORY / "cases" / case["body_file"]).read_bytes()
    assert hashlib.sha256(body).hexdigest() == case["body_sha256"]
    modes = ["whole", "random", "origin"] if len(body) > LARGE_BODY_BYTES else ["whole", "1", "7", "random", "origin"]
    answers: dict[str, Outcome] = {}
    for mode in modes:
        pieces = RUNNER["pieces"](body, mode, case, random.Random(f"{case['id']}/{mode}"))
        for keep_raw in (False, True):
            answers[f"{mode}, keep_raw={keep_raw}"] = run(case, pieces, keep_raw=keep_raw)
    return answers


@pytest.mark.parametrize("name", CASES)
def test_every_case_comes_out_as_its_origin_expects_or_as_we_decided(name: str) -> None:
    case = CASES[name]
    for way, outcome in outcomes(case).items():
        verdict, why = RUNNER["judge"](case, outcome, "default")
        assert verdict in (["DIFF"] if name in POLICY_DECISIONS else ["PASS", "ALT"]), f"{verdict} ({way}): {why}"


@pytest.mark.parametrize("name", CASES)
def test_no_outcome_depends_on_how_the_body_was_cut(name: str) -> None:
    seen = outcomes(CASES[name])
    expected = next(iter(seen.values()))
    assert {way: got for way, got in seen.items() if got != expected} == {}


def test_there_are_cases_and_each_is_named_after_its_file() -> None:
    assert len(CASES) > 300
    assert [case["id"] for case in CASES.values()] == list(CASES)


def test_every_decision_is_about_a_policy_case_and_has_a_reason() -> None:
    for name, reason in POLICY_DECISIONS.items():
        assert CASES[name]["level"] == "policy", name
        assert ":" in reason, name
