"""How the log is written."""

from __future__ import annotations

import json
import logging
import sys
import time
from functools import lru_cache

from gateway.http.urls import without_secrets

__all__ = ["JsonLines", "configure_logging"]


@lru_cache(maxsize=1)
def _time(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))


class JsonLines(logging.Formatter):
    """One JSON object per line; what a record was given as `extra` are further members.

    No URL has its user info or its query there, be it in the words of an exception or of a library.
    """

    _USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, object] = {
            "time": _time(int(record.created)),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in self._USUAL and value is not None}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        text = json.dumps(line, default=str)
        return json.dumps(_shown(line)) if "://" in text else text


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


def configure_logging(level: str | int = "INFO", *, worker: int | None = None) -> None:
    """JSON lines on standard error; those of a worker have its number as a member."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    if worker is not None:

        def numbered(record: logging.LogRecord) -> bool:
            vars(record).setdefault("worker", worker)
            return True

        handler.addFilter(numbered)
    logging.basicConfig(level=level, handlers=[handler], force=True)
