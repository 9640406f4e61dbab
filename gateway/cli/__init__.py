"""The command line: `gateway serve | check | explain | key new | sign | receiver | send | get`.

program    which command it is, and what becomes of errors
serving    serve, receiver
checking   check, explain
access     key new, sign
arguments  what several of them have

A command's room is imported when the command is given, so that nobody waits for what is not run. Those of `send` and
`get` are in `gateway.client`.
"""

from __future__ import annotations

from gateway.cli.program import main

__all__ = ["main"]
