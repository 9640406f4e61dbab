from __future__ import annotations

import logging
import resource
from collections.abc import Iterator

import pytest

from gateway.config.settings import Settings
from gateway.server.descriptors import within_descriptors


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def descriptors(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The limit that there is; a hard one cannot be raised again."""
    limit = [1024]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit[0], limit[0]))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: None)
    return limit


def connections(**server: object) -> int:
    return within_descriptors(Settings.model_validate({"server": server})).server.effective_max_connections


def test_the_process_has_as_many_as_it_may(limits: tuple[int, int]) -> None:
    _, hard = limits
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    within_descriptors(Settings())
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)


def test_connections_are_as_many_as_descriptors_allow_beside_uploads_and_that_is_said_once(
    descriptors: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert connections(max_uploads=8, max_reads=100) == 1024 - 64 - 8 * 5 - 100
        (record,) = caplog.records
        assert record.getMessage() == (
            "server.max_connections is 820 instead of 1000: a process may have 1024 descriptors (RLIMIT_NOFILE)"
        )
        assert connections(max_uploads=8, max_reads=100, max_connections=2000, workers=2) == 2 * 820
        assert connections(max_uploads=1000) == 256, "a quarter at least"


@pytest.mark.parametrize("server", [{"max_connections": 500}, {"max_connections": 0}, {"workers": 2}])
def test_what_is_possible_or_unlimited_stays(
    descriptors: list[int], caplog: pytest.LogCaptureFixture, server: dict[str, int]
) -> None:
    with caplog.at_level(logging.WARNING):
        assert connections(max_uploads=8, max_reads=100, **server) == server.get("max_connections", 1000)
    assert caplog.records == []


def test_descriptors_without_limit_lower_nothing(descriptors: list[int]) -> None:
    descriptors[0] = resource.RLIM_INFINITY
    assert connections() == 1000


def test_uploads_and_reads_have_connections_unless_it_is_said_otherwise(descriptors: list[int]) -> None:
    descriptors[0] = resource.RLIM_INFINITY
    assert connections(max_uploads=1100, max_reads=256) == 1456
    assert connections(max_uploads=1100, max_reads=256, max_connections=700) == 700
