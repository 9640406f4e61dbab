"""Where on this gateway what was stored is read: the paths, and what is told as a location."""

from __future__ import annotations

from gateway.multipart.filenames import safe_segment

__all__ = ["ARCHIVE_PATH", "FILE_PATHS", "UPLOAD_PATH", "file_location", "upload_location"]

UPLOAD_PATH = "/uploads/{id}"
ARCHIVE_PATH = "/uploads/{id}/archive.zip"
FILE_PATHS = ("/files/{id}/{index}/{filename}", "/files/{id}/{index}")


def upload_location(upload_id: str) -> str:
    """Of an upload's manifest."""
    return f"/uploads/{upload_id}"


def file_location(upload_id: str, index: int, filename: str | None) -> str:
    """Of a part's bytes; the last segment is for people."""
    return f"/files/{upload_id}/{index}/{safe_segment(filename)}"
