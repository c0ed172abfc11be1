"""The parent of the real daemon: workers die, hang and come back; every end leaves nothing."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator

import psutil
import pytest
from conftest import MakeDaemon
from daemon_process import Daemon, wait_for
from raw_client import OK, Connection, data_of, found, lookup, policy, seed, tktkey, update

STOP_SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


def pids(daemon: Daemon) -> set[int]:
    return {worker.pid for worker in daemon.workers()}


def wait_for_workers(daemon: Daemon, count: int, without: set[int]) -> set[int]:
    """Wait until so many serve, none of them one of ``without``; returns their pids."""
    what = f"{count} workers other than {without}"

    def they_are_there() -> bool:
        assert daemon.is_running, what
        return len(pids(daemon)) == count and not pids(daemon) & without

    wait_for(they_are_there, what)
    return pids(daemon)


def ask_all(daemon: Daemon, connections: int = 20) -> None:
    """New connections are answered."""
    for _ in range(connections):
        with Connection(daemon.socket_path) as connection:
            assert len(data_of(connection.ask(seed(16)), b"seed")) == 16


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


# -------------------------------------------------------------------------------------- deaths


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR1, signal.SIGTERM])
def test_a_worker_that_dies_is_replaced_at_once(
    make_daemon: MakeDaemon, number: signal.Signals
) -> None:
    daemon = make_daemon("tlsmgr_worker_processes=3")
    before = pids(daemon)
    unloaded = {worker.pid: int(worker.num_fds()) for worker in daemon.workers()}
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(Connection(daemon.socket_path)) for _ in range(30)]
        clients = {w.pid: int(w.num_fds()) - unloaded[w.pid] for w in daemon.workers()}
        assert sum(clients.values()) == 30
        victim = max(clients, key=clients.__getitem__)
        time.sleep(1.1)  # a worker of that age did not die young
        os.kill(victim, number)
        wait_for_workers(daemon, 3, {victim})
        assert len(pids(daemon) & before) == 2
        answered = 0
        for connection in connections:
            with contextlib.suppress(EOFError, OSError):
                answered += len(data_of(connection.ask(seed(8)), b"seed")) == 8
        assert answered == 30 - clients[victim], "the clients of the others noticed nothing"
    ask_all(daemon)
    words = "exit status 0" if number == signal.SIGTERM else f"killed by signal {int(number)}"
    assert f"warning: worker pid {victim} {words}" in daemon.lines()
    assert {child.status() for child in psutil.Process(daemon.pid).children()} <= {
        psutil.STATUS_SLEEPING,
        psutil.STATUS_RUNNING,
    }, "no zombie"


def test_sessions_and_ticket_keys_outlive_all_workers(daemon: Daemon) -> None:
    with Connection(daemon.socket_path) as connection:
        assert connection.ask(update(b"smtp", b"id", b"session")) == OK
        key = connection.ask(tktkey())
    for _ in range(2):
        before = pids(daemon)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_for_workers(daemon, 2, before)
        with Connection(daemon.socket_path) as connection:
            assert connection.ask(lookup(b"smtp", b"id")) == found(b"session")
            assert connection.ask(tktkey()) == key


def test_workers_that_die_young_are_replaced_with_growing_pauses(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("tlsmgr_worker_processes=1")
    pauses = [0.0]
    while max(pauses) < 0.7:  # each time twice as long, unless this machine let one grow old
        assert len(pauses) < 30, pauses
        (victim,) = wait_for_workers(daemon, 1, set())
        ask_all(daemon, 1)  # it serves: this is no start in vain
        os.kill(victim, signal.SIGKILL)
        began = time.monotonic()
        wait_for_workers(daemon, 1, {victim})
        pauses.append(time.monotonic() - began)
    (last,) = pids(daemon)
    time.sleep(1.1)
    os.kill(last, signal.SIGKILL)
    wait_for_workers(daemon, 1, {last})
    ask_all(daemon, 1)


def test_counts_outlive_their_worker(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("tlsmgr_worker_processes=2")
    for _ in range(2):
        ask_all(daemon, 50)
        before = pids(daemon)
        os.kill(min(before), signal.SIGKILL)
        wait_for_workers(daemon, 2, {min(before)})
    assert daemon.stop() == 0
    assert re.search(r"^statistics: connections=100 seed=100$", "\n".join(daemon.lines()), re.M)


# ------------------------------------------------------------------------------------- defects


def test_a_defect_ends_one_worker_with_a_traceback(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(
        "tlsmgr_worker_processes=2",
        sabotage="""
import tlsmgr.processes.worker as worker
handle = worker.handle
def fail(context, request, now):
    return handle(context, request, now) if request != (77,) else 1 // 0
worker.handle = fail
""",
    )
    daemon.may_panic = True
    before = pids(daemon)
    with Connection(daemon.socket_path) as connection:
        connection.send(seed(77))
        assert connection.read_to_end() == b""
    wait_for(lambda: len(pids(daemon) & before) == 1, "death of one worker")
    wait_for_workers(daemon, 2, before - pids(daemon))
    lines = "\n".join(daemon.lines())
    assert "panic: ZeroDivisionError: integer division or modulo by zero" in lines
    assert re.search(r"^panic:   .*worker\.py:\d+ in _serve$", lines, re.MULTILINE)
    assert re.search(r"^warning: worker pid \d+ exit status 1$", lines, re.MULTILINE)
    ask_all(daemon)


def test_workers_that_can_not_boot_end_the_start(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(
        "tlsmgr_worker_processes=4",
        sabotage="""
from tlsmgr.processes import boot
def make_context(heritage, slot):
    raise RuntimeError("no context to be had")
boot.make_context = make_context
""",
        start=False,
    )
    daemon.may_panic = True
    daemon.launch()
    assert daemon.wait() == 1
    fatal = [line for line in daemon.lines() if line.startswith("fatal: ")]
    assert fatal == ["fatal: workers cannot start; see the messages above"]
    assert "panic: RuntimeError: no context to be had" in daemon.lines()
    assert not list((daemon.directory / "private").iterdir()), "no socket is left"


def test_workers_that_die_before_they_serve_end_the_start(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(
        "tlsmgr_worker_processes=4",
        sabotage="""
import os, signal
from tlsmgr.processes import boot
def make_context(heritage, slot):
    os.kill(os.getpid(), signal.SIGKILL)
boot.make_context = make_context
""",
        start=False,
    )
    daemon.launch()
    assert daemon.wait() == 1
    fatal = [line for line in daemon.lines() if line.startswith("fatal: ")]
    assert fatal == ["fatal: 10 workers in a row died before they could serve"]


def test_a_fork_that_fails_is_tried_again(make_daemon: MakeDaemon) -> None:
    """The system may be out of processes for a while: that is no reason to end the service."""
    daemon = make_daemon(
        "tlsmgr_worker_processes=2",
        *(f"{t}_tls_session_cache_database=" for t in ("smtpd", "smtp", "lmtp")),  # nor sweepers
        sabotage="""
import os
fork, calls = os.fork, []
def fork_or_fail():
    calls.append(1)
    if len(calls) in (3, 4):
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return fork()
os.fork = fork_or_fail
""",
    )
    before = pids(daemon)
    os.kill(min(before), signal.SIGKILL)
    wait_for_workers(daemon, 2, {min(before)})
    ask_all(daemon)
    daemon.wait_for_log("warning: fork: Resource temporarily unavailable; will try again")


# ---------------------------------------------------------------------------------------- hangs


def test_a_worker_that_hangs_is_replaced(make_daemon: MakeDaemon) -> None:
    """And one that merely has nothing to do is left alone."""
    daemon = make_daemon("tlsmgr_worker_processes=2", "daemon_timeout=3s")
    before = pids(daemon)
    stopped, other = sorted(before)
    time.sleep(3.5)
    assert pids(daemon) == before
    os.kill(stopped, signal.SIGSTOP)
    began = time.monotonic()
    ask_all(daemon, 30)
    wait_for_workers(daemon, 2, {stopped})
    assert time.monotonic() - began > 1.9, "it had beaten its heart a second before, at most"
    assert other in pids(daemon)
    assert f"warning: worker pid {stopped} does not respond: ending it" in daemon.lines()
    ask_all(daemon)


def test_a_stopped_parent_stops_nobody(daemon: Daemon) -> None:
    daemon.send(signal.SIGSTOP)
    try:
        ask_all(daemon)
    finally:
        daemon.send(signal.SIGCONT)
    ask_all(daemon)


# ----------------------------------------------------------------------------------------- ends


def end_in_time(make_daemon: MakeDaemon, number: signal.Signals, stopped_worker: bool) -> float:
    """Seconds from the signal to the end of the parent; status 0, no worker."""
    daemon = make_daemon("tlsmgr_worker_processes=4")
    with clients_of_all_kinds(daemon):
        workers = pids(daemon)
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
    for number in STOP_SIGNALS * 3:
        with contextlib.suppress(ProcessLookupError):
            daemon.send(number)
    assert daemon.wait() == 0


def test_workers_leave_signals_of_the_terminal_to_the_parent(daemon: Daemon) -> None:
    before = pids(daemon)
    for pid in before:
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGHUP)
    ask_all(daemon)
    assert pids(daemon) == before


def test_killing_the_parent_leaves_no_worker(make_daemon: MakeDaemon) -> None:
    """Not after a second. The best of three counts, so that what else runs here does not."""
    for _ in range(3):
        daemon = make_daemon("tlsmgr_worker_processes=4")
        with clients_of_all_kinds(daemon):
            workers = pids(daemon)
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


def test_seeds_and_policies_are_served_right_after_the_start(make_daemon: MakeDaemon) -> None:
    """What is printed as ready is ready: every worker."""
    daemon = make_daemon("tlsmgr_worker_processes=4")
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            connection = stack.enter_context(Connection(daemon.socket_path))
            assert connection.ask(policy(b"smtp")).startswith(b"status\x000\0cachable\x001\0")
    assert len(pids(daemon)) == 4


def test_workers_that_are_retired_go_without_a_word(daemon: Daemon) -> None:
    """They are replaced when a cache's file was made anew, and clients come to the new ones."""
    before = pids(daemon)
    (daemon.directory / "lmtp_scache.sessions").unlink()
    wait_for(lambda: not pids(daemon) & before, "other workers")
    wait_for_workers(daemon, 2, before)
    ask_all(daemon)
    (line,) = [line for line in daemon.lines() if line.startswith("warning: ")]
    assert "lmtp_scache.sessions was damaged or removed and is made anew" in line
