"""How large the parts of one upload may be; 0 is unlimited."""

from __future__ import annotations

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
