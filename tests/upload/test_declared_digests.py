"""Digests that a client declares are verified: on a part, or for a raw body on the request (RFC 9530, RFC 1864)."""

from __future__ import annotations

import base64
import hashlib
import io

import aiohttp
import pytest

from gateway.digests import declared_digests, verify
from gateway.errors import DigestMismatch, Malformed
from tests.conftest import StartDestination, StartGateway
from tests.support.flow_support import post


def declared(algorithm: str, body: bytes) -> str:
    return base64.b64encode(hashlib.new(algorithm, body).digest()).decode()


def headers_for(body: bytes) -> dict[str, str]:
    return {
        "Content-Digest": f"sha-256=:{declared('sha256', body)}:, sha-512=:{declared('sha512', body)}:",
        "Repr-Digest": f"sha-512=:{declared('sha512', body)}:",
        "Content-MD5": declared("md5", body),
    }


def multipart(body: bytes, headers: dict[str, str]) -> aiohttp.MultipartWriter:
    writer = aiohttp.MultipartWriter("form-data")
    part = writer.append(io.BytesIO(body), headers)
    part.headers["Content-Disposition"] = 'form-data; name="file"; filename="a"'
    return writer


@pytest.mark.parametrize("size", [0, 10, 3_000_000])
@pytest.mark.parametrize("name", ["Content-Digest", "Repr-Digest", "Content-MD5"])
async def test_a_wrong_declared_digest_is_400_and_nothing_is_kept(
    start_gateway: StartGateway, start_destination: StartDestination, name: str, size: int
) -> None:
    destination = await start_destination()
    gateway = await start_gateway(
        api=destination.url, routes=[{"path": "/in", "digests": [], "parts": [{"sinks": ["disk", "api"]}]}]
    )
    body = bytes(size)
    wrong = {name: headers_for(b"something else")[name]}
    for data, headers in ((multipart(body, wrong), {}), (io.BytesIO(body), wrong)):
        status, problem = await post(gateway, data, **headers)
        assert (status, problem["type"], problem["part"]) == (400, "/problems/digest-mismatch", 0)
        assert gateway.stored() == []
    async with aiohttp.ClientSession() as session, session.get(destination.url + "/seen") as response:
        assert (await response.json())["completed"] == 0


@pytest.mark.parametrize("size", [0, 10, 3_000_000])
async def test_a_right_declared_digest_is_confirmed_in_the_manifest_whether_listed_or_not(
    start_gateway: StartGateway, size: int
) -> None:
    gateway = await start_gateway(routes=[{"path": "/in", "digests": [], "parts": [{"sinks": ["disk"]}]}])
    body = bytes(size)
    right = headers_for(body)
    for data, headers in ((multipart(body, right), {}), (io.BytesIO(body), right)):
        status, manifest = await post(gateway, data, **headers)
        assert status == 201
        (part,) = manifest["parts"]
        assert part["sha256"] == hashlib.sha256(body).hexdigest()
        assert part["digests"] == {
            "sha512": hashlib.sha512(body).hexdigest(), "md5": hashlib.md5(body).hexdigest(),
        }  # fmt: skip
        assert sorted(part["verified"]) == ["md5", "sha256", "sha512"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Digest": "sha-256=abc"},
        {"Content-Digest": "sha-256=:not base64:"},
        {"Content-Digest": "sha-256=:YQ==: nonsense"},
        {"Content-MD5": "!"},
    ],
)
async def test_a_declared_digest_that_cannot_be_read_is_malformed(
    start_gateway: StartGateway, headers: dict[str, str]
) -> None:
    gateway = await start_gateway()
    status, problem = await post(gateway, b"abc", "/upload", **headers)
    assert (status, problem["type"]) == (400, "/problems/malformed")
    assert gateway.stored() == []


def test_unknown_algorithms_and_parameters_are_ignored() -> None:
    value = b"crc32c=:AAAA:, sha-256=:YWI=:;x=1, unixsum=:AA==:"
    assert declared_digests([(b"content-digest", value)]) == [("sha256", "6162")]


def test_nothing_declared_is_nothing_to_verify() -> None:
    assert declared_digests([(b"content-type", b"text/plain")]) == []
    assert verify([], {}, part=0) == []


def test_a_digest_of_the_wrong_length_is_a_mismatch() -> None:
    with pytest.raises(DigestMismatch):
        verify([("sha256", "6162")], {"sha256": "00" * 32}, part=3)
    with pytest.raises(Malformed):
        declared_digests([(b"content-digest", b"sha-256")])


@pytest.mark.parametrize("size", [10, 3_000_000])
async def test_what_one_part_declares_is_not_held_against_the_next(start_gateway: StartGateway, size: int) -> None:
    gateway = await start_gateway()
    body = bytes(size)
    writer = multipart(body, headers_for(body))
    for name in ("second", "third"):
        part = writer.append(b"something else")
        part.headers["Content-Disposition"] = f'form-data; name="{name}"; filename="b"'
    status, manifest = await post(gateway, writer, path="/upload")
    assert status == 201
    assert ["verified" in part for part in manifest["parts"]] == [True, False, False]
