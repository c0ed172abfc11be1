"""The store on real files: records, limits, and no process's death harms it."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from support.cache_files import MIB, CacheFiles, end_of_child, in_child
from support.store_records import digest, put, record, serial
from support.store_records import files as files

from tlsmgr.sessions.file import StoreFull, map_size_for
from tlsmgr.sessions.store import Record, Store, create, size_limit_in

# ------------------------------------------------------------------------------------------ records


def test_records(files: CacheFiles) -> None:
    store = files.store()
    assert store.read(digest(1)) is None
    put(store, 1, 2, 3)
    assert store.read(digest(2)) == record(2)
    with store.writing() as batch:
        assert batch.entries() == 3
        assert batch.find(digest(3)) == record(3)
        assert batch.find(digest(4)) is None
        batch.put(record(4, of=1))
        assert batch.entries() == 3
        assert batch.remove(record(2))
        assert not batch.remove(record(2))
        assert not batch.remove(record(1)), "that one was replaced"
    assert store.read(digest(1)) == record(4, of=1)
    assert store.read(digest(2)) is None
    assert store.read_from(b"", 10) == ([record(4, of=1), record(3)], b"")


def test_removing_by_an_old_serial_leaves_the_new_record(files: CacheFiles) -> None:
    put(store := files.store(), 1)
    with store.writing() as batch:
        batch.put(record(2, of=1))
    with store.writing() as batch:
        assert not batch.remove(record(1))
    assert store.read(digest(1)) == record(2, of=1)


@pytest.mark.parametrize("size", [60, 1200, 9000])
def test_a_record_that_is_stored_again_takes_no_more_room(files: CacheFiles, size: int) -> None:
    store = files.store()
    numbers = range(1, 301)
    put(store, *numbers, size=size)
    with store.writing() as batch:
        used = batch.used_bytes()
    dice = random.Random(1)
    for latest in range(301, 2001):
        with store.writing() as batch:
            batch.put(record(latest, size, of=dice.choice(numbers)))
    with store.writing() as batch:
        assert batch.used_bytes() == used
        assert batch.entries() == 300


def test_reading_in_slices(files: CacheFiles) -> None:
    store = files.store()
    put(store, *range(1, 101), size=60)
    records, place = store.read_from(b"", 3)
    assert records == [record(number, 60) for number in (1, 2, 3)]
    assert store.read_from(place, 2) == ([record(4, 60), record(5, 60)], serial(6))
    assert store.read_from(serial(99), 2) == ([record(99, 60), record(100, 60)], b"")
    assert store.read_from(serial(101), 3) == ([], b"")
    assert len(store.read_from(serial(0), 1000)[0]) == 100


def test_a_batch_that_raises_is_dropped(files: CacheFiles) -> None:
    put(store := files.store(), 1)
    with pytest.raises(ZeroDivisionError), store.writing() as batch:  # noqa: PT012
        batch.put(record(2))
        raise ZeroDivisionError
    assert store.read(digest(2)) is None
    put(store, 3)
    assert store.read_from(b"", 9)[0] == [record(1), record(3)]


@pytest.mark.parametrize("size", [0, 1, 1_000_000, 1_900_000])
def test_sizes(files: CacheFiles, size: int) -> None:
    store = files.store()
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    with store.writing() as batch:
        batch.put(Record(digest(1), serial(1), data))
    assert store.read(digest(1)) == Record(digest(1), serial(1), data)


def test_reads_of_one_turn_see_one_state(files: CacheFiles) -> None:
    reader, writer = os.pipe(), os.pipe()

    def look() -> tuple[bool, bool, bool]:
        store = Store(files.file)
        before = store.read(digest(1)) is not None
        os.write(reader[1], b"x")
        os.read(writer[0], 1)
        same_turn = store.read(digest(2)) is not None
        store.end_reading()
        return before, same_turn, store.read(digest(2)) is not None

    pid = os.fork()
    if pid == 0:
        try:
            put(store := Store(files.file), 1)
            os.read(reader[0], 1)
            put(store, 2)
            os.write(writer[1], b"x")
        finally:
            os._exit(0)
    while not in_child(lambda: Store(files.file).read(digest(1)) is not None):
        time.sleep(0.01)
    assert in_child(look) == (True, False, True)
    os.waitpid(pid, 0)
    for descriptor in (*reader, *writer):
        os.close(descriptor)


# ------------------------------------------------------------------------------------------- limits


def test_replacing_does_not_make_the_file_grow(files: CacheFiles) -> None:
    store = files.store()
    for number in range(1, 3001):
        with store.writing() as batch:
            batch.put(record(number, of=number % 7))
    assert store._file.reach() < 2 * MIB
    assert len(store.read_from(b"", 100)[0]) == 7


def test_a_full_map_is_told_from_other_errors(files: CacheFiles) -> None:
    files.file = files.file._replace(map_size=4 * MIB)
    os.close(files.claim)
    files.claim = create(files.file)
    store = files.store()
    put(store, *range(1, 1001))
    with pytest.raises(StoreFull, match="no unused page is left") as error:
        put(store, 1001, size=3 * MIB)
    assert not error.value.damaged
    assert store.usage()[0] == 1000
    put(store, 1001)
    assert store.read(digest(1001)) == record(1001)


def test_a_size_limit_leaves_room_for_copies() -> None:
    assert map_size_for(MIB) >= 17 * MIB
    assert map_size_for(128 * MIB) >= 176 * MIB
    assert map_size_for(128 * MIB + 1) % 65536 == 0


def test_a_smaller_file_has_a_smaller_limit() -> None:
    """In proportion, so that as large a part of it is left for copies."""
    wanted = map_size_for(128 * MIB)
    assert size_limit_in(wanted, 128 * MIB) == size_limit_in(2 * wanted, 128 * MIB) == 128 * MIB
    assert size_limit_in(wanted // 8, 128 * MIB) == 16 * MIB


# ---------------------------------------------------------------------------------------- processes


def test_two_processes_write_at_once(files: CacheFiles) -> None:
    def write(first: int) -> None:
        store = Store(files.file)
        for number in range(first, 2001, 2):
            with store.writing() as batch:  # serials must grow, as SharedCache's do
                latest = batch.entries() + 1
                batch.put(Record(digest(number), serial(latest), digest(number)))

    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            write(1)
            status = 0
        finally:
            os._exit(status)
    in_child(lambda: write(2))
    assert os.waitpid(pid, 0)[1] == 0
    store = files.store()
    for number in range(1, 2001):
        found = store.read(digest(number))
        assert found is not None
        assert found.data == digest(number)


def test_kill_inside_a_batch(files: CacheFiles) -> None:
    def die() -> None:
        store = Store(files.file)
        with store.writing() as batch:
            batch.put(record(10, of=1))
            batch.put(record(11))
            os.kill(os.getpid(), signal.SIGKILL)

    put(files.store(), 1, 2)
    files.close()
    assert end_of_child(die) == (None, -signal.SIGKILL)
    store = files.store()
    assert store.read_from(b"", 10)[0] == [record(1), record(2)]
    put(store, 12)
    assert store.read(digest(12)) == record(12)


def test_kills_at_random_moments(tmp_path: Path) -> None:
    """All that was committed stays, in order, and the next process goes on at once."""
    files = CacheFiles(tmp_path, size_limit=256 * MIB)
    dice = random.Random(1)
    acknowledged = 0

    def write(first: int, pipe: int) -> None:
        store = Store(files.file)
        for number in range(first, first + 100_000):
            put(store, number, size=dice.choice([60, 1200, 9000]))
            os.write(pipe, b"x")

    for _ in range(15):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                write(acknowledged + 10, writer)
            finally:
                os._exit(0)
        os.close(writer)
        first = acknowledged + 10
        assert os.read(reader, 1) == b"x"
        time.sleep(dice.uniform(0, 0.03))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with open(reader, "rb") as pipe:
            acknowledged = first + len(pipe.read())
        store = files.store()
        for number in range(first, acknowledged + 1):
            found = store.read(digest(number))
            assert found is not None
            assert found.data.startswith(serial(number))
        with store.writing() as batch:
            extra = batch.find(digest(acknowledged + 1))  # committed, and killed before it said so
        acknowledged += extra is not None
        assert store.read(digest(acknowledged + 1)) is None
        files.close()
    files.remove()
