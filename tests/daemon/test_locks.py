"""A child of the real daemon dies with a lock: the parent frees it, or replaces all children."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest
from support.daemon_process import Daemon, MakeDaemon, wait_for
from support.raw_client import Connection, data_of, seed, tktkey

SABOTAGE = """
import os, signal
from tlsmgr import shm
made = []
make, take = shm.Lock.__init__, shm.Lock._try
def noting(lock, *arguments):
    make(lock, *arguments)
    made.append(lock)
def take_and_die(lock, slot):
    if slot in {slots} and lock is made[{number}] and os.path.exists({flag!r}):
        os.unlink({flag!r})
        lock._take(0)
        lock._marks[slot] = shm.{mark}
        os.kill(os.getpid(), signal.SIGKILL)
    return take(lock, slot)
shm.Lock.__init__, shm.Lock._try = noting, take_and_die
"""
"""The next child in these slots that tries for this lock while the flag's file exists takes it and
dies."""

WORKERS, JANITOR = range(1, 5), range(5, 6)  # slots, with two workers
LOCKS = {"pool": 0, "ticket keys": 1}  # in the order in which they are made


def ask_both(daemon: Daemon) -> bool:
    """Ask for a seed and a ticket key; return whether both were answered."""
    with contextlib.suppress(EOFError, OSError), Connection(daemon.socket_path) as connection:
        is_seed = len(data_of(connection.ask(seed(8)), b"seed")) == 8
        return is_seed and len(data_of(connection.ask(tktkey()), b"keybuf")) == 88
    return False


def start(
    make_daemon: MakeDaemon, flag: Path, lock: str, mark: str, slots: range = WORKERS
) -> Daemon:
    """Start a daemon, and let one child die with that lock, and with that mark."""
    sabotage = SABOTAGE.format(number=LOCKS[lock], flag=str(flag), mark=mark, slots=slots)
    daemon = make_daemon(
        "tlsmgr_worker_processes=2", "tls_random_reseed_period=1s", sabotage=sabotage
    )
    flag.touch()
    ask_both(daemon)
    wait_for(lambda: not flag.exists(), "a child dies")
    return daemon


@pytest.mark.parametrize("lock", LOCKS)
def test_a_holder_that_dies_is_freed(make_daemon: MakeDaemon, tmp_path: Path, lock: str) -> None:
    daemon = start(make_daemon, tmp_path / "flag", lock, "HOLDING")
    wait_for(lambda: "freed a lock that " in daemon.log(), "the lock is freed")
    wait_for(lambda: ask_both(daemon), "both are answered")
    assert "a lock was lost" not in daemon.log()


def test_a_janitor_that_dies_with_the_pool(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """It has a mark of its own, so that this is noticed."""
    daemon = start(make_daemon, tmp_path / "flag", "pool", "HOLDING", JANITOR)
    daemon.wait_for_log("freed a lock that janitor pid [0-9]+ held")
    wait_for(lambda: ask_both(daemon), "both are answered")
    assert "a lock was lost" not in daemon.log()


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_that_is_lost_is_made_free(
    make_daemon: MakeDaemon, tmp_path: Path, lock: str
) -> None:
    daemon = start(make_daemon, tmp_path / "flag", lock, "WAITING")
    line = "warning: a lock was lost when a worker died: ending all workers"
    wait_for(lambda: line in daemon.lines(), "the lock counts as lost")
    wait_for(lambda: ask_both(daemon), "both are answered")
    wait_for(lambda: len(daemon.worker_pids()) == 2, "both workers serve")
    time.sleep(1.1)  # longer than a lock may be in doubt
    assert daemon.lines().count(line) == 1
    assert ask_both(daemon)


def test_seeds_are_answered_while_the_lock_is_in_doubt(
    make_daemon: MakeDaemon, tmp_path: Path
) -> None:
    daemon = start(make_daemon, tmp_path / "flag", "pool", "WAITING")
    answered = 0
    while "a lock was lost" not in daemon.log():
        answered += ask_both(daemon)
    assert answered > 2
