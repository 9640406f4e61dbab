"""Multipart bytes <-> parts, both ways, usable alone.

No I/O: codec (bytes -> parts), headers and content_type (what they say), encoder and rendering (the way out),
filenames, transfer_encoding. Reader, its parts and writer are aiohttp's own classes, made to stream.
"""

from __future__ import annotations

from gateway.multipart.codec import Decoder, Event, Kind
from gateway.multipart.content_type import MIXED_TYPES, boundary_of, other_parameters
from gateway.multipart.encoder import Encoder
from gateway.multipart.filenames import MAX_NAME_BYTES, attachment, cut_name, safe_name, safe_segment, split_extension
from gateway.multipart.headers import checked_name, filename_of, media_type, only
from gateway.multipart.rendering import quote, render_head

__all__ = [
    "MAX_NAME_BYTES",
    "MIXED_TYPES",
    "Decoder",
    "Encoder",
    "Event",
    "Kind",
    "attachment",
    "boundary_of",
    "checked_name",
    "cut_name",
    "filename_of",
    "media_type",
    "only",
    "other_parameters",
    "quote",
    "render_head",
    "safe_name",
    "safe_segment",
    "split_extension",
]
