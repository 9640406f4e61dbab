"""One measurement: a fresh server, a warm-up, uploads that are timed one by one, and everything checked.

What was kept is deleted between uploads, outside the timing. Files are fresh names in a fresh directory: in memory, but
for the jobs with fsync, which would mean nothing there. Of these small files stay until the end of the bench: for some
minutes after many were deleted, ext4 looks at each of their inodes before it takes another one.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench import checks
from tests.bench.bodies import Body
from tests.bench.client import Answer, Failure, hammer, upload
from tests.bench.destination import Seen
from tests.bench.peers import PEERS, Peer, Setup
from tests.bench.servers import Server, free_port

__all__ = ["FURTHER_UPLOADS", "JOBS", "Bench", "Job", "Memory", "Sample"]

FURTHER_UPLOADS = 16
WORKERS_CLIENTS = 4
_WARM_UP_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class Job:
    name: str
    path: str
    bodies: tuple[str, ...]
    fsync: bool = False

    @property
    def stores(self) -> bool:
        return self.path in ("disk", "both")

    @property
    def relays(self) -> bool:
        return self.path in ("relay", "both")


JOBS = {
    job.name: job
    for job in [
        Job("discard", "discard", ("large", "medium", "tiny", "worst", "small", "small16")),
        Job("relay", "relay", ("large", "medium", "tiny")),
        Job("disk", "disk", ("large", "medium", "tiny", "small", "small16")),
        Job("disk, fsync", "disk", ("large", "small", "small16"), fsync=True),
        Job("relay + disk", "both", ("large",)),
    ]
}


@dataclass(frozen=True, slots=True)
class Sample:
    """What one server did. Latencies are those of the requests that ran beside others, else None."""

    uploads: int
    megabytes: float
    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    p50_seconds: float | None = None
    p99_seconds: float | None = None

    @property
    def rate(self) -> float:
        return self.megabytes / self.seconds

    @property
    def per_cpu_second(self) -> float | None:
        """None where it was too little to tell: the kernel counts in hundredths of a second."""
        return self.megabytes / self.cpu_seconds if self.cpu_seconds >= 0.02 else None

    @property
    def requests_per_second(self) -> float:
        return self.uploads / self.seconds

    @property
    def requests_per_cpu_second(self) -> float | None:
        """As `per_cpu_second`."""
        return self.uploads / self.cpu_seconds if self.cpu_seconds >= 0.02 else None


@dataclass(frozen=True, slots=True)
class Memory:
    """Peak memory of a gateway at default settings: after one upload, and after several more beside it."""

    one_bytes: int
    many_bytes: int

    @property
    def per_further_upload(self) -> float:
        return (self.many_bytes - self.one_bytes) / FURTHER_UPLOADS


class _Destination:
    """The process that relays go to, and what it says about itself."""

    def __init__(self, port: int) -> None:
        self.port = port

    def _call(self, method: str, path: str, body: str = "") -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, body)
            return connection.getresponse().read()

    def seen(self) -> Seen:
        return Seen(**json.loads(self._call("GET", "/last")))

    @contextmanager
    def keeping(self, path: Path) -> Iterator[None]:
        self._call("PUT", "/keep", str(path))
        try:
            yield
        finally:
            self._call("PUT", "/drop")
            path.unlink(missing_ok=True)


class Bench:
    """`memory` and `disk` are directories for what is made and deleted again, `cache` is kept."""

    def __init__(
        self, *, bodies: dict[str, Body], destination: int, memory: Path, disk: Path, cache: Path, smoke: bool
    ) -> None:
        self._bodies = bodies
        self._destination = _Destination(destination)
        self._memory = memory
        self._disk = disk
        self._cache = cache
        # as many uploads as it takes for the kernel's clock to say something, but not many slow ones
        self._enough_seconds = 0.05 if smoke else 0.6
        self._most_uploads = 2 if smoke else 6
        self._hammer_seconds = 0.3 if smoke else 2.0

    def measure(
        self, job: Job, body: Body, peer: Peer, *, thorough: bool, workers: int = 1, clients: int = 1
    ) -> Sample:
        """Raises Failure. `thorough` checks the bytes that were kept and delivered, not only their numbers."""
        stays = job.fsync and bool(body.shape.connections)
        with self._server(peer, fsync=job.fsync, stays=stays, workers=workers) as (server, root):
            run = _Run(job, body, peer, server, root, self._destination, clients)
            if peer.name == "create":
                run.path, run.source = f"/disk?count={body.shape.count}&size={body.shape.size}", self._nothing(body)
            if body.shape.connections:
                hammer(server.port, run.path, body, clients=body.shape.connections, seconds=_WARM_UP_SECONDS)
                if stays:
                    _empty_into(root, Path(tempfile.mkdtemp(prefix="warm-up-", dir=self._disk)))
                else:
                    _clear(root)
                return run.hammered(self._hammer_seconds, thorough=thorough)
            if peer.name != "create":
                warm_up = self._bodies["small"]
                checks.check_status(upload(server.port, run.path, warm_up)[0])
                _clear(root)
            sample = run.timed(self._enough_seconds, self._most_uploads, thorough=thorough)
            if thorough and job.relays:
                run.delivered(self._memory / "delivered.form")
            return sample

    def memory(self, body: Body) -> Memory:
        peaks = [self._peak(body, clients) for clients in (1, 1 + FURTHER_UPLOADS)]
        return Memory(*peaks)

    def _peak(self, body: Body, clients: int) -> int:
        gateway = PEERS[0]
        with self._server(gateway, fsync=False, workers=1, max_parts=None) as (server, _):
            for answer in upload(server.port, "/both", body, clients=clients):
                checks.check_manifest(answer, body, digests=True)
            return server.peak_rss_bytes()

    @contextmanager
    def _server(
        self, peer: Peer, *, fsync: bool, workers: int, stays: bool = False, max_parts: int | None = 100_000
    ) -> Iterator[tuple[Server, Path]]:
        scratch = Path(tempfile.mkdtemp(prefix="server-", dir=self._memory))
        root = Path(tempfile.mkdtemp(prefix="kept-", dir=self._disk if fsync else self._memory))
        setup = Setup(
            port=free_port(),
            root=root,
            destination=self._destination.port,
            fsync=fsync,
            scratch=scratch,
            cache=self._cache,
            workers=workers,
            max_parts=max_parts,
        )
        try:
            # whoever spools does so in memory, too
            env = {"TMPDIR": str(scratch), **(peer.env or {})}
            with Server(peer.command(setup), port=setup.port, log=scratch / "server.log", env=env) as server:
                try:
                    yield server, root
                except (Failure, OSError) as error:
                    raise Failure(f"{error}{_aside(server.log())}") from error
        finally:
            if not stays:
                shutil.rmtree(root, ignore_errors=True)
            shutil.rmtree(scratch, ignore_errors=True)

    def _nothing(self, body: Body) -> Body:
        path = self._memory / "nothing.body"
        path.touch()
        return Body(body.shape, path, 0, body.digests, None)


@dataclass(slots=True)
class _Run:
    """The requests to one server that runs."""

    job: Job
    body: Body
    peer: Peer
    server: Server
    root: Path
    destination: _Destination
    clients: int

    path: str = ""
    source: Body | None = None

    def __post_init__(self) -> None:
        self.path = f"/{self.job.path}"

    def timed(self, enough_seconds: float, most_uploads: int, *, thorough: bool) -> Sample:
        seconds = cpu = 0.0
        uploads = 0
        while uploads < most_uploads * self.clients and seconds < enough_seconds:
            before = self.destination.seen()
            cpu_before = self.server.cpu_seconds()
            began = time.perf_counter()
            answers = upload(self.server.port, self.path, self.source or self.body, clients=self.clients)
            seconds += time.perf_counter() - began
            cpu += self.server.cpu_seconds() - cpu_before
            self._check(answers, before, digests=thorough and not uploads)
            uploads += self.clients
            _clear(self.root)
        return Sample(uploads, uploads * self._megabytes, seconds, cpu, self.server.peak_rss_bytes())

    def hammered(self, seconds: float, *, thorough: bool) -> Sample:
        cpu_before = self.server.cpu_seconds()
        began = time.perf_counter()
        answers = hammer(self.server.port, self.path, self.body, clients=self.body.shape.connections, seconds=seconds)
        seconds = time.perf_counter() - began
        cpu = self.server.cpu_seconds() - cpu_before
        for answer in answers:
            self._check_answer(answer, digests=self._answers_digests)
        if self.job.stores:
            checks.check_files(self.root, self.body, uploads=len(answers), digests=thorough)
        hundredths = statistics.quantiles((answer.seconds for answer in answers), n=100)
        return Sample(
            len(answers),
            len(answers) * self._megabytes,
            seconds,
            cpu,
            self.server.peak_rss_bytes(),
            p50_seconds=hundredths[49],
            p99_seconds=hundredths[98],
        )

    def delivered(self, path: Path) -> None:
        """Once more, not timed, for the destination to keep what it gets."""
        with self.destination.keeping(path):
            before = self.destination.seen()
            self._check(upload(self.server.port, self.path, self.body), before, digests=False)
            checks.check_form(path, self.destination.seen().content_type, self.body)
        _clear(self.root)

    @property
    def _megabytes(self) -> float:
        return self.body.size / 1e6

    @property
    def _answers_digests(self) -> bool:
        return self.peer.name == "gateway" and self.job.stores

    def _check(self, answers: list[Answer], before: Seen, *, digests: bool) -> None:
        for answer in answers:
            self._check_answer(answer, digests=self._answers_digests)
        if self.job.stores:
            # what the ceiling of file creation writes are zeros
            checks.check_files(
                self.root, self.body, uploads=len(answers), digests=digests and self.peer.name != "create"
            )
        if self.job.relays:
            after = self.destination.seen()
            # their heads may be longer or shorter than ours
            least = self.body.shape.count * self.body.shape.size
            most = least + self.body.shape.count * 1024 + 1024
            count = after.bytes - before.bytes
            if (
                after.requests - before.requests != len(answers)
                or not len(answers) * least < count < len(answers) * most
            ):
                raise Failure(f"{count} bytes were delivered in {after.requests - before.requests} requests")

    def _check_answer(self, answer: Answer, *, digests: bool) -> None:
        if self.job.path == "relay" or self.peer.name == "create":
            checks.check_status(answer)
        elif self.peer.name == "raw":
            checks.check_status(answer)
            if json.loads(answer.body) != {"bytes": self.body.size}:
                raise Failure(f"not all bytes were read: {answer.body!r}")
        else:
            checks.check_manifest(answer, self.body, digests=digests)


def _clear(root: Path) -> None:
    for directory in root.iterdir():
        shutil.rmtree(directory)


def _empty_into(root: Path, other: Path) -> None:
    for directory in root.iterdir():
        directory.rename(other / directory.name)


def _aside(log: str) -> str:
    """The last line of a log."""
    return f" ({log.splitlines()[-1][-300:]})" if log else ""
