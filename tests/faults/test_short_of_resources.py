"""Descriptors, processes, memory or room in the backlog are gone for a while."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cache_files import MIB
from support.daemon_clients import serve_on
from support.daemon_process import REPLACED_SOON, Daemon, MakeDaemon, wait_for
from support.fault_table import FaultTable
from support.memory_groups import MemoryGroup, memory_group
from support.raw_client import (
    ANNOUNCEMENT,
    OK,
    TIMEOUT,
    Connection,
    data_of,
    expect_seed,
    found,
    lookup,
    tktkey,
    update,
)

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("many_descriptors")]

NOFILE = resource.RLIMIT_NOFILE
GROUP_LIMIT = 32 * MIB  # of new memory; two workers may have 128 MiB of half requests
KILLED = "killed by signal 9"
FEW_DESCRIPTORS = 9  # fewer than the parent has; what is open stays open


@contextlib.contextmanager
def limited(pid: int, kind: int, soft: int) -> Iterator[None]:
    """Lower a limit of a process for the block."""
    before = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (soft, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, kind, before)


def keep_something(daemon: Daemon) -> bytes:
    """Store a session, and return the ticket key: both must survive the fault."""
    with Connection(daemon.socket_path) as connection:
        assert connection.ask(update(b"smtp", b"kept", b"session")) == OK
        return data_of(connection.ask(tktkey()), b"keybuf")


def check_it_is_kept(daemon: Daemon, key: bytes) -> None:
    with Connection(daemon.socket_path) as connection:
        assert connection.ask(lookup(b"smtp", b"kept")) == found(b"session")
        assert data_of(connection.ask(tktkey()), b"keybuf") == key
    assert "recreated" not in daemon.log()


def test_no_descriptors_for_a_successor(make_daemon: MakeDaemon, faults: FaultTable) -> None:
    """One has too few to start, or to open its caches; the other worker and the files remain."""
    daemon = make_daemon("tlsmgr_worker_processes=2")
    key = keep_something(daemon)
    victim, other = daemon.workers()
    files = {path: path.stat().st_ino for path in daemon.directory.glob("*.sessions")}
    with faults.under_load(daemon, "no descriptors for a successor") as load:
        with limited(daemon.pid, NOFILE, FEW_DESCRIPTORS):
            victim.kill()
            daemon.wait_for_log("a worker cannot start: Too many open files")
            check_it_is_kept(daemon, key)
            for more in range(2, 8, 2):
                limit = (FEW_DESCRIPTORS + more, resource.prlimit(daemon.pid, NOFILE)[1])
                resource.prlimit(daemon.pid, NOFILE, limit)
                time.sleep(0.3)
        wait_for(lambda: len(daemon.worker_pids()) == 2, "two workers")
        wait_for(lambda: keeps_sessions(daemon), "two workers with caches")
    assert other.is_running()
    assert (load.lost, load.failed) == (0, [])
    check_it_is_kept(daemon, key)
    assert {path: path.stat().st_ino for path in files} == files


def keeps_sessions(daemon: Daemon) -> bool:
    """Return whether each of a number of connections finds the session that is kept."""
    for _ in range(10):
        with Connection(daemon.socket_path) as connection:
            if connection.ask(lookup(b"smtp", b"kept")) != found(b"session"):
                return False
    return True


@pytest.mark.long
def test_no_descriptors_for_a_janitor(make_daemon: MakeDaemon, faults: FaultTable) -> None:
    daemon = make_daemon("tlsmgr_worker_processes=2")
    key = keep_something(daemon)
    workers = daemon.worker_pids()
    with faults.under_load(daemon, "no descriptors for a janitor") as load:
        with limited(daemon.pid, NOFILE, FEW_DESCRIPTORS):
            for process in daemon.processes():
                if process.name() == "tlsmgr-janitor":
                    process.kill()
            daemon.wait_for_log("janitor pid [0-9]+ (exit status|killed)")
        wait_for(lambda: any(p.name() == "tlsmgr-janitor" for p in daemon.processes()), "a janitor")
    assert daemon.worker_pids() == workers
    assert (load.lost, load.broken) == (0, [])
    check_it_is_kept(daemon, key)


FORK_FAILS = """
import os
fork = os.fork
def fork_or_fail():
    if os.path.exists({flag!r}):
        raise BlockingIOError(11, os.strerror(11))
    return fork()
os.fork = fork_or_fail
"""


def test_a_fork_that_fails(make_daemon: MakeDaemon, faults: FaultTable, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    daemon = make_daemon("tlsmgr_worker_processes=2", sabotage=FORK_FAILS.format(flag=str(flag)))
    key = keep_something(daemon)
    victim, other = daemon.workers()
    with faults.under_load(daemon, "fork fails") as load:
        flag.touch()
        victim.kill()
        daemon.wait_for_log("fork: Resource temporarily unavailable; will try again")
        check_it_is_kept(daemon, key)
        flag.unlink()
        wait_for(lambda: len(daemon.worker_pids()) == 2, "two workers")
    assert other.is_running()
    assert (load.lost, load.failed) == (0, [])


def test_a_worker_without_memory(make_daemon: MakeDaemon, faults: FaultTable) -> None:
    """RLIMIT_AS: a request that does not fit costs its worker at most; another takes its place."""
    daemon = make_daemon("tlsmgr_worker_processes=2")
    workers = daemon.worker_pids()
    large = update(b"smtp", b"large", bytes(1_400_000))
    with faults.under_load(daemon, "two workers without memory", others_serve=False) as load:
        for worker in daemon.workers():
            size = worker.memory_info().vms + MIB // 4
            resource.prlimit(worker.pid, resource.RLIMIT_AS, (size, size))
        for _ in range(10):
            with contextlib.suppress(EOFError, OSError), Connection(daemon.socket_path) as client:
                client.ask(large)
        daemon.wait_for_log("error: out of memory: a worker ends, another one takes its place")
        wait_for(lambda: len(daemon.worker_pids()) == 2, "two workers")
        wait_for(lambda: serve_on(daemon, 1), "sessions")
        load.remark = f"{len(workers - daemon.worker_pids())} workers ended"
    assert (load.lost, load.failed) == (0, [])


@pytest.fixture
def group() -> Iterator[MemoryGroup]:
    with memory_group() as made:
        yield made


def test_a_limit_of_memory(group: MemoryGroup, make_daemon: MakeDaemon, faults: FaultTable) -> None:
    """Of a control group: the kernel ends the largest process, and another one takes its place."""
    daemon = make_daemon("tlsmgr_worker_processes=2", sabotage=REPLACED_SOON)
    half = update(b"smtp", b"half", bytes(2 * MIB))[: 2 * MIB]
    with (
        faults.under_load(daemon, "limit of memory, by control group", others_serve=False) as load,
        contextlib.ExitStack() as stack,
    ):
        group.add(process.pid for process in daemon.processes())
        group.limit(GROUP_LIMIT)
        for _ in range(150):
            if KILLED in daemon.log():
                break  # a client may lose one connection, but not the next one as well
            with contextlib.suppress(OSError, EOFError):
                stack.enter_context(Connection(daemon.socket_path)).send(half)
        daemon.wait_for_log(KILLED)
        stack.close()
        wait_for(lambda: len(daemon.worker_pids()) == 2, "two workers")
        wait_for(lambda: all(serve_on(daemon, n) for n in range(20)), "sessions")
        load.remark = f"{daemon.log().count(KILLED)} workers ended"
    assert daemon.is_running
    assert (load.lost, load.failed) == (0, [])


def test_a_full_backlog(make_daemon: MakeDaemon, faults: FaultTable) -> None:
    """All workers are stopped for a moment, and connections come until the kernel refuses."""
    daemon = make_daemon("tlsmgr_worker_processes=2")
    with (
        faults.under_load(daemon, "full backlog", others_serve=False) as load,
        contextlib.ExitStack() as stack,
    ):
        workers = daemon.workers()
        for worker in workers:
            stack.callback(os.kill, worker.pid, signal.SIGCONT)
            os.kill(worker.pid, signal.SIGSTOP)
        waiting: list[socket.socket] = []
        with contextlib.suppress(BlockingIOError):
            while len(waiting) < 15_000:
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(daemon.socket_path)
                waiting.append(client)
        for worker in workers:
            os.kill(worker.pid, signal.SIGCONT)
        for client in waiting:
            client.settimeout(TIMEOUT)
            assert client.recv(100) == ANNOUNCEMENT
        load.remark = f"{len(waiting)} connections waited"
        assert set(daemon.workers()) == set(workers)
    assert (load.lost, load.failed) == (0, [])


@pytest.mark.parametrize("count", [2_000, pytest.param(10_000, marks=pytest.mark.long)])
def test_many_connections(make_daemon: MakeDaemon, faults: FaultTable, count: int) -> None:
    """All idle, and of 2,000 each one asks three times."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < count + 1000:
        pytest.skip(f"needs {count + 1000} descriptors")
    daemon = make_daemon("tlsmgr_worker_processes=2")
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(Connection(daemon.socket_path)) for _ in range(count)]
        with faults.under_load(
            daemon, f"{count:,} connections, 2,000 busy", others_serve=False
        ) as load:
            for _ in range(3):
                for connection in idle[:2000]:
                    connection.send(update(b"smtp", b"busy", b"session") + lookup(b"smtp", b"busy"))
                for connection in idle[:2000]:
                    assert connection.read_list() == OK
                    assert connection.read_list() == found(b"session")
        for connection in idle[-100:]:
            expect_seed(connection, 8)
    assert (load.lost, load.broken) == (0, [])
