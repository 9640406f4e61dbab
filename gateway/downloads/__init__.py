"""What is given back, and what is fetched: stored files and archives, allow-listed remote URLs."""

from __future__ import annotations

from gateway.downloads.archive import archive_names
from gateway.downloads.guard import AddressGuard, UrlRules
from gateway.downloads.locations import ARCHIVE_PATH, FILE_PATHS, UPLOAD_PATH, file_location, upload_location
from gateway.downloads.remote import Downloader
from gateway.downloads.stored import (
    OUTCOME,
    READER,
    STORES,
    delete_upload,
    get_archive,
    get_file,
    get_upload,
    stored_owner,
)

__all__ = [
    "ARCHIVE_PATH",
    "FILE_PATHS",
    "OUTCOME",
    "READER",
    "STORES",
    "UPLOAD_PATH",
    "AddressGuard",
    "Downloader",
    "UrlRules",
    "archive_names",
    "delete_upload",
    "file_location",
    "get_archive",
    "get_file",
    "get_upload",
    "stored_owner",
    "upload_location",
]
