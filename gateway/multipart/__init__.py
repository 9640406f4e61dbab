"""Multipart bytes <-> parts, both ways, usable alone.

No I/O: codec (bytes -> parts), headers and content_type (what they say), encoder and rendering (the way out),
filenames, transfer_encoding. Reader, its parts and writer are aiohttp's own classes, made to stream.
"""
