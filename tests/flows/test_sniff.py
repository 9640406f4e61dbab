"""What a file really is: recorded, required to match, allowed."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import pytest

from gateway.config.messages import ConfigError
from tests.conftest import StartGateway
from tests.support.flow_support import fetch, form, post, route


@pytest.mark.parametrize(
    ("options", "declared", "body", "status"),
    [
        ({}, "text/plain", b"\x89PNG\r\n\x1a\n" + bytes(100), 201),
        ({"policy": "require_match"}, "image/png", b"\x89PNG\r\n\x1a\n" + bytes(100), 201),
        ({"policy": "require_match"}, "image/jpeg", b"\x89PNG\r\n\x1a\n" + bytes(100), 422),
        ({"policy": "require_match"}, "application/octet-stream", b"\x89PNG\r\n\x1a\n" + bytes(100), 201),
        ({"allow": ["image/*"]}, "text/plain", b"\x89PNG\r\n\x1a\n" + bytes(100), 201),
        ({"allow": ["application/pdf"]}, "application/pdf", b"\x89PNG\r\n\x1a\n" + bytes(100), 422),
        ({"allow": ["application/pdf"]}, "application/pdf", b"%PDF-1.7\n", 201),
        ({"allow": ["image/*"]}, "image/png", b"", 422),
    ],
)
async def test_sniff_looks_at_the_first_bytes(
    start_gateway: StartGateway, options: dict[str, Any], declared: str, body: bytes, status: int
) -> None:
    gateway = await start_gateway(flows={"sniff": options}, routes=route("sniff"))
    answered, document = await post(gateway, form(("a", body), content_type=declared))
    assert answered == status
    if status == 201:
        (part,) = document["parts"]
        found = part["findings"]["sniff"]["content_type"]
        assert found == ("image/png" if body.startswith(b"\x89PNG") else "application/pdf")
        assert part["receipts"] == [{"sink": "disk", "location": part["receipts"][0]["location"]}]  # bytes unchanged
        assert await fetch(gateway, part["receipts"][0]["location"]) == body


def _zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.txt", "a")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("body", "found", "declared", "same"),
    [
        (_zip(), "application/zip", "application/vnd.openxmlformats-officedocument.wordprocessingml.document", True),
        (_zip(), "application/zip", "application/java-archive", True),
        (_zip(), "application/zip", "image/png", False),
        (b"BM" + bytes(60), "image/bmp", "image/bmp", True),
        (b'{"a": 1}', None, "text/plain", True),
        (b"a,b\n1,2\n", "text/plain", "text/csv", True),
        (b"<?xml version='1.0'?><svg/>", None, "image/svg+xml", True),
        (b"plain words", "text/plain", "application/pdf", False),
    ],
)
async def test_families_match_and_strangers_do_not(
    start_gateway: StartGateway, body: bytes, found: str | None, declared: str, same: bool
) -> None:
    gateway = await start_gateway(routes=route("sniff"))
    _, manifest = await post(gateway, form(("a", body), content_type=declared))
    findings = manifest["parts"][0]["findings"]["sniff"]
    assert findings["match"] is same
    assert found is None or findings["content_type"] == found


async def test_a_zip_is_allowed_by_its_own_name_or_by_that_of_its_family(start_gateway: StartGateway) -> None:
    office = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
    for allow, declared, status in (
        ("application/zip", "application/zip", 201),
        ("application/vnd.openxmlformats-*", office, 201),
        ("application/vnd.openxmlformats-*", "application/zip", 422),
    ):
        gateway = await start_gateway(flows={"sniff": {"allow": [allow]}}, routes=route("sniff"))
        answered, _ = await post(gateway, form(("a", _zip()), content_type=declared))
        assert answered == status


@pytest.mark.parametrize(
    ("flow", "options"),
    [
        ("sniff", {"policy": "x"}), ("sniff", {"allow": "image/*"}), ("gzip", {"level": 99}), ("zstd", {"level": "9"}),
        ("lines", {"ending": "cr"}), ("gunzip", {"max_ratio": -1}), ("gzip", {"levle": 1}),
    ],
)  # fmt: skip
async def test_options_that_mean_nothing_are_errors_of_the_configuration(
    start_gateway: StartGateway, flow: str, options: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=f"flows.{flow}"):
        await start_gateway(flows={flow: options})
