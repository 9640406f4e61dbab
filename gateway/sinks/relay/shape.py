"""What of an upload's parts a destination is told: renamed, left out, with fields added. Pure.

1. Names are compared as text: exactly, with what the manifest shows as a part's name. Fields and files alike.
2. `before` comes ahead of all parts. `after` follows them: what says something of a file once for each file, in the
   order of the wire, and then the rest once.
3. Placeholders stand in names and values: {upload} and {request_id} anywhere, {index}, {name}, {filename},
   {content_type}, {size} and {sha256} in `after`. They are of what the destination got: of the new name, and of what
   flows made of the file; an unknown type is empty. `{{` and `}}` are braces.
4. What came in as bytes goes out as the same bytes, and is never looked at for placeholders.
5. A body of multipart/mixed or related has no names and no fields: it keeps its shape.
6. A raw body becomes a form with one file, called `file` where the client named none: many servers take a part without
   a file name for a field. A part of a form that has none goes on without.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace

from gateway.errors import Malformed
from gateway.model import Part, Upload
from gateway.multipart.content_type import MIXED_TYPES
from gateway.multipart.encoder import Encoder
from gateway.multipart.headers import checked_name, media_type
from gateway.multipart.rendering import quote, render_head

__all__ = ["FILE_PLACEHOLDERS", "UPLOAD_PLACEHOLDERS", "Sent", "Shape", "Template", "is_empty_input", "written"]

UPLOAD_PLACEHOLDERS = ("upload", "request_id")
FILE_PLACEHOLDERS = ("index", "name", "filename", "content_type", "size", "sha256")

_RAW_FILENAME = b"file"
_ANY_SHA256 = "0" * 64


class Template:
    """A text with placeholders. Raises ValueError for one that is not `allowed`, or for a brace that is none; of a text
    that `is_name`, also for what no part can be called.
    """

    def __init__(self, text: str, allowed: Sequence[str], *, is_name: bool = False) -> None:
        self._pieces: list[tuple[bytes, str | None]] = []
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ValueError(f"{text!r} has a brace that belongs to no placeholder; a brace itself is {{{{") from error
        for literal, name, spec, conversion in parsed:
            if name is not None and (name not in allowed or spec or conversion):
                shown = ", ".join(f"{{{one}}}" for one in allowed)
                raise ValueError(f"{text!r} has a placeholder that is not one of {shown}")
            self._pieces.append((_sendable(literal) if is_name else literal.encode(), name))
        self.names = frozenset(name for _, name in self._pieces if name is not None)

    def render(self, values: Mapping[str, bytes]) -> bytes:
        """With the value of each placeholder."""
        return b"".join(literal + (b"" if name is None else values[name]) for literal, name in self._pieces)


@dataclass(frozen=True, slots=True)
class Sent:
    """A file as a destination got it."""

    part: Part
    size: int
    sha256: str = ""

    def values(self) -> dict[str, bytes]:
        """What placeholders stand for."""
        part = self.part
        return {
            "index": b"%d" % part.index,
            "name": part.raw_name,
            "filename": part.raw_filename or b"",
            "content_type": part.content_type or b"",
            "size": b"%d" % self.size,
            "sha256": self.sha256.encode(),
        }

    @classmethod
    def assumed(cls, part: Part, size: int) -> Sent:
        """For the length of what will be said of it."""
        return cls(part, size, _ANY_SHA256)


class Shape:
    """The wishes of one relay. Without any, the parts go on as they came."""

    def __init__(
        self,
        *,
        rename: Mapping[str, str] | None = None,
        drop: Sequence[str] = (),
        add_before: Mapping[str, str] | None = None,
        add_after: Mapping[str, str] | None = None,
        fields_first_bytes: int = 0,
    ) -> None:
        everywhere = (*UPLOAD_PLACEHOLDERS, *FILE_PLACEHOLDERS)
        self._renamed = {old: _sendable(new) for old, new in (rename or {}).items()}
        self._dropped = frozenset(drop)
        self._before = _templates(add_before or {}, UPLOAD_PLACEHOLDERS)
        after = _templates(add_after or {}, everywhere)
        self._of_files = [pair for pair in after if _is_of_files(pair)]
        self._once = [pair for pair in after if not _is_of_files(pair)]
        self.fields_first_bytes = fields_first_bytes
        """How many bytes of files may wait for all fields to go ahead; 0: the order of the wire is kept."""
        self.wants_files = bool(self._of_files)
        """Whether something is said of each file."""
        self.wants_sha256 = any("sha256" in name.names | value.names for name, value in self._of_files)
        self._is_raw = False
        self._takes_fields = True

    def for_body(self, upload: Upload) -> Shape:
        """What of it holds for this upload (rules 5 and 6)."""
        if not upload.multipart:
            wrapping = copy(self)
            wrapping._is_raw = True
            return wrapping
        kind = media_type(upload.content_type.encode("utf-8", "surrogateescape"))
        if kind not in MIXED_TYPES:
            return self
        plain = Shape()
        plain._takes_fields = False
        return plain

    def leaves_out(self, part: Part) -> bool:
        """Whether the destination is not told of this part."""
        return bool(self._dropped) and part.name in self._dropped

    def renamed(self, part: Part) -> Part:
        """The part under the names that the destination is told; the same one where those are its own."""
        if self._is_raw and part.raw_filename is None:
            part = replace(part, raw_filename=_RAW_FILENAME)
        new = self._renamed.get(part.name) if self._renamed else None
        return part if new is None else replace(part, raw_name=new)

    def before(self, upload: Upload) -> list[tuple[bytes, bytes]]:
        """Fields that go ahead of all parts, as (name, value): the sink's, and those that the access hook asked for."""
        values = _of_upload(upload)
        asked = [(name.encode(), value.encode()) for name, value in upload.fields] if self._takes_fields else []
        return [(name.render(values), value.render(values)) for name, value in self._before] + asked

    def after(self, upload: Upload, files: Sequence[Sent]) -> list[tuple[bytes, bytes]]:
        """Fields that follow all parts: those of each file, then the others."""
        values = _of_upload(upload)
        said = [
            (name.render(values | of_file), value.render(values | of_file))
            for of_file in (file.values() for file in (files if self._of_files else ()))
            for name, value in self._of_files
        ]
        return said + [(name.render(values), value.render(values)) for name, value in self._once]


def written(encoder: Encoder, fields: Sequence[tuple[bytes, bytes]]) -> Iterator[bytes]:
    """Fields on the wire."""
    for name, value in fields:
        yield encoder.begin(render_head(name, None, None)) + value


def is_empty_input(part: Part, size: int) -> bool:
    """An input for a file that nobody chose."""
    return part.is_file and part.raw_filename == b"" and not size


def _templates(pairs: Mapping[str, str], allowed: Sequence[str]) -> list[tuple[Template, Template]]:
    return [(Template(name, allowed, is_name=True), Template(value, allowed)) for name, value in pairs.items()]


def _sendable(name: str) -> bytes:
    """A name as bytes. Raises ValueError for one that a part cannot have on its way out."""
    raw = name.encode()
    try:
        quote(checked_name(raw))
    except Malformed as error:
        raise ValueError(f"{name!r} cannot be the name of a part: {error.detail}") from None
    return raw


def _is_of_files(pair: tuple[Template, Template]) -> bool:
    name, value = pair
    return not (name.names | value.names).isdisjoint(FILE_PLACEHOLDERS)


def _of_upload(upload: Upload) -> dict[str, bytes]:
    return {"upload": upload.id.encode(), "request_id": (upload.request_id or upload.id).encode()}
