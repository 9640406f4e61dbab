"""Counts by name, for a while: how often a url was used, how many requests came in a minute, how many bytes in a day.

In memory for one process; in a file (SQLite) for several, and for counts that are to outlive the process; for replicas
see postgres.py. Why no library for rate limits: those that keep counts in SQL have a row for each unit, and so cannot
count bytes.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path
from typing import Protocol

from gateway.errors import AccessUnavailable

__all__ = ["Counts", "FileCounts", "MemoryCounts"]

_SWEEP_EVERY = 1000
_BUSY_SECONDS = 5.0

_TABLE = "CREATE TABLE IF NOT EXISTS counts (name TEXT PRIMARY KEY, count INTEGER NOT NULL, until REAL NOT NULL)"
_ADD = """INSERT INTO counts VALUES (:name, :amount, :until) ON CONFLICT (name) DO UPDATE SET
count = CASE WHEN until <= :now THEN 0 ELSE count END + :amount,
until = CASE WHEN until <= :now THEN :until ELSE until END
WHERE CASE WHEN until <= :now THEN 0 ELSE count END + :amount <= :most RETURNING count"""
_TAKE_BACK = "UPDATE counts SET count = MAX(count - :amount, 0) WHERE name = :name AND until > :now"


class Counts(Protocol):
    """What is counted by name until a time, in seconds since the epoch; then it is nothing again."""

    async def add(self, name: str, amount: int, *, most: int, until: float) -> bool:
        """Count so much more, if that makes `most` and not more. Whether it did. Raises AccessUnavailable."""

    async def take_back(self, name: str, amount: int) -> None:
        """Count so much less. Raises AccessUnavailable."""

    def close(self) -> None:
        """Count no more."""


class MemoryCounts:
    """Those of one process."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, float]] = {}
        self._added = 0

    async def add(self, name: str, amount: int, *, most: int, until: float) -> bool:
        """As `Counts` says."""
        now = time.time()
        self._added += 1
        if self._added % _SWEEP_EVERY == 0:
            self._counts = {one: count for one, count in self._counts.items() if count[1] > now}
        count, end = self._counts.get(name, (0, until))
        if end <= now:
            count, end = 0, until
        if count + amount > most:
            return False
        self._counts[name] = count + amount, end
        return True

    async def take_back(self, name: str, amount: int) -> None:
        """As `Counts` says."""
        if name in self._counts:
            count, until = self._counts[name]
            self._counts[name] = max(count - amount, 0), until

    def close(self) -> None:
        """Nothing is left to close."""


class FileCounts:
    """Those of all processes that open this file. Raises OSError for one that cannot be had."""

    def __init__(self, path: Path) -> None:
        try:
            self._database = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = OFF")  # a power cut may cost counts, and no more than those
            self._database.execute(_TABLE)
        except sqlite3.Error as error:
            raise OSError(0, str(error), str(path)) from error
        self._added = 0
        self._one_at_a_time = asyncio.Lock()

    async def add(self, name: str, amount: int, *, most: int, until: float) -> bool:
        """As `Counts` says. Others may have the file, so it waits in a thread."""
        if amount > most:
            return False
        values = {"name": name, "amount": amount, "most": most, "until": until, "now": time.time()}
        return bool(await self._run(_ADD, values))

    async def take_back(self, name: str, amount: int) -> None:
        """As `Counts` says."""
        await self._run(_TAKE_BACK, {"name": name, "amount": amount, "now": time.time()})

    def close(self) -> None:
        """Leave the file; what was counted stays there."""
        self._database.close()

    async def _run(self, statement: str, values: dict[str, object]) -> list[object]:
        self._added += 1
        async with self._one_at_a_time:
            if self._added % _SWEEP_EVERY == 0:
                await asyncio.to_thread(self._execute, "DELETE FROM counts WHERE until <= :now", {"now": time.time()})
            return await asyncio.to_thread(self._execute, statement, values)

    def _execute(self, statement: str, values: dict[str, object]) -> list[object]:
        try:
            return self._database.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise AccessUnavailable("what was used of the quota cannot be counted") from error
