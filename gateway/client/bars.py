"""What a terminal shows: two bars for each upload, sent and safe, and a line for each that is over.

`rich` draws them. It is imported here, when there is a terminal to draw on, and nowhere else.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager, suppress
from typing import TYPE_CHECKING, Any, TextIO

from gateway.client.sources import printable
from gateway.client.watching import Legs

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Bars", "Quiet", "screen"]

_DRAW_SECONDS = 0.1
_NAME_WIDTH = 24


class Quiet(AbstractAsyncContextManager["Quiet"]):
    """Where the output is no terminal: only what went wrong is said."""

    is_terminal = False
    is_unwritten = False
    """Standard output did not take what it should, and somebody waits for it."""

    async def __aexit__(self, *exc_info: object) -> None:
        """Nothing is drawn."""

    def add(self, legs: Legs) -> None:
        """One begins."""

    def end(self, legs: Legs, text: str = "") -> None:
        """One is over; the text says where it is."""

    def say(self, text: str) -> None:
        """What is not wrong yet."""

    def complain(self, text: str) -> None:
        """What went wrong."""
        try:
            print(f"gateway: {printable(text)}", file=sys.stderr, flush=True)
        except OSError:
            _let_go(sys.stderr)

    def line(self, text: str) -> None:
        """For programs, on standard output. Uploads go on when it takes nothing, and so are cleaned up."""
        try:
            print(text, flush=True)
        except OSError as error:
            _let_go(sys.stdout)
            if not isinstance(error, BrokenPipeError):  # who reads no more knows it
                self.is_unwritten = True
                self.complain(f"standard output: {error.strerror}")


def _let_go(stream: TextIO) -> None:
    """What is still in it goes nowhere: it would fail once more when Python ends, which makes that exit with 120."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class Bars(Quiet):
    """On a terminal. `verbs` name the first leg and the second. One that is closed is drawn on no more: what goes on
    has to be cleaned up when it is.
    """

    is_terminal = True

    def __init__(self, stream: TextIO, verbs: tuple[str, str] = ("sent", "safe")) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

        def column(text: str) -> TextColumn:
            return TextColumn(text, markup=False)

        self._verbs = verbs
        self._stream = stream
        self._is_gone = False
        self._bars: Progress = Progress(
            column("{task.fields[name]}"),
            column("{task.description}"),
            BarColumn(bar_width=None),
            column("{task.fields[percent]:>4}"),
            TransferSpeedColumn(),
            TimeRemainingColumn(compact=True),
            console=Console(file=stream, highlight=False),
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
            expand=True,
        )
        self._shown: list[tuple[Legs, list[TaskID]]] = []
        self._drawing: asyncio.TaskGroup = asyncio.TaskGroup()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Bars:
        await self._drawing.__aenter__()
        self._safely(self._bars.start)
        self._task = self._drawing.create_task(self._draw())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._task is not None
        self._task.cancel()
        self._safely(self._bars.stop)
        await self._drawing.__aexit__(None, None, None)

    def add(self, legs: Legs) -> None:
        self._shown.append((legs, []))

    def end(self, legs: Legs, text: str = "") -> None:
        tasks = next(tasks for shown, tasks in self._shown if shown is legs)
        self._safely(lambda: self._update(legs, tasks))
        lines = [task for task in self._bars.tasks if task.id in tasks]
        self._shown = [(shown, tasks) for shown, tasks in self._shown if shown is not legs]
        for task in tasks:
            self._bars.remove_task(task)
        self._safely(self._bars.refresh)
        if text:
            self._safely(lambda: self._bars.print(self._bars.make_tasks_table(lines)))
            self.say(text)

    def say(self, text: str) -> None:
        self._safely(lambda: self._bars.print(printable(text), markup=False, soft_wrap=True))

    def complain(self, text: str) -> None:
        self.say(f"gateway: {text}")

    async def _draw(self) -> None:
        while True:
            self._safely(self._update_all)
            self._safely(self._bars.refresh)
            await asyncio.sleep(_DRAW_SECONDS)

    def _update_all(self) -> None:
        for legs, tasks in self._shown:
            self._update(legs, tasks)

    def _safely(self, draw: Callable[[], None]) -> None:
        if self._is_gone:
            return
        try:
            draw()
        except OSError:
            self._is_gone = True
            _let_go(self._stream)

    def _update(self, legs: Legs, tasks: list[TaskID]) -> None:
        """A bar that is added is drawn at once."""
        for number, (verb, done, note) in enumerate(_lines(legs, self._verbs)):
            size = legs.size
            shown: dict[str, Any] = {
                "total": size if size is None else size or 1,
                "completed": done * (size or 1),
                "name": _cut(note),
                "percent": "" if size is None else f"{int(done * 100)}%",
            }
            if number == len(tasks):
                tasks.append(self._bars.add_task(verb, **shown))
            else:
                self._bars.update(tasks[number], **shown)


def _lines(legs: Legs, verbs: tuple[str, str]) -> Iterable[tuple[str, float, str]]:
    """(verb, how far, what stands before it) of each bar."""
    yield verbs[0], legs.sent, legs.name
    if (safe := legs.safe) is not None:
        yield verbs[1], safe, f"  {legs.sinks}"


def _cut(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _NAME_WIDTH else f"{text[: _NAME_WIDTH - 1]}…"


def screen(*, prints: bool, verbs: tuple[str, str] = ("sent", "safe")) -> Any:
    """Bars on the terminal, if there is one: standard error, or standard output unless it is used otherwise."""
    for stream in (sys.stderr, *(() if prints else (sys.stdout,))):
        if stream is not None and stream.isatty():
            return Bars(stream, verbs)
    return Quiet()
