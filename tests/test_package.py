"""The package as a library: what it exports, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

import gateway
from tests.support.aiohttp_suite import PAGE, differences

HEAVY = ("aiohttp", "pydantic", "prometheus_client", "gateway.server", "gateway.config")


def _loaded(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("name", gateway.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(gateway, name) is not None


def test_another_name_is_none_of_the_packages() -> None:
    with pytest.raises(AttributeError, match="Nonsense"):
        _ = gateway.Nonsense


@pytest.mark.sockets
@pytest.mark.parametrize("statement", ["import gateway", "from gateway import Decoder, Encoder, Malformed"])
def test_framing_costs_no_server_and_no_event_loop(statement: str) -> None:
    assert not _loaded(statement) & {*HEAVY, "asyncio"}


@pytest.mark.sockets
def test_the_reader_and_the_writer_cost_aiohttp_and_no_server() -> None:
    loaded = _loaded("from gateway import StreamingMultipartReader, StreamingMultipartWriter")
    assert "aiohttp" in loaded
    assert not loaded & {*HEAVY} - {"aiohttp"}


def test_the_package_is_typed() -> None:
    assert (Path(gateway.__file__).parent / "py.typed").is_file()


def test_what_differs_from_aiohttp_is_told_with_the_tests_that_show_it() -> None:
    told = differences(PAGE.read_text("utf-8"))
    assert len(told) > 40
    assert len(set(told.values())) > 8
    assert all(test.split("::")[-1].startswith("test_") for test in told)


def test_the_tests_that_are_fetched_are_of_the_aiohttp_that_is_installed() -> None:
    makefile = (PAGE.parents[1] / "Makefile").read_text("utf-8")
    assert f"AIOHTTP_VERSION := {aiohttp.__version__}\n" in makefile
