"""A streaming multipart relay gateway: bytes come in once, are looked at once, and leave by several doors.

The rooms, in the order in which bytes meet them:

    errors, model   the words: what can go wrong, by whose fault; the nouns
    headers, codec  part headers and multipart framing, both ways; pure, no I/O
    admission       may this request come in? decided on headers alone; slots, where several processes count them
    intake          the body's bytes: counted, limited, timed while we wait for the client
    reader          body -> parts: StreamingMultipartReader; raw bodies as a single part
    forwarding      what headers go along, both ways; pure
    routes          which part takes which flows to which sinks; pure
    dispatch        the life of one upload: stalls, commits, failures; its hands are
      pump            events -> entries, digests, limits, and on to flows and lanes
      each            the same where a part that fails is reported, and the others are kept
      passage         one file on its way through its flows
      lanes           one sink's share of one upload
      failures        which error is told, and what goes with it
      stalls          who takes nothing although the next move is theirs
      besteffort      that of a sink which may neither slow nor fail it
      scope           work that somebody else may end
      pipe            the bytes of one part on their way; windows in bytes
      digests         what came in, hashed; what was declared, verified
    flows/          transforms of a file on its way, a user's or ours
    sinks/          places that parts go to: disk, discard, a user's own, and relay; its hands are
      perupload, perpart    the one request of an upload, or one for each file; shape: what those are told
      outbound, exchange    one body, over one attempt or more; one request with its clocks
      destinations, spool   the choice among urls and their health; a body in a file without a name
      connect, sockets      connections: TLS, pools; what a socket tells
      lent, writer          the connection that aiohttp lends; StreamingMultipartWriter, for anybody
    responses       manifest -> 201, errors -> problem+json, a destination's answer streamed through
    stored          what was kept: files, manifests, archives, with ranges and validators
    download        allow-listed remote URLs, streamed; guard decides what may be dialled
    selftest        does a proxy in front of us hold bodies back?
    handlers        the stories: short, calling the rooms in order
    settings, sink_settings, contradictions, config, metrics, app, server, workers, worker, cli, receiver     the house

What it guarantees (the README has the words for users, tests/test_guarantees.py the proofs):
G1 bounded memory · G2 nothing early · G3 nothing left · G4 back-pressure · G5 refused before read ·
G6 clean drain · G7 acknowledged means durable · G8 faithful.

For any aiohttp application: `gateway.reader.StreamingMultipartReader`,
`gateway.sinks.writer.StreamingMultipartWriter`, `gateway.codec.Decoder` and `Encoder`.
"""

__version__ = "0.1.0"
