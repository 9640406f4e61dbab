"""A streaming multipart relay gateway: bytes come in once, are looked at once, and leave by several doors.

The wings, in the order in which bytes meet them; each says in its own first lines what is in it:

    errors, model   the words: what can go wrong, by whose fault; the nouns
    manifest        the nouns as JSON
    digests         what came in, hashed; what was declared, verified
    concurrency/    pipes with windows in bytes, jobs in threads, work that somebody else may end
    http/           what HTTP asks of a hop: headers, conditions, problems, answers streamed through, sockets
    multipart/      bytes <-> parts, usable alone
    intake/         may it come in, decided on headers alone; its bytes, counted and timed
    flows/          what happens to a file between client and sinks
    sinks/          places that parts go to: the contract; discard; disk/; objects/; relay/
    upload/         the life of one upload: parts -> flows -> sinks, concurrently, all or nothing
    downloads/      what is given back: stored files, archives; allow-listed remote URLs
    config/         what can be configured, and how it is read
    server/         handlers and application; processes that drain; metrics; the demo destination
    client/         `gateway send` and `gateway get`: what sends and fetches; nothing of the server's knows it
    cli/            the command line; what a command needs is imported when it is given

What it guarantees (docs/guarantees.md has the words for users, tests/test_guarantees.py the proofs):
G1 bounded memory · G2 nothing early · G3 nothing left · G4 back-pressure · G5 refused before read ·
G6 clean drain · G7 acknowledged means durable · G8 faithful.

For any aiohttp application the names below; they are fetched when they are asked for, so that importing the package
imports neither aiohttp nor anything of the server.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.errors import BadMultipart, ClientFault, GatewayError, Malformed, TooLarge, TooManyParts, Truncated
    from gateway.http.problems import problem_middleware
    from gateway.multipart.codec import Decoder, Kind
    from gateway.multipart.encoder import Encoder
    from gateway.multipart.reader import StreamingMultipartReader
    from gateway.multipart.rendering import render_head
    from gateway.multipart.writer import StreamingMultipartWriter

__all__ = [
    "BadMultipart",
    "ClientFault",
    "Decoder",
    "Encoder",
    "GatewayError",
    "Kind",
    "Malformed",
    "StreamingMultipartReader",
    "StreamingMultipartWriter",
    "TooLarge",
    "TooManyParts",
    "Truncated",
    "__version__",
    "problem_middleware",
    "render_head",
]

__version__ = "0.1.0"

_ROOMS = {
    "Decoder": "gateway.multipart.codec",
    "Encoder": "gateway.multipart.encoder",
    "Kind": "gateway.multipart.codec",
    "StreamingMultipartReader": "gateway.multipart.reader",
    "StreamingMultipartWriter": "gateway.multipart.writer",
    "problem_middleware": "gateway.http.problems",
    "render_head": "gateway.multipart.rendering",
}
"""Where the public names are; what is not here is an error."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ROOMS.get(name, "gateway.errors")), name)
