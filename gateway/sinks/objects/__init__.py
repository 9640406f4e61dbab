"""Uploads in object storage: S3 and what speaks like it, GCS, Azure; one prefix each, published by one manifest.

Its rooms but `layout` import the store's client, which costs who has no such sink 20 ms: so nothing is imported here.
"""

from __future__ import annotations

__all__: list[str] = []
