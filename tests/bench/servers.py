"""servers - the servers that are measured: started for the purpose, or found at a socket.

Each row of KINDS names a context manager that starts a server in private directories and ends it,
by pid, after the measurement. Any other name is a path: a checkout of this project, whose
scripts/tlsmgr-start is run, or the socket of a running server, which is left running. A server
that does not start is fatal, with its own message.

Reading /proc of a server's processes needs root, or their user.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import psutil
from support.checkout import CHECKOUT
from support.live_processes import descriptors_of
from support.postfix_sandbox import postconf, postfix_missing
from support.stock_tlsmgr import StockTlsmgr

from bench.drive import build
from bench.loads import SEED_LENGTH, SESSION_LENGTH
from tlsmgr.log import Fatal

DISK, MEMORY = "/var/tmp", "/dev/shm"
START_LIMIT = 120.0  # seconds; the launcher may have to make a virtual environment
STOP_LIMIT = 15.0
CONNECT_LIMIT = 15.0
LIFE = "36000s"  # session timeout: none expires during a run
LOG = "log"
STOCK_CACHE_TYPES = ("btree", "lmdb")
CACHE_FILE = "smtp_scache"  # how the names of the session cache's files begin
COMPLAINT = re.compile(r"(warning|error|fatal|panic): ")
BLOCK = 512  # bytes; the unit of st_blocks on every file system


@dataclass(frozen=True)
class Server:
    """A server that accepts connections."""

    name: str
    socket: str
    processes: Callable[[], list[psutil.Process]]  # those that exist now
    data: Path | None = None  # directory of its session caches, if it was started here
    log: Path | None = None
    workers: Callable[[], list[psutil.Process]] = list  # those that a scene may kill
    lenient: bool = False  # its replies have the right form only

    def cache_bytes(self) -> int:
        """Return the bytes that the session cache's files take on the file system."""
        files = self.data.glob(f"{CACHE_FILE}*") if self.data is not None else ()
        return sum(BLOCK * f.stat().st_blocks for f in files if not f.name.endswith("-lock"))

    def memory(self) -> list[int]:
        """Return the proportional set size (PSS) of each process in bytes."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(int(process.memory_full_info().pss))
        return found

    def complaints(self) -> list[str]:
        """Return the log lines that are warnings or worse."""
        if self.log is None or not self.log.exists():
            return []
        lines = self.log.read_text(errors="replace").splitlines()
        return [line for line in lines if COMPLAINT.search(line)]

    def file_system(self) -> str:
        """Return the type of the caches' file system, such as ext4; "" if there are none."""
        if self.data is None:
            return ""
        mounts = {p.mountpoint: p.fstype for p in psutil.disk_partitions(all=True)}
        path = self.data.resolve()
        found = (mounts.get(str(place)) for place in (path, *path.parents))
        return next((kind for kind in found if kind), "")


@dataclass(frozen=True)
class ServerSpec:
    """The settings of a server to be started. Parameters are those of main.cf and tlsmgr.cf."""

    name: str
    directory: Path  # for programs and sockets
    parameters: Mapping[str, str]  # for all servers
    options: Sequence[str] = ()  # name=value, for ours
    disk: str = DISK

    @property
    def all_parameters(self) -> dict[str, str]:
        """The parameters, with those that every measurement needs."""
        return {"smtp_tls_session_cache_timeout": LIFE, **self.parameters}


Start = Callable[[ServerSpec], contextlib.AbstractContextManager[Server]]


class Kind(NamedTuple):
    """A kind of server that can be started by its name."""

    start: Start
    purpose: str


@contextlib.contextmanager
def ours(spec: ServerSpec, checkout: Path = CHECKOUT) -> Iterator[Server]:
    """Start the tlsmgr of a checkout with its own scripts/tlsmgr-start."""
    launcher = checkout.resolve() / "scripts/tlsmgr-start"
    settings = (*(f"{n}={v}" for n, v in spec.all_parameters.items()), *spec.options)
    options = [argument for setting in settings for argument in ("-o", setting)]
    with tempfile.TemporaryDirectory(prefix="tlsmgr-bench-", dir=spec.disk) as state:
        path = f"{state}/socket"
        command = [str(launcher), *options, "--socket", path]
        with _running(command, checkout, Path(state)) as process:
            yield Server(
                name=spec.name,
                socket=path,
                processes=lambda: family(process),
                data=Path(state, "tlsmgr"),
                log=Path(state, LOG),
                workers=process.children,
            )


@contextlib.contextmanager
def stock(spec: ServerSpec, data_parent: str | None = None) -> Iterator[Server]:
    """Start stock tlsmgr(8) with its data below `data_parent`, by default on the disk."""
    if reason := postfix_missing():
        raise Fatal(f"cannot measure stock tlsmgr: {reason}")
    sandbox = StockTlsmgr(
        cache_type=stock_cache_type(),
        data_parent=data_parent or spec.disk,
        parameters=spec.all_parameters,
    )
    try:
        sandbox.start()
        process = sandbox.process
        yield Server(
            name=spec.name,
            socket=str(sandbox.socket),
            processes=lambda: family(process),
            data=sandbox.data,
            log=sandbox.log_file,
        )
    finally:
        sandbox.stop()
        sandbox.remove()


def stock_cache_type() -> str:
    """Return the table type of session caches: the first that Postfix has here."""
    known = postconf("-m").split()
    return next((each for each in STOCK_CACHE_TYPES if each in known), "hash")


def stock_in_memory(spec: ServerSpec) -> contextlib.AbstractContextManager[Server]:
    """Start stock tlsmgr(8) with its data on tmpfs."""
    return stock(spec, MEMORY)


@contextlib.contextmanager
def ceiling(spec: ServerSpec) -> Iterator[Server]:
    """Start ceiling.c, a server that parses nothing."""
    program = build("ceiling", spec.directory)
    path = spec.directory / "ceiling.socket"
    command = [str(program), str(path), str(SEED_LENGTH), str(SESSION_LENGTH)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        wait_for_socket(str(path))
        process = psutil.Process(child.pid)
        yield Server(spec.name, str(path), lambda: [process], lenient=True)
    finally:
        child.kill()
        child.communicate()
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def running(spec: ServerSpec) -> Iterator[Server]:
    """Find the running server at the socket that is its name."""
    wait_for_socket(spec.name)
    first = listener(spec.name)
    yield Server(spec.name, spec.name, lambda: serving(spec.name, first))


KINDS: Mapping[str, Kind] = {
    "ours": Kind(ours, "tlsmgr of this checkout, started by scripts/tlsmgr-start"),
    "stock": Kind(stock, f"stock tlsmgr(8), its caches below {DISK} (see --disk)"),
    "stock-tmpfs": Kind(stock_in_memory, f"stock tlsmgr(8), its caches below {MEMORY}"),
    "ceiling": Kind(ceiling, "a server in C that parses nothing: an upper limit"),
}


def start_of(name: str) -> Start:
    """Return what starts the server of that name. Fatal if there is none."""
    path = Path(name)
    if name in KINDS:
        return KINDS[name].start
    if (path / "scripts/tlsmgr-start").exists():
        return lambda spec: ours(spec, path)
    if path.is_socket():
        return running
    raise Fatal(f"{name} is no socket, no checkout with scripts/tlsmgr-start, and none of "
                f"{', '.join(KINDS)}")  # fmt: skip


@contextlib.contextmanager
def started(names: Sequence[str], spec: ServerSpec) -> Iterator[list[Server]]:
    """Start the servers of these names, all at once."""
    with contextlib.ExitStack() as stack:
        specs = [replace(spec, name=name) for name in names]
        yield [stack.enter_context(start_of(each.name)(each)) for each in specs]


# Processes.


@contextlib.contextmanager
def _running(command: Sequence[str], checkout: Path, state: Path) -> Iterator[psutil.Process]:
    """Run the launcher, from its ready notice to its end."""
    with open(state / LOG, "wb") as log:
        child = subprocess.Popen(
            command,
            cwd=checkout,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "XDG_STATE_HOME": str(state)},
        )
    process = psutil.Process(child.pid)
    try:
        if not _is_ready(child):
            said = (state / LOG).read_text(errors="replace").strip()
            raise Fatal(f"{command[0]} does not start: {said}")
        yield process
    finally:
        members = family(process)
        child.terminate()
        _, alive = psutil.wait_procs(members, STOP_LIMIT)
        for each in alive:
            each.kill()
        child.communicate()


def _is_ready(child: subprocess.Popen[bytes]) -> bool:
    """Wait for the line that the launcher prints when the server accepts connections."""
    assert child.stdout is not None
    ready, _, _ = select.select([child.stdout], [], [], START_LIMIT)
    return bool(ready and child.stdout.readline())


def family(process: psutil.Process | None) -> list[psutil.Process]:
    """Return the process and all its descendants; none if it has exited."""
    if process is None:
        return []
    with contextlib.suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return []


def listener(path: str) -> psutil.Process:
    """Return the process that made the socket a listening one."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.connect(path)
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return psutil.Process(struct.unpack("3i", credentials)[0])


def serving(path: str, first: psutil.Process) -> list[psutil.Process]:
    """Return the processes of the listener's family that hold the socket.

    master(8) is left out: it only listens. The path in the kernel's table may be relative to
    Postfix's queue directory.
    """
    table = (line.split(maxsplit=7) for line in Path("/proc/net/unix").read_text().splitlines())
    links = {f"socket:[{row[6]}]" for row in table if len(row) > 7 and path.endswith(row[7])}
    holders = (p for p in family(first) if links & set(descriptors_of(p.pid).values()))
    return [process for process in holders if _name(process) != "master"]


def _name(process: psutil.Process) -> str:
    """Return its name, "" if it has exited."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return str(process.name())
    return ""


def wait_for_socket(path: str) -> None:
    """Wait until a server accepts connections. Fatal if none does in time."""
    deadline = time.monotonic() + CONNECT_LIMIT
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                return probe.connect(path)
            except OSError as error:
                if time.monotonic() > deadline:
                    raise Fatal(f"cannot connect to {path}: {error.strerror}") from None
        time.sleep(0.01)
