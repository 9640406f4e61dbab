"""The manifest of an upload, and the list of what `/convert` made, as JSON: what is answered is what is stored."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence

from gateway.errors import TooLarge
from gateway.model import Entry, Limits, Manifest, Output, Part, Receipt, text

__all__ = ["BETWEEN", "HEAD_BYTES", "ManifestText", "is_long", "memory_shares", "owner_in", "results_json"]

_string = json.encoder.encode_basestring  # what json.dumps uses, ensure_ascii off
BETWEEN = b"\t"
"""Within a string of JSON a tab is escaped. No line feed: a manifest is one line, for who takes it apart in a shell."""
HEAD_BYTES = 4096
"""Whose it is stands in these: a name has 256 characters at most."""
_OWNED = re.compile(rb'\{"upload": "[0-9A-Z]+", "identity": ')
_SIZE = re.compile(', "size": ([0-9]+)')
_LONG_PARTS, _LONG_BYTES = 256, 64 << 10
"""What takes longer than to have it done in another thread: so many parts, or so many bytes of names and values."""
_RECEIPT_BYTES = 128
_LOCATED_BYTES = 3 * 200
"""What a receipt may take, and the file name in its location: they are written when nothing can be refused any more."""


def memory_shares(limits: Limits, received: int, *, is_told: bool, lists_results: bool) -> dict[str, int]:
    """What is held of one upload's manifest at most, in bytes, by what.

    What it will say of the parts is looked at each time that something was `received`. Then, where it `is_told`, the
    text of each part is held, and all of it with their receipts; and the list of results, which says less.
    """
    return {
        "names, headers and values of parts": limits.max_manifest_bytes + received,
        "the manifest": 2 * limits.max_manifest_bytes if is_told else 0,
        "the list of results": limits.max_manifest_bytes if lists_results else 0,
    }


class ManifestText:
    """The manifest as JSON, with BETWEEN before each part, so that one of them can be read alone.

    What is known of the parts is written before anything is committed, receipts at the end of each when they are there.
    `limit`: how many bytes all of it may have; 0 is unlimited.
    """

    def __init__(self, manifest: Manifest, *, sinks: Sequence[str], limit: int) -> None:
        self._manifest = manifest
        self._receipts_bytes = sum(_RECEIPT_BYTES + len(name) for name in sinks)
        self._located = len(sinks)
        self._limit = limit
        self._begun: list[bytes] = []

    @property
    def is_limited(self) -> bool:
        """Whether `begin` may raise, and so has to be called before anything is committed."""
        return bool(self._limit)

    @property
    def is_long(self) -> bool:
        """Whether the others would notice that it is written."""
        return is_long(self._manifest)

    def begin(self) -> None:
        """All but the receipts. Raises TooLarge."""
        size = 0
        raw_name = raw_type = None
        for entry in self._manifest.entries:
            if entry.part.raw_name is not raw_name:  # parts of one form share them (codec.py)
                raw_name = entry.part.raw_name
                name = _string(text(raw_name))
            if entry.part.content_type is not raw_type or raw_type is None:
                raw_type = entry.part.content_type
                content_type = "null" if raw_type is None else _string(text(raw_type))
            begun = _begun(entry, name, content_type).encode()
            self._begun.append(begun)
            filename = 0 if entry.part.raw_filename is None else 3 * len(entry.part.raw_filename)
            size += len(begun) + self._receipts_bytes + self._located * min(filename, _LOCATED_BYTES)
            if entry.output is not None:  # each receipt has it
                told = json.dumps([entry.output.filename, entry.output.content_type], ensure_ascii=False)
                size += self._located * len(told.encode())
            if self._limit and size > self._limit:
                raise TooLarge(f"the manifest has more than {self._limit} bytes", limit=self._limit)

    def finish(self) -> bytes:
        """With the receipts that there are now."""
        if not self._begun:
            self.begin()
        document = io.BytesIO()
        document.write(_head(self._manifest))
        comma = b""
        for begun, entry in zip(self._begun, self._manifest.entries, strict=True):
            receipts = entry.receipts
            if entry.output is not None:
                told = ", ".join([json.dumps(_receipt(one, entry.output), ensure_ascii=False) for one in receipts])
            else:
                told = ", ".join([_usual_receipt(one) for one in receipts])
            document.write(b"%b%b%b%b]}" % (comma, BETWEEN, begun, told.encode()))
            comma = b","
        document.write(b"]}\n")
        return document.getvalue()


def is_long(manifest: Manifest) -> bool:
    """Whether writing it takes so long that others would notice."""
    entries = manifest.entries
    return len(entries) > _LONG_PARTS or _named_bytes(entries) > _LONG_BYTES


def _head(manifest: Manifest) -> bytes:
    """Up to the parts: whose it is, and how much, stands before all that is long."""
    identity = f', "identity": {_string(manifest.identity)}, "size": {_size(manifest)}' if manifest.identity else ""
    metadata = f', "metadata": {json.dumps(manifest.metadata, ensure_ascii=False)}' if manifest.metadata else ""
    return f'{{"upload": {_string(manifest.upload)}{identity}{metadata}, "parts": ['.encode("utf-8", "replace")


def _size(manifest: Manifest) -> int:
    """The bytes of its files, each once, whoever of the sinks has it."""
    files = [entry for entry in manifest.entries if entry.part.is_file and entry.problem is None]
    return sum(entry.size if entry.output is None else entry.output.size for entry in files)


def owner_in(head: bytes) -> tuple[str, int]:
    """(whose an upload is, how many bytes its files have), as the beginning of its manifest says; ("", 0): nobody's.

    `head` has HEAD_BYTES, or all of it. Raises ValueError for what does not go on like a manifest.
    """
    if (found := _OWNED.match(head)) is None:
        return "", 0
    rest = head[found.end() :].decode("utf-8", "ignore")
    owner, end = json.JSONDecoder().raw_decode(rest)
    size = _SIZE.match(rest, end)
    return str(owner), int(size[1]) if size else 0


def _named_bytes(entries: Sequence[Entry]) -> int:
    return sum(
        len(entry.part.raw_name) + len(entry.part.raw_filename or b"") + len(entry.raw_value or b"")
        for entry in entries
    )


def _begun(entry: Entry, name: str, content_type: str) -> str:
    """A part in the manifest, up to its receipts, with its name and type as JSON.

    The usual one by hand, at a quarter of the price of json.dumps; there may be a hundred thousand of them.
    """
    part, digests = entry.part, entry.digests
    sha256 = digests.get("sha256") if digests else None
    unusual = part.encodings if part.own_headers else ()
    if unusual or entry.verified or entry.findings or entry.problem or len(digests) > bool(sha256):
        return json.dumps(_document(entry), ensure_ascii=False)[:-1] + ', "receipts": ['
    filename = "null" if part.raw_filename is None else _string(text(part.raw_filename))
    digest = "null" if sha256 is None else f'"{sha256}"'
    value = ""
    if not part.is_file:
        value = f', "value": {"null" if entry.raw_value is None else _string(entry.raw_value.decode())}'
        if entry.value_truncated:
            value += ', "value_truncated": true'
    return (
        f'{{"index": {part.index}, "name": {name}, "filename": {filename}, '
        f'"content_type": {content_type}, "size": {entry.size}, "sha256": {digest}{value}, "receipts": ['
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
        if entry.value_truncated:
            document["value_truncated"] = True
    others = {algorithm: digest for algorithm, digest in entry.digests.items() if algorithm != "sha256"}
    if others:
        document["digests"] = others
    if entry.verified:
        document["verified"] = list(entry.verified)
    if entry.findings:
        document["findings"] = dict(entry.findings)
    if entry.problem is not None:
        document["problem"] = dict(entry.problem)
    return document


def results_json(manifest: Manifest) -> bytes:
    """What became of each file, in the order of the wire: the body of an answer of `/convert`."""
    entries = [entry for entry in manifest.entries if entry.part.is_file and (entry.receipts or entry.problem)]
    # each by itself: one character outside latin-1 makes all of a text four bytes wide
    return b"[%b]\n" % b", ".join([json.dumps(_result(entry), ensure_ascii=False).encode() for entry in entries])


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
