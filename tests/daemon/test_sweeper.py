"""The sweeper in the real daemon: it comes, goes, and what ends it ends nothing else."""

from __future__ import annotations

import os
import signal
import time

import psutil
from support.cache_files import empty_all_branches
from support.daemon_process import Daemon, MakeDaemon, wait_for
from support.raw_client import OK, Connection, lookup, update

OFTEN = """
from tlsmgr.processes import janitor
run = janitor.Sweeps.run
janitor.Sweeps.run = lambda self, now: min(run(self, now), 0.1)
"""
SLOW = """
from tlsmgr.sessions import sweep
sweep.SLICE_RECORDS, sweep.PAUSE = 10, 0.5
"""
CACHES = ("smtpd_tls_session_cache_database=", "lmtp_tls_session_cache_database=")


def fill(daemon: Daemon, count: int) -> None:
    """Store so many sessions."""
    with Connection(daemon.socket_path) as connection:
        for i in range(count):
            assert connection.ask(update(b"smtp", b"id %d" % i, bytes(1200))) == OK


def sweeper_of(daemon: Daemon) -> psutil.Process:
    """The sweeper, as soon as there is one."""
    found: list[psutil.Process] = []

    def look() -> bool:
        for child in psutil.Process(daemon.pid).children():
            try:
                if child.name() == "tlsmgr-sweeper":
                    found.append(child)
            except psutil.NoSuchProcess:
                continue
        return bool(found)

    wait_for(look, "a sweeper")
    return found[0]


def test_a_file_of_damaged_pages_ends_the_sweeper_alone(make_daemon: MakeDaemon) -> None:
    """It is made anew, and all goes on."""
    daemon = make_daemon("tlsmgr_worker_processes=1", *CACHES, sabotage=OFTEN)
    fill(daemon, 2000)
    empty_all_branches(daemon.directory / "smtp_scache.sessions")
    daemon.wait_for_log(r"warning: smtp cache sweeper pid \d+ killed by signal 6")
    daemon.wait_for_log("smtp_scache.sessions was damaged or removed and is made anew")
    assert daemon.is_running

    def serves_again() -> bool:
        try:
            with Connection(daemon.socket_path) as connection:
                assert connection.ask(update(b"smtp", b"id", b"session")) == OK
                return connection.ask(lookup(b"smtp", b"id")).startswith(b"status\x000\0")
        except (EOFError, OSError):
            return False

    wait_for(serves_again, "a cache that keeps sessions")


def test_a_sweeper_that_is_killed(make_daemon: MakeDaemon) -> None:
    """That says nothing of the file: the next sweep finds it."""
    daemon = make_daemon("tlsmgr_worker_processes=1", *CACHES, sabotage=OFTEN + SLOW)
    fill(daemon, 200)
    victim = sweeper_of(daemon)
    victim.kill()
    daemon.wait_for_log(f"warning: smtp cache sweeper pid {victim.pid} killed by signal 9")
    wait_for(lambda: sweeper_of(daemon).pid != victim.pid, "the next sweeper")
    assert "made anew" not in daemon.log()


def test_a_sweeper_goes_with_the_parent(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("tlsmgr_worker_processes=1", *CACHES, sabotage=OFTEN + SLOW)
    fill(daemon, 2000)
    sweeper_of(daemon)
    os.kill(daemon.pid, signal.SIGKILL)
    killed = time.monotonic()
    daemon.wait()
    wait_for(lambda: not daemon.processes(), "end of all processes", timeout=10)
    assert time.monotonic() - killed < 1


def test_a_sweeper_goes_at_an_orderly_end(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("tlsmgr_worker_processes=1", *CACHES, sabotage=OFTEN + SLOW)
    fill(daemon, 2000)
    sweeper_of(daemon)
    assert daemon.stop() == 0
    assert "sweeper pid" not in daemon.log()
