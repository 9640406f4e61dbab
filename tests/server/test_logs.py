"""How a line of the log is written. What it must not tell is tested in test_secrets."""

from __future__ import annotations

import json
import logging

from gateway.server.logs import JsonLines


def test_a_line_without_a_url_is_as_it_was_said() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, 'is it? "a@b" \\ ü', (), None)
    record.filename_ = "what?.txt"
    shown = json.loads(JsonLines().format(record))
    assert (shown["message"], shown["filename_"]) == ('is it? "a@b" \\ ü', "what?.txt")
