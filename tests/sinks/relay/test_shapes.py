"""The shape of the one request of an upload: parts renamed, left out, with fields added, fields first."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from tests.conftest import RunningGateway, StartGateway
from tests.contract import nothing_left_running, sha256
from tests.sinks.relay.test_per_part import field, seen
from tests.support.clients import BOUNDARY, Answer, Client, ask, eventually, file, form, head, random_bytes
from tests.support.doubles import ChoosyUpstream, HonestUpstream, Upstream, closed_port

MIB = 1 << 20


async def shaped(start_gateway: StartGateway, upstream: Upstream, **keys: Any) -> RunningGateway:
    """`/upload` relays and answers the manifest, `/proxy` passes the answer on, `/both` keeps the files, too."""
    limits = keys.pop("limits", {})
    return await start_gateway(
        api=upstream.url,
        sinks={"api": keys},
        routes=[
            {"path": "/upload", "parts": [{"sinks": ["api"]}]},
            {"path": "/proxy", "kind": "relay", "digests": [], "parts": [{"sinks": ["api"]}]},
            {"path": "/both", "parts": [{"sinks": ["disk", "api"]}]},
            {"path": "/gzip", "digests": [], "parts": [{"flows": ["gzip"], "sinks": ["api"]}]},
        ],
        limits=limits,
    )


async def post(gateway: RunningGateway, *parts: bytes, path: str = "/upload") -> Answer:
    return await ask(gateway.port, path, "POST", form(*parts))


def mixed(*parts: bytes) -> bytes:
    return form(
        *(part.replace(b"Content-Disposition: form-data", b"Content-Disposition: attachment") for part in parts)
    )


async def test_no_field_overtakes_a_file_whose_task_has_not_begun(start_gateway: StartGateway) -> None:
    """Files that are whole in one buffer, and too large to go with the fields around them."""
    names = [f"{name}{number}" for number in range(40) for name in ("before", "file", "after")]
    parts = [file(bytes(300_000), "f", name) if name[0] == "f" else field(name, b"") for name in names]
    async with HonestUpstream() as upstream:
        gateway = await shaped(start_gateway, upstream)
        for _ in range(20):
            assert (await post(gateway, file(bytes(MIB), "f", "first"), *parts)).status == 201
        for exchange in upstream.exchanges:
            assert [name for name, _, _ in seen(exchange)] == ["first", *names]


@pytest.mark.parametrize("path", ["/upload", "/proxy", "/both"])
@pytest.mark.parametrize("size", [10, 100_000, 3 * MIB])
@pytest.mark.parametrize("length", ["chunked", "spool"])
async def test_parts_are_renamed_left_out_and_added_and_their_order_is_kept(
    start_gateway: StartGateway, path: str, size: int, length: str
) -> None:
    data = random_bytes(size)
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await shaped(
            start_gateway,
            upstream,
            length=length,
            rename={"file": "upload", "note": "remark"},
            drop=["secret"],
            add_before={"source": "gateway", "request": "{request_id}"},
            add_after={"end": "{upload}", "{name}_size": "{size}", "{name}_sha256": "{index} {sha256}"},
        )
        async with nothing_left_running():
            answer = await ask(
                gateway.port,
                path,
                "POST",
                form(
                    field("note", b"1"),
                    file(data, "a"),
                    file(data, "s", "secret"),
                    field("secret", b"x"),
                    file(b"", ""),
                    file(data + b"b", "b", "other"),
                    field("note", b"2"),
                ),
                x_request_id="r-1",
            )
        assert answer.status == (200 if path == "/proxy" else 201)
        (exchange,) = upstream.exchanges
        parts = seen(exchange)
        assert parts[:-1] == [
            ("source", None, b"gateway"),
            ("request", None, b"r-1"),
            ("remark", None, b"1"),
            ("upload", "a", data),
            ("upload", "", b""),
            ("other", "b", data + b"b"),
            ("remark", None, b"2"),
            ("upload_size", None, b"%d" % size),
            ("upload_sha256", None, f"1 {sha256(data)}".encode()),
            ("other_size", None, b"%d" % (size + 1)),
            ("other_sha256", None, f"5 {sha256(data + b'b')}".encode()),
        ]
        assert parts[-1][0] == "end"
    if path != "/proxy":
        manifest = answer.json()
        assert parts[-1][2].decode() == manifest["upload"]
        names = [part["name"] for part in manifest["parts"]]
        assert names == ["note", "file", "secret", "secret", "file", "other", "note"]
        gets = [[receipt["sink"] for receipt in part["receipts"]] for part in manifest["parts"]]
        disk = ["disk"] if path == "/both" else []
        assert gets == [[], [*disk, "api"], disk, [], [], [*disk, "api"], []]


@pytest.mark.parametrize("size", [10, 2 * MIB])
async def test_what_is_told_of_a_file_is_of_what_flows_made_of_it(start_gateway: StartGateway, size: int) -> None:
    async with HonestUpstream() as upstream:
        gateway = await shaped(start_gateway, upstream, add_after={"t": "{filename} {content_type} {size} {sha256}"})
        answer = await post(gateway, file(random_bytes(size), "a"), path="/gzip")
        (_, filename, data), (_, _, told) = seen(upstream.exchanges[0])
    assert filename == "a.gz"
    assert told.decode() == f"a.gz application/gzip {len(data)} {sha256(data)}"
    (part,) = answer.json()["parts"]
    assert part["receipts"][0]["sha256"] == sha256(data)
    assert part["sha256"] is not None  # computed although the route has no digests


async def test_names_and_values_are_bytes_as_they_came(start_gateway: StartGateway) -> None:
    name = b'%22a\xff{size}"'
    part = b'--%s\r\nContent-Disposition: form-data; name="%s"; filename="x"\r\n\r\nd' % (BOUNDARY, name[:-1])
    async with HonestUpstream() as upstream:
        gateway = await shaped(start_gateway, upstream, add_after={"{name}\r\n": "{filename}\r\n--b--"})
        assert (await post(gateway, part)).status == 201
        wire = bytes(upstream.exchanges[0].body)
    assert b'name="%22a\xff{size}%0D%0A"\r\n\r\nx\r\n--b--\r\n--' in wire


@pytest.mark.parametrize("kind", ["raw", "form"])
async def test_an_upload_of_which_all_is_left_out_makes_no_request(start_gateway: StartGateway, kind: str) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await shaped(start_gateway, upstream, drop=["file", "note"], add_before={"a": "b"})
        body, content_type = (b"x", "a/b") if kind == "raw" else (form(file(b"x"), field("note", b"1")), None)
        kwargs: dict[str, Any] = {} if content_type is None else {"content_type": content_type}
        answer = await ask(gateway.port, "/upload", "POST", body, **kwargs)
        assert (answer.status, answer.json()["parts"][0]["receipts"]) == (201, [])
        assert upstream.exchanges == []
        # where the answer is the destination's there is one, of what is added
        assert (await ask(gateway.port, "/proxy", "POST", body, **kwargs)).status == 200
        assert seen(upstream.exchanges[0]) == [("a", None, b"b")]


@pytest.mark.tracebacks
async def test_a_relay_that_got_nothing_has_kept_nothing(start_gateway: StartGateway) -> None:
    """So a failure of the next sink is no Incomplete."""
    async with HonestUpstream() as upstream:
        gateway = await start_gateway(
            api=upstream.url,
            sinks={
                "api": {"drop": ["file"]},
                "fails": {"type": "tests.support.doubles:FailingCommitSink", "name": "fails"},
            },
            routes=[{"path": "/upload", "parts": [{"sinks": ["api", "fails"]}]}],
        )
        assert (await post(gateway, file(b"x"))).status == 503
        assert (await post(gateway, file(b"x"), field("a", b"1"))).status == 502
    assert len(upstream.exchanges) == 1


# -- lengths


@pytest.mark.parametrize("left_out", [False, True])
async def test_the_length_of_a_shaped_form_around_a_raw_body_is_known(
    start_gateway: StartGateway, left_out: bool
) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await shaped(
            start_gateway,
            upstream,
            length="known",
            rename={} if left_out else {"file": "upload"},
            drop=["file"] if left_out else [],
            add_before={"a": "{upload}"},
            add_after={"{name}": "{size} {sha256}", "end": "1"},
        )
        for data in (b"", b"x", random_bytes(MIB)):
            assert (await ask(gateway.port, "/upload/a", "PUT", data, content_type="a/b")).status == 201
            if left_out:  # on this route that is no request at all
                assert upstream.exchanges == []
                assert (await ask(gateway.port, "/proxy", "POST", data, content_type="a/b")).status == 200
                exchange = upstream.exchanges.pop()
            else:
                exchange = upstream.exchanges[-1]
            told = [] if left_out else [("upload", "a", data), ("upload", None, f"{len(data)} {sha256(data)}".encode())]
            assert exchange.length == len(exchange.body)
            assert seen(exchange)[1:] == [*told, ("end", None, b"1")]


async def test_a_shaped_body_is_sent_again_elsewhere(start_gateway: StartGateway) -> None:
    async with HonestUpstream() as upstream:
        gateway = await start_gateway(
            sinks={"api": {"urls": [closed_port(), upstream.url], "add_before": {"a": "b"}, "add_after": {"c": "d"}}},
            routes=[{"path": "/upload", "parts": [{"sinks": ["api"]}]}],
        )
        for _ in range(4):
            assert (await post(gateway, file(b"x"))).status == 201
        assert [[name for name, _, _ in seen(one)] for one in upstream.exchanges] == [["a", "file", "c"]] * 4


# -- other multiparts


async def test_what_is_no_form_keeps_its_shape(start_gateway: StartGateway) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await shaped(
            start_gateway,
            upstream,
            drop=["file"],
            add_before={"a": "b"},
            add_after={"c": "{sha256}"},
            fields_first_bytes=1,
        )
        body = mixed(file(b"one", "a"), file(b"two", "b"))
        kind = f"multipart/mixed; boundary={BOUNDARY.decode()}"
        assert (await ask(gateway.port, "/proxy", "POST", body, content_type=kind)).status == 200
        wire = bytes(upstream.exchanges[0].body)
    assert wire.count(b"\r\n\r\none\r\n") == wire.count(b"\r\n\r\ntwo\r\n") == 1
    assert wire.count(b"--" + wire[2:].partition(b"\r\n")[0]) == 3


# -- fields first


@pytest.mark.parametrize("length", ["chunked", "spool"])
async def test_all_fields_go_before_all_files(start_gateway: StartGateway, length: str) -> None:
    large = random_bytes(400_000)
    async with HonestUpstream() as upstream:
        gateway = await shaped(
            start_gateway,
            upstream,
            length=length,
            fields_first_bytes=400_008,
            add_before={"first": ""},
            add_after={"{name}": "{sha256}"},
        )
        parts = [
            file(b"one", "1"),
            field("a", b"A"),
            file(large, "2"),
            file(b"", ""),
            field("b", b"B" * 100_000),
            file(b"three", "3"),
            field("c", b""),
        ]
        async with nothing_left_running():
            assert (await post(gateway, *parts)).status == 201
        assert seen(upstream.exchanges[0]) == [
            ("first", None, b""),
            ("a", None, b"A"),
            ("b", None, b"B" * 100_000),
            ("c", None, b""),
            ("file", "1", b"one"),
            ("file", "2", large),
            ("file", "", b""),
            ("file", "3", b"three"),
            *[("file", None, sha256(data).encode()) for data in (b"one", large, b"three")],
        ]


async def test_files_alone_go_as_well(start_gateway: StartGateway) -> None:
    async with HonestUpstream() as upstream:
        gateway = await shaped(start_gateway, upstream, fields_first_bytes=100)
        assert (await post(gateway, file(b"x", "a"))).status == 201
        assert seen(upstream.exchanges[0]) == [("file", "a", b"x")]


@pytest.mark.parametrize("sizes", [[101], [50, 51], [MIB], [100, 3 * MIB]])
@pytest.mark.parametrize("path", ["/upload", "/proxy"])
async def test_more_bytes_than_may_wait_are_too_large(start_gateway: StartGateway, sizes: list[int], path: str) -> None:
    async with HonestUpstream(200, b"{}") as upstream:
        gateway = await shaped(start_gateway, upstream, fields_first_bytes=100)
        async with nothing_left_running():
            answer = await post(gateway, field("a", b"1"), *[file(bytes(size)) for size in sizes], path=path)
        assert (answer.status, answer.json()["type"]) == (413, "/problems/too-large")
        assert answer.json()["limit"] == 100
        await eventually(lambda: all(one.lost for one in upstream.exchanges))
        assert not upstream.saw_a_whole_body
        # and so much may
        assert (await post(gateway, file(bytes(60)), file(bytes(40)), file(b""), path=path)).status in (200, 201)


async def test_no_closing_delimiter_goes_before_the_end_of_the_body(start_gateway: StartGateway) -> None:
    body = form(file(b"x" * 1000, "a"), field("a", b"1"))
    async with HonestUpstream() as upstream:
        gateway = await shaped(start_gateway, upstream, fields_first_bytes=2000, add_after={"c": "{sha256}"})
        for cut in range(len(body) - 30, len(body)):
            async with Client(gateway.port) as client:
                await client.send(head(content_length=cut, connection="close") + body[:cut])
                answer = await client.answer()
            assert answer.status == (400 if cut < len(body) - 2 else 201)
            await eventually(lambda: all(one.complete or one.lost for one in upstream.exchanges))
        assert len(upstream.whole_bodies) == 2
        assert not any(b"x" * 1000 in one.body for one in upstream.exchanges if not one.complete)


async def test_a_destination_that_dies_while_files_wait(start_gateway: StartGateway) -> None:
    async with ChoosyUpstream(b"poison", "die") as upstream:
        gateway = await shaped(start_gateway, upstream, fields_first_bytes=MIB, replay_bytes=0)
        body = form(field("a", b"poison" * 20_000), file(b"x", "a"))
        async with nothing_left_running(), Client(gateway.port) as client:
            await client.send(head(content_length=len(body), connection="close") + body[:-4])
            await asyncio.sleep(0.3)
            with contextlib.suppress(ConnectionError):
                await client.send(body[-4:])
            answer = await client.answer()
        assert (answer.status, answer.json()["type"]) == (502, "/problems/sink-refused")
