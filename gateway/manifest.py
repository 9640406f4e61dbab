"""The manifest of an upload, and the list of what `/convert` made, as JSON: what is answered is what is stored."""

from __future__ import annotations

import io
import json

from gateway.model import Entry, Manifest, Output, Part, Receipt, text

__all__ = ["manifest_json", "results_json"]

_string = json.encoder.encode_basestring  # what json.dumps uses, ensure_ascii off
_ENTRIES_AT_ONCE = 512


def manifest_json(manifest: Manifest) -> bytes:
    """The stored and answered manifest, members in the documented order."""
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
    unusual = part.encodings if part.own_headers else ()
    if unusual or entry.verified or entry.findings or entry.output or entry.problem or len(digests) > bool(sha256):
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
    if receipt.missed is not None:
        return f'{{"sink": {_string(receipt.sink)}, "dropped": "{receipt.missed}"}}'
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
        **_encodings(part),
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


def results_json(manifest: Manifest) -> bytes:
    """What became of each file, in the order of the wire: the body of an answer of `/convert`."""
    entries = [entry for entry in manifest.entries if entry.part.is_file and (entry.receipts or entry.problem)]
    return json.dumps([_result(entry) for entry in entries], ensure_ascii=False).encode()


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
            **_encodings(part),
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


def _encodings(part: Part) -> dict[str, str]:
    """How a part says that its bytes are encoded, if it does: `content_encoding` and so on."""
    return {text(name).replace("-", "_"): text(value) for name, value in part.encodings}


def _receipt(receipt: Receipt, output: Output | None) -> dict[str, object]:
    document: dict[str, object] = {"sink": receipt.sink}
    if receipt.missed is not None:
        return document | {"dropped": receipt.missed}
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
