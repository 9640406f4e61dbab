"""What of a client's query goes on to a url that may have one of its own. Pure.

1. A parameter of the configured query is the operator's: none that a client sends under that name goes on, however
   it is encoded. Nor does one that some readers take for it: `+` is a space or itself; PHP, Rack and Express read
   `mode[]` and `mode[x]` as `mode`, Express `[mode]`, PHP ` mode`; and to PHP `mo.de`, `mo de` and `mo[de` are `mo_de`.
2. `&` stands between parameters, and to some readers `;` does, too: of a piece with a `;` all names have to be good, or
   all of it stays here.
3. Whatever goes on goes on as it came, in its order.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from functools import lru_cache
from urllib.parse import unquote_to_bytes

__all__ = ["with_query"]

_ALIKE = bytes.maketrans(b". ", b"__")


def with_query(url: str, query: str, allowed: bool | Collection[str] = True) -> str:
    """The url with what is `allowed` of a client's query: all but the parameters of its own query; nothing; or of the
    former those of these names, which are compared percent-decoded.
    """
    if not query or not allowed:
        return url
    own, configured = url.partition("?")[2], _configured(url)
    pieces = [piece for piece in query.split("&") if not configured or _keys(piece).isdisjoint(configured)]
    if not isinstance(allowed, bool):
        names = {name.encode() for name in allowed}
        pieces = [piece for piece in pieces if piece and _names(piece) <= names]
    if not pieces or pieces == [""]:
        return url
    joint = "&" if own else "" if url.endswith("?") else "?"
    return f"{url}{joint}{'&'.join(pieces)}"


@lru_cache(maxsize=256)
def _configured(url: str) -> frozenset[bytes]:
    """The keys of a url's own query; there are as many urls as are configured."""
    own = url.partition("?")[2]
    return frozenset().union(*(_keys(piece) for piece in own.split("&"))) if own else frozenset()


def _written(piece: str) -> Iterator[str]:
    return (one.partition("=")[0] for one in piece.split(";"))


def _names(piece: str) -> set[bytes]:
    """The names in a piece between two `&`, percent-decoded."""
    return {unquote_to_bytes(name) for name in _written(piece)}


def _keys(piece: str) -> set[bytes]:
    """What readers of a piece may take for its names (rule 1)."""
    names = {name for written in _written(piece) for name in (written, written.replace("+", " "))}
    return {key.translate(_ALIKE) for name in names for key in _readings(unquote_to_bytes(name))} - {b""}


def _readings(name: bytes) -> tuple[bytes, bytes]:
    shown = name.lstrip(b" ").partition(b"\0")[0]
    return re.split(rb"[\[\]]", shown.lstrip(b"["), maxsplit=1)[0], shown.replace(b"[", b"_", 1)
