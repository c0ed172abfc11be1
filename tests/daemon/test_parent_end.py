"""Every end of the real daemon: in time, with all its workers, and leaving nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import psutil
import pytest
from support.daemon_clients import ask_all
from support.daemon_process import Daemon, MakeDaemon, wait_for
from support.raw_client import OK, Connection, lookup, update

STOP_SIGNALS = [signal.SIGTERM, signal.SIGINT]


@contextlib.contextmanager
def clients_of_all_kinds(daemon: Daemon) -> Iterator[None]:
    """Idle clients, some in mid-request, and one that does not read its replies."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(Connection(daemon.socket_path)) for _ in range(40)]
        assert connections[0].ask(update(b"smtp", b"large", bytes(200_000))) == OK
        for connection in connections[10:20]:
            connection.send(update(b"smtp", b"id", b"session")[:30])
        for connection in connections[20:25]:
            connection.send(lookup(b"smtp", b"large") * 20)
        yield


def end_in_time(make_daemon: MakeDaemon, number: signal.Signals, stopped_worker: bool) -> float:
    """Seconds from the signal to the end of the parent; status 0, no worker."""
    daemon = make_daemon("tlsmgr_worker_processes=4")
    with clients_of_all_kinds(daemon):
        workers = daemon.worker_pids()
        assert len(workers) == 4
        if stopped_worker:
            os.kill(min(workers), signal.SIGSTOP)
        began = time.monotonic()
        assert daemon.stop(number) == 0
        passed = time.monotonic() - began
        assert not [pid for pid in workers if psutil.pid_exists(pid)]
        assert not os.path.lexists(daemon.socket_path)
    return passed


@pytest.mark.parametrize("number", STOP_SIGNALS)
@pytest.mark.parametrize("stopped_worker", [False, True], ids=["", "stopped worker"])
def test_an_orderly_end_takes_less_than_a_second(
    make_daemon: MakeDaemon, number: signal.Signals, stopped_worker: bool
) -> None:
    """The best of three counts, so that what else runs here does not."""
    for _ in range(3):
        passed = end_in_time(make_daemon, number, stopped_worker)
        if passed < 1.0:
            return
    pytest.fail(f"took {passed:.2f} s")


def test_many_signals_are_one(daemon: Daemon) -> None:
    for number in [*STOP_SIGNALS, signal.SIGHUP] * 3:
        with contextlib.suppress(ProcessLookupError):
            daemon.send(number)
    assert daemon.wait() == 0


def test_workers_leave_signals_of_the_terminal_to_the_parent(daemon: Daemon) -> None:
    before = daemon.worker_pids()
    for pid in before:
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGHUP)
    ask_all(daemon)
    assert daemon.worker_pids() == before


def test_killing_the_parent_leaves_no_worker(make_daemon: MakeDaemon) -> None:
    """Not after a second. The best of three counts, so that what else runs here does not."""
    for _ in range(3):
        daemon = make_daemon("tlsmgr_worker_processes=4")
        with clients_of_all_kinds(daemon):
            workers = daemon.worker_pids()
            assert len(workers) == 4
            daemon.send(signal.SIGKILL)
            began = time.monotonic()
            wait_for(lambda d=daemon: not d.processes(), "end of all workers")  # type: ignore[misc]
            passed = time.monotonic() - began
        assert daemon.wait() == -signal.SIGKILL
        successor = make_daemon("tlsmgr_worker_processes=1", state=str(daemon.state))
        ask_all(successor, 3)
        successor.clean_up()
        if passed < 1.0:
            return
    pytest.fail(f"took {passed:.2f} s")
