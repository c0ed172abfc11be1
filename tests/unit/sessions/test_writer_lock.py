"""A writer that is stopped in the middle of a transaction: no process waits for it for long."""

from __future__ import annotations

import errno
import os
import signal
import time

import pytest
from support.cache_files import OtherWriter, in_child
from support.cache_fixtures import MakeFiles, delete, lookup, update
from support.cache_fixtures import make_files as make_files

from tlsmgr.sessions.file import WRITER_PATIENCE, StoreBusy, StoreError
from tlsmgr.sessions.store import Store

BOUND = 20 * WRITER_PATIENCE  # for a slow machine; without the lock it would be for ever


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times for which the lock is waited for, in seconds."""
    taken: list[float] = []
    set_timer = signal.setitimer

    def note(timer: int, seconds: float) -> None:
        if seconds:
            taken.append(seconds)
        set_timer(timer, seconds)

    monkeypatch.setattr("tlsmgr.sessions.file.signal.setitimer", note)
    return taken


def test_updates_are_dropped_in_bounded_time_and_lookups_go_on(
    make_files: MakeFiles, waits: list[float], capfd: pytest.CaptureFixture[str]
) -> None:
    files = make_files()

    def work() -> tuple[float, int, int]:
        other = OtherWriter(files)
        cache = files.cache()
        update(cache, (b"before", b"session"))
        other.stop()
        started = time.monotonic()
        update(cache, (b"a", b"session"), (b"b", b"session"))
        waited = time.monotonic() - started
        waits_of_first = len(waits)
        assert lookup(cache, b"before") == b"session"
        assert lookup(cache, b"a") is None
        for number in range(10):
            update(cache, (b"%d" % number, b"session"))
            assert not delete(cache, b"before"), "a delete is not done"
        assert len(waits) == waits_of_first, "after one time-out there is no more waiting"
        assert lookup(cache, b"before") == b"session"
        other.kill()
        update(cache, (b"after", b"session"))
        assert lookup(cache, b"after") == b"session"
        return waited, cache.take_dropped(), cache.take_dropped()

    waited, dropped, again = in_child(work)
    assert WRITER_PATIENCE <= waited < BOUND
    assert (dropped, again) == (12, 0), "updates, and no deletes"
    assert not files.file.mark.is_damaged
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "warning: smtp TLS session cache: another process did not finish writing" in lines[0]


def test_it_waits_again_once_the_lock_could_be_had(
    make_files: MakeFiles, waits: list[float]
) -> None:
    files = make_files()

    def work() -> list[int]:
        other = OtherWriter(files)
        cache = files.cache()
        counts = []
        for _ in range(2):
            other.stop()
            before = len(waits)
            update(cache, (b"a", b"session"))
            counts.append(len(waits) - before)
            other.go_on()
            update(cache, (b"a", b"session"))
        other.kill()
        return counts

    counts = in_child(work)
    assert counts == [1, 1]


def test_the_stopped_one_goes_on(make_files: MakeFiles) -> None:
    """Its transaction is committed, and others write again."""
    files = make_files()

    def work() -> tuple[bytes | None, int]:
        other = OtherWriter(files)
        cache = files.cache()
        other.stop()
        update(cache, (b"a", b"session"))
        other.go_on()
        update(cache, (b"b", b"session"))
        other.kill()
        assert lookup(cache, b"b") == b"session"
        return lookup(cache, b"a"), cache.size()[0]

    assert in_child(work) == (None, 2)


def test_the_stopped_one_is_killed(make_files: MakeFiles) -> None:
    """Its transaction is dropped; LMDB's own mutex is recovered."""
    files = make_files()

    def work() -> tuple[bytes | None, int]:
        other = OtherWriter(files)
        cache = files.cache()
        other.stop()
        update(cache, (b"a", b"session"))
        other.kill()
        update(cache, (b"b", b"session"))
        return lookup(cache, b"b"), cache.size()[0]

    assert in_child(work) == (b"session", 1)


def test_a_file_that_is_busy_is_opened_later(make_files: MakeFiles, waits: list[float]) -> None:
    """A new process does not wait either, and asks for no new file: it serves without."""
    files = make_files()

    def work() -> bytes | None:
        other = OtherWriter(files)
        other.stop()
        with pytest.raises(StoreBusy) as error:
            Store(files.file)
        assert not error.value.damaged
        cache = files.cache()
        update(cache, (b"a", b"session"))
        assert lookup(cache, b"a") is None
        assert not delete(cache, b"a")
        before = len(waits)
        cache.reopen()
        assert len(waits) == before, "the next tries do not wait"
        other.kill()
        cache.reopen()
        update(cache, (b"b", b"session"))
        return lookup(cache, b"b")

    assert in_child(work) == b"session"
    assert not files.file.mark.is_damaged


def test_the_lock_is_free_when_no_transaction_can_begin(make_files: MakeFiles) -> None:
    files = make_files()

    class NoMemory:
        def begin(self, table: object, write: bool) -> None:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")

    def work() -> None:
        other = OtherWriter(files)
        store = Store(files.file)
        environment, store._file.env = store._file.env, NoMemory()  # type: ignore[assignment]
        with pytest.raises(StoreError, match="Cannot allocate memory") as error:
            store.writing()
        assert not error.value.damaged
        store._file.env = environment
        other.stop()
        other.go_on()  # it stored something
        other.kill()

    in_child(work)


def test_a_directory_is_closed_when_the_file_is_open(make_files: MakeFiles) -> None:
    """A worker keeps no directory that a client could lead it out of the jail with."""
    files = make_files()

    def is_open() -> bool:
        try:
            os.fstat(files.directory)
        except OSError:
            return False
        return True

    def at_once() -> list[bool]:
        cache = files.cache()
        before = is_open()
        cache.own_directory()
        update(cache, (b"a", b"session"))
        return [before, is_open(), lookup(cache, b"a") is None]

    def later() -> list[bool]:
        update(files.cache(), (b"a", b"session"))
        files.close()
        other = OtherWriter(files)
        other.stop()
        cache = files.cache()
        cache.own_directory()
        cache.reopen()
        before = is_open()
        other.kill()
        cache.reopen()
        assert lookup(cache, b"a") == b"session"
        return [before, is_open()]

    assert in_child(at_once) == [True, False, False]
    assert in_child(later) == [True, False]
