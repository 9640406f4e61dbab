"""`gateway send` and `gateway get`: files go to a gateway, and are fetched again.

commands   the arguments, signals, what is printed and the exit code
outcomes   what can go wrong, by exit code, and what may be tried again
remote     the gateway at the other end: where its routes are, its answers
answers    what is read of manifests, results and progress
sources    the files that are sent
sending    one upload, whole or not at all
watching   both legs of it, as far as they are told
fetching   one file, whole and verified or not at all
partial    what there is of it until then
bars       what a terminal shows
"""

from __future__ import annotations

from gateway.client.commands import add_arguments, run

__all__ = ["add_arguments", "run"]
