"""All files of an upload as one zip, and the names in it. Everything here blocks, or takes a while: run it in a thread.

Names are made for whoever unpacks it, on whatever system. The manifest has the names that were sent.
1. What Windows and macOS cannot have, or hide, or take for something else, is replaced: `<>:"|?*`, names of devices,
   dots and blanks at the end, dots at the beginning, what is no character.
2. No two names are the same file anywhere: not where case does not count, nor how a letter is composed. The second one
   is called `a (2).txt`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

from zipstream import ZipStream  # type: ignore[import-untyped]

from gateway.multipart.filenames import MAX_NAME_BYTES, cut_name, safe_name, split_extension
from gateway.sinks.store import StoredPieces

__all__ = ["Archive", "archive_names"]

_CHUNK_BYTES = 256 << 10
"""Read in one job."""
_NUMBER_BYTES = 12
"""What ` (100000)` and the like may take of a name."""
_NO_CHARACTER = ("Cn", "Cs")
_FORBIDDEN = re.compile(r'[<>:"|?*\u2028\u2029]')
_DEVICE = re.compile(r"(?:con|prn|aux|nul|clock\$|conin\$|conout\$|(?:com|lpt)[0-9¹²³])[ \t]*(?:\..*)?", re.IGNORECASE)


class Archive:
    """A zip that is made while it is read, not compressed; zip64 where it has to be.

    Its length is known before it is made: `left` bytes are still to be read.
    """

    def __init__(self, files: Iterable[tuple[Path | StoredPieces, str | None]]) -> None:
        """`files`: where each is, or what gives it, and its name as the manifest has it. Raises OSError."""
        sources, filenames = zip(*files, strict=True) if (files := list(files)) else ((), ())
        stream = ZipStream(sized=True)
        for source, name in zip(sources, archive_names(filenames), strict=True):
            if isinstance(source, Path):
                stream.add_path(source, name)
            else:
                stream.add(source.pieces, name, size=source.size)  # dated now: zipstream-ng knows dates of paths only
        self.left = len(stream)
        self._pieces: Iterator[bytes] = stream.finalize()

    def read(self) -> bytes:
        """The next bytes, a good deal of them but at the end. Raises EOFError if they are not as many as promised."""
        pieces, size = [], 0
        while size < min(self.left, _CHUNK_BYTES):
            try:
                piece = next(self._pieces, None)
            except RuntimeError as error:  # zipstream's, which has sized everything before
                raise EOFError("a stored file is not as long as it was") from error
            if piece is None:
                raise EOFError("a stored file is shorter than it was")
            pieces.append(piece)
            size += len(piece)
        if size > self.left:
            raise EOFError("a stored file is longer than it was")
        self.left -= size
        return b"".join(pieces)

    def close(self) -> None:
        """Close the file that is being read."""
        self._pieces.close()  # type: ignore[attr-defined]  # a generator


def archive_names(filenames: Iterable[str | None]) -> list[str]:
    """Names for the files of one archive, in their order (rules 1 and 2), none longer than 200 bytes of UTF-8."""
    taken: set[str] = set()
    counts: dict[tuple[str, str], int] = {}
    names = []
    for filename in filenames:
        name = _unpackable(filename)
        if (key := _key(name)) in taken:
            name, key = _numbered(name, taken, counts)
        taken.add(key)
        names.append(name)
    return names


def _numbered(name: str, taken: set[str], counts: dict[tuple[str, str], int]) -> tuple[str, str]:
    """The first of `a (2).txt`, `a (3).txt`… that is not taken, and its key.

    Counted once for all names that would be numbered alike, or many of them would take quadratic time.
    """
    stem, extension = split_extension(name)
    stem = cut_name(stem + extension, MAX_NAME_BYTES - _NUMBER_BYTES)[: -len(extension) or None]
    family = _key(stem), _key(extension)
    while True:
        counts[family] = number = counts.get(family, 1) + 1
        numbered = f"{stem} ({number}){extension}"
        if (key := _key(numbered)) not in taken:
            return numbered, key


def _unpackable(filename: str | None) -> str:
    """Rule 1."""
    name = safe_name(filename)
    if not name.isprintable():
        name = "".join("_" if unicodedata.category(one) in _NO_CHARACTER else one for one in name)
    name = _FORBIDDEN.sub("_", name)
    name = re.sub(r"\A[\s.]+", lambda match: "_" * len(match[0]), name)
    name = re.sub(r"[\s.]+\Z", "", name)
    return cut_name("_" + name, MAX_NAME_BYTES) if _DEVICE.fullmatch(name) else name


def _key(name: str) -> str:
    """Equal for names that are one file on some system. More names than those of any one system are."""
    if name.isascii():
        return name.lower()
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold().upper().casefold())
    if folded.isprintable():
        return folded
    return "".join(one for one in folded if unicodedata.category(one) != "Cf")  # macOS overlooks them
