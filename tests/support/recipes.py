"""The files of config/ that are for other people's programs, as they are, but for the addresses and paths in them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from tests.support.destinations import absent

__all__ = ["CONFIG", "command_of", "dashboard_queries", "placed", "put_in"]

CONFIG = Path(__file__).resolve().parents[2] / "config"


def put_in(text: str, words: Mapping[str, str]) -> str:
    """The text with others in place of these words, each of which stands there. They are names of the compose file's,
    with their ports (`gateway-1:8080`), and paths of its containers.
    """
    for old, new in words.items():
        assert old in text, f"{old} stands nowhere"
        text = text.replace(old, new)
    return text


def placed(name: str, directory: Path, words: Mapping[str, str]) -> Path:
    """A copy of a folder of config/ in a directory, with other words in its files; each of them stands in one."""
    folder = directory / name
    shutil.copytree(CONFIG / name, folder)
    left = set(words)
    for path in folder.rglob("*"):
        if path.is_file():
            text = path.read_text("utf-8")
            stands = {old: new for old, new in words.items() if old in text}
            path.write_text(put_in(text, stands), "utf-8")
            left -= stands.keys()
    assert not left, f"{left} stand in no file of {name}"
    return folder


def dashboard_queries(*, rate_interval: str = "1m") -> list[tuple[str, str]]:
    """(title of the panel, what it asks Prometheus) of Grafana's dashboard, for all gateways."""
    dashboard = json.loads((CONFIG / "grafana" / "dashboards" / "gateway.json").read_text("utf-8"))
    variables = {"$__rate_interval": rate_interval, "$instance": ".*"}
    found = []
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            query: str = target["expr"]
            for name, value in variables.items():
                query = query.replace(name, value)
            found.append((panel["title"], query))
    return found


def command_of(name: str) -> str:
    """Where a program is; skips, or in CI fails, where it is not. Debian keeps some where only root looks."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if found is None:
        absent(f"{name} is not installed")
    return found
