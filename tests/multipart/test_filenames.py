"""File names made fit for a path."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.multipart.filenames import safe_name


@pytest.mark.parametrize(
    ("given_name", "safe"),
    [
        ("a.txt", "a.txt"),
        ("nä v.txt", "nä v.txt"),
        ("../../etc/passwd", "passwd"),
        ("C:\\dir\\a.txt", "a.txt"),
        ("a/b\\c", "c"),
        ("a\\b/c", "c"),
        ("a/", "file"),
        (None, "file"),
        ("", "file"),
        (".", "file"),
        ("..", "file"),
        ("...", "file"),
        (" .. ", "file"),
        ("\x00..\x1f", "file"),
        (".hidden", ".hidden"),
        ("a\x00b\r\n\x7f\x85", "ab"),
        ("gpj.\u202eexe", "gpj.exe"),
        ("x" * 300, "x" * 200),
        ("ä" * 101, "ä" * 100),
        ("x" + "ä" * 100, "x" + "ä" * 99),
        ("€" * 67, "€" * 66),
    ],
)
def test_a_safe_name_is_fit_to_be_the_last_segment_of_a_path(given_name: str | None, safe: str) -> None:
    assert safe_name(given_name) == safe


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300))
@example("x" * 199 + " y")
def test_no_safe_name_is_dangerous_whatever_is_given(given_name: str) -> None:
    name = safe_name(given_name)
    assert 0 < len(name.encode()) <= 200
    assert not re.search(r"[/\\\x00-\x1f\x7f]", name)
    assert name.strip(".") != ""
    assert safe_name(name) == name
