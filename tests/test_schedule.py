"""What `make test` keeps together: the table names files and tests that are there, and tells groups apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.schedule import TOGETHER, together

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("file", TOGETHER)
def test_every_file_whose_tests_share_something_is_there_and_has_what_a_module_starts(file: str) -> None:
    assert 'scope="module"' in (ROOT / file).read_text("utf-8")


def test_destinations_of_the_matrix_are_a_group_each_whatever_the_client() -> None:
    matrix = "tests/test_matrix.py::test_every_upload_arrives_as_it_was_sent"
    groups = {
        together(f"{matrix}[{destination}-{client}]")
        for destination in ("receiver", "nginx-buffered", "nginx-unbuffered", "busboy")
        for client in ("curl", "node")
    }
    assert len(groups) == 4
    assert together("tests/test_matrix.py::test_256[spool]") == together("tests/test_matrix.py::test_all[spool-curl]")


def test_other_tests_are_alone() -> None:
    assert together("tests/test_x.py::test_a[1]") == "tests/test_x.py::test_a[1]"
    assert together("tests/downloads/test_stored.py::test_a") == "tests/downloads/test_stored.py::test_a"
