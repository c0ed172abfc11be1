"""Limits of a cache: the oldest go first, and no update fails for one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from support.cache_files import MIB, CacheFiles, held_open, in_child
from support.cache_fixtures import NOW, MakeFiles, lookup, update
from support.cache_fixtures import make_files as make_files

from tlsmgr.sessions.cache import Change, SessionCache
from tlsmgr.sessions.file import StoreError
from tlsmgr.sessions.store import Batch


def test_the_entry_limit_lets_the_oldest_go(make_files: MakeFiles) -> None:
    cache = make_files(entry_limit=10).cache()
    for number in range(100):
        update(cache, (b"%d" % number, b"session"))
        assert cache.size()[0] == min(number + 1, 10)
    assert [n for n in range(100) if lookup(cache, b"%d" % n)] == list(range(90, 100))


def test_refreshed_entries_survive(make_files: MakeFiles) -> None:
    cache = make_files(entry_limit=10).cache()
    for number in range(100):
        update(cache, (b"%d" % number, b"session"), (b"kept", b"session %d" % number))
    assert lookup(cache, b"kept") == b"session 99"
    assert [n for n in range(100) if lookup(cache, b"%d" % n)] == list(range(91, 100))


def test_a_batch_over_the_limit(make_files: MakeFiles) -> None:
    cache = make_files(entry_limit=3).cache()
    update(cache, *((b"%d" % number, b"session") for number in range(50)))
    assert [n for n in range(50) if lookup(cache, b"%d" % n)] == [47, 48, 49]


def test_many_changes_are_carried_out_once(make_files: MakeFiles) -> None:
    """In several transactions, none of which is given up because it has become too large."""
    files = make_files(size_limit=MIB)
    cache = files.cache()
    before = cache._nonces.next()
    update(cache, *((b"%d" % number, b"session") for number in range(1000)))
    used = int.from_bytes(cache._nonces.next(), "big") - int.from_bytes(before, "big") - 1
    assert used == 1000
    assert all(lookup(cache, b"%d" % number) == b"session" for number in range(1000))


class FailingStore:
    """The store of a cache, of which one transaction fails to begin; counts from 1."""

    def __init__(self, cache: SessionCache, failing: int = 0) -> None:
        assert cache._store is not None
        self.begun = 0
        self._failing = failing
        self._writing = cache._store.writing
        cache._store.writing = self.writing  # type: ignore[method-assign]

    def writing(self) -> Batch:
        self.begun += 1
        if self.begun == self._failing:
            raise StoreError("no luck")
        return self._writing()


def test_what_was_stored_counts_when_it_fails_to_evict_afterwards(make_files: MakeFiles) -> None:
    cache = make_files(entry_limit=50).cache()
    update(cache, (b"old", b"session"))
    FailingStore(cache, failing=2)  # a batch that has become large evicts in the next one
    changes = [Change(b"old", None), *(Change(b"%d" % n, b"session") for n in range(200))]
    assert cache.apply(changes, NOW) == [True] * 201
    assert lookup(cache, b"old") is None
    assert lookup(cache, b"199") == b"session"
    assert cache.size()[0] == 50


def test_a_full_file_costs_each_change_a_few_tries(make_files: MakeFiles) -> None:
    """Not the more, the more there are."""
    files = make_files(size_limit=MIB)
    with held_open(files, reading=True):
        cache = files.cache()
        for number in range(files.file.map_size // 4096):
            update(cache, (b"%d" % number, bytes(1200)))
        store = FailingStore(cache)
        update(cache, *((b"%d" % number, bytes(1200)) for number in range(512)))
        assert store.begun < 4 * 512


@pytest.mark.parametrize("size", [10, 1200, 9000, 200_000])
def test_the_size_limit_lets_the_oldest_go(make_files: MakeFiles, size: int) -> None:
    files = make_files(size_limit=MIB)
    cache = files.cache()
    count = max(3 * MIB // size, 20) if size > 10 else 20_000
    for first in range(0, count, 10):
        update(cache, *((b"%d" % n, bytes(size)) for n in range(first, first + 10)))
        assert cache.size()[1] <= MIB
    kept = [n for n in range(count) if lookup(cache, b"%d" % n) is not None]
    assert kept == list(range(kept[0], count)), "the oldest went, and nothing else"
    assert len(kept) * size > MIB // 4 or size == 10
    store = files.store()
    assert store._file.reach() < 3 * MIB + 3 * 10 * size, "freed pages are used again"
    assert files.path.stat().st_size == files.file.mark.size


@pytest.mark.parametrize(("order", "most"), [("reverse", 30), ("random", 500)])
def test_the_limit_after_all_were_stored_again(
    make_files: MakeFiles, order: str, most: int
) -> None:
    """However long the oldest is looked for: each update evicts a few, and not thousands.

    In a random order it takes more of them before the three records of one page are gone.
    """
    cache = make_files(size_limit=4 * MIB).cache()
    numbers = list(range(2500))
    update(cache, *((b"%d" % number, bytes(1200)) for number in numbers))
    assert cache.size()[0] == 2500
    numbers.reverse()
    if order == "random":
        random.Random(1).shuffle(numbers)
    for number in numbers:
        update(cache, (b"%d" % number, bytes(1200)))
    entries = cache.size()[0]
    assert entries == 2500
    for number in range(2000):
        update(cache, (b"new %d" % number, bytes(1200)))
        after, used = cache.size()
        assert used <= 4 * MIB
        assert after > entries - most
        entries = after
    assert entries > 1500
    assert all(lookup(cache, b"new %d" % number) for number in range(1000, 2000))


def test_a_session_over_the_limit_is_no_failure(make_files: MakeFiles) -> None:
    """It would evict all others and then itself, so it is not stored."""
    cache = make_files(size_limit=MIB).cache()
    update(cache, (b"before", b"session"), (b"large", b"a small one"))
    update(cache, (b"large", bytes(1_500_000)))
    update(cache, (b"small", b"session"))
    assert lookup(cache, b"before") == b"session"
    assert lookup(cache, b"small") == b"session"
    assert lookup(cache, b"large") is None, "the older one of that id is not valid any more"
    assert cache.size()[1] <= MIB


def test_the_size_limit_holds_after_each_batch(make_files: MakeFiles) -> None:
    """Also after the one that is the first to exceed it."""
    cache = make_files(size_limit=MIB).cache()
    for first in range(0, 20, 4):
        update(cache, *((b"%d" % n, bytes(150_000)) for n in range(first, first + 4)))
        assert cache.size()[1] <= MIB


def test_a_large_session_may_take_the_place_of_many_small_ones(make_files: MakeFiles) -> None:
    """Each that goes costs copies of pages: all of them together are more than the batch has."""
    files = make_files(size_limit=4 * MIB)

    def work() -> tuple[int, int]:
        cache = files.cache()
        for first in range(0, 50_000, 50):
            update(cache, *((b"%d" % number, b"") for number in range(first, first + 50)))
        before, used = cache.size()
        assert before > 20_000
        assert used <= 4 * MIB
        update(cache, (b"large", bytes(1_500_000)))
        assert lookup(cache, b"large") == bytes(1_500_000)
        assert lookup(cache, b"49999") == b""
        after, used = cache.size()
        assert used <= 4 * MIB
        assert files.store()._file.reach() < 12 * MIB
        return before, after

    before, after = in_child(work)
    assert 0.4 * before < after < 0.8 * before


def test_a_full_map_is_no_failure(make_files: MakeFiles) -> None:
    """A reader that was stopped pins all pages; when it is gone there is room again."""
    files = make_files(size_limit=MIB)
    with held_open(files, reading=True):
        cache = files.cache()
        count = files.file.map_size // 4096
        for number in range(count):
            update(cache, (b"%d" % number, bytes(1200)))
        assert lookup(cache, b"%d" % (count - 1)) is None, "the map is full by now"
        assert not files.file.mark.is_damaged
    cache = files.cache()  # the only user: it clears the table of readers
    update(cache, (b"last", b"session"))
    assert lookup(cache, b"last") == b"session"
    assert cache.size()[1] <= MIB


@pytest.mark.parametrize("seed", [142, 153, 196, 207, 214])  # found by trying many
def test_a_small_file_never_runs_out_of_pages(tmp_path: Path, seed: int) -> None:
    """A transaction must leave some unused, or nothing could be stored or evicted ever after."""
    files = CacheFiles(tmp_path, size_limit=128 * MIB, map_size=MIB)
    dice = random.Random(seed)

    def work() -> None:
        cache = files.cache()
        for step in range(4):
            count = dice.choice([1, 5, 20, 60, 200])
            size = dice.choice([0, 60, 400, 1200, 1900, 4000, 9000])
            for _ in range(dice.choice([1, 3, 20])):
                update(cache, *((b"%d" % dice.randrange(1000), bytes(size)) for _ in range(count)))
            update(cache, (b"probe", b"%d" % step))
            assert lookup(cache, b"probe") == b"%d" % step
            assert cache.size()[1] <= 0.75 * MIB

    in_child(work)
    assert not files.file.mark.is_damaged
    files.remove()
