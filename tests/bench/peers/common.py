"""What the peers in Python share: their command line, and where files go."""

from __future__ import annotations

import argparse
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Options", "options", "sync_directory"]


@dataclass(frozen=True, slots=True)
class Options:
    port: int
    root: Path
    destination: str
    fsync: bool

    def fresh_directory(self) -> Path:
        directory = self.root / uuid.uuid4().hex
        directory.mkdir()
        return directory


def options() -> Options:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--destination", required=True)
    parser.add_argument("--fsync", action="store_true")
    return Options(**vars(parser.parse_args()))


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
