"""A database for the counts of replicas."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.postgres import postgres, postgres_programs

needs_postgres = pytest.mark.skipif(postgres_programs() is None, reason="postgresql is not installed")


@pytest.fixture(scope="session")
def database() -> Iterator[str]:
    with postgres() as url:
        yield url
