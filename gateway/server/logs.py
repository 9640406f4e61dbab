"""How the log is written, and what its lines have in common.

While a request is answered whatever is logged for it says whose it is: not only the lines that know it, but the
traceback of a flow's or of a library's, too.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar
from functools import lru_cache
from typing import Literal, get_args

from gateway.http.urls import without_secrets

__all__ = ["LOG_FORMATS", "JsonLines", "LinesForPeople", "LogFormat", "about", "configure_logging", "tell_also"]

LogFormat = Literal["people", "json", "auto"]
LOG_FORMATS: tuple[LogFormat, ...] = get_args(LogFormat)

_USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_json = json.JSONEncoder(default=str).encode
_about: ContextVar[dict[str, object] | None] = ContextVar("about", default=None)


class about:
    """Have these among the members of each line that is logged here, or in tasks that begin here, until it is left.

    Not beyond: what lives longer, as a connection that is kept for the next request, has begun in this context, too.
    """

    __slots__ = ("_token", "_told")

    def __init__(self, **members: object) -> None:
        self._told = members

    def __enter__(self) -> None:
        self._token = _about.set(self._told)

    def __exit__(self, *exc_info: object) -> None:
        _about.reset(self._token)
        self._told.clear()


def tell_also(**members: object) -> None:
    """Have these as well, for as long as the others."""
    told = _about.get()
    if told is not None:
        told.update(members)


def configure_logging(level: str | int = "INFO", *, log_format: LogFormat = "auto", worker: int | None = None) -> None:
    """Lines on standard error; those of a worker have its number as a member. `auto`: for people if that is a terminal,
    JSON if it is not.
    """
    is_for_people = sys.stderr.isatty() if log_format == "auto" else log_format == "people"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LinesForPeople() if is_for_people else JsonLines())

    def completed(record: logging.LogRecord) -> bool:
        for name, value in {"worker": worker, **(_about.get() or {})}.items():
            vars(record).setdefault(name, value)
        return True

    handler.addFilter(completed)
    # No line says where in the code it comes from, nor in which thread: finding out costs as much as writing it.
    logging._srcfile = None  # as the documentation of logging has it ("Optimization")
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.basicConfig(level=level, handlers=[handler], force=True)


class JsonLines(logging.Formatter):
    """One JSON object per line; what a record was given as `extra` are further members.

    No URL has its user info or its query there, be it in the words of an exception or of a library.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, object] = {
            "time": _time(int(record.created), "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_members(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        text = _json(line)
        return _json(_shown(line)) if "://" in text else text


class LinesForPeople(logging.Formatter):
    """`17:05:31 INFO    gateway.uploads: upload ok route=/upload parts=2`, and a traceback below.

    URLs are as in JsonLines. Nothing that a client wrote can move the cursor, or begin a line.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line, and those of a traceback."""
        head = f"{_time(int(record.created), '%H:%M:%S')} {record.levelname:7} {record.name}:"
        members = [f"{name}={_word(_shown(value))}" for name, value in _members(record).items()]
        lines = [" ".join([head, _visible(record.getMessage()), *members])]
        if record.exc_info:
            lines += map(_visible, self.formatException(record.exc_info).splitlines())
        return "\n".join(lines)


@lru_cache(maxsize=1)
def _time(seconds: int, pattern: str) -> str:
    return time.strftime(pattern, time.localtime(seconds))


def _members(record: logging.LogRecord) -> Mapping[str, object]:
    """What it was given as `extra`, but None."""
    return {key: value for key, value in vars(record).items() if key not in _USUAL and value is not None}


def _word(value: object) -> str:
    """A value that stands among others in a line."""
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text if text.isprintable() and " " not in text and text else repr(text)


def _visible(text: str) -> str:
    text = without_secrets(text)
    return text if text.isprintable() else "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def _shown(value: object) -> object:
    """A value of a line without the secrets of URLs, before its quotes and backslashes are escaped."""
    match value:
        case dict():
            return {str(key): _shown(one) for key, one in value.items()}
        case list() | tuple():
            return [_shown(one) for one in value]
        case None | bool() | int() | float():
            return value
        case _:
            return without_secrets(str(value))
