"""The sweep: bounded slices, nothing deleted that is not expired at that very moment."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cache_files import MIB, CacheFiles, OtherWriter, end_of_child, in_child

from tlsmgr.sessions.cache import Change
from tlsmgr.sessions.file import StoreFull, remove
from tlsmgr.sessions.store import Batch, Store
from tlsmgr.sessions.sweep import BATCH_RECORDS, PAUSE, SLICE_RECORDS, Sweep
from tlsmgr.stats import CACHE_INDEX

NOW = 1_795_220_454
T = 120


@pytest.fixture
def files(tmp_path: Path) -> Iterator[CacheFiles]:
    files = CacheFiles(tmp_path, timeout=T)
    yield files
    files.remove()


def fill(files: CacheFiles, ids: range, now: int = NOW) -> None:
    """Store a session under each id, in one batch."""
    cache = files.cache()
    cache.apply([Change(b"%d" % number, b"session %d" % number) for number in ids], now)
    files.close()


def kept(files: CacheFiles, now: int, ids: range) -> list[int]:
    """The ids that a lookup finds."""
    cache = files.cache()
    found = [number for number in ids if cache.lookup(b"%d" % number, now) is not None]
    files.close()
    return found


def sweep_of(files: CacheFiles) -> tuple[Sweep, list[bytes]]:
    """A sweep, and what it stirs into the pool."""
    stirred: list[bytes] = []
    return Sweep(files.rules, files.shared, files.file, stirred.append), stirred


def entries(files: CacheFiles) -> int:
    size = files.cache().size()[0]
    files.close()
    return size


def test_expired_entries_go_to_the_second(files: CacheFiles) -> None:
    fill(files, range(10))
    fill(files, range(10, 15), NOW + 1)
    sweep, _ = sweep_of(files)
    sweep.run(float(NOW + T))
    assert (sweep.passed, sweep.deleted) == (15, 0)
    sweep.run(NOW + T + 1.9)
    assert (sweep.passed, sweep.deleted) == (30, 10)
    assert entries(files) == 5
    assert kept(files, NOW + T + 1, range(15)) == list(range(10, 15))
    sweep.run(float(NOW + T + 2))
    assert entries(files) == 0


def test_one_sweep_every_timeout(files: CacheFiles) -> None:
    fill(files, range(10))
    sweep, _ = sweep_of(files)
    assert sweep.run(float(NOW)) == T
    assert sweep.run(NOW + T + 0.5) == T


def test_slices_are_bounded(files: CacheFiles) -> None:
    count = 2 * SLICE_RECORDS + 7
    fill(files, range(count))
    sweep, stirred = sweep_of(files)
    start = float(NOW + T + 1)
    assert sweep.run(start) == PAUSE
    assert sweep.passed == sweep.deleted == SLICE_RECORDS
    assert entries(files) == count - SLICE_RECORDS
    assert sweep.run(start + 10) == PAUSE
    assert sweep.run(start + 20) == T - 20, "counted from the start of the sweep"
    assert sweep.passed == sweep.deleted == count
    assert len(stirred) == 3
    assert len(set(stirred)) == 3


def test_a_sweep_sees_what_came_while_it_was_under_way(files: CacheFiles) -> None:
    fill(files, range(SLICE_RECORDS + 10))
    sweep, _ = sweep_of(files)
    start = float(NOW + T + 1)
    sweep.run(start)
    fill(files, range(SLICE_RECORDS, SLICE_RECORDS + 5), NOW + T + 1)  # refreshed
    fill(files, range(5000, 5010), NOW + T + 1)
    while sweep.run(start) == PAUSE:
        pass
    assert sweep.deleted == SLICE_RECORDS + 5
    expected = [*range(SLICE_RECORDS, SLICE_RECORDS + 5), *range(5000, 5010)]
    assert kept(files, NOW + T + 1, range(6000)) == expected


def test_the_transaction_that_deletes_looks_again(
    files: CacheFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between reading and deleting another process refreshes one entry and deletes another."""
    fill(files, range(10))
    sweep, _ = sweep_of(files)
    read_from = Store.read_from

    def read_and_be_overtaken(store: Store, serial: bytes, count: int) -> object:
        records = read_from(store, serial, count)
        store.close()
        in_child(overtake)
        store.__init__(files.file)  # type: ignore[misc]
        return records

    def overtake() -> list[bool]:
        changes = [Change(b"3", b"fresh"), Change(b"4", None)]
        return files.cache().apply(changes, NOW + T + 1)

    monkeypatch.setattr(Store, "read_from", read_and_be_overtaken)
    sweep.run(float(NOW + T + 1))
    monkeypatch.undo()
    assert sweep.deleted == sweep._counts[CACHE_INDEX["expired"]] == 8
    assert kept(files, NOW + T + 1, range(10)) == [3]


def test_workers_go_on_meanwhile(files: CacheFiles) -> None:
    """The parent sweeps slice by slice while a worker has the file open and writes."""
    fill(files, range(3 * SLICE_RECORDS))

    def sweep_all() -> int:
        sweep, _ = sweep_of(files)
        while sweep.run(float(NOW + T + 1)) == PAUSE:
            pass
        return sweep.deleted

    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            cache = files.cache()
            for number in range(1000):
                change = Change(b"new %d" % number, b"session")
                assert cache.apply([change], NOW + T + 1) == [True]
                if number == 10:
                    os.write(writer, b"x")
            os.write(writer, b"done")
        finally:
            os._exit(0)
    os.read(reader, 1)
    assert in_child(sweep_all) == 3 * SLICE_RECORDS
    assert os.read(reader, 10) == b"done"
    os.waitpid(pid, 0)
    assert entries(files) == 1000
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("step", [-86400, -1, 1, 86400])
def test_a_clock_that_steps_inside_a_sweep(files: CacheFiles, step: int) -> None:
    """The next sweep never is later than the timeout, and entries keep to their stamps."""
    fill(files, range(SLICE_RECORDS + 1))
    sweep, _ = sweep_of(files)
    assert sweep.run(float(NOW)) == PAUSE
    assert PAUSE <= sweep.run(float(NOW + step)) <= T
    assert sweep.deleted == (step > T)


def test_an_empty_cache(files: CacheFiles) -> None:
    sweep, stirred = sweep_of(files)
    assert sweep.run(float(NOW)) == T
    assert (sweep.passed, stirred) == (0, [])


def test_a_record_that_can_not_be_read_expires_too(files: CacheFiles, tmp_path: Path) -> None:
    fill(files, range(3))
    (tmp_path / "other").mkdir()
    other = CacheFiles(tmp_path / "other", timeout=T)
    files.shared = other.shared
    sweep, _ = sweep_of(files)
    sweep.run(float(NOW + T + 1))
    assert (sweep.deleted, entries(files)) == (3, 0)
    other.remove()


def test_a_missing_file_is_reported(files: CacheFiles) -> None:
    sweep, _ = sweep_of(files)
    remove(files.file)
    assert sweep.run(float(NOW)) == T
    assert files.file.mark.is_damaged


def test_a_file_of_rubbish_is_reported(files: CacheFiles) -> None:
    sweep, _ = sweep_of(files)
    files.path.write_bytes(os.urandom(65536))
    assert sweep.run(float(NOW)) == T
    assert files.file.mark.is_damaged


def test_a_file_that_was_cut_is_reported(files: CacheFiles) -> None:
    for first in range(0, 5000, 100):
        fill(files, range(first, first + 100))
    os.truncate(files.path, files.path.stat().st_size // 2)
    sweep, _ = sweep_of(files)
    assert end_of_child(lambda: sweep.run(float(NOW))) == (T, 0)
    assert files.file.mark.is_damaged


def test_a_file_that_can_not_be_opened_now_is_not_damaged(files: CacheFiles) -> None:
    """Without descriptors, or while another process does not finish writing."""
    fill(files, range(10))

    def without_descriptors() -> float:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 64))
        return sweep.run(float(NOW))

    def while_it_is_busy() -> float:
        other = OtherWriter(files)
        other.stop()
        pause = sweep.run(float(NOW))
        other.kill()
        return pause

    sweep, _ = sweep_of(files)
    for run in (without_descriptors, while_it_is_busy):
        assert in_child(run) == T, "the next sweep comes in its time"
        assert not files.file.mark.is_damaged
    assert sweep.run(float(NOW + T + 1)) == T
    assert sweep.deleted == 10


def test_a_full_file_is_not_damaged(files: CacheFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    def be_full(store: Store) -> Batch:
        raise StoreFull("no unused page is left")

    fill(files, range(10))
    sweep, _ = sweep_of(files)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "writing", be_full)
        assert sweep.run(float(NOW + T + 1)) == T
    assert not files.file.mark.is_damaged
    assert sweep.deleted == 0


@pytest.fixture
def transactions(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """The transactions that are begun."""
    begun: list[Batch] = []
    writing = Store.writing

    def begin(store: Store) -> Batch:
        begun.append(writing(store))
        return begun[-1]

    monkeypatch.setattr(Store, "writing", begin)
    return begun


def test_transactions_are_bounded(files: CacheFiles, transactions: list[Batch]) -> None:
    """So that workers do not wait long for one."""
    fill(files, range(SLICE_RECORDS))
    sweep, _ = sweep_of(files)
    before = len(transactions)
    sweep.run(float(NOW + T + 1))
    assert sweep.deleted == SLICE_RECORDS
    assert len(transactions) - before == SLICE_RECORDS // BATCH_RECORDS


def test_a_sweep_of_a_small_file(tmp_path: Path, transactions: list[Batch]) -> None:
    """Its transactions are small as well: none may take the last unused page."""
    (tmp_path / "small").mkdir()
    files = CacheFiles(tmp_path / "small", timeout=T, size_limit=128 * MIB, map_size=MIB)
    cache = files.cache()
    for number in range(1500):
        cache.apply([Change(b"%d" % number, bytes(800))], NOW)
    count = cache.size()[0]
    files.close()
    before = len(transactions)
    sweep, _ = sweep_of(files)
    while sweep.run(float(NOW + T + 1)) == PAUSE:
        pass
    assert sweep.passed == sweep.deleted == count > 500
    assert len(transactions) - before > 2 * count // BATCH_RECORDS
    assert entries(files) == 0
    files.remove()


def test_sessions_of_the_far_future_go(files: CacheFiles) -> None:
    """The clock was set back: they would stay for ever."""
    fill(files, range(5), NOW + 86400)
    fill(files, range(5, 10), NOW + 86401)
    sweep, _ = sweep_of(files)
    assert sweep.run(float(NOW)) == T
    assert sweep.deleted == 5
    assert kept(files, NOW, range(10)) == list(range(5))


def test_the_log_at_level_two(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = CacheFiles(tmp_path, timeout=T, logging=True)
    fill(files, range(2))
    sweep, _ = sweep_of(files)
    capfd.readouterr()
    sweep.run(float(NOW + T + 1))
    lines = [re.sub(r"^\S+: ", "", line) for line in capfd.readouterr().err.splitlines()]
    assert lines == [
        "tlsmgr_cache_run_event: start TLS smtp session cache cleanup",
        "delete smtp session id=0",
        "delete smtp session id=1",
    ]
    files.remove()
