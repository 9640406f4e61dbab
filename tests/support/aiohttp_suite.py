"""aiohttp's own tests for multipart, run on our classes: a pytest plugin, for `make aiohttp-tests`.

Those tests are not copied: the make target fetches aiohttp's source distribution, and this puts our classes where the
tests look for aiohttp's. What differs on purpose stands in the tables of docs/library.md, with the names of the tests
that show it: those have to fail, and all others have to pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import aiohttp.multipart
import pytest

from gateway.multipart.codec import Kind
from gateway.multipart.part_reader import StreamingBodyPartReader
from gateway.multipart.reader import StreamingMultipartReader
from gateway.multipart.writer import StreamingMultipartWriter

__all__ = ["PAGE", "differences"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "library.md"


def differences(page: str) -> dict[str, str]:
    """The tests that are named in a table of the page -> what the first column of their row says."""
    rows = re.findall(r"^\| (.+?) \|.*\| (.+?) \|$", page, re.MULTILINE)
    return {test: row for row, tests in rows for test in re.findall(r"`((?:Test\w+::)?test_\w+(?:\[[^`]*\])?)`", tests)}


class _Source:
    """What the tests read from, some of it with no more than `read` and `at_eof`, as our readers want it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def readany(self) -> bytes:
        if hasattr(self._stream, "readany"):
            data: bytes = await self._stream.readany()
            return data
        if self._stream.at_eof():
            return b""
        data = await self._stream.read(8192)
        return data


class _Reader(StreamingMultipartReader):
    def __init__(self, headers: Mapping[str, str], content: Any, **options: Any) -> None:
        super().__init__(headers, _Source(content), **options)


class _AnyPart(type):
    """The parts that our reader makes are no instances of the class below."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, StreamingBodyPartReader)


class _Part(StreamingBodyPartReader, metaclass=_AnyPart):
    """A part alone, as the stock class is made: ours is made by its reader, out of a body that begins with its head."""

    def __init__(self, boundary: bytes, headers: Mapping[str, Any], content: Any, **options: Any) -> None:
        kind = "form-data" if options.pop("subtype", "mixed") == "form-data" else "mixed"
        content_type = f'multipart/{kind}; boundary="{boundary[2:].decode()}"'
        reader = _Reader({"Content-Type": content_type}, content, **options)
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        (event,) = reader._decoder.receive(boundary + b"\r\n" + head.encode() + b"\r\n")
        assert event.kind is Kind.BEGIN
        super().__init__(reader, event)


@pytest.fixture(autouse=True, scope="session")
def _our_classes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (aiohttp, aiohttp.multipart):
            patch.setattr(module, "BodyPartReader", _Part)
            patch.setattr(module, "MultipartReader", _Reader)
            patch.setattr(module, "MultipartWriter", StreamingMultipartWriter)
        yield


@pytest.fixture
def parametrize_zlib_backend() -> None:
    """In aiohttp's conftest it goes through backends that are not installed here."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what differs; what is named in the table and is none of the tests is an error."""
    expected = differences(PAGE.read_text("utf-8"))
    named = {item.nodeid.partition("::")[2] for item in items} | {
        item.nodeid.partition("::")[2].partition("[")[0] for item in items
    }
    if strangers := expected.keys() - named:
        raise pytest.UsageError(f"{PAGE} names tests that aiohttp does not have: {', '.join(sorted(strangers))}")
    for item in items:
        test = item.nodeid.partition("::")[2]
        reason = expected.get(test) or expected.get(test.partition("[")[0])
        if reason is not None:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
