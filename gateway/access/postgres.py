"""Counts in PostgreSQL, for replicas: what one of them has counted all of them know."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from gateway.errors import AccessUnavailable

__all__ = ["PostgresCounts"]

_SECONDS = 5.0
"""For a connection, and for a statement: whoever asks waits for it before a byte of the body."""
_CONNECTIONS = 4
"""Of each process, at most."""
_SWEEP_EVERY = 1000

_TABLE = """CREATE TABLE IF NOT EXISTS gateway_counts
(name text PRIMARY KEY, count bigint NOT NULL, until double precision NOT NULL)"""
_ADD = """INSERT INTO gateway_counts AS c VALUES ($1, $2, $3) ON CONFLICT (name) DO UPDATE SET
count = CASE WHEN c.until <= $4 THEN 0 ELSE c.count END + $2,
until = CASE WHEN c.until <= $4 THEN $3 ELSE c.until END
WHERE CASE WHEN c.until <= $4 THEN 0 ELSE c.count END + $2 <= $5 RETURNING count"""
_TAKE_BACK = "UPDATE gateway_counts SET count = GREATEST(count - $2, 0) WHERE name = $1 AND until > $3"
_SWEEP = "DELETE FROM gateway_counts WHERE until <= $1"


class PostgresCounts:
    """`Counts` in the table `gateway_counts`, which is made if need be. `url` as libpq has it; what is not in it (a
    password) comes from its variables and files (PGPASSFILE).
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._pool: Any = None
        self._opening = asyncio.Lock()
        self._added = 0

    async def add(self, name: str, amount: int, *, most: int, until: float) -> bool:
        """As `Counts` says. Raises AccessUnavailable."""
        if amount > most:
            return False
        self._added += 1
        if self._added % _SWEEP_EVERY == 0:
            await self._run(_SWEEP, time.time())
        return bool(await self._run(_ADD, name, amount, until, time.time(), most))

    async def take_back(self, name: str, amount: int) -> None:
        """As `Counts` says. Raises AccessUnavailable."""
        await self._run(_TAKE_BACK, name, amount, time.time())

    def close(self) -> None:
        """Break the connections; what was counted stays there."""
        if self._pool is not None:
            self._pool.terminate()

    async def _run(self, statement: str, *values: object) -> list[Any]:
        import asyncpg  # an extra: who has one machine needs none

        try:
            async with asyncio.timeout(_SECONDS):
                async with self._opening:
                    if self._pool is None:
                        self._pool = await self._opened()
                rows: list[Any] = await self._pool.fetch(statement, *values)
                return rows
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise AccessUnavailable("what was used of the quota cannot be counted") from error

    async def _opened(self) -> Any:
        import asyncpg

        pool = await asyncpg.create_pool(self._url, min_size=1, max_size=_CONNECTIONS, timeout=_SECONDS)
        try:
            await pool.execute(_TABLE)
        except (asyncpg.UniqueViolationError, asyncpg.DuplicateTableError):
            pass  # another replica made it just now
        except BaseException:
            pool.terminate()
            raise
        return pool
