"""What goes wrong in an upload: a sink's errors as ours, which one is told, and what is let go of with it."""

from __future__ import annotations

import asyncio
import logging
import traceback
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from gateway.errors import GatewayError, SinkUnavailable
from gateway.sinks import Answered, sink_fault

__all__ = ["first_error", "forget_frames", "forget_frames_on_exit", "leave_quietly", "translated"]

log = logging.getLogger("gateway.failures")


def first_error(error: BaseException, answering: str | None = None) -> Exception:
    """The error to tell out of a group: a destination's own answer before all else, then the first.

    The answer of the sink `answering` before that of any other.
    """
    leaves: list[BaseException] = []
    pending: list[BaseException] = [error]
    while pending:
        error = pending.pop(0)
        if isinstance(error, BaseExceptionGroup):
            pending = [*error.exceptions, *pending]
        else:
            leaves.append(error)
    answers = [leaf for leaf in leaves if isinstance(leaf, Answered)]
    for answer in answers:
        if answer.sink == answering:
            return answer
    for leaf in (*answers, *leaves):
        if isinstance(leaf, Exception):
            return leaf
    raise leaves[0]


class translated:
    """A sink's errors as ours. What nobody expected is logged here, once, with its traceback."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is not None and not isinstance(error, GatewayError | Answered):
            self._translate(error)

    def _translate(self, error: BaseException) -> None:
        name = self._name
        if isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                return
            # Nobody cancelled us, so it did itself; a TaskGroup would take that for an end like any other.
            raise SinkUnavailable(f"sink {name} gave up", sink=name) from error
        if isinstance(error, OSError):
            raise sink_fault(name, error) from error
        if isinstance(error, Exception):
            log.error("sink %s failed", name, exc_info=error)
            raise SinkUnavailable(f"sink {name} failed", sink=name) from error


async def leave_quietly(
    name: str,
    context: AbstractAsyncContextManager[object],
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
) -> None:
    """Leave a sink's context. What goes wrong there is logged, and changes no answer: the upload is decided.

    Nor does it hide an error: a context that swallows the one that it is left with is not asked.
    """
    try:
        await context.__aexit__(kind, error, traceback)
    except (GatewayError, OSError) as failure:
        if failure is not error:
            log.warning("sink %s could not clean up: %s", name, failure)
    except Exception as failure:
        if failure is not error:
            log.exception("sink %s could not clean up", name)


def forget_frames(error: BaseException) -> None:
    """Empty the frames that an error and those behind it came through.

    They hold what an upload held, its last bytes among that, and the error holds them: a circle that only the cycle
    collector would end, some day.
    """
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        one = pending.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        traceback.clear_frames(one.__traceback__)
        pending += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            pending += one.exceptions


def forget_frames_on_exit(kind: object, error: BaseException | None, traceback: object) -> None:
    """The same, as the exit of a context that is left when those frames have come to their end."""
    if error is not None:
        forget_frames(error)
