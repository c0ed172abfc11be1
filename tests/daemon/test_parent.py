"""The parent of the real daemon: workers die, fail, hang, retire and come back."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time

import psutil
from support.daemon_clients import ask_all
from support.daemon_process import WATCHFUL, Daemon, MakeDaemon, wait_for
from support.live_processes import sockets_of
from support.raw_client import OK, Connection, data_of, found, lookup, policy, seed, tktkey, update

from tlsmgr.processes.drain import DRAIN_TIME


def wait_for_workers(daemon: Daemon, count: int, without: set[int]) -> set[int]:
    """Wait until that many serve, none of them one of ``without``; return their pids."""
    what = f"{count} workers other than {without}"

    def they_are_there() -> bool:
        assert daemon.is_running, what
        return len(daemon.worker_pids()) == count and not daemon.worker_pids() & without

    wait_for(they_are_there, what)
    return daemon.worker_pids()


# -------------------------------------------------------------------------------------- deaths


def test_a_worker_that_dies_is_replaced_at_once(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("tlsmgr_worker_processes=4")
    time.sleep(1.1)  # a worker of that age did not die young
    old = daemon.worker_pids()
    idle = sum(map(sockets_of, old)) // len(old)  # sockets of a worker without clients
    for number in (signal.SIGKILL, signal.SIGUSR2, signal.SIGTERM):
        victim = kill_one_of(daemon, old, number, idle)
        words = "exit status 0" if number == signal.SIGTERM else f"killed by signal {int(number)}"
        assert f"warning: worker pid {victim} {words}" in daemon.lines()
        old.remove(victim)


def kill_one_of(daemon: Daemon, old: set[int], number: signal.Signals, idle: int) -> int:
    """Send the signal to the worker of these that has most clients; return its pid.

    It must be replaced, the clients of the others must notice nothing, and no zombie be left.
    """
    before = daemon.worker_pids()
    wait_for(lambda: {sockets_of(pid) for pid in before} == {idle}, "end of earlier clients")
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(Connection(daemon.socket_path)) for _ in range(30)]
        clients = {pid: sockets_of(pid) - idle for pid in before}
        assert sum(clients.values()) == 30
        victim = max(old, key=clients.__getitem__)
        os.kill(victim, number)
        wait_for_workers(daemon, len(before), {victim})
        assert daemon.worker_pids() & before == before - {victim}
        answered = 0
        for connection in connections:
            with contextlib.suppress(EOFError, OSError):
                answered += len(data_of(connection.ask(seed(8)), b"seed")) == 8
        assert answered == 30 - clients[victim], "the clients of the others noticed nothing"
    ask_all(daemon)
    assert {child.status() for child in psutil.Process(daemon.pid).children()} <= {
        psutil.STATUS_SLEEPING,
        psutil.STATUS_RUNNING,
    }, "no zombie"
    return victim


def test_sessions_and_ticket_keys_outlive_all_workers(daemon: Daemon) -> None:
    with Connection(daemon.socket_path) as connection:
        assert connection.ask(update(b"smtp", b"id", b"session")) == OK
        key = connection.ask(tktkey())
    for _ in range(2):
        before = daemon.worker_pids()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_for_workers(daemon, 2, before)
        with Connection(daemon.socket_path) as connection:
            assert connection.ask(lookup(b"smtp", b"id")) == found(b"session")
            assert connection.ask(tktkey()) == key


def test_workers_that_die_young_are_replaced_with_growing_pauses(make_daemon: MakeDaemon) -> None:
    young = "from tlsmgr.processes import restarts; restarts.YOUNG = 60.0"
    daemon = make_daemon("tlsmgr_worker_processes=1", sabotage=young)
    pauses = [0.0]
    while max(pauses) < 0.35:  # each time twice as long
        assert len(pauses) < 10, pauses
        (victim,) = wait_for_workers(daemon, 1, set())
        ask_all(daemon, 1)  # it serves: this is no start in vain
        os.kill(victim, signal.SIGKILL)
        began = time.monotonic()
        wait_for_workers(daemon, 1, {victim})
        pauses.append(time.monotonic() - began)
    ask_all(daemon, 1)


def test_counts_outlive_their_worker(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("tlsmgr_worker_processes=2")
    for _ in range(2):
        ask_all(daemon, 50)
        before = daemon.worker_pids()
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
    before = daemon.worker_pids()
    with Connection(daemon.socket_path) as connection:
        connection.send(seed(77))
        assert connection.read_to_end() == b""
    wait_for(lambda: len(daemon.worker_pids() & before) == 1, "death of one worker")
    wait_for_workers(daemon, 2, before - daemon.worker_pids())
    lines = "\n".join(daemon.lines())
    assert re.search("panic: ZeroDivisionError: .* by zero", lines)
    assert re.search(r"^panic:   .*worker\.py:\d+ in _serve$", lines, re.MULTILINE)
    assert re.search(r"^warning: worker pid \d+ exit status 1$", lines, re.MULTILINE)
    ask_all(daemon)


def test_workers_that_can_not_boot_end_the_start(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(
        "tlsmgr_worker_processes=4",
        sabotage="""
from tlsmgr.processes import setup
def make_context(*_):
    raise RuntimeError("no context to be had")
setup.make_context = make_context
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
from tlsmgr.processes import setup
def make_context(*_):
    os.kill(os.getpid(), signal.SIGKILL)
setup.make_context = make_context
""",
        start=False,
    )
    daemon.launch()
    assert daemon.wait() == 1
    fatal = [line for line in daemon.lines() if line.startswith("fatal: ")]
    assert fatal == ["fatal: 5 workers in a row died before they could serve"]


def test_a_fork_that_fails_is_tried_again(make_daemon: MakeDaemon) -> None:
    """The system may be out of processes for a while: that is no reason to end the service."""
    daemon = make_daemon(
        "tlsmgr_worker_processes=2",
        *(f"{t}_tls_session_cache_database=" for t in ("smtpd", "smtp", "lmtp")),  # nor sweepers
        sabotage="""
import os
from tlsmgr.processes import restarts
restarts.FORK_PAUSE = 0.2
fork, calls = os.fork, []
def fork_or_fail():
    calls.append(1)
    if len(calls) in (3, 4):
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return fork()
os.fork = fork_or_fail
""",
    )
    before = daemon.worker_pids()
    os.kill(min(before), signal.SIGKILL)
    wait_for_workers(daemon, 2, {min(before)})
    ask_all(daemon)
    daemon.wait_for_log("warning: fork: Resource temporarily unavailable; will try again")


# ---------------------------------------------------------------------------------------- hangs


def test_a_worker_that_hangs_is_replaced(make_daemon: MakeDaemon) -> None:
    """And one that merely has nothing to do is left alone."""
    daemon = make_daemon("tlsmgr_worker_processes=2", "daemon_timeout=2s")
    before = daemon.worker_pids()
    stopped, other = sorted(before)
    time.sleep(2.5)
    assert daemon.worker_pids() == before
    os.kill(stopped, signal.SIGSTOP)
    began = time.monotonic()
    ask_all(daemon, 30)
    wait_for_workers(daemon, 2, {stopped})
    assert time.monotonic() - began > 0.9, "it had beaten its heart a second before, at most"
    assert other in daemon.worker_pids()
    assert f"warning: worker pid {stopped} does not respond: ending it" in daemon.lines()
    ask_all(daemon)


def test_a_stopped_parent_stops_nobody(make_daemon: MakeDaemon) -> None:
    """And it goes on, also when it was stopped for longer than daemon_timeout."""
    daemon = make_daemon("tlsmgr_worker_processes=2", "daemon_timeout=2s")
    before = daemon.worker_pids()
    daemon.send(signal.SIGSTOP)
    try:
        ask_all(daemon)
        time.sleep(2.5)
        ask_all(daemon)
    finally:
        daemon.send(signal.SIGCONT)
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    wait_for_workers(daemon, 2, {victim})
    assert before - {victim} <= daemon.worker_pids()
    ask_all(daemon)


def test_a_suspension_of_all_processes_ends_none(make_daemon: MakeDaemon) -> None:
    """The parent goes on first, and is woken at once."""
    daemon = make_daemon("tlsmgr_worker_processes=2", "daemon_timeout=2s")
    before, lines = daemon.worker_pids(), daemon.lines()
    everyone = [daemon.pid, *before]
    for pid in everyone:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(2.5)
    for pid in everyone:
        os.kill(pid, signal.SIGCONT)
        os.kill(daemon.pid, signal.SIGCHLD)
        time.sleep(0.05)
    ask_all(daemon)
    assert daemon.worker_pids() == before
    assert daemon.lines() == lines


# ------------------------------------------------------------------------------- start, retirement


def test_seeds_and_policies_are_served_right_after_the_start(make_daemon: MakeDaemon) -> None:
    """Every worker serves when the daemon says that it is ready."""
    daemon = make_daemon("tlsmgr_worker_processes=4")
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            connection = stack.enter_context(Connection(daemon.socket_path))
            assert connection.ask(policy(b"smtp")).startswith(b"status\x000\0cachable\x001\0")
    assert len(daemon.worker_pids()) == 4


def test_workers_that_are_retired_go_without_a_word(make_daemon: MakeDaemon) -> None:
    """They are replaced when a session file was made again, and clients get the new ones."""
    daemon = make_daemon("tlsmgr_worker_processes=2", sabotage=WATCHFUL)
    before = daemon.worker_pids()
    (daemon.directory / "lmtp_scache.sessions").unlink()
    wait_for(lambda: not daemon.worker_pids() & before, "other workers")
    wait_for_workers(daemon, 2, before)
    ask_all(daemon)
    (line,) = [line for line in daemon.lines() if line.startswith("warning: ")]
    assert "lmtp_scache.sessions was damaged or removed: recreated empty" in line


def test_workers_that_drain_keep_no_successor_from_starting(make_daemon: MakeDaemon) -> None:
    """A file is made new again and again, while clients stay with the workers of the old ones."""
    daemon = make_daemon("tlsmgr_worker_processes=1", sabotage=WATCHFUL)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(Connection(daemon.socket_path))
            (daemon.directory / "smtp_scache.sessions").unlink()
            daemon.wait_for_log("recreated empty", len(daemon.log()))
            began = time.monotonic()
            ask_all(daemon, 1)
            assert time.monotonic() - began < 0.5 * DRAIN_TIME
