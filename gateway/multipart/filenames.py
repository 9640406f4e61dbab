"""File names made fit for a path's last segment. Pure.

A name that is too long is cut in its stem: who opens the file needs its extension, `.tar.gz` as a whole.
"""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import quote as urlquote

__all__ = ["MAX_NAME_BYTES", "attachment", "cut_name", "safe_name", "safe_segment", "split_extension"]

MAX_NAME_BYTES = 200
"""Of UTF-8. File systems take 255; the rest is for what programs append (` (2)`, `.part`)."""
_MAX_EXTENSION_BYTES = 48
"""Of all suffixes that count as one extension; more of them is a name with dots in it."""
_MAX_JOINED = 32
"""How many marks on one letter are taken for a character that is to stay whole."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
_SUFFIX = re.compile(r"\.[^\s.]{1,24}")
_WRAPPER = re.compile(r"\.(?:gz|bz2|xz|zst|br|lz4?|lzma|z|gpg|pgp|age|enc|asc|sig|p7[msz])(?=\.|\Z)", re.IGNORECASE)
"""Around a file of some other type, whose own suffix stands before it."""
_JOINER = "\u200d"
_JOINING = re.compile(r"[\u200d\u1160-\u11ff\ud7b0-\ud7fb\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]")
"""What belongs to the character before it, beside marks: joiners, conjoining vowels and finals of Hangul, skin tones,
and the tags of a flag (UAX 29).
"""
_FLAG_LETTERS = re.compile(r"[\U0001f1e6-\U0001f1ff]*\Z")
"""Two of them are a flag."""


def safe_segment(filename: str | None) -> str:
    """The safe name as the last segment of a path, percent-encoded."""
    if filename is not None and _PLAIN_NAME.fullmatch(filename):
        return filename
    return urlquote(safe_name(filename), safe="")


def safe_name(filename: str | None) -> str:
    """A file name fit to be a path's last segment: the last segment over both separators, no controls
    (nor marks that turn the reading direction), no dot-names, at most 200 bytes of UTF-8, else `file`.
    """
    if filename is not None and _PLAIN_NAME.fullmatch(filename):
        return filename
    name = re.split(r"[/\\]", filename or "")[-1]
    name = _UNSAFE.sub("", name).strip().encode(errors="replace").decode()  # no surrogates
    name = cut_name(name, MAX_NAME_BYTES)
    return "file" if name.strip(".") == "" else name


def split_extension(name: str) -> tuple[str, str]:
    """`a.txt` -> (`a`, `.txt`); `a.tar.gz` and `a.txt.gz`, as a flow makes it, have an extension of two suffixes.

    A dot-file's name is no extension, and none has white space in it.
    """
    extension = ""
    while (dot := name.rfind(".", 0, len(name) - len(extension))) > 0:
        stem, suffix = name[:dot], name[dot : len(name) - len(extension)]
        if not stem.strip(".") or not _SUFFIX.fullmatch(suffix):
            break
        if extension and suffix.lower() != ".tar" and not _WRAPPER.match(extension):
            break
        if len((suffix + extension).encode()) > _MAX_EXTENSION_BYTES:
            break
        extension = suffix + extension
    return name[: len(name) - len(extension)], extension


def cut_name(name: str, max_bytes: int) -> str:
    """The name in at most so many bytes of UTF-8, more than 48: its stem is cut, at the end of a whole character."""
    if len(name.encode()) <= max_bytes:
        return name
    stem, extension = split_extension(name)
    kept = stem.encode()[: max_bytes - len(extension.encode())].decode(errors="ignore")
    return kept[: _end_of_character(stem, len(kept))].strip() + extension


def _end_of_character(name: str, end: int) -> int:
    """The last place up to `end` that is not within a character: a letter with its marks, an emoji of several.

    `end` itself if there is none near: nobody means a hundred marks.
    """
    start = end
    while start > 0 and end - start <= _MAX_JOINED:
        if start >= len(name) or not _is_within(name, start):
            return start
        start -= 1
    return end


def _is_within(name: str, place: int) -> bool:
    """Whether what stands there belongs to the character before it."""
    one, before = name[place], name[place - 1]
    if one < "\u0300":
        return False
    if before == _JOINER or _JOINING.match(one) or unicodedata.category(one)[0] == "M":
        return True
    if "\U0001f1e6" <= one <= "\U0001f1ff":
        letters = _FLAG_LETTERS.search(name, 0, place)
        return letters is not None and len(letters[0]) % 2 == 1
    return False


def attachment(name: str) -> str:
    """A Content-Disposition by which it is a download of that name, in both forms (RFC 6266): what is not plain ASCII,
    or is read in two ways, is `_` in the first one (appendix D).
    """
    plain = re.sub(r'[^\x20-\x7e]|["\\%]', "_", name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{urlquote(name, safe='')}"
