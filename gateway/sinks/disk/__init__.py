"""Uploads on a local file system: one directory each, published by one rename."""
