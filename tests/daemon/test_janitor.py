"""The janitor in the real daemon: when it ends, the service goes on."""

from __future__ import annotations

import os
import signal
import time

from support.cache_files import empty_all_branches
from support.daemon_clients import send_all
from support.daemon_process import REPLACED_SOON, WATCHFUL, Daemon, MakeDaemon, wait_for
from support.raw_client import NOT_DONE, OK, Connection, data_of, lookup, seed, update

OFTEN = """
from tlsmgr.sessions import sweep
run = sweep.Sweep.run
sweep.Sweep.run = lambda self, now: min(run(self, now), 0.1)
"""
SLOW = """
from tlsmgr.sessions import sweep
sweep.SLICE_RECORDS, sweep.PAUSE = 10, 0.5
"""
ORPHANED = """
import os, signal, time
from tlsmgr.processes import filewatch
make_new = filewatch.FileWatch._make_new
def orphaned(*arguments):
    parent = os.getppid()
    os.kill(parent, signal.SIGKILL)
    while os.getppid() == parent:
        time.sleep(0.01)
    return make_new(*arguments)
filewatch.FileWatch._make_new = orphaned
"""
ONE_CACHE = (
    "tlsmgr_worker_processes=1",
    "smtpd_tls_session_cache_database=",
    "lmtp_tls_session_cache_database=",
)


def fill(daemon: Daemon, count: int) -> None:
    """Store this number of sessions."""
    with Connection(daemon.socket_path) as connection:
        updates = [update(b"smtp", b"id %d" % i, bytes(1200)) for i in range(count)]
        assert set(send_all(connection, updates)) == {OK}


def test_damaged_pages_end_the_janitor_alone(make_daemon: MakeDaemon) -> None:
    """The file is made new, and all goes on."""
    daemon = make_daemon(*ONE_CACHE, sabotage=REPLACED_SOON + WATCHFUL + OFTEN)
    fill(daemon, 2000)
    empty_all_branches(daemon.directory / "smtp_scache.sessions")
    daemon.wait_for_log(r"warning: janitor pid \d+ killed by signal 6")
    daemon.wait_for_log("smtp_scache.sessions was damaged or removed: recreated empty")
    assert daemon.is_running

    def serves_again() -> bool:
        try:
            with Connection(daemon.socket_path) as connection:
                assert connection.ask(update(b"smtp", b"id", b"session")) in (OK, NOT_DONE)
                return connection.ask(lookup(b"smtp", b"id")).startswith(b"status\x000\0")
        except (EOFError, OSError):
            return False

    wait_for(serves_again, "a cache that keeps sessions")


def test_a_janitor_that_is_killed_is_replaced(make_daemon: MakeDaemon) -> None:
    """Its files are sound, and its successor makes none new; it still watches and sweeps."""
    daemon = make_daemon(*ONE_CACHE, sabotage=REPLACED_SOON + WATCHFUL + OFTEN + SLOW)
    fill(daemon, 200)
    workers = daemon.workers()
    victim = daemon.janitor()
    victim.kill()
    daemon.wait_for_log(f"warning: janitor pid {victim.pid} killed by signal 9")
    wait_for(lambda: daemon.janitor().pid != victim.pid, "the next janitor")
    with Connection(daemon.socket_path) as connection:
        assert connection.ask(lookup(b"smtp", b"id 7")).startswith(b"status\x000\0")
    assert "recreated" not in daemon.log()
    assert daemon.workers() == workers
    (daemon.directory / "smtp_scache.sessions").unlink()
    daemon.wait_for_log("smtp_scache.sessions was damaged or removed: recreated empty")


def test_the_janitor_goes_with_the_parent(make_daemon: MakeDaemon) -> None:
    """Even in a sweep, and it saves the exchange file first."""
    daemon = make_daemon(*ONE_CACHE, sabotage=OFTEN + SLOW)
    fill(daemon, 2000)
    daemon.janitor()
    exchange = daemon.directory / "prng_exch"
    wait_for(exchange.exists, "the exchange file")
    before = exchange.read_bytes()
    os.kill(daemon.pid, signal.SIGKILL)
    daemon.wait()
    wait_for(lambda: not daemon.processes(), "end of all processes", timeout=10)
    assert exchange.read_bytes() != before


def test_a_parent_that_goes_while_a_file_is_made_new(make_daemon: MakeDaemon) -> None:
    """Nobody is left to hear of the new file. That is no defect, and the janitor ends as usual."""
    daemon = make_daemon(*ONE_CACHE, sabotage=WATCHFUL + ORPHANED)
    exchange = daemon.directory / "prng_exch"
    wait_for(exchange.exists, "the exchange file")
    before = exchange.read_bytes()
    (daemon.directory / "smtp_scache.sessions").unlink()
    assert daemon.wait() == -signal.SIGKILL
    wait_for(lambda: not daemon.processes(), "end of all processes")
    assert "smtp_scache.sessions was damaged or removed: recreated empty" in daemon.log()
    assert "file watch failed" not in daemon.log()
    assert exchange.read_bytes() != before


def test_sigterm_to_the_janitor_changes_nothing(daemon: Daemon) -> None:
    """`postfix stop` sends it to all processes of the group; the end of the parent counts."""
    janitor = daemon.janitor()
    janitor.terminate()
    with Connection(daemon.socket_path) as connection:
        assert len(data_of(connection.ask(seed(8)), b"seed")) == 8
    time.sleep(0)
    assert janitor.is_running()
    assert daemon.stop() == 0
    assert "janitor pid" not in daemon.log()
