"""Jobs of several owners that wait at the same time: done in one hop to a thread, told of in one wake-up of the loop.

A hop costs more than a small job does: the thread wakes up, and passes the interpreter's lock to and fro. And what has
to be made durable costs least where it is done for many at once.

1. A job is a generator. What it yields are calls, of each of which it has to know that it was made before it goes on;
   those of a whole group are made beside each other in several threads, equal ones once. A call that raises does so in
   the jobs that wait for it.
2. A group is what waits when it is given to the threads: no job waits for one that came later. While it is at work the
   next one gathers, for `_PATIENCE_SECONDS` at most: then another thread takes that, for the first one may hang.
3. The loop stands still while the jobs of a group begin, for some milliseconds at most: both want the interpreter's
   lock. While their calls are made it does not.
4. Who waits for a thread is told when anybody's job on these threads moves; who is in a group only when that moves. So
   a group that hangs is seen to hang, whatever others do. One of which a call hangs has up to two threads: its own, and
   that of the call.
5. Each job has a future of its own, done when the job is, so that what comes after a job need not wait for its group.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from gateway.concurrency.pipe import Progress
from gateway.concurrency.threads import DaemonThreads

__all__ = ["Call", "GroupedJob", "JobGroups"]

_PATIENCE_SECONDS = 0.03
"""A disk that works is done with a group by then, unless it makes things durable."""
_TOGETHER_SECONDS = 0.005
"""How long the loop stands still for a group: as long as the interpreter lets one thread go on while another waits."""
_APART_SECONDS = 0.25
"""It does not again for so long where that was not enough: a slow disk costs others a fiftieth. Where it was enough, it
does not for as long as it took: for half of the time at most it stands still."""
_WEIGHT = 64
"""Of a group: files that are open at a time. Four of them are what 64 uploads may have open by their own right."""
_TELL_SECONDS = 0.05
"""As often are those of a group told that it moves: clocks are of seconds."""

Call = Callable[[], object]
Steps = Generator[Sequence[Call], None, None]


class GroupedJob(Future[None]):
    """One job, as whoever comes after it sees it. `answered` is for whoever waits for it in the loop."""

    def __init__(self, begin: Callable[[], Steps], weight: int, progress: Progress | None) -> None:
        super().__init__()
        self.begin: Callable[[], Steps] | None = begin
        self.weight = weight
        self.progress = progress
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def cancel(self) -> bool:
        """As a Future's; what it was made of is let go of, though the job is in a queue for as long as a disk hangs."""
        is_cancelled = super().cancel()
        if is_cancelled:
            self.begin = None
        return is_cancelled

    def steps(self) -> Steps:
        """It, begun; what it was made of is let go of."""
        begin, self.begin = self.begin, None
        assert begin is not None
        yield from begin()


@dataclass(slots=True)
class _Group:
    jobs: list[GroupedJob]
    began_at: float
    begun: threading.Event = field(default_factory=threading.Event)
    """Each of its jobs has come to its first calls, or to its end."""


class JobGroups:
    """Groups of jobs on threads that are shared with others; at most `count` groups at a time."""

    def __init__(self, threads: DaemonThreads, count: int) -> None:
        self._threads = threads
        self._count = count
        self._waiting: deque[GroupedJob] = deque()
        self._running: list[_Group] = []
        self._timer: asyncio.Handle | None = None
        self._stand_still_from = 0.0

    def submit(self, begin: Callable[[], Steps], *, weight: int = 1, progress: Progress | None = None) -> GroupedJob:
        """A job of the next group. `begin` is called in a thread; `progress` is told of moves as rule 4 says.

        Jobs of more than a full `weight` are groups of their own.
        """
        job = GroupedJob(begin, weight, progress)
        self._waiting.append(job)
        if progress is not None:
            self._threads.beside.add(progress)
        if self._timer is None:  # what else the loop has at hand may belong to the same group
            self._look_in(0)
        return job

    def _look_in(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds, self._look) if seconds else loop.call_soon(self._look)

    def _look(self) -> None:
        """Begin a group, if there is something for one, and those before it are done, or take long."""
        self._timer = None
        now = asyncio.get_running_loop().time()
        while self._waiting:
            if self._running and (left := self._running[-1].began_at + _PATIENCE_SECONDS - now) > 0:
                self._look_in(left)
                return
            if len(self._running) >= self._count:
                return  # one that ends looks again
            group = _Group(self._next_jobs(), now)
            try:
                self._threads.add(lambda group=group: self._work(group))  # type: ignore[misc]
            except RuntimeError as error:
                self._refuse(group, error)
                return
            self._running.append(group)
            if len(self._running) == 1 and now >= self._stand_still_from:
                self._stand_still(group, now)

    def _stand_still(self, group: _Group, now: float) -> None:
        """In the loop: let a group begin undisturbed, for a moment.

        Each of its system calls gives the interpreter's lock away, and if the loop takes it, the thread waits to get
        it back: that costs more than the calls do. Where the disk is slow it is the other way round.
        """
        is_begun = group.begun.wait(_TOGETHER_SECONDS)
        end = asyncio.get_running_loop().time()
        self._stand_still_from = end + (end - now if is_begun else _APART_SECONDS)

    def _next_jobs(self) -> list[GroupedJob]:
        jobs: list[GroupedJob] = []
        weight = 0
        while self._waiting and (not jobs or weight + self._waiting[0].weight <= _WEIGHT):
            job = self._waiting.popleft()
            weight += job.weight
            jobs.append(job)
        return jobs

    def _refuse(self, group: _Group, error: RuntimeError) -> None:
        for job in group.jobs:
            if job.set_running_or_notify_cancel():
                job.set_exception(error)
        self._answer(group)

    def _answer(self, group: _Group) -> None:
        """In the loop: tell those who wait of a group that has ended."""
        for job in group.jobs:
            if job.progress is not None:
                self._threads.beside.discard(job.progress)
            if job.answered.done():
                continue
            if job.cancelled():
                job.answered.cancel()
            elif (error := job.exception()) is not None:
                job.answered.set_exception(error)
            else:
                job.answered.set_result(None)
        if group in self._running:
            self._running.remove(group)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:  # but first those who were answered go on
            self._look_in(0)

    # -- in a thread

    def _work(self, group: _Group) -> None:
        loop = group.jobs[0].answered.get_loop()
        moves = _Moves([job.progress for job in group.jobs if job.progress is not None])
        self._threads.beside.difference_update(moves.whose)
        moves.tell()
        try:
            self._run(group, moves)
        except BaseException as error:  # of ours: nobody is to wait for ever
            for job in group.jobs:
                if not job.done() and (job.running() or job.set_running_or_notify_cancel()):
                    job.set_exception(error)
        finally:
            group.begun.set()
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._answer, group)

    def _run(self, group: _Group, moves: _Moves) -> None:
        going: list[tuple[GroupedJob, Steps]] = []
        made: dict[GroupedJob, Sequence[Call]] = {}
        for job in group.jobs:  # until it is its turn one can be given up
            if job.set_running_or_notify_cancel():
                going.append((job, job.steps()))
                self._take_step(*going[-1], None, made, moves)
        group.begun.set()
        while made:
            going = [(job, steps) for job, steps in going if job in made]
            failed = self._make(list(dict.fromkeys(call for calls in made.values() for call in calls)), moves)
            for job, steps in going:
                error = next((failed[call] for call in made.pop(job) if call in failed), None)
                self._take_step(job, steps, error, made, moves)

    def _take_step(
        self,
        job: GroupedJob,
        steps: Steps,
        error: BaseException | None,
        made: dict[GroupedJob, Sequence[Call]],
        moves: _Moves,
    ) -> None:
        if (calls := _step(job, steps, error)) is not None:
            made[job] = calls
        moves.tell()

    def _make(self, calls: Sequence[Call], moves: _Moves) -> dict[Call, BaseException]:
        """All calls, in this thread and in others that are free. What those raised that did raise."""
        making = _Making(calls, moves)
        with contextlib.suppress(RuntimeError):  # the threads are stopped: then it is this one alone
            for _ in range(min(len(calls), self._count) - 1):
                self._threads.add(making.help)
        making.help()
        making.ended.wait()
        return making.failed


class _Moves:
    """Tells all of a group that it moves, now and then."""

    def __init__(self, whose: Sequence[Progress]) -> None:
        self.whose = whose
        self._told_at = -math.inf

    def tell(self) -> None:
        """In any thread."""
        now = time.monotonic()
        if now - self._told_at >= _TELL_SECONDS:
            self._told_at = now
            for progress in self.whose:
                progress.moved()


def _step(job: GroupedJob, steps: Steps, error: BaseException | None) -> Sequence[Call] | None:
    """What the job waits for next; None: it has ended."""
    try:
        return next(steps) if error is None else steps.throw(error)
    except StopIteration:
        job.set_result(None)
    except BaseException as failure:
        job.set_exception(failure)
        del failure
    return None


class _Making:
    """Calls that several threads make: one that comes when all are begun has nothing to do, and nobody waits for it."""

    def __init__(self, calls: Sequence[Call], moves: _Moves) -> None:
        self._moves = moves
        self._calls = deque(calls)
        self._left = len(calls)
        self._counting = threading.Lock()
        self.failed: dict[Call, BaseException] = {}
        self.ended = threading.Event()
        if not calls:
            self.ended.set()

    def help(self) -> None:
        """Make those that nobody has begun."""
        while True:
            try:
                call = self._calls.popleft()
            except IndexError:
                return
            try:
                call()
            except BaseException as error:
                self.failed[call] = error
            self._moves.tell()
            with self._counting:
                self._left -= 1
                if not self._left:
                    self.ended.set()
