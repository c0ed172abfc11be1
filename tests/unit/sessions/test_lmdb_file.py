"""An open session file: many writers at once, dead readers, and errors that are no damage."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.cache_files import MIB, CacheFiles, end_of_child, held_open, in_child
from support.store_records import digest, put, record
from support.store_records import files as files

from tlsmgr.sessions.cache import Change, SessionCache
from tlsmgr.sessions.file import StoreError
from tlsmgr.sessions.store import Store

WRITERS, SESSIONS = 4, 1500


def name(writer: int, number: int) -> bytes:
    return b"writer %d, session %d" % (writer, number)


def store_some(cache: SessionCache, writer: int, first: int, count: int, size: int = 1200) -> None:
    for number in range(first, first + count):
        assert cache.apply([Change(name(writer, number), bytes(size))], 0) == [True]


def is_kept(cache: SessionCache, writer: int, number: int) -> bool:
    session = cache.lookup(name(writer, number), 0)
    cache.end_reading()
    return session is not None


def all_at_once(*works: Callable[[], None]) -> None:
    """Each in a process of its own; their exceptions and signals fail the test."""
    pids = []
    for work in works:
        pid = os.fork()
        if pid == 0:
            try:
                in_child(work)  # which is ended when it hangs
                os._exit(0)
            finally:
                os._exit(1)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * len(works)


# ------------------------------------------------------------------------------------ many at once


def test_all_may_write_at_once(tmp_path: Path) -> None:
    """No update is lost, while others open the file and close it again."""
    files = CacheFiles(tmp_path, size_limit=64 * MIB)

    def write(writer: int) -> Callable[[], None]:
        def work() -> None:
            cache = files.cache()
            store_some(cache, writer, 0, SESSIONS)
            assert cache.take_dropped() == 0

        return work

    def come_and_go() -> None:
        for _ in range(200):
            files.cache()

    all_at_once(*map(write, range(WRITERS)), come_and_go, come_and_go)
    cache = files.cache()
    for writer in range(WRITERS):
        assert all(is_kept(cache, writer, number) for number in range(SESSIONS))
    assert cache.size()[0] == WRITERS * SESSIONS
    assert not files.file.mark.is_damaged
    files.remove()


# ------------------------------------------------------------------------------------ dead readers


def read_and_die(files: CacheFiles) -> Callable[[], None]:
    def work() -> None:
        store = Store(files.file)
        store.read(digest(1))
        os.kill(os.getpid(), signal.SIGKILL)

    return work


def test_opening_frees_the_slots_of_dead_readers(files: CacheFiles) -> None:
    """One left behind would pin pages for ever, and the file would fill up."""
    put(files.store(), 1)
    files.close()
    with held_open(files):
        for _ in range(3):
            assert end_of_child(read_and_die(files))[1] == -signal.SIGKILL
        store = files.store()
        assert store._file.env.reader_check() == 0
        for number in range(2, 3000):
            with store.writing() as batch:
                batch.put(record(number, of=1))
        assert store._file.reach() < 2 * MIB, "no dead reader pins pages"


def test_a_worker_keeps_its_slot_among_the_readers(files: CacheFiles) -> None:
    """It takes one when it opens the file, under the writers' lock, and never waits for it."""
    store = files.store()
    before = store._file.env.readers()
    assert f" {os.getpid()} " in before
    for number in range(5):
        put(store, number)
        assert store.read(digest(number)) is not None
        store.end_reading()
        assert store._file.env.readers() == before


# ------------------------------------------------------------------------ errors that are no damage


def test_without_descriptors_the_file_is_not_damaged(files: CacheFiles) -> None:
    def open_it() -> list[tuple[str, bool]]:
        errors = []
        highest = max(map(int, os.listdir("/proc/self/fd")))
        for limit in range(3, highest + 12):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, highest + 20))
            try:
                Store(files.file).close()
            except StoreError as error:
                errors.append((str(error), error.damaged))
        return errors

    errors = in_child(open_it)
    assert len(errors) > 3, "each of its descriptors was refused once"
    assert {damaged for _, damaged in errors} == {False}
    assert all("Too many open files" in text for text, _ in errors)


def test_without_memory_the_file_is_not_damaged(tmp_path: Path) -> None:
    files = CacheFiles(tmp_path, size_limit=512 * MIB)

    def open_it() -> tuple[str, bool]:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 64 * MIB, resource.RLIM_INFINITY))
        with pytest.raises(StoreError) as error:
            Store(files.file)
        return str(error.value), error.value.damaged

    assert in_child(open_it) == ("smtp.sessions: Cannot allocate memory", False)
    files.remove()
