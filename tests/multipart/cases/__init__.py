"""Multipart bodies and what they mean: written here from the standards, or recorded from real clients.

A case says by itself what has to come of it; nothing in it was computed by the code under test.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

from tests.multipart.cases import forms, framing, names
from tests.multipart.cases.case import Case, Got

__all__ = ["CASES", "RECORDED", "RECORDINGS", "WRITTEN", "Case", "Got"]

RECORDINGS = Path(__file__).resolve().parent / "recorded"
"""Bodies as clients sent them and what they meant (recorded.json), made by `python -m tests.support.recorder`."""


def _recorded() -> list[Case]:
    def part(told: dict[str, str | None]) -> Got:
        name, filename, content_type = (
            None if (text := told[key]) is None else text.encode() for key in ("name", "filename", "content_type")
        )
        return Got(name or b"", filename, content_type, base64.b64decode(told["data"] or ""))

    cases = []
    for title, told in json.loads((RECORDINGS / "recorded.json").read_text("utf-8")).items():
        body = (RECORDINGS / f"{title}.body").read_bytes()
        parts = tuple(map(part, told["parts"]))
        cases.append(
            Case(title=title, source=told["client"], content_type=told["type"].encode(), body=body, parts=parts)
        )
    return cases


WRITTEN = [*framing.CASES, *forms.CASES, *names.CASES]
RECORDED = _recorded()
CASES = [*WRITTEN, *RECORDED]
