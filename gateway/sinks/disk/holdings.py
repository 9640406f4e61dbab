"""Whose the uploads on a disk are, and how much of it is theirs.

The disk itself is asked each time, so that nothing that expires, is removed, or is moved away by an operator can make
the sums wrong, nor another process on the same root. What a manifest says of its upload stays, and is read once.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from gateway.http.ulids import ULID
from gateway.manifest import HEAD_BYTES, owner_in
from gateway.sinks.disk.layout import MANIFEST

__all__ = ["Holdings"]


class Holdings:
    """Those on one root, in about 250 bytes of memory for each upload there, once somebody asks."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[str, tuple[str, int]] = {}
        self._sums: Counter[str] = Counter()

    def look(self) -> Mapping[str, int]:
        """The bytes of each owner, now. Blocks; one at a time. Raises OSError."""
        names = set(os.listdir(self._root))
        for name in self._known.keys() - names:
            gone, size = self._known.pop(name)
            self._sums[gone] -= size
        for name in filter(ULID.fullmatch, names - self._known.keys()):
            whose, size = self._known[name] = self._read(name)
            self._sums[whose] += size
        return dict(self._sums)

    def _read(self, name: str) -> tuple[str, int]:
        try:
            with open(self._root / name / MANIFEST, "rb", buffering=0) as file:
                owner, size = owner_in(file.read(HEAD_BYTES))
                return sys.intern(owner), size
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return "", 0  # no manifest here, or it is being removed, or it is damaged, and is nobody's
