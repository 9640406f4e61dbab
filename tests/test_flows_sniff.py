"""What a file really is: recorded, required to match, allowed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import StartGateway
from tests.flow_support import fetch, form, post, route


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
