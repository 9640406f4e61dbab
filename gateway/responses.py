"""What the client reads: the manifest, problems, a destination's answer streamed through."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import socket
import struct

from aiohttp import ClientError, ClientResponse, hdrs, web

from gateway.errors import GatewayError
from gateway.forwarding import answer_headers
from gateway.model import Entry, Manifest, Output, Receipt, text

__all__ = [
    "add_nothing",
    "converted",
    "created",
    "delivered",
    "manifest_json",
    "passed_through",
    "problem",
    "problem_document",
    "reset",
]

log = logging.getLogger("gateway.responses")

_string = json.encoder.encode_basestring  # what json.dumps uses, ensure_ascii off
_PROBLEM = "application/problem+json"
_WRITE_BYTES = 64 << 10
_ENTRIES_AT_ONCE = 512
PASSED_THROUGH = web.ResponseKey("passed_through", list[str])


def manifest_json(manifest: Manifest) -> bytes:
    """The manifest of design section 6, members in its order."""
    # Written bit by bit: of 32768 parts it is 9 MB, and joining strings, then encoding them, would hold it four times.
    document = io.BytesIO()
    document.write(b'{"upload": %b, "parts": [' % _string(manifest.upload).encode())
    for start in range(0, len(manifest.entries), _ENTRIES_AT_ONCE):
        entries = ", ".join(map(_entry, manifest.entries[start : start + _ENTRIES_AT_ONCE]))
        document.write(b", " + entries.encode() if start else entries.encode())
    document.write(b"]}")
    return document.getvalue()


def _entry(entry: Entry) -> str:
    """The usual entry by hand, at a quarter of the price of json.dumps; there may be a hundred thousand of them."""
    part, digests = entry.part, entry.digests
    sha256 = digests.get("sha256") if digests else None
    if entry.verified or entry.findings or entry.output or entry.problem or len(digests) > (sha256 is not None):
        return json.dumps(_document(entry), ensure_ascii=False)
    filename = "null" if part.raw_filename is None else _string(text(part.raw_filename))
    content_type = "null" if part.content_type is None else _string(text(part.content_type))
    digest = "null" if sha256 is None else f'"{sha256}"'
    value = "" if part.is_file else f', "value": {"null" if entry.value is None else _string(entry.value)}'
    receipts = ", ".join([_usual_receipt(receipt) for receipt in entry.receipts])
    return (
        f'{{"index": {part.index}, "name": {_string(text(part.raw_name))}, "filename": {filename}, '
        f'"content_type": {content_type}, "size": {entry.size}, "sha256": {digest}{value}, "receipts": [{receipts}]}}'
    )


def _usual_receipt(receipt: Receipt) -> str:
    if receipt.dropped is not None:
        return f'{{"sink": {_string(receipt.sink)}, "dropped": "{receipt.dropped}"}}'
    location = "null" if receipt.location is None else _string(receipt.location)
    status = "" if receipt.status is None else f', "status": {receipt.status}'
    return f'{{"sink": {_string(receipt.sink)}{status}, "location": {location}}}'


def _document(entry: Entry) -> dict[str, object]:
    part = entry.part
    document: dict[str, object] = {
        "index": part.index,
        "name": part.name,
        "filename": part.filename,
        "content_type": None if part.content_type is None else text(part.content_type),
        "size": entry.size,
        "sha256": entry.digests.get("sha256"),
    }
    if not part.is_file:
        document["value"] = entry.value
    others = {algorithm: digest for algorithm, digest in entry.digests.items() if algorithm != "sha256"}
    if others:
        document["digests"] = others
    if entry.verified:
        document["verified"] = list(entry.verified)
    if entry.findings:
        document["findings"] = dict(entry.findings)
    if entry.problem is not None:
        document["problem"] = dict(entry.problem)
    document["receipts"] = [_receipt(receipt, entry.output) for receipt in entry.receipts]
    return document


def converted(manifest: Manifest, kept: bytes | None) -> web.Response:
    """200 and the list of results, one per file, in the order of the wire; 207 if one has a problem."""
    entries = [entry for entry in manifest.entries if entry.part.is_file and (entry.receipts or entry.problem)]
    document = [_result(entry) for entry in entries]
    status = 207 if manifest.partial else 200
    response = web.Response(status=status, body=_json(document), content_type="application/json")
    if kept is not None:
        response.headers[hdrs.LOCATION] = f"/uploads/{manifest.upload}"
    return response


def _result(entry: Entry) -> dict[str, object]:
    part, output = entry.part, entry.output
    content_type = None if part.content_type is None else text(part.content_type)
    location = next((receipt.location for receipt in entry.receipts if receipt.location), None)
    sha256 = entry.digests.get("sha256")
    document: dict[str, object] = {
        "index": part.index,
        "input": {
            "name": part.name,
            "filename": part.filename,
            "content_type": content_type,
            "size": entry.size,
            "sha256": sha256,
        },
        "findings": dict(entry.findings),
    }
    if entry.problem is not None:
        return document | {"output": None, "problem": dict(entry.problem)}
    return document | {
        "output": {
            "filename": output.filename if output else part.filename,
            "content_type": output.content_type if output else content_type,
            "size": output.size if output else entry.size,
            "sha256": output.sha256 if output else sha256,
            "location": location,
        },
    }


def _receipt(receipt: Receipt, output: Output | None) -> dict[str, object]:
    document: dict[str, object] = {"sink": receipt.sink}
    if receipt.dropped is not None:
        return document | {"dropped": receipt.dropped}
    if receipt.status is not None:
        document["status"] = receipt.status
    document["location"] = receipt.location
    if output is not None:
        document |= {
            "filename": output.filename,
            "content_type": output.content_type,
            "size": output.size,
            "sha256": output.sha256,
        }
    return document


def _json(document: object) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode()


def created(manifest: Manifest, kept: bytes | None) -> web.Response:
    """201 and the manifest, or 207 if a part has a problem.

    `kept` is the one that was stored, and so can be fetched again.
    """
    headers = None if kept is None else {hdrs.LOCATION: f"/uploads/{manifest.upload}"}
    body = manifest_json(manifest) if kept is None else kept
    return web.Response(
        status=207 if manifest.partial else 201, body=body, content_type="application/json", headers=headers
    )


def problem_document(error: GatewayError, *, instance: str | None = None) -> dict[str, object]:
    """The members of a problem (RFC 9457)."""
    document: dict[str, object] = {"type": f"/problems/{error.slug()}", "title": error.title, "status": error.status}
    if error.detail:
        document["detail"] = error.detail
    if instance is not None:
        document["instance"] = instance
    return document | error.members


def problem(
    error: GatewayError, *, instance: str | None = None, close: bool = False, proxy_status: str | None = None
) -> web.Response:
    """An error as problem+json (RFC 9457). `close` ends the connection with it: its body was not read."""
    document = problem_document(error, instance=instance)
    response = web.Response(status=error.status, body=json.dumps(document).encode(), content_type=_PROBLEM)
    if error.retry_after_seconds is not None:
        response.headers[hdrs.RETRY_AFTER] = str(error.retry_after_seconds)
    if proxy_status is not None:
        response.headers["Proxy-Status"] = proxy_status
    if close:
        response.force_close()
    return response


async def passed_through(
    request: web.Request,
    answer: ClientResponse,
    *,
    stall_seconds: float,
    idle_seconds: float,
    close: bool,
    location: str | None = None,
) -> web.StreamResponse:
    """A destination's answer: its status, end-to-end headers and body, streamed. Where a good one has no
    Location, `location` is it.

    One that breaks, or stalls for `stall_seconds`, after its headers went out breaks the client's connection:
    never a clean end. So does a client that takes nothing for `idle_seconds`.
    """
    response = web.StreamResponse(status=answer.status, reason=answer.reason)
    version = answer.version
    protocol = "1.1" if version is None else f"{version.major}.{version.minor}"
    for name, value in answer_headers(answer.headers.items(), status=answer.status, protocol=protocol):
        if name.lower() == "content-length":
            response.content_length = int(value)
        else:
            response.headers.add(name, value)
    if location is not None and 200 <= answer.status < 300:
        response.headers.setdefault(hdrs.LOCATION, location)
    response.headers.setdefault("X-Accel-Buffering", "no")  # nginx in front of us is to stream it as we do
    response[PASSED_THROUGH] = [name for name in ("Content-Type", "Server") if name not in answer.headers]
    if close:
        response.force_close()
    connection = answer.connection
    closed = connection.protocol.closed if connection is not None and connection.protocol is not None else None
    if closed is not None:
        closed.add_done_callback(lambda done: done.cancelled() or done.exception())  # or asyncio logs a traceback
    await response.prepare(request)
    while True:
        try:
            async with asyncio.timeout(stall_seconds or None):
                data = await answer.content.readany()
            if not data and closed is not None and closed.done() and not closed.cancelled():
                closed.result()  # a body that ends with its connection ends cleanly for aiohttp even by a RST
        except (ClientError, OSError) as error:
            log.info("the answer of %s broke off: %r", answer.url.host, error)
            reset(request)
            return response
        # Not in that try: the client's own hang-up is a ClientError, too.
        if not await _written(request, response, data, idle_seconds) or not data:
            return response


async def delivered(request: web.Request, response: web.Response, *, idle_seconds: float) -> web.StreamResponse:
    """A document of ours; one larger than a socket takes at once is sent before the upload's slot is given back."""
    body = response.body
    if not isinstance(body, bytes) or len(body) <= _WRITE_BYTES:
        return response
    stream = web.StreamResponse(status=response.status, headers=response.headers)
    stream.content_length = len(body)
    if response.keep_alive is False:
        stream.force_close()
    await stream.prepare(request)
    if await _written(request, stream, body, idle_seconds):
        await _written(request, stream, b"", idle_seconds)
    return stream


async def _written(request: web.Request, response: web.StreamResponse, data: bytes, idle_seconds: float) -> bool:
    """Write data, or with none the end. False if the client took nothing for `idle_seconds`: then it is cut off.

    In slices, so that the clock is about slow, not about much.
    """
    try:
        for start in range(0, len(data), _WRITE_BYTES):
            async with asyncio.timeout(idle_seconds or None):
                await response.write(data[start : start + _WRITE_BYTES])
        if not data:
            async with asyncio.timeout(idle_seconds or None):
                await response.write_eof()
    except TimeoutError:
        log.info("the client took nothing of its answer for %g s", idle_seconds)
        reset(request)
        return False
    return True


async def add_nothing(request: web.Request, response: web.StreamResponse) -> None:
    """A signal handler: aiohttp adds headers of its own to a destination's answer, take them out again."""
    for name in response.get(PASSED_THROUGH, ()):
        response.headers.popall(name, None)


def reset(request: web.Request) -> None:
    """Break the client's connection with a RST: a FIN would look like the end of a close-delimited body."""
    transport = request.transport
    if transport is None:
        return
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
