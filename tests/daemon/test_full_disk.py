"""A full disk: no process ends, sessions are cached as far as they fit, and it heals."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from support.daemon_clients import serve_on
from support.daemon_process import MakeDaemon, wait_for
from support.raw_client import NO_SESSION, OK, Connection, expect_seed, found, lookup, update
from support.small_disks import fill_up


def test_a_full_disk(make_daemon: MakeDaemon, small_disk: Path) -> None:
    daemon = make_daemon("tlsmgr_worker_processes=2", f"data_directory={small_disk}")
    workers = daemon.workers()
    session = os.urandom(1200)
    with Connection(daemon.socket_path) as connection:
        for number in range(300):
            assert connection.ask(update(b"smtp", b"id %d" % number, session)) == OK
        filler = fill_up(small_disk)
        for number in range(300, 3000):
            assert connection.ask(update(b"smtp", b"id %d" % number, session)) == OK
        for number in range(20):
            assert connection.ask(update(b"smtpd", b"large %d" % number, bytes(500_000))) == OK
        expect_seed(connection, 32)
        for number in range(3000):
            assert connection.ask(lookup(b"smtp", b"id %d" % number)) in (
                found(session),
                NO_SESSION,
            )
        filler.unlink()

        def is_kept() -> bool:
            number = time.monotonic_ns()
            assert connection.ask(update(b"smtp", b"id %d" % number, session)) == OK
            return connection.ask(lookup(b"smtp", b"id %d" % number)) == found(session)

        wait_for(is_kept, "sessions")
        for number in range(500):
            assert connection.ask(update(b"smtp", b"new %d" % number, session)) == OK
        assert connection.ask(lookup(b"smtp", b"new 499")) == found(session)
        assert connection.ask(lookup(b"smtp", b"new 0")) == found(session)
    assert daemon.workers() == workers, "no worker was lost"
    assert "recreated empty" not in daemon.log()


@pytest.mark.long
def test_a_start_on_a_full_disk_heals(make_daemon: MakeDaemon, small_disk: Path) -> None:
    filler = fill_up(small_disk)
    daemon = make_daemon("tlsmgr_worker_processes=2", f"data_directory={small_disk}")
    for number in range(20):
        assert not serve_on(daemon, number)
    filler.unlink()
    numbers = iter(range(1000, 1_000_000))
    wait_for(lambda: serve_on(daemon, next(numbers)), "sessions", timeout=90)
