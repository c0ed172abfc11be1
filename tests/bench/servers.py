"""servers - what is measured: started for the purpose, or found at a socket

Each kind of server is a row of KINDS and a context manager that starts one with private
directories and ends it, by pid, when the measurement is over. What is not in the table is a path:
of a checkout of this project, whose scripts/tlsmgr-start is started, or of the socket of a server
that runs already, which is left running.

A server that does not start is fatal, with what it said.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import psutil

from bench.build import build
from bench.loads import SEED_LENGTH, SESSION_LENGTH
from bench.sandbox import postconf, postfix_missing
from bench.server import Server, family, listener, serving, wait_for_socket
from bench.stock import StockTlsmgr
from tlsmgr.log import Fatal

CHECKOUT = Path(__file__).parents[2]
DISK, MEMORY = "/var/tmp", "/dev/shm"
START_LIMIT = 120.0  # seconds; the launcher may have to make a virtual environment
STOP_LIMIT = 15.0
LIFE = "36000s"  # of a session, so that none expires during a run
LOG = "log"
STOCK_CACHE_TYPES = ("btree", "lmdb")


@dataclass(frozen=True)
class ServerSpec:
    """What a server is to be started with. Parameters are those of main.cf and tlsmgr.cf."""

    name: str
    directory: Path  # for programs and sockets
    parameters: Mapping[str, str]  # for all servers
    options: Sequence[str] = ()  # name=value, for ours
    disk: str = DISK

    @property
    def all_parameters(self) -> dict[str, str]:
        """With those that every measurement needs."""
        return {"smtp_tls_session_cache_timeout": LIFE, **self.parameters}


Start = Callable[[ServerSpec], contextlib.AbstractContextManager[Server]]


class Kind(NamedTuple):
    """A kind of server that can be started by its name."""

    start: Start
    purpose: str


@contextlib.contextmanager
def ours(wish: ServerSpec, checkout: Path = CHECKOUT) -> Iterator[Server]:
    """The tlsmgr of a checkout, by its normal launcher."""
    launcher = checkout.resolve() / "scripts/tlsmgr-start"
    program = [str(launcher)] if launcher.exists() else [sys.executable, "-m", "tlsmgr.standalone"]
    settings = (*(f"{n}={v}" for n, v in wish.all_parameters.items()), *wish.options)
    with tempfile.TemporaryDirectory(prefix="tlsmgr-bench-", dir=wish.disk) as state:
        path = f"{state}/socket"
        command = [*program, *(word for s in settings for word in ("-o", s)), "--socket", path]
        with _running(command, checkout, Path(state)) as process:
            yield Server(
                name=wish.name,
                socket=path,
                processes=lambda: family(process),
                data=Path(state, "tlsmgr"),
                log=Path(state, LOG),
                workers=process.children,
            )


@contextlib.contextmanager
def stock(wish: ServerSpec, data_parent: str | None = None) -> Iterator[Server]:
    """Stock tlsmgr(8), with its data in `data_parent`."""
    if reason := postfix_missing():
        raise Fatal(f"cannot measure stock tlsmgr: {reason}")
    known = postconf("-m").split()
    cache_type = next((each for each in STOCK_CACHE_TYPES if each in known), "hash")
    sandbox = StockTlsmgr(
        cache_type=cache_type,
        data_parent=data_parent or wish.disk,
        parameters=wish.all_parameters,
    )
    try:
        sandbox.start()
        process = sandbox.process
        yield Server(
            name=wish.name,
            socket=str(sandbox.socket),
            processes=lambda: family(process),
            data=sandbox.data,
            log=sandbox.log_file,
        )
    finally:
        sandbox.stop()
        sandbox.remove()


def stock_in_memory(wish: ServerSpec) -> contextlib.AbstractContextManager[Server]:
    """Stock tlsmgr(8), with its data on tmpfs."""
    return stock(wish, MEMORY)


@contextlib.contextmanager
def ceiling(wish: ServerSpec) -> Iterator[Server]:
    """A server in C that parses nothing."""
    program = build("ceiling", wish.directory)
    if program is None:
        raise Fatal("cannot measure the ceiling: there is no C compiler")
    path = wish.directory / "ceiling.socket"
    command = [str(program), str(path), str(SEED_LENGTH), str(SESSION_LENGTH)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        wait_for_socket(str(path))
        process = psutil.Process(child.pid)
        yield Server(wish.name, str(path), lambda: [process], lenient=True)
    finally:
        child.kill()
        child.communicate()
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def running(wish: ServerSpec) -> Iterator[Server]:
    """A server that runs already, at the socket that is its name."""
    wait_for_socket(wish.name)
    first = listener(wish.name)
    yield Server(wish.name, wish.name, lambda: serving(wish.name, first))


KINDS: Mapping[str, Kind] = {
    "ours": Kind(ours, "tlsmgr of this checkout, by scripts/tlsmgr-start"),
    "stock": Kind(stock, f"stock tlsmgr(8), its caches below {DISK} (see --disk)"),
    "stock-tmpfs": Kind(stock_in_memory, f"stock tlsmgr(8), its caches below {MEMORY}"),
    "ceiling": Kind(ceiling, "answers without parsing anything; needs a C compiler"),
}


def start_of(name: str) -> Start:
    """How the server of that name is started. Fatal: there is no such thing."""
    path = Path(name)
    if name in KINDS:
        return KINDS[name].start
    if (path / "scripts/tlsmgr-start").exists():
        return lambda wish: ours(wish, path)
    if path.is_socket():
        return running
    raise Fatal(f"{name} is no socket, no checkout with scripts/tlsmgr-start, and none of "
                f"{', '.join(KINDS)}")  # fmt: skip


@contextlib.contextmanager
def started(names: Sequence[str], wish: ServerSpec) -> Iterator[list[Server]]:
    """The servers of these names, all at once."""
    with contextlib.ExitStack() as stack:
        wishes = [replace(wish, name=name) for name in names]
        yield [stack.enter_context(start_of(each.name)(each)) for each in wishes]


# Processes.


@contextlib.contextmanager
def _running(command: Sequence[str], checkout: Path, state: Path) -> Iterator[psutil.Process]:
    """The launcher, from its ready notice to its end; Python imports from where it works."""
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
        if not _says_something(child):
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


def _says_something(child: subprocess.Popen[bytes]) -> bool:
    assert child.stdout is not None
    ready, _, _ = select.select([child.stdout], [], [], START_LIMIT)
    return bool(ready and child.stdout.readline())
