"""One body on its way to one of several destinations: attempts, clocks, connections, health, a spool.

`sender` is the door: it makes an `outbound` for each body. That has what is `pending`, what is `replayable`, and an
attempt at one of the `destinations`, whose `exchange` is one `request` on a connection (`connect`).
"""
