"""Which tests stay in one process where several run them (`make test`): those that share what a module starts."""

from __future__ import annotations

import re

from xdist.scheduler import LoadScopeScheduling

__all__ = ["TOGETHER", "TogetherScheduling", "together"]

TOGETHER: dict[str, str] = {
    "tests/multipart/test_conformance_http.py": "",
    "tests/multipart/test_differential.py": r"repacked|per_part|passed|mixed",
    "tests/sinks/relay/sending/test_connect.py": "",
    "tests/downloads/test_stored.py": "nginx_does",
    "tests/test_clients.py": "",
    "tests/deploy/test_image.py": "TestWhatItMakes",
    "tests/test_matrix.py": r"\[(?:nginx-)?[a-z]+",
}
"""File -> what in a test's name those have in common that belong together; "" is all of the file."""
FOLDERS = ("tests/sinks/objects/",)
"""Of which all tests are one group: they share a server of four processes."""


def together(nodeid: str) -> str:
    """What a test is scheduled with: its group, or itself alone."""
    for folder in FOLDERS:
        if nodeid.startswith(folder):
            return folder
    file, _, test = nodeid.partition("::")
    if file in TOGETHER and (match := re.search(TOGETHER[file], test)):
        return f"{file} {match[0]}"
    return nodeid


class TogetherScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """pytest-xdist's own way to groups (`--dist loadgroup`) changes names of tests in a way that pytest 9 overlooks."""

    def _split_scope(self, nodeid: str) -> str:
        return together(nodeid)
