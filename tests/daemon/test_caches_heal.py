"""A daemon whose caches' files are damaged, removed or shared: it serves, and they heal."""

from __future__ import annotations

import contextlib
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from support.cache_files import empty_all_branches, empty_root_page
from support.daemon_clients import keeps_sessions, send_all, serve_on
from support.daemon_process import WATCHFUL, Daemon, MakeDaemon, wait_for
from support.raw_client import (
    NO_SESSION,
    NOT_DONE,
    OK,
    Connection,
    expect_seed,
    found,
    lookup,
    update,
)


def serve_until_it_heals(daemon: Daemon, workers: list[psutil.Process]) -> None:
    """The file is made again, workers with the old one end, and sessions are cached again."""
    numbers = iter(range(1_000_000))
    wait_for(
        lambda: serve_on(daemon, next(numbers)) and "recreated empty" in daemon.log(),
        "a new file",
    )
    wait_for(lambda: not set(daemon.workers()) & set(workers), "new workers")
    wait_for(lambda: serve_on(daemon, next(numbers)), "sessions")


def garbage(path: Path) -> None:
    path.write_bytes(random.randbytes(path.stat().st_size))


def garbage_behind_the_head(path: Path) -> None:
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(8192)
        file.write(random.randbytes(size - 8192))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "removed": Path.unlink,
    "renamed": lambda path: path.rename(path.with_name("elsewhere")),
    "truncated to nothing": lambda path: os.truncate(path, 0),
    "truncated to its head": lambda path: os.truncate(path, 8192),
    "cut in half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "garbage": garbage,
    "garbage behind the head": garbage_behind_the_head,
    "damaged branches": empty_all_branches,
}


class Damaged(NamedTuple):
    """A daemon whose smtp cache file is damaged, and its workers before that."""

    daemon: Daemon
    workers: list[psutil.Process]


@pytest.fixture(scope="module")
def damaged() -> Iterator[dict[str, Damaged]]:
    """A daemon for each damage, all at once, as each takes a moment to look at its files."""
    with contextlib.ExitStack() as stack:
        daemons = {each: Daemon("tlsmgr_worker_processes=2", sabotage=WATCHFUL) for each in DAMAGE}
        for daemon in daemons.values():
            stack.callback(daemon.clean_up)
            daemon.launch()
        yield {damage: fill_and_damage(daemon, damage) for damage, daemon in daemons.items()}


def fill_and_damage(daemon: Daemon, damage: str) -> Damaged:
    daemon.wait_until_ready()
    path = daemon.directory / "smtp_scache.sessions"
    with Connection(daemon.socket_path) as connection:
        updates = [update(b"smtp", b"old %d" % number, bytes(1200)) for number in range(2000)]
        assert set(send_all(connection, updates)) == {OK}
        assert connection.ask(update(b"smtpd", b"other", b"session")) == OK
    workers = daemon.workers()
    DAMAGE[damage](path)
    with Connection(daemon.socket_path) as connection, contextlib.suppress(EOFError, OSError):
        for number in range(0, 2000, 50):
            connection.ask(lookup(b"smtp", b"old %d" % number))
    return Damaged(daemon, workers)


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_service_goes_on_and_the_file_heals(damaged: dict[str, Damaged], damage: str) -> None:
    daemon, workers = damaged[damage]
    serve_until_it_heals(daemon, workers)
    path = daemon.directory / "smtp_scache.sessions"
    assert path.stat().st_mode & 0o7777 == 0o600
    with Connection(daemon.socket_path) as connection:
        assert connection.ask(lookup(b"smtp", b"old 7")) == NO_SESSION
        if damage in ("removed", "renamed"):
            assert connection.ask(lookup(b"smtpd", b"other")) == found(b"session")
    assert daemon.stop() == 0


@pytest.fixture
def watchful(make_daemon: MakeDaemon) -> Daemon:
    """One with two workers."""
    return make_daemon("tlsmgr_worker_processes=2", sabotage=WATCHFUL)


def test_a_damaged_root_page_does_not_end_the_parent(watchful: Daemon) -> None:
    """It opens no session file itself when a child dies."""
    daemon = watchful
    path = daemon.directory / "smtp_scache.sessions"
    with Connection(daemon.socket_path) as connection:
        assert connection.ask(update(b"smtp", b"id", b"session")) == OK
    workers = daemon.workers()
    empty_root_page(path)
    workers[0].kill()
    serve_until_it_heals(daemon, workers)
    assert daemon.is_running


def test_a_lock_table_that_is_removed_loses_no_update(watchful: Daemon) -> None:
    """A worker that is killed then, and replaced, must not write under another lock."""
    daemon = watchful
    path = daemon.directory / "smtp_scache.sessions"
    with Connection(daemon.socket_path) as connection:
        assert connection.ask(update(b"smtp", b"old", b"session")) == OK
    workers = daemon.workers()
    path.with_name("smtp_scache.sessions-lock").unlink()
    workers[0].kill()
    serve_until_it_heals(daemon, workers)
    with Connection(daemon.socket_path) as one, Connection(daemon.socket_path) as other:
        for number in range(500):
            session = b"session %d" % number
            assert (one, other)[number % 2].ask(update(b"smtp", b"id", session)) == OK
            assert (other, one)[number % 2].ask(lookup(b"smtp", b"id")) == found(session)


NO_LOOKS = "from tlsmgr.processes import filewatch; filewatch.WATCH_INTERVAL = 3600.0"


def test_damage_that_ends_a_worker_is_the_end_of_the_file(make_daemon: MakeDaemon) -> None:
    """At once: its successor does not open it, and the janitor need not look by itself."""
    daemon = make_daemon("tlsmgr_worker_processes=2", sabotage=NO_LOOKS)
    workers = daemon.workers()
    empty_root_page(daemon.directory / "smtp_scache.sessions")
    workers[0].kill()
    serve_until_it_heals(daemon, workers)
    deaths = [line for line in daemon.lines() if re.search("worker pid .* killed by signal", line)]
    # The one that was killed, its successor, and the other one if it met the damage before that.
    assert len(deaths) <= 3


def test_a_lock_table_that_is_removed_is_noticed_by_a_new_worker(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("tlsmgr_worker_processes=2", sabotage=NO_LOOKS)
    workers = daemon.workers()
    (daemon.directory / "smtp_scache.sessions-lock").unlink()
    workers[0].kill()
    serve_until_it_heals(daemon, workers)


def test_a_worker_that_drains_does_not_acknowledge_what_it_can_not_store(daemon: Daemon) -> None:
    """It has the old file, for up to ten seconds after the new one was made."""
    with Connection(daemon.socket_path) as old:
        assert old.ask(update(b"smtp", b"id", b"first")) == OK
        workers = daemon.worker_pids()
        (daemon.directory / "smtp_scache.sessions").unlink()
        daemon.wait_for_log("smtp_scache.sessions was damaged or removed: recreated empty")
        wait_for(lambda: len(daemon.worker_pids() - workers) == 2, "new workers")
        wait_for(lambda: keeps_sessions(daemon, b"another"), "sessions")
        assert daemon.worker_pids() & workers, "the old one still serves its client"
        with Connection(daemon.socket_path) as new:
            assert new.ask(update(b"smtp", b"id", b"second")) == OK
            assert old.ask(lookup(b"smtp", b"id")) == NO_SESSION
            assert old.ask(update(b"smtp", b"id", b"third")) == NOT_DONE
            assert new.ask(lookup(b"smtp", b"id")) == found(b"second")
        expect_seed(old, 8)


CANNOT_OPEN = """
import os
from tlsmgr.sessions import cache

def open_unless_told(*arguments, store=cache.Store):
    if os.path.exists({flag!r}):
        raise cache.StoreError("Too many open files in system")
    return store(*arguments)
cache.Store = open_unless_told
"""


def test_a_worker_that_could_not_open_a_file_tries_again(
    make_daemon: MakeDaemon, tmp_path: Path
) -> None:
    """It serves meanwhile, and need not be replaced."""
    flag = tmp_path / "flag"
    flag.touch()
    daemon = make_daemon("tlsmgr_worker_processes=1", sabotage=CANNOT_OPEN.format(flag=str(flag)))
    workers = daemon.worker_pids()
    assert not keeps_sessions(daemon, b"id")
    flag.unlink()
    wait_for(lambda: keeps_sessions(daemon, b"id"), "sessions")
    assert daemon.worker_pids() == workers


def test_two_caches_with_files_of_one_name(make_daemon: MakeDaemon) -> None:
    """In different directories. The watch must not take one for the other."""
    daemon = make_daemon(
        "tlsmgr_worker_processes=1",
        "smtp_tls_session_cache_database=btree:${data_directory}/private/cache",
        "smtpd_tls_session_cache_database=btree:${data_directory}/cache",
        sabotage=WATCHFUL,
    )
    with Connection(daemon.socket_path) as connection:
        assert connection.ask(update(b"smtp", b"id", b"of smtp")) == OK
        assert connection.ask(update(b"smtpd", b"id", b"of smtpd")) == OK
    workers = daemon.workers()
    (daemon.directory / "lmtp_scache.sessions").unlink()
    daemon.wait_for_log("lmtp_scache.sessions was damaged or removed")
    wait_for(lambda: not set(daemon.workers()) & set(workers), "new workers")
    with Connection(daemon.socket_path) as connection:
        assert connection.ask(lookup(b"smtp", b"id")) == found(b"of smtp")
        assert connection.ask(lookup(b"smtpd", b"id")) == found(b"of smtpd")
    assert sum(line.startswith("warning") for line in daemon.lines()) == 1


def test_a_second_daemon_on_the_same_state_does_no_harm(make_daemon: MakeDaemon) -> None:
    """It may serve without sessions of its own, or not at all."""
    first = make_daemon("tlsmgr_worker_processes=2")
    workers = first.workers()
    start = len(first.log())

    def check(number: int) -> None:
        with Connection(first.socket_path) as connection:
            assert connection.ask(update(b"smtp", b"id %d" % number, bytes(1200))) == OK
            for old in range(number + 1):
                assert connection.ask(lookup(b"smtp", b"id %d" % old)) == found(bytes(1200))

    for number in range(50):
        check(number)
    second = make_daemon(
        "tlsmgr_worker_processes=2",
        "smtp_tls_session_cache_entry_limit=3",
        "smtp_tls_session_cache_timeout=120",
        arguments=("--socket", str(first.state / "second")),
        state=str(first.state),
        start=False,
    )
    second.launch()
    wait_for(lambda: not second.is_running or (first.state / "second").exists(), "second daemon")
    for number in range(50, 200):
        if second.is_running:
            with (
                contextlib.suppress(OSError),
                Connection(str(first.state / "second")) as connection,
            ):
                expect_seed(connection, 8)
                assert connection.ask(update(b"smtp", b"second %d" % number, b"its own")) == OK
                assert connection.ask(lookup(b"smtp", b"id 1")) == NO_SESSION
        check(number)
    if second.is_running:
        assert second.stop() == 0
    check(200)
    assert first.workers() == workers
    assert first.lines(start) == []
    assert f"another tlsmgr uses {first.directory}" in second.log()


def removed(directory: Path) -> bool:
    """Whether it is gone now; not when somebody put a file there meanwhile."""
    for path in directory.iterdir():
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        directory.rmdir()
    return not directory.exists()


def test_a_directory_that_is_gone(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    place = tmp_path / "data"
    daemon = make_daemon("tlsmgr_worker_processes=2", f"data_directory={place}", sabotage=WATCHFUL)
    wait_for(lambda: removed(place), "nobody makes a file there for a moment")
    deaths = 0
    for number in range(100):
        with Connection(daemon.socket_path) as connection:
            expect_seed(connection, 8)
            assert connection.ask(update(b"smtp", b"%d" % number, b"session")) == OK
        if number % 30 == 15:
            victim = daemon.workers()[0]
            victim.kill()
            deaths += 1
            wait_for(
                lambda v=victim: len(daemon.workers()) == 2 and v not in daemon.workers(),  # type: ignore[misc]
                "a new worker",
            )
    assert deaths == 3
    assert psutil.pid_exists(daemon.pid)
