"""What a Dockerfile says, done without an engine: its steps on a bare root file system, and what it makes, run.

The base image cannot be fetched, so something stands in for it: of this machine's own files the Python, a shell, what
the steps call, and the libraries of all of them; nothing else. The steps are read from the Dockerfile, so that a test
follows it. What is run has a root of its own that is read-only, a process number 1, no capabilities, no way to new
privileges, and the user that the Dockerfile says. It shares this machine's network, or has one with others of its kind.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from string import Template

__all__ = ["Image", "Instruction", "build", "instructions", "listed", "network", "runs", "why_not"]

_TOOLS = (
    *("sh", "env", "install", "mkdir", "ls", "cat", "touch", "id"),
    *("groupadd", "useradd", "setpriv", "ldconfig"),
)
"""What the steps and the tests call, all of it in Debian's smallest image."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_FOR_WHEELS = (
    *("libc.so.6", "libm.so.6", "libdl.so.2", "librt.so.1", "libpthread.so.0", "libutil.so.1", "libresolv.so.2"),
    *("libgcc_s.so.1", "libstdc++.so.6"),
)
"""What extensions of others may be linked with, for every Debian has it."""
_OF_THE_NETWORK = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/pip.conf", "/etc/ssl")
"""What an engine gives to the steps that fetch something."""
_PASSED_ON = re.compile(r"PIP_(?!FIND_LINKS)\w+|SSL_CERT_\w+|(https?|no)_proxy", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Instruction:
    """One line of a Dockerfile, without its continuations."""

    name: str
    options: Mapping[str, str]
    """Those that begin with `--`."""
    text: str
    """The rest."""

    def words(self) -> list[str]:
        """A list as JSON, or the words of the text."""
        return listed(self.text) or shlex.split(self.text)


@dataclass(slots=True)
class Image:
    """A root file system, and what is told of how to run it."""

    root: Path
    env: dict[str, str] = field(default_factory=lambda: {"PATH": _PATH})
    labels: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    user: str = "0:0"
    directory: str = "/"
    volumes: list[str] = field(default_factory=list)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)

    def process(
        self, command: Sequence[str], *, volumes: Mapping[str, Path], env: Mapping[str, str] | None = None
    ) -> list[str]:
        """The command line that runs a command in it, as `docker run --read-only --cap-drop ALL --tmpfs /tmp` does."""
        return [
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec"),
            "\n".join([_MOUNTS, "mount -o remount,bind,ro .", *self._bound(volumes), _ENTER]),
            *("sh", str(self.root), *self.user.split(":"), f"--chdir={self.directory}"),
            *(f"{name}={value}" for name, value in {**self.env, **(env or {})}.items()),
            *command,
        ]

    def _bound(self, volumes: Mapping[str, Path]) -> Iterator[str]:
        for inside, outside in volumes.items():
            yield f"mount --bind {shlex.quote(str(outside))} .{shlex.quote(inside)}"


_MOUNTS = """
root=$1 user=$2 group=$3; shift 3
mount --bind "$root" "$root"
cd "$root"
mount -t proc proc proc
mount -t tmpfs -o mode=755 dev dev
for one in null zero full random urandom; do : > dev/$one; mount --bind /dev/$one dev/$one; done
ln -s /proc/self/fd dev/fd
mkdir -m 1777 dev/shm
mount -t tmpfs -o mode=1777 tmp tmp
"""
_LOOPBACK_UP = """
import fcntl, socket, struct, sys
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
fcntl.ioctl(socket.socket(), SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
sys.stdin.read()
"""
"""Without `ip`, which not every system has; then it stays as long as whoever made it."""
_ENTER = """
exec chroot . setpriv --reuid "$user" --regid "$group" --clear-groups --bounding-set=-all --inh-caps=-all \
    --no-new-privs env -i "$@"
"""
_STEP = _MOUNTS + 'exec chroot . env -i "$@"\n'


def why_not() -> str | None:
    """Why nothing can be built here; None if it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a root file system of its own needs Linux, and root"
    if missing := [name for name in ("unshare", "nsenter", "chroot", "mount", "ldd", *_TOOLS) if _found(name) is None]:
        return f"{', '.join(missing)} not installed"
    allowed = subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False)
    return f"unshare: {allowed.stderr.decode().strip()}" if allowed.returncode else None


@contextmanager
def network() -> Iterator[list[str]]:
    """What stands before a command so that it is in a network of its own, in which nobody else has a port."""
    holder = subprocess.Popen(["unshare", "--net", sys.executable, "-c", _LOOPBACK_UP], stdin=subprocess.PIPE)
    assert holder.stdin is not None
    try:
        own, ours = (Path(f"/proc/{who}/ns/net") for who in (holder.pid, "self"))
        while os.readlink(own) == os.readlink(ours):
            time.sleep(0.01)
        yield ["nsenter", f"--net={own}"]
    finally:
        holder.stdin.close()
        holder.wait()


def instructions(text: str) -> list[Instruction]:
    """Those of a Dockerfile, in their order."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    found = []
    for line in re.sub(r"\\\n\s*", " ", lines).splitlines():
        if not line.strip():
            continue
        name, _, rest = line.strip().partition(" ")
        options = {}
        while match := re.match(r"--([\w-]+)=(\S+)\s+", rest):
            options[match[1]] = match[2]
            rest = rest[match.end() :]
        found.append(Instruction(name, options, rest.strip()))
    return found


def listed(text: str) -> list[str]:
    """The words of a list that is written as JSON; none of anything else."""
    return [str(word) for word in json.loads(text)] if text.startswith("[") else []


def build(context: Path, directory: Path) -> Image:
    """What the last stage of the context's Dockerfile makes. Raises CalledProcessError for a step that fails."""
    base = directory / "base"
    _make_base(base)
    stages: dict[str, Image] = {}
    image = Image(base)
    for step in instructions((context / "Dockerfile").read_text("utf-8")):
        if step.name == "FROM":
            _, _, name = step.text.partition(" AS ")
            image = Image(directory / f"stage-{len(stages)}")
            subprocess.run(["cp", "-a", base, image.root], check=True)
            stages[name or str(len(stages))] = image
        else:
            _take(image, step, context, stages)
    return image


def _take(image: Image, step: Instruction, context: Path, stages: Mapping[str, Image]) -> None:
    match step.name:
        case "RUN":
            runs(image, listed(step.text) or ["sh", "-c", step.text])
        case "COPY":
            source = stages[step.options["from"]].root if "from" in step.options else context
            *paths, target = step.words()
            _copy(source, paths, target, image, without=() if "from" in step.options else ("__pycache__",))
        case "ENV" | "LABEL" | "ARG":
            known = {**image.arguments, **image.env}
            pairs = [Template(word).safe_substitute(known).partition("=")[::2] for word in step.words()]
            {"ENV": image.env, "LABEL": image.labels, "ARG": image.arguments}[step.name].update(pairs)
        case "USER":
            image.user = step.text
        case "WORKDIR":
            image.directory = step.text
            (image.root / step.text.lstrip("/")).mkdir(parents=True, exist_ok=True)
        case "VOLUME":
            image.volumes += step.words()
        case "HEALTHCHECK":
            image.health = listed(step.text.removeprefix("CMD").strip())
        case "ENTRYPOINT":
            image.entrypoint = listed(step.text)
        case "CMD":
            image.command = listed(step.text)
        case "EXPOSE" | "STOPSIGNAL":
            pass
        case _:
            raise NotImplementedError(f"{step.name} is nothing that these tests can do")


def runs(image: Image, command: Sequence[str]) -> None:
    """A step, as root, in a root file system that it may change."""
    passed_on = {name: value for name, value in os.environ.items() if _PASSED_ON.fullmatch(name)}
    env = {**passed_on, **image.arguments, **image.env, "HOME": "/root"}
    words = [f"--chdir={image.directory}", *(f"{name}={value}" for name, value in env.items()), *command]
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "sh", "-ec", _STEP, "sh", str(image.root), "0", "0", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-4000:]}"


def _copy(source: Path, paths: Sequence[str], target: str, image: Image, *, without: Sequence[str]) -> None:
    absolute = target if target.startswith("/") else f"{image.directory.rstrip('/')}/{target}"
    into = image.root / absolute.lstrip("/")
    for path in paths:
        origin = source / path.lstrip("/")
        to = into / origin.name if target.endswith("/") else into
        to.parent.mkdir(parents=True, exist_ok=True)
        if origin.is_dir():
            shutil.copytree(origin, to, symlinks=True, ignore=shutil.ignore_patterns(*without), dirs_exist_ok=True)
        else:
            shutil.copy2(origin, to)


# -- what stands in for the base image


def _make_base(root: Path) -> None:
    for name in ("proc", "dev", "tmp", "etc", "root", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    for tool in _TOOLS:
        found = _found(tool)
        assert found is not None, tool
        _take_over(Path(found).resolve(), root, f"usr/{Path(found).parent.name}/{tool}")
    for name, text in {"passwd": "root:x:0:0::/root:/bin/sh\n", "group": "root:x:0:\n", "login.defs": ""}.items():
        (root / "etc" / name).write_text(text)
    _make_python(root)
    for path in map(Path, _OF_THE_NETWORK):
        if path.is_dir():
            shutil.copytree(path, root / str(path)[1:], ignore=shutil.ignore_patterns("private"))
        elif path.exists():
            shutil.copy(path, root / str(path)[1:])
    (root / "etc/ld.so.conf").write_text("/usr/local/lib\n/usr/lib/x86_64-linux-gnu\n/usr/lib/aarch64-linux-gnu\n")
    subprocess.run(["chroot", root, "ldconfig"], check=True)


def _make_python(root: Path) -> None:
    """This machine's own, below /usr/local, where images have theirs; without its tests and other packages than pip."""
    prefix, version = _python()
    library = prefix / f"lib/python{version}"
    to = root / "usr/local"
    shutil.copytree(
        library,
        to / f"lib/python{version}",
        ignore=shutil.ignore_patterns("__pycache__", "test", "site-packages", "dist-packages", "idlelib", "*.a", "*.o"),
    )
    for path in library.glob("site-packages/pip*"):
        shutil.copytree(path, to / f"lib/python{version}/site-packages" / path.name)
    (to / "bin").mkdir()
    _take_over(prefix / f"bin/python{version}", root, f"usr/local/bin/python{version}")
    for name in ("python", "python3"):
        (to / "bin" / name).symlink_to(f"python{version}")
    for extension in library.glob("lib-dynload/*.so"):
        _take_libraries(extension, root)
    for name in _FOR_WHEELS:
        for path in Path("/usr/lib").glob(f"*-linux-gnu/{name}"):
            _take_over(path, root, str(path)[1:])


@cache
def _python() -> tuple[Path, str]:
    """(prefix, version) of the one that the image is for, else of the one that runs the tests."""
    others = [shutil.which("python3.13"), *map(str, Path.home().glob(".pyenv/versions/3.13.*/bin/python3.13"))]
    code = "import sys; print(sys.base_prefix, '{}.{}'.format(*sys.version_info))"
    for interpreter in (*filter(None, others), sys.executable):
        told = subprocess.run([interpreter, "-c", code], capture_output=True, text=True, check=False)
        if told.returncode == 0:
            prefix, version = told.stdout.split()
            return Path(prefix), version
    raise AssertionError("the interpreter that runs this says nothing")


def _take_over(path: Path, root: Path, to: str) -> None:
    target = root / to
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, target)
    target.chmod(stat.S_IMODE(target.stat().st_mode) & ~stat.S_ISUID)
    _take_libraries(path, root)


def _take_libraries(path: Path, root: Path) -> None:
    told = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
    for name, where in re.findall(r"(?m)^\s*(?:(\S+) => )?(/\S+)", told):
        library = Path(where)
        ours = library.is_relative_to(_python()[0])
        target = root / (f"usr/local/lib/{name}" if ours else str(library.parent.resolve() / library.name)[1:])
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(library, target)


def _found(name: str) -> str | None:
    return shutil.which(name, path=_PATH)
