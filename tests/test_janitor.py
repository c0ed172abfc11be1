"""Maintenance: jobs in time, files made anew, and a daemon that serves whatever happens."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from cache_files import MIB, CacheFiles, empty_all_branches, end_of_child, held_open, in_child
from conftest import MakeDaemon
from daemon_process import PATIENCE, Daemon, wait_for
from raw_client import NO_SESSION, OK, Connection, data_of, found, lookup, policy, seed, update

from tlsmgr.processes.heritage import CachePlan
from tlsmgr.processes.janitor import (
    AFTER_A_DEFECT,
    FileWatch,
    Janitor,
    StaleReaders,
    StatisticsLine,
)
from tlsmgr.sessions.cache import Change
from tlsmgr.sessions.store import Store, StoreError, create, inode_of, remove
from tlsmgr.shm import SharedMemory
from tlsmgr.stats import INDEX, Stats

# ----------------------------------------------------------------------------------------- janitor


def test_jobs_run_when_they_are_due() -> None:
    janitor = Janitor()
    runs: list[str] = []

    def job(name: str, delay: float) -> Callable[[float], float]:
        def run(now: float) -> float:
            assert abs(now - time.time()) < 60
            runs.append(name)
            return delay

        return run

    assert janitor.run() == 60.0
    janitor.add("often", job("often", 0.0))
    janitor.add("seldom", job("seldom", 1000.0))
    janitor.add("later", job("later", 1000.0), delay=500.0)
    assert janitor.run() == 0.0
    assert runs == ["often", "seldom"]
    janitor.run()
    assert runs == ["often", "seldom", "often"]
    janitor.hasten("later")
    janitor.run()
    assert runs[3:] == ["often", "later"]


def test_it_says_how_long_to_sleep() -> None:
    janitor = Janitor()
    janitor.add("soon", lambda now: 7.0)
    janitor.add("late", lambda now: 500.0)
    assert 6.0 < janitor.run() <= 7.0


def test_a_defect_in_a_job_is_logged_and_tried_again(capfd: pytest.CaptureFixture[str]) -> None:
    janitor = Janitor()
    janitor.add("broken", lambda now: 1 / 0)
    janitor.add("sound", lambda now: 1000.0)
    assert AFTER_A_DEFECT - 1 < janitor.run() <= AFTER_A_DEFECT
    lines = capfd.readouterr().err
    assert "error: maintenance job broken failed" in lines
    assert "panic: ZeroDivisionError" in lines
    janitor.hasten("broken")
    janitor.run()
    assert "maintenance job broken failed" in capfd.readouterr().err


def test_a_death_is_told_to_all_who_asked() -> None:
    janitor = Janitor()
    told: list[tuple[str, int]] = []
    janitor.on_death(lambda code: told.append(("first", code)))
    janitor.on_death(lambda code: told.append(("second", code)))
    janitor.child_died(-9)
    assert told == [("first", -9), ("second", -9)]


# -------------------------------------------------------------------------------------- file watch


@pytest.fixture
def two(tmp_path: Path) -> Iterator[list[CacheFiles]]:
    """Two caches whose files have the same name, in different directories."""
    pair = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        files = CacheFiles(tmp_path / name)
        os.close(files.claim)
        files.claim = os.open(os.devnull, os.O_RDONLY)
        pair.append(files)
    yield pair
    for files in pair:
        files.remove()
    while _seen:
        os.close(_seen.pop())


def watch_of(pair: list[CacheFiles]) -> tuple[FileWatch, list[str]]:
    """A watch over these files, and a note for each time that workers were retired."""
    retired: list[str] = []
    plans = tuple(CachePlan(files.rules, files.shared, files.file) for files in pair)
    return FileWatch(plans, lambda: retired.append("retired"), os.urandom), retired


_seen: list[int] = []  # descriptors of all files seen so far, so that no inode is used again


def inodes(pair: list[CacheFiles]) -> list[int | None]:
    """Which files they are."""
    for files in pair:
        with contextlib.suppress(FileNotFoundError):
            _seen.append(os.open(files.path, os.O_RDONLY))
    return [inode_of(files.file) for files in pair]


def test_all_is_well(two: list[CacheFiles]) -> None:
    watch, retired = watch_of(two)
    watch.make_all()
    before = inodes(two)
    for _ in range(3):
        assert 0 < watch.run(0.0) < 10
    assert inodes(two) == before
    assert retired == []


def test_what_is_lost_is_made_anew_and_nothing_else(two: list[CacheFiles]) -> None:
    watch, retired = watch_of(two)
    watch.make_all()
    acts: list[Callable[[], object]] = [
        lambda: remove(two[0].file),
        two[0].shared.report_damage,
        lambda: os.rename(two[0].path, two[0].path.with_name("moved")),
    ]
    for act in acts:
        before = inodes(two)
        act()
        watch.run(0.0)
        after = inodes(two)
        assert after[0] not in (None, before[0])
        assert after[1] == before[1]
        assert retired == ["retired"]
        retired.clear()
        watch.run(0.0)
        assert (inodes(two), retired) == (after, [])


@pytest.mark.parametrize("number", [signal.SIGBUS, signal.SIGSEGV, signal.SIGABRT])
def test_a_worker_killed_by_its_map_has_met_damage(
    two: list[CacheFiles], number: signal.Signals
) -> None:
    """LMDB ends the process by SIGABRT when an assertion of its fails."""
    watch, retired = watch_of(two)
    watch.make_all()
    before = inodes(two)
    watch.child_died(-signal.SIGKILL)
    watch.child_died(1)
    watch.run(0.0)
    assert inodes(two) == before
    watch.child_died(-number)
    watch.run(0.0)
    assert not set(inodes(two)) & set(before)
    assert retired == ["retired"]


def test_a_file_that_can_not_be_made_is_tried_again(
    two: list[CacheFiles], capfd: pytest.CaptureFixture[str]
) -> None:
    watch, retired = watch_of(two)
    watch.make_all()
    before = inodes(two)
    remove(two[0].file)
    two[0].path.mkdir()
    watch.run(0.0)
    assert retired == []
    assert "warning: cannot make smtp.sessions: " in capfd.readouterr().err
    two[0].path.rmdir()
    watch.run(0.0)
    assert retired == ["retired"]
    after = inodes(two)
    assert after[0] not in (None, before[0])
    assert after[1] == before[1]


def test_the_file_of_another_daemon_is_left_alone(
    two: list[CacheFiles], capfd: pytest.CaptureFixture[str]
) -> None:
    first, _ = watch_of(two)
    first.make_all()
    before = inodes(two)
    second, retired = watch_of(two)
    second.make_all()
    second.run(0.0)
    assert (inodes(two), retired) == (before, [])
    assert "unable to get exclusive lock" in capfd.readouterr().err


# ---------------------------------------------------------------------------------- smaller jobs


def test_stale_readers(tmp_path: Path) -> None:
    files = CacheFiles(tmp_path)

    def read_and_die() -> None:
        Store(files.file).read(bytes(16))
        os.kill(os.getpid(), signal.SIGKILL)

    job = StaleReaders((CachePlan(files.rules, files.shared, files.file),))
    with held_open(files):
        assert end_of_child(read_and_die)[1] == -signal.SIGKILL
        assert job.run(0.0) > 60
        assert files.store().clear_stale_readers() == 0
        files.close()
    remove(files.file)
    job.run(0.0)  # the file watch deals with it
    files.remove()


def test_the_statistics_line(capfd: pytest.CaptureFixture[str]) -> None:
    stats = Stats(SharedMemory(Stats.size(3)), 3)
    line = StatisticsLine(stats, 600)
    assert line.run(0.0) == 600
    assert capfd.readouterr().err == "", "nothing to say"
    stats.row(1)[INDEX["seed"]] += 3
    stats.row(2)[INDEX["seed"]] += 4
    stats.row(2)[INDEX["hits"]] += 1
    line.run(0.0)
    assert capfd.readouterr().err.endswith(": statistics: seed=7 hits=1\n")
    stats.collect(2)
    stats.row(1)[INDEX["seed"]] += 1
    line.run(0.0)
    assert capfd.readouterr().err.endswith(": statistics: seed=1\n"), "since the last line"


# --------------------------------------------------------------------------- the daemon's files


def serve_on(daemon: Daemon, number: int) -> bool:
    """One of everything must be answered; returns whether sessions are kept.

    A worker that meets the damage may die, and take connections with it: that is tried again.
    """
    session = b"session %d" % number
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(EOFError, OSError), Connection(daemon.socket_path) as connection:
            assert len(data_of(connection.ask(seed(8)), b"seed")) == 8
            assert connection.ask(policy(b"smtp")).startswith(b"status\x000\0cachable\x001\0")
            assert connection.ask(update(b"smtp", b"id %d" % number, session)) == OK
            reply = connection.ask(lookup(b"smtp", b"id %d" % number))
            assert reply in (NO_SESSION, found(session))
            return reply != NO_SESSION
        time.sleep(0.05)
    raise AssertionError("no worker lives for four requests")


def serve_until_it_heals(daemon: Daemon, workers: list[psutil.Process]) -> None:
    """The file is made anew, those who knew the old one go, and sessions are kept again."""
    numbers = iter(range(1_000_000))
    wait_for(
        lambda: serve_on(daemon, next(numbers)) and "made anew" in daemon.log(),
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


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_service_goes_on_and_the_file_heals(daemon: Daemon, damage: str) -> None:
    path = daemon.directory / "smtp_scache.sessions"
    with Connection(daemon.socket_path) as connection:
        for number in range(2000):
            assert connection.ask(update(b"smtp", b"old %d" % number, bytes(1200))) == OK
        assert connection.ask(update(b"smtpd", b"other", b"session")) == OK
    workers = daemon.workers()
    DAMAGE[damage](path)
    with Connection(daemon.socket_path) as connection, contextlib.suppress(EOFError, OSError):
        for number in range(0, 2000, 50):
            connection.ask(lookup(b"smtp", b"old %d" % number))
    serve_until_it_heals(daemon, workers)
    assert path.stat().st_mode & 0o7777 == 0o600
    with Connection(daemon.socket_path) as connection:
        assert connection.ask(lookup(b"smtp", b"old 7")) == NO_SESSION
        if damage in ("removed", "renamed"):
            assert connection.ask(lookup(b"smtpd", b"other")) == found(b"session")


def test_two_caches_with_files_of_one_name(make_daemon: MakeDaemon) -> None:
    """In different directories. The watch must not take one for the other."""
    daemon = make_daemon(
        "tlsmgr_worker_processes=1",
        "smtp_tls_session_cache_database=btree:${data_directory}/private/cache",
        "smtpd_tls_session_cache_database=btree:${data_directory}/cache",
    )
    with Connection(daemon.socket_path) as connection:
        assert connection.ask(update(b"smtp", b"id", b"of smtp")) == OK
        assert connection.ask(update(b"smtpd", b"id", b"of smtpd")) == OK
        (daemon.directory / "lmtp_scache.sessions").unlink()
        daemon.wait_for_log("lmtp_scache.sessions was damaged or removed")
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
                assert len(data_of(connection.ask(seed(8)), b"seed")) == 8
                assert connection.ask(update(b"smtp", b"second %d" % number, b"its own")) == OK
                assert connection.ask(lookup(b"smtp", b"id 1")) == NO_SESSION
        check(number)
    if second.is_running:
        assert second.stop() == 0
    check(200)
    assert first.workers() == workers
    assert first.lines(start) == []
    assert "unable to get exclusive lock" in second.log()


# ---------------------------------------------------------------------------------- full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small file system: needs root")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill_up(disk: Path) -> Path:
    """A file that takes what room there is."""
    filler = disk / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


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
        assert len(data_of(connection.ask(seed(32)), b"seed")) == 32
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
    assert "made anew" not in daemon.log()


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
    assert [text.partition("]")[2] for text in in_child(tries)] == [" No space left on device"] * 2
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


def test_a_directory_that_is_gone(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    place = tmp_path / "data"
    daemon = make_daemon("tlsmgr_worker_processes=2", f"data_directory={place}")
    for path in place.iterdir():
        path.unlink()
    place.rmdir()
    deaths = 0
    for number in range(100):
        with Connection(daemon.socket_path) as connection:
            assert len(data_of(connection.ask(seed(8)), b"seed")) == 8
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
