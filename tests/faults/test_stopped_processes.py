"""A process of the daemon is stopped (SIGSTOP), as a debugger or the OOM freezer may do it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import psutil
import pytest
from support.daemon_process import Daemon, MakeDaemon, wait_for
from support.fault_load import Load
from support.fault_table import FaultTable
from support.live_processes import is_alive, sockets_of
from support.raw_client import Connection, update

pytestmark = pytest.mark.faults

OTHERS_WAIT = 0.5  # seconds that a client of another process may wait
ENDED_WITHIN = 10.0  # seconds in which a process that does not respond is ended
SLOW = 3.0  # how much longer both may take on a busy machine


@contextlib.contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    """Stop the process for the block."""
    process.suspend()
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()


def has_lock(pid: int, path: str) -> bool:
    """Return whether the process holds a flock() on the file."""
    inode = os.stat(path).st_ino
    with open("/proc/locks") as locks:
        fields = [line.split() for line in locks if "->" not in line]
    return any(f[1] == "FLOCK" and f[4] == str(pid) and f[5].endswith(f":{inode}") for f in fields)


def press(daemon: Daemon, stop: threading.Event) -> None:
    """Send updates without a pause, so that the writers' lock is rarely free."""
    requests = b"".join(update(b"smtp", b"pressed %d" % n, bytes(1000)) for n in range(100))
    with contextlib.suppress(EOFError, OSError), Connection(daemon.socket_path) as connection:
        while not stop.is_set():
            connection.send(requests)
            for _ in range(100):
                connection.read_list()


def stop_with_lock(daemon: Daemon) -> psutil.Process:
    """Stop a worker while it holds the writers' lock of a cache."""
    table = str(daemon.directory / "smtp_scache.sessions-lock")
    workers = daemon.workers()
    stop = threading.Event()
    threads = [threading.Thread(target=press, args=(daemon, stop), daemon=True) for _ in workers]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    try:
        while time.monotonic() < deadline:
            for worker in workers:
                os.kill(worker.pid, signal.SIGSTOP)
                if has_lock(worker.pid, table):
                    return worker
                os.kill(worker.pid, signal.SIGCONT)
                time.sleep(0.001)
        raise AssertionError("no worker was caught with the lock")
    finally:
        stop.set()


def check_the_end_of(daemon: Daemon, worker: psutil.Process, load: Load, began: float) -> None:
    """It is replaced, then ended; its clients go on elsewhere, and nobody else waited."""
    wait_for(lambda: len(daemon.worker_pids() - {worker.pid}) == 2, "a successor")
    replaced = time.monotonic() - began
    wait_for(lambda: not is_alive(worker), "end of the stopped worker")
    ended = time.monotonic() - began
    load.remark = f"replaced after {replaced:.1f} s, ended after {ended:.1f} s"
    assert ended < SLOW * ENDED_WITHIN
    wait_for(lambda: len(daemon.worker_pids()) == 2, "two workers")


def check_the_others(load: Load) -> None:
    assert load.failed == []
    assert load.worst < SLOW * OTHERS_WAIT
    assert max((wait.seconds for wait in load.broken), default=0.0) < SLOW * ENDED_WITHIN


@pytest.mark.long
def test_a_stopped_worker(make_daemon: MakeDaemon, faults: FaultTable) -> None:
    daemon = make_daemon("tlsmgr_worker_processes=2")
    with faults.under_load(daemon, "worker stopped") as load:
        began = time.monotonic()
        worker = max(daemon.workers(), key=lambda each: sockets_of(each.pid))
        with stopped(worker):
            check_the_end_of(daemon, worker, load, began)
    check_the_others(load)
    assert load.lost == 0
    assert load.broken, "its own clients waited"


@pytest.mark.long
def test_a_worker_stopped_with_the_writers_lock(
    make_daemon: MakeDaemon, faults: FaultTable
) -> None:
    """Updates that can't be stored meanwhile are answered and dropped; seeds go on."""
    daemon = make_daemon("tlsmgr_worker_processes=2")
    with faults.under_load(daemon, "worker stopped with the writers' lock") as load:
        worker = stop_with_lock(daemon)
        began = time.monotonic()
        with stopped(worker):
            check_the_end_of(daemon, worker, load, began)
        time.sleep(0.5)
    check_the_others(load)
    assert load.refused == []


def test_a_worker_stopped_for_a_moment(make_daemon: MakeDaemon, faults: FaultTable) -> None:
    """Shorter than it takes to count as stalled: all its clients get their replies."""
    daemon = make_daemon("tlsmgr_worker_processes=2")
    workers = daemon.worker_pids()
    with faults.under_load(daemon, "worker stopped for 0.5 s", others_serve=False) as load:
        with stopped(daemon.workers()[0]):
            time.sleep(0.5)
        time.sleep(0.3)
    assert daemon.worker_pids() == workers
    assert (load.broken, load.lost) == ([], 0)


def test_a_stopped_parent(make_daemon: MakeDaemon, faults: FaultTable) -> None:
    """Nobody notices; when it goes on it does not take its children for stalled."""
    daemon = make_daemon("tlsmgr_worker_processes=2")
    workers = daemon.worker_pids()
    with faults.under_load(daemon, "parent stopped") as load:
        with stopped(psutil.Process(daemon.pid)):
            time.sleep(1.8)
        time.sleep(0.3)
    assert daemon.worker_pids() == workers
    assert (load.broken, load.lost) == ([], 0)
    assert load.worst < SLOW * OTHERS_WAIT
    assert "does not respond" not in daemon.log()


@pytest.mark.long
def test_a_stopped_janitor(make_daemon: MakeDaemon, faults: FaultTable) -> None:
    daemon = make_daemon("tlsmgr_worker_processes=2")
    workers = daemon.worker_pids()
    with faults.under_load(daemon, "janitor stopped") as load:
        janitor = daemon.janitor()
        with stopped(janitor):
            wait_for(lambda: not is_alive(janitor), "end of the janitor")
        wait_for(lambda: daemon.janitor().pid != janitor.pid, "another janitor")
    assert daemon.worker_pids() == workers
    assert (load.broken, load.lost) == ([], 0)
    assert load.worst < SLOW * OTHERS_WAIT


def test_an_end_with_all_children_stopped(make_daemon: MakeDaemon, faults: FaultTable) -> None:
    """The parent kills what does not go."""
    daemon = make_daemon("tlsmgr_worker_processes=2")
    with faults.under_load(
        daemon, "all workers stopped, then SIGTERM", visitors=0, others_serve=False
    ) as load:
        for worker in daemon.workers():
            worker.suspend()
        began = time.monotonic()
        assert daemon.stop(signal.SIGTERM) == 0
        load.remark = f"ended after {time.monotonic() - began:.1f} s"
        assert not daemon.processes()
