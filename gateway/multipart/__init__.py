"""Multipart bytes <-> parts, both ways, usable alone.

The codec does no I/O; reader and writer are aiohttp's own classes, made to stream.
"""
