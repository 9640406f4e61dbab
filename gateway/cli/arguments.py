"""Arguments that several commands have."""

from __future__ import annotations

import argparse

__all__ = ["add_config"]


def add_config(parser: argparse.ArgumentParser) -> None:
    """`--config FILE`."""
    parser.add_argument("--config", metavar="FILE", action=_Once, help="a TOML file (default: built-in defaults)")


class _Once(argparse.Action):
    """A file that is named twice is two configurations, of which one would be passed over."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{option_string} is given twice")
        setattr(namespace, self.dest, values)
