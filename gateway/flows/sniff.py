"""What a file really is, by its first bytes."""

from __future__ import annotations

import fnmatch
from collections.abc import AsyncIterable, AsyncIterator, Sequence

import puremagic

from gateway.flows import FlowFile, Reject

__all__ = ["sniff"]

HEAD_BYTES = 8192
# Office documents, Java archives and e-books are zip files, and a look at the first bytes cannot tell them apart.
_ZIP = "application/zip"
_ZIP_FAMILY = ("application/x-zip-compressed", "application/java-archive", "application/epub+zip")
_ZIP_PREFIXES = ("application/vnd.openxmlformats-", "application/vnd.oasis.opendocument.", "application/vnd.ms-")
# Names that one and the same type goes by.
_ALIASES = {
    "image/jpg": "image/jpeg",
    "image/x-ms-bmp": "image/bmp",
    "image/x-icon": "image/vnd.microsoft.icon",
    "application/x-gzip": "application/gzip",
    "audio/mp3": "audio/mpeg",
    "audio/wave": "audio/wav",
    "audio/x-wav": "audio/wav",
    "application/ogg": "audio/ogg",
    "video/ogg": "audio/ogg",
    "text/xml": "application/xml",
}
# What is text can be of any type that is written in text: a signature says no more.
_TEXT = ("text/", "message/")
_WRITTEN_IN_TEXT = ("json", "xml", "javascript", "yaml", "toml", "sql", "x-sh", "x-httpd-php", "rtf", "csv")


async def sniff(
    file: FlowFile, chunks: AsyncIterable[bytes], *, policy: str = "record", allow: Sequence[str] = ()
) -> AsyncIterator[bytes]:
    """Find the media type in the first 8 KiB, by signature; the bytes pass unchanged.

    `policy` is `record` (say so in the findings) or `require_match` (reject a file whose declared type is
    another one; none, or `application/octet-stream`, declares nothing). `allow` lists the globs of which
    one has to match the type that was found (`["image/*", "application/pdf"]`).
    """
    head: list[bytes] = []
    size = 0
    source = aiter(chunks)
    async for chunk in source:
        head.append(chunk)
        size += len(chunk)
        if size >= HEAD_BYTES:
            break
    found = media_type(b"".join(head)[:HEAD_BYTES])
    declared = (file.content_type or "").partition(";")[0].strip().lower()
    match = None if found is None or declared in ("", "application/octet-stream") else _same(found, declared)
    file.findings.update(content_type=found, match=match)
    if policy == "require_match" and match is False:
        raise Reject(f"the file is {found}, not {declared}")
    if allow and not _allowed(found, declared, allow):
        raise Reject(f"files that are {found or 'of an unknown type'} are not taken")
    for chunk in head:
        yield chunk
    async for chunk in source:
        yield chunk


sniff.keeps_bytes = True  # type: ignore[attr-defined]


def media_type(head: bytes) -> str | None:
    """The media type of a file by its first bytes; None if it cannot be told."""
    try:
        for match in puremagic.magic_string(head):
            if kind := str(match.mime_type or "").lower():
                return _plain(kind)
    except (puremagic.PureError, ValueError):
        pass
    return "text/plain" if head and _is_text(head) else None


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:
            return False
        text = head[: error.start].decode()  # the cut went through a character
    return not any(character < " " and character not in "\t\n\r\f\x1b" for character in text)


def check(*, policy: str = "record", allow: Sequence[str] = ()) -> None:
    """Raises ValueError for options that mean nothing."""
    if policy not in ("record", "require_match"):
        raise ValueError(f"policy {policy!r} is neither record nor require_match")
    if not isinstance(allow, list | tuple) or not all(isinstance(glob, str) for glob in allow):
        raise ValueError("allow is a list of globs")


sniff.check = check  # type: ignore[attr-defined]


def _plain(kind: str) -> str:
    """The one name of a type; of the zip family, the family's."""
    kind = _ALIASES.get(kind, kind)
    return _ZIP if kind in _ZIP_FAMILY or kind.startswith(_ZIP_PREFIXES) else kind


def _same(found: str, declared: str) -> bool:
    declared = _plain(declared)
    return found == declared or (_is_written(found) and _is_written(declared))


def _is_written(kind: str) -> bool:
    return kind.startswith(_TEXT) or kind.endswith(_WRITTEN_IN_TEXT)


def _allowed(found: str | None, declared: str, allow: Sequence[str]) -> bool:
    """By what was found; or by what was declared, where that is of the same family as what was found."""
    kinds = [found or ""]
    if found is not None and declared and _same(found, declared):
        kinds.append(declared)
    return any(fnmatch.fnmatchcase(kind, pattern.lower()) for kind in kinds for pattern in allow)
