"""`gateway key new` and `gateway sign`: what opens a gateway to somebody."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from gateway.access import SCOPES, new_key, read_secrets, seconds_of, signed_url, size_of

if TYPE_CHECKING:
    from gateway.config.settings import Settings

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    """Those of the command."""
    if command == "key":
        key = parser.add_subparsers(dest="key_command", required=True)
        _add_key_new(
            key.add_parser("new", help="make one: it is printed now and never again, with the line for the keys file")
        )
    else:
        _add_sign(parser)


def run(options: argparse.Namespace) -> int:
    """The exit code. Raises ConfigError."""
    if options.command == "key":
        return _new_key(options)
    from gateway.config.load import load  # it takes as long as all the rest, and keys have no configuration
    from gateway.server.logs import configure_logging

    configure_logging(options.log_level or "INFO")
    return _sign(load(options.config), options)


def _add_key_new(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", required=True, type=_key_name, help="whose it is")
    parser.add_argument(
        "--scope", action="append", choices=SCOPES, help="what for; several are possible (default: all)"
    )
    parser.add_argument(
        "--expires", type=_unit(seconds_of), metavar="TIME", help="how long it is good for, such as 90d"
    )


def _add_sign(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="a TOML file with [access.signed]")
    parser.add_argument(
        "--route", required=True, help="/upload, or what is to be read: /files/{id}/{index}, /uploads/{id}"
    )
    parser.add_argument("--expires", required=True, type=_unit(seconds_of), metavar="TIME", help="90s, 30m, 1h, 7d")
    parser.add_argument("--max-bytes", type=_unit(size_of), metavar="SIZE", help="of the body: 500k, 20M, 1G")
    parser.add_argument("--types", action="append", default=[], metavar="GLOB", help="media types of files: image/*")
    parser.add_argument("--count", type=_count, default=0, help="how often (default: as often as they like)")
    parser.add_argument("--name", type=_file_name, help="the only file name")
    parser.add_argument("--identity", default="", help="whose the upload is to be, as manifests call it: key:ci")
    parser.add_argument(
        "--base", default="", metavar="URL", help="what stands before the path: https://files.example.org"
    )


def _count(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise argparse.ArgumentTypeError("it can be used once, or oftener")
    return int(text)


def _file_name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("a file has a name")
    return text


def _unit(parse: Callable[[str], float]) -> Callable[[str], Any]:
    def parsed(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed


def _key_name(name: str) -> str:
    if not re.fullmatch("[A-Za-z0-9_-]{1,64}", name):
        raise argparse.ArgumentTypeError("a name has letters, digits, - and _, 64 at most")
    return name


def _new_key(options: argparse.Namespace) -> int:
    ends = datetime.now(UTC) + timedelta(seconds=options.expires) if options.expires is not None else None
    key, line = new_key(options.name, tuple(options.scope or SCOPES), ends)
    print(key)
    print(f"# the line for the keys file:\n{line}")
    return 0


def _sign(settings: Settings, options: argparse.Namespace) -> int:
    signed = settings.access.signed
    if signed is None:
        print("gateway: access.signed.secrets_file: needed, for there is nothing to sign with", file=sys.stderr)
        return 2
    if wrong := _unsignable(settings, options.route):
        print(f"gateway: --route: {wrong}", file=sys.stderr)
        return 2
    try:
        keys = read_secrets(signed.secrets_file)
    except (OSError, ValueError) as error:
        print(f"gateway: access.signed.secrets_file: {error}", file=sys.stderr)
        return 2
    url = signed_url(
        keys,
        options.route,
        expires_seconds=options.expires,
        max_bytes=options.max_bytes,
        types=options.types,
        count=options.count,
        name=options.name,
        identity=options.identity,
    )
    print(options.base.rstrip("/") + settings.server.base_path + url)
    return 0


_SIGNED_READ = re.compile(r"/uploads/[0-9A-Z]{26}(/archive\.zip)?|/files/[0-9A-Z]{26}/[0-9]+")

_SIGNED_ROUTE = re.compile(r"(/[A-Za-z0-9._~-]+)+")


def _unsignable(settings: Settings, route: str) -> str | None:
    """Why nobody could use a url of this route. Whoever signs may have the secret, and not the routes."""
    takes = [one.path for one in settings.routes if "signed" in (one.access or ())]
    if _SIGNED_READ.fullmatch(route) or route in takes:
        return None
    if settings.routes == type(settings)().routes and _SIGNED_ROUTE.fullmatch(route):
        return None
    listed = ", ".join(takes) or "none"
    return f"{route} is no route with signed in its access ({listed}), nor /uploads/{{id}} or /files/{{id}}/{{index}}"
