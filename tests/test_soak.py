"""The small form of `make soak`."""

from __future__ import annotations

import sys

import pytest

from tests.bench import soak

pytestmark = pytest.mark.sockets


def test_all_kinds_of_clients_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["soak", "--minutes", "0.05"])
    assert soak.main() == 0, capsys.readouterr().out
