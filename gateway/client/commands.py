"""`gateway send` and `gateway get`: arguments, signals, what is printed, and the exit code.

The key comes from the environment or a file: arguments are shown to everybody on the machine. What is printed is for
people on a terminal; otherwise it is nothing but what went wrong, and, with `--json`, one line for each upload or file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from yarl import URL

from gateway.client.bars import Quiet, screen
from gateway.client.fetching import Fetch
from gateway.client.outcomes import Code, Failed, patiently
from gateway.client.remote import Place, Remote, below, checked_url, connected
from gateway.client.sending import Upload
from gateway.client.sources import Sources, gathered
from gateway.client.watching import Legs
from gateway.http.ulids import ULID

__all__ = ["add_arguments", "document_of", "ended_by_signals", "get", "run", "send"]

_DEFAULT_URL = "http://127.0.0.1:8080"
_MOST_PARALLEL = 64
_UPLOAD = re.compile(rf"/uploads/{ULID.pattern}/?$")
_VERIFIED = {True: ", verified", None: ""}
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def add_arguments(parser: argparse.ArgumentParser, command: str) -> None:
    """Those of the command, `send` or `get`."""
    if command == "send":
        parser.add_argument("files", nargs="+", metavar="FILE", help="each is an upload; - is standard input")
        parser.add_argument(
            "--to", metavar="URL", help=f"a gateway, or one of its routes (default: GATEWAY_URL, or {_DEFAULT_URL})"
        )
        parser.add_argument(
            "--field", action="append", default=[], type=_field, metavar="K=V", help="goes along, in front"
        )
        parser.add_argument("--parallel", type=_parallel, default=4, metavar="N", help="uploads at a time (default: 4)")
        parser.add_argument("--recursive", action="store_true", help="folders, too: each is one upload")
    else:
        parser.add_argument("what", metavar="URL|ID", help="a file's url, or an upload's, or its id at GATEWAY_URL")
        parser.add_argument("-o", "--output", metavar="FILE", help="where to (default: its own name, here)")
        parser.add_argument("--force", action="store_true", help="in place of what is there")
    parser.add_argument("--key-file", metavar="FILE", help="has the key (default: GATEWAY_KEY)")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each upload, or file")


def _field(text: str) -> tuple[bytes, bytes]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError("a field is NAME=VALUE")
    return os.fsencode(name), os.fsencode(value)


def _parallel(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= _MOST_PARALLEL):
        raise argparse.ArgumentTypeError(f"1 to {_MOST_PARALLEL} uploads at a time")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """The exit code: see `Code`; 128 and its number for a signal."""
    logging.basicConfig(level=options.log_level, format="%(levelname)s %(name)s: %(message)s")
    work = send if options.command == "send" else get
    try:
        return asyncio.run(ended_by_signals(lambda at_signal: work(options, at_signal)))
    except Failed as failed:
        Quiet().complain(str(failed))
        return failed.code


async def ended_by_signals(work: Callable[[list[Callable[[], None]]], Awaitable[int]]) -> int:
    """What the work returns, or 128 and the signal's number. The work may say what else is to be done at a signal.

    A second signal has its default effect: the process ends there and then.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    caught: list[int] = []
    then: list[Callable[[], None]] = []

    def signalled(number: int) -> None:
        caught.append(number)
        for one in _SIGNALS:
            loop.remove_signal_handler(one)
        for tell in then:
            tell()
        task.cancel()

    for number in _SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, signalled, number)
    try:
        return await work(then)
    except asyncio.CancelledError:
        if not caught:
            raise
    return 128 + caught[0]


def _key(options: argparse.Namespace) -> str:
    """Raises Failed."""
    key = os.environ.get("GATEWAY_KEY", "")
    if options.key_file is not None:
        try:
            key = Path(options.key_file).read_text("utf-8")
        except (OSError, ValueError) as error:
            raise Failed(Code.USAGE, f"--key-file: {getattr(error, 'strerror', None) or error}") from error
        if not key.strip():
            raise Failed(Code.USAGE, "--key-file: there is no key in it")
    key = key.strip()
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise Failed(Code.USAGE, "the key has characters that no key has")
    return key


# -- send


async def send(options: argparse.Namespace, at_signal: list[Callable[[], None]]) -> int:
    """The exit code. What is to be done at a signal is added to `at_signal`. Raises Failed for a wrong command line."""
    if options.files.count("-") > 1:
        raise Failed(Code.USAGE, "standard input can be sent once")
    if "-" in options.files and sys.stdin is None:  # a connection would get its number
        raise Failed(Code.LOCAL, "standard input is closed")
    url, key = checked_url(options.to or os.environ.get("GATEWAY_URL") or _DEFAULT_URL), _key(options)
    async with connected(key) as remote, screen(prints=options.json) as shown:
        at_signal.append(remote.hang_up)
        failed = None
        try:
            place = await patiently(lambda: remote.place(url), shown.say)
        except Failed as failure:
            failed = failure
        except asyncio.CancelledError:
            failed = _not_sent()
            raise
        finally:
            for given in options.files if failed is not None else ():
                _tell(Upload(Sources(given), failed=failed), None, shown, options)
        if failed is not None:
            return failed.code
        most = max(1, place.max_parts - len(options.field)) if place.max_parts else 0
        every = gathered(options.files, recursive=options.recursive, most=most, say=shown.complain)
        uploads: list[Upload] = []
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(options.parallel):
                    group.create_task(_send_next(every, uploads, remote, place, shown, options))
        except asyncio.CancelledError:
            for sources in every:
                _tell(Upload(sources, failed=_not_sent()), None, shown, options)
            raise
    return _code(uploads, shown)


def _code(every: Sequence[Upload | Fetch], shown: Quiet) -> Code:
    """That of the first that failed."""
    otherwise = Code.LOCAL if shown.is_unwritten else Code.DONE
    return next((one.failed.code for one in every if one.failed is not None), otherwise)


def _not_sent() -> Failed:
    return Failed(Code.LATER, "interrupted; it was not sent", state="interrupted")


async def _send_next(
    every: Iterator[Sources],
    uploads: list[Upload],
    remote: Remote,
    place: Place,
    shown: Quiet,
    options: argparse.Namespace,
) -> None:
    for sources in every:
        upload = Upload(sources, options.field)
        uploads.append(upload)
        legs = Legs(sources.given, is_watched=shown.is_terminal)
        shown.add(legs)
        try:
            await upload.send(remote, place, legs, shown.say)
        finally:
            _tell(upload, legs, shown, options)


def _tell(upload: Upload, legs: Legs | None, shown: Quiet, options: argparse.Namespace) -> None:
    failed, given = upload.failed, upload.sources.given
    if legs is not None:
        shown.end(legs, "" if failed else f"{given}: kept{': ' + upload.url if upload.url else ''}")
    if failed is not None:
        said = str(failed)
        shown.complain(said if said.startswith(given) else f"{given}: {said}")
    if options.json:
        shown.line(json.dumps(document_of(upload)))


def document_of(upload: Upload) -> dict[str, Any]:
    """The line of JSON about one upload (docs/send.md): all members, always, in this order."""
    failed, answer = upload.failed, upload.answer
    problem = None if failed is None else failed.problem
    return {
        "source": upload.sources.given,
        "upload": upload.id if upload.tries else None,
        "state": "kept" if failed is None else failed.state,
        "exit_code": Code.DONE if failed is None else failed.code,
        "status": answer.status if answer is not None else (problem or {}).get("status"),
        "url": upload.url,
        "seconds": upload.seconds,
        "tries": upload.tries,
        "files": [
            {
                "name": os.fsdecode(file.name),
                "size": file.size,
                "sha256": file.sha256 or None,
                "verified": file.verified,
                "url": file.url,
            }
            for file in upload.sources.files
        ],
        "problem": problem,
        "answer": None if answer is None else answer.document,
    }


# -- get


async def get(options: argparse.Namespace, at_signal: list[Callable[[], None]]) -> int:
    """The exit code. Raises Failed where nothing could be begun."""
    key = _key(options)
    if ULID.fullmatch(options.what):
        base = checked_url(os.environ.get("GATEWAY_URL") or _DEFAULT_URL)
        url = below(base, f"/uploads/{options.what}").with_query(None)
    else:
        url = checked_url(options.what)
    async with connected(key) as remote, screen(prints=options.json, verbs=("fetched", "")) as shown:
        try:
            fetches = await _fetches(remote, url, options, shown)
        except Failed as failed:
            if options.json:
                shown.line(json.dumps(_fetched(Fetch(url, Path(), failed=failed))))
            raise
        for fetch in fetches:
            legs = Legs(fetch.path.name)
            shown.add(legs)
            try:
                await fetch.fetch(remote, legs, shown.say)
            finally:
                shown.end(legs, "" if fetch.failed else f"{fetch.path}: {fetch.size} bytes{_VERIFIED[fetch.verified]}")
                if fetch.failed is not None:
                    shown.complain(f"{fetch.path.name}: {fetch.failed}")
                if options.json:
                    shown.line(json.dumps(_fetched(fetch)))
    return _code(fetches, shown)


async def _fetches(remote: Remote, url: URL, options: argparse.Namespace, shown: Quiet) -> list[Fetch]:
    """The file, or all files of an upload, and where they go. Raises Failed."""
    from gateway.downloads import archive_names  # with what that imports `send` would take half as long again to begin

    output = None if options.output is None else Path(options.output)
    if not _UPLOAD.search(url.path):
        name = archive_names([url.name])[0]
        path = Path(name) if output is None else output / name if output.is_dir() else output
        return [Fetch(url, path, force=options.force)]
    kept = await patiently(lambda: remote.files(url), shown.say)
    if output is not None and len(kept) == 1 and not output.is_dir():
        return [Fetch(kept[0].url, output, kept[0].sha256, options.force)]
    if output is not None:
        try:
            output.mkdir(exist_ok=True)
        except OSError as error:
            raise Failed(Code.LOCAL, f"{output}: {error.strerror}") from error
    # as in the archive: names that are safe on any system, and none of them twice
    names = archive_names([one.name for one in kept])
    folder = output or Path()
    return [Fetch(one.url, folder / name, one.sha256, options.force) for one, name in zip(kept, names, strict=True)]


def _fetched(fetch: Fetch) -> dict[str, Any]:
    """The line of JSON about one file (docs/send.md): all members, always, in this order."""
    failed = fetch.failed
    return {
        "url": str(fetch.url.with_query(None)),
        "path": str(fetch.path) if fetch.path.name else None,
        "state": "fetched" if failed is None else failed.state,
        "exit_code": Code.DONE if failed is None else failed.code,
        "size": fetch.size,
        "sha256": None if failed else fetch.sha256,
        "verified": fetch.verified,
        "resumed_from": fetch.resumed_from,
        "seconds": fetch.seconds,
        "problem": None if failed is None else failed.problem,
    }
