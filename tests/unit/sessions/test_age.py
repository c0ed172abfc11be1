"""Age in the store: which record is the oldest, after records were stored again."""

from __future__ import annotations

import random
from collections.abc import Iterator

from support.cache_files import CacheFiles
from support.store_records import digest, put, record
from support.store_records import files as files

from tlsmgr.sessions.store import Store


def evict_all(store: Store) -> Iterator[int]:
    """The serials of the records in the order in which they are let go, one a batch."""
    while True:
        before = {record.serial for record in store.read_from(b"", 100_000)[0]}
        with store.writing() as batch:
            if not batch.evict():
                return
        (gone,) = before - {record.serial for record in store.read_from(b"", 100_000)[0]}
        yield int.from_bytes(gone, "big")


def test_the_oldest_goes_first(files: CacheFiles) -> None:
    put(store := files.store(), *range(1, 21), size=60)
    with store.writing() as batch:
        for latest, number in enumerate((3, 1, 20, 3), start=21):
            batch.put(record(latest, of=number))
    order = [2, *range(4, 20), 22, 23, 24]
    assert list(evict_all(store)) == order
    assert store.read_from(b"", 9) == ([], b"")
    with store.writing() as batch:
        assert batch.used_bytes() == 0


def test_the_oldest_of_very_many_that_were_stored_again(files: CacheFiles) -> None:
    """It would take long to find: one of the older will do, and each time the order gets better."""
    dice = random.Random(1)
    numbers = list(range(1, 401))
    put(store := files.store(), *numbers, size=60)
    for latest, number in enumerate(dice.sample(numbers, 400), start=401):
        with store.writing() as batch:
            batch.put(record(latest, 60, of=number))
    order = list(evict_all(store))
    assert sorted(order) == list(range(401, 801))
    assert order[-200:] == sorted(order[-200:]), "by then all are where they belong"
    younger = [sum(later < serial for later in order[at:]) for at, serial in enumerate(order)]
    assert max(younger) < 200, "none of the younger half goes first"


def test_what_moves_to_its_place_is_found_there(files: CacheFiles) -> None:
    put(store := files.store(), 1, 2, 3)
    with store.writing() as batch:
        batch.put(record(4, of=1))
        assert batch.evict()
        assert batch.find(digest(2)) is None
        batch.put(record(5, of=1))
    assert store.read(digest(1)) == record(5, of=1)
    assert list(evict_all(store)) == [3, 5]


def test_many_are_evicted_in_one_batch_after_all_were_stored_again(files: CacheFiles) -> None:
    """Each goes once: the ages that were updated before are those of records that still exist."""
    numbers = list(range(1, 101))
    put(store := files.store(), *numbers, size=60)
    for latest, number in enumerate(reversed(numbers), start=101):
        with store.writing() as batch:
            batch.put(record(latest, 60, of=number))
    with store.writing() as batch:
        for gone in range(1, 101):
            assert batch.evict()
            assert batch.entries() == 100 - gone
        assert not batch.evict()
        assert batch.used_bytes() == 0
