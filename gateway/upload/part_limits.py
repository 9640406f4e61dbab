"""How large the parts of one upload may be; 0 is unlimited."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.errors import TooLarge
from gateway.model import Entry, Limits

__all__ = ["PartLimits"]


class PartLimits:
    """Files are looked at one by one, fields all together as well."""

    def __init__(self, limits: Limits) -> None:
        self.max_file_bytes = limits.max_file_bytes
        self._each = limits.max_field_bytes
        self._together = limits.max_fields_bytes
        self._of_a_value = limits.max_value_bytes
        self._fields_bytes = 0
        self._of_the_manifest = limits.max_manifest_bytes
        self.counted = 0
        """So many entries are in what is told."""
        self._told_bytes = 0

    def check_file(self, entry: Entry) -> None:
        """Of what has come of it. Raises TooLarge, which is about that part."""
        limit = self.max_file_bytes
        if limit and entry.size > limit:
            raise TooLarge(f"a file has more than {limit} bytes", limit=limit, part=entry.part.index)

    def check_field(self, size: int, *, whole: bool) -> None:
        """`size` bytes have come of a field; where it is `whole`, they count for good. Raises TooLarge."""
        if self._each and size > self._each:
            raise TooLarge(f"a field has more than {self._each} bytes", limit=self._each)
        if self._together and self._fields_bytes + size > self._together:
            raise TooLarge(f"the fields have more than {self._together} bytes together", limit=self._together)
        if whole:
            self._fields_bytes += size

    def check_told(self, entries: Sequence[Entry], end: int) -> None:
        """What the manifest is to say of the entries up to `end`, which have come whole, is held until then, and so are
        their other headers. Raises TooLarge.
        """
        for entry in entries[self.counted : end]:
            part = entry.part
            self._told_bytes += len(part.raw_name) + len(part.raw_filename or b"") + len(part.content_type or b"")
            self._told_bytes += len(entry.raw_value or b"")
            if part.own_headers:
                self._told_bytes += sum(len(name) + len(value) for name, value in part.own_headers)
        self.counted = end
        limit = self._of_the_manifest
        if limit and self._told_bytes > limit:
            raise TooLarge(f"names, headers and values of the parts have more than {limit} bytes", limit=limit)

    def value_of(self, data: bytes) -> tuple[bytes | None, bool]:
        """(what the manifest says of a field, whether that is its beginning only); None for bytes that are no text."""
        try:
            data.decode()
        except UnicodeDecodeError:
            return None, False
        end = self._of_a_value
        if not end or len(data) <= end:
            return data, False
        while data[end] & 0xC0 == 0x80:  # within a character
            end -= 1
        return data[:end], True
