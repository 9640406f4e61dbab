"""Which command it is; its room is imported then, and not before."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from gateway import __version__

__all__ = ["main"]

_SERVING = "gateway.cli.serving"
_COMMANDS = {
    "serve": (_SERVING, "run the gateway"),
    "check": ("gateway.cli.checking", "is the configuration valid, and what does it mean? memory, routes, warnings"),
    "explain": ("gateway.cli.checking", "say which rule takes a file"),
    "key": ("gateway.cli.access", "API keys"),
    "sign": ("gateway.cli.access", "print a url with which somebody may do one thing for a while"),
    "send": ("gateway.client", "send files to a gateway, and see when they are safe"),
    "get": ("gateway.client", "fetch what is kept, verified, and going on where it was broken off"),
    "receiver": (_SERVING, "run the demo destination"),
}
"""The room of each, which has `add_arguments` and `run`, and what it is for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0, 1 (it could not run), 2 (the configuration or the command line is wrong); `send` and `get` have
    more of them. 130 is Ctrl-C before there was anything to end.
    """
    try:
        options = _parser().parse_args(arguments)
        status: int = importlib.import_module(_COMMANDS[options.command][0]).run(options)
        if sys.stdout is not None:
            sys.stdout.flush()  # what cannot be written is told while there is somebody to tell it
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:
        if (told := _told(error)) is None:
            raise
        if isinstance(error, OSError):
            _forget_output()
        text, status = told
        print(text, end="", file=sys.stderr)
    return status


class _Command(argparse.ArgumentParser):
    """It has its arguments when it is asked for them."""

    room: str | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.room is not None:
            if self.room == _SERVING:
                _hold_hangups()
            importlib.import_module(self.room).add_arguments(self, self.prog.rpartition(" ")[2])
            self.room = None
        return super().parse_known_args(args, namespace)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gateway", description="A streaming multipart relay gateway.")
    parser.add_argument("--version", action="version", version=f"gateway {__version__}")
    parser.add_argument(
        "--log-level",
        choices=["DEBUG", "INFO", "WARNING", "ERROR"],
        help="in place of server.log_level, which is INFO unless the configuration says otherwise",
    )
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Command)
    for name, (room, purpose) in _COMMANDS.items():
        commands.add_parser(name, help=purpose, allow_abbrev=room != "gateway.client").room = room
    return parser


def _hold_hangups() -> None:
    """SIGHUP waits for whoever is to understand it: a start takes a second or two, and to be told then that a file has
    changed must not be its end. Where a terminal controls the process it is still that.
    """
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])


def _told(error: Exception) -> tuple[str, int] | None:
    """What is printed, and the exit code; None for what is a mistake of ours."""
    match error:
        case BrokenPipeError():
            return "", 1  # whoever reads our output has enough
        case OSError():
            return f"gateway: {error}\n", 1
    from gateway.config import ConfigError
    from gateway.server import WorkersFailed

    if isinstance(error, ConfigError):
        return "".join(f"{problem}\n" for problem in error.problems), 2
    return (f"gateway: {error}\n", 1) if isinstance(error, WorkersFailed) else None


def _forget_output() -> None:
    """What standard output has not taken would fail once more when Python ends, which makes that exit with 120."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
