"""A full disk: nobody dies of it, sessions are kept as far as they fit, and it heals."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from support.cache_files import MIB, CacheFiles, in_child
from support.daemon_clients import serve_on
from support.daemon_process import MakeDaemon, wait_for
from support.raw_client import NO_SESSION, OK, Connection, expect_seed, found, lookup, update
from support.small_disks import fill_up

from tlsmgr.sessions.cache import Change
from tlsmgr.sessions.store import Store, StoreError, create
from tlsmgr.sessions.sweep import Sweep


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
    assert "recreated" not in daemon.log()


def test_on_a_full_disk_the_oldest_go(small_disk: Path) -> None:
    """What was stored last is there. A large session that does not fit is not, and harms none."""
    files = CacheFiles(small_disk, size_limit=64 * MIB)

    def work() -> None:
        cache = files.cache()

        def store(name: bytes, size: int) -> bool:
            assert cache.apply([Change(name, bytes(size))], 0) == [True]
            session = cache.lookup(name, 0)
            cache.end_reading()
            assert session in (None, bytes(size))
            return session is not None

        for number in range(8000):
            assert store(b"%d" % number, 1200)
        kept = [number for number in range(8000) if cache.lookup(b"%d" % number, 0)]
        assert kept == list(range(kept[0], 8000))
        assert len(kept) > 500
        for number in kept[::3]:
            cache.apply([Change(b"%d" % number, None)], 0)
        large = [store(b"large %d" % number, 300_000) for number in range(20)]
        assert sum(large) < 20
        for number in range(8000):
            assert store(b"again %d" % number, 1200)
        assert not files.shared.take_damage()

    in_child(work)
    files.remove()


def test_on_a_full_disk_after_all_were_stored_again(small_disk: Path) -> None:
    """In another order than they came in, so that the oldest is looked for long."""
    files = CacheFiles(small_disk, size_limit=64 * MIB)

    def work() -> list[bool]:
        cache = files.cache()
        for number in range(1000):
            cache.apply([Change(b"%d" % number, bytes(1200))], 0)
        assert fill_up(small_disk).stat().st_size > 0
        for number in reversed(range(1000)):
            cache.apply([Change(b"%d" % number, bytes(1200))], 0)
        kept = []
        for new in range(1500):
            cache.apply([Change(b"new %d" % new, bytes(1200))], 0)
            kept.append(cache.lookup(b"new %d" % new, 0) is not None)
            cache.end_reading()
        return kept

    assert in_child(work) == [True] * 1500
    assert not files.shared.take_damage()
    files.remove()


def test_a_large_session_that_does_not_fit_goes_alone(small_disk: Path) -> None:
    """Not with what it shares a batch with."""
    files = CacheFiles(small_disk, size_limit=64 * MIB)

    def work() -> tuple[list[bool], list[bool]]:
        cache = files.cache()
        for number in range(1000):
            cache.apply([Change(b"%d" % number, bytes(1200))], 0)
        fill_up(small_disk)
        for number in range(1000, 4000):
            cache.apply([Change(b"%d" % number, bytes(1200))], 0)
        batch = [Change(b"3999", None), Change(b"large", bytes(900_000)), Change(b"small", b"s")]
        done = cache.apply(batch, 0)
        found = [cache.lookup(name, 0) is not None for name, _ in batch]
        cache.end_reading()
        return done, found

    assert in_child(work) == ([True, True, True], [False, False, True])
    files.remove()


def test_a_sweep_on_a_full_disk(small_disk: Path) -> None:
    """What is expired goes, and nobody takes the file for damaged."""
    files = CacheFiles(small_disk, size_limit=64 * MIB)
    cache = files.cache()
    for number in range(600):
        cache.apply([Change(b"%d" % number, bytes(1200))], 0)
    files.close()
    fill_up(small_disk)
    sweep = Sweep(files.rules, files.shared, files.file, lambda _: None)
    for now in range(10_000, 10_020):
        sweep.run(float(now))
    assert sweep.deleted == 600
    assert files.cache().size()[0] == 0
    assert not files.shared.take_damage()
    files.remove()


def test_on_a_full_disk_nothing_is_made_and_nobody_dies(small_disk: Path) -> None:
    """LMDB maps the file and its lock table: without room for them they must not be touched."""
    files = CacheFiles(small_disk)
    filler = fill_up(small_disk)

    def tries() -> list[str]:
        said = []
        for act in (lambda: create(files.file), lambda: Store(files.file)):
            try:
                act()
            except StoreError as error:
                said.append(str(error))
        return said

    os.close(files.claim)
    assert in_child(tries) == ["No space left on device"] * 2
    filler.unlink()
    files.claim = create(files.file)
    assert files.cache().apply([Change(b"id", b"session")], 0) == [True]
    files.remove()


@pytest.mark.long
def test_a_start_on_a_full_disk_heals(make_daemon: MakeDaemon, small_disk: Path) -> None:
    filler = fill_up(small_disk)
    daemon = make_daemon("tlsmgr_worker_processes=2", f"data_directory={small_disk}")
    for number in range(20):
        assert not serve_on(daemon, number)
    filler.unlink()
    numbers = iter(range(1000, 1_000_000))
    wait_for(lambda: serve_on(daemon, next(numbers)), "sessions", timeout=90)
