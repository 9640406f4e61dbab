"""The stores that an object sink is tried on: two without a server, moto, and Swift, each started once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.buckets import Place, in_directory, in_memory, moto_place, swift_place

__all__ = ["EVERYWHERE", "OVER_SOCKETS"]

EVERYWHERE = ["memory", "directory", "moto", "swift"]
OVER_SOCKETS = ["moto", "swift"]


@pytest.fixture(scope="session")
def moto() -> Iterator[Place]:
    with moto_place() as place:
        yield place


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with swift_place(tmp_path_factory.mktemp("swift")) as place:
        yield place


@pytest.fixture
def place_of(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Place]:
    """A place of that kind for one test, and the credentials for it in the environment."""

    def place_of(kind: str) -> Place:
        if kind == "memory":
            return in_memory()
        if kind == "directory":
            return in_directory(tmp_path / "objects")
        place: Place = request.getfixturevalue(kind).elsewhere()
        for name, value in place.environment.items():
            monkeypatch.setenv(name, value)
        return place

    return place_of
