"""The counter table: each process writes its own row, and nothing is lost when one dies."""

from __future__ import annotations

import os
import signal

import pytest
from support.cache_files import end_of_child, in_child
from support.memory_kinds import kind as kind

from tlsmgr.shm import SharedMemory
from tlsmgr.stats import CACHE_COUNTERS, CACHE_INDEX, COUNTERS, INDEX, SUMMED, Stats

SLOTS = 5
CACHES = 2
NO_SUMS = dict.fromkeys(SUMMED, 0)

pytestmark = pytest.mark.usefixtures("kind")


def make(slots: int = SLOTS) -> Stats:
    return Stats(SharedMemory(Stats.size(slots, CACHES)), slots, CACHES)


def count(stats: Stats, slot: int, name: str, times: int) -> None:
    row = stats.row(slot)
    for _ in range(times):
        row[INDEX[name]] += 1


def test_the_table_names_what_is_counted() -> None:
    assert len({counter.name for counter in COUNTERS}) == len(COUNTERS) == len(INDEX)
    assert all(counter.meaning for counter in COUNTERS)
    assert {"seed", "policy", "lookup", "update", "delete", "tktkey"} <= INDEX.keys()
    assert len(CACHE_COUNTERS) == len(CACHE_INDEX)
    assert set(SUMMED) <= CACHE_INDEX.keys()
    assert not INDEX.keys() & CACHE_INDEX.keys()


def test_the_size_it_says_is_what_it_takes() -> None:
    for slots in (1, 2, 100, 513):
        assert len(make(slots).counts(slots - 1)) == len(COUNTERS)
        assert len(make(slots).cache_row(slots - 1, CACHES - 1)) == len(CACHE_COUNTERS)


def test_counting() -> None:
    stats = make()
    assert set(stats.totals().values()) == {0}
    count(stats, 1, "seed", 3)
    count(stats, 2, "seed", 4)
    count(stats, 2, "update", 1)
    assert stats.counts(1)["seed"] == 3
    assert stats.counts(2) == {**dict.fromkeys(INDEX, 0), "seed": 4, "update": 1}
    assert stats.totals() == {**dict.fromkeys(INDEX, 0), **NO_SUMS, "seed": 7, "update": 1}


def test_processes_count_at_once() -> None:
    stats = make()
    pids = []
    for slot in range(1, SLOTS):
        pid = os.fork()
        if pid == 0:
            try:
                for name in INDEX:
                    count(stats, slot, name, 20_000 // len(INDEX))
            finally:
                os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    assert stats.totals() == NO_SUMS | dict.fromkeys(INDEX, (SLOTS - 1) * (20_000 // len(INDEX)))
    assert in_child(stats.totals) == stats.totals()


def test_the_counts_of_the_dead_are_kept() -> None:
    stats = make()
    count(stats, 0, "seed", 1)

    def count_and_die() -> None:
        count(stats, 3, "seed", 5)
        count(stats, 3, "update", 2)
        os.kill(os.getpid(), signal.SIGKILL)

    for round_ in (1, 2):
        assert end_of_child(count_and_die) == (None, -signal.SIGKILL)
        before = stats.totals()
        stats.collect(3)
        assert stats.totals() == before
        assert set(stats.counts(3).values()) == {0}
        assert stats.counts(0)["seed"] == 1 + 5 * round_
        assert stats.counts(0)["update"] == 2 * round_
    stats.collect(3)
    assert stats.totals()["seed"] == 11


def test_totals_of_an_earlier_daemon_are_added() -> None:
    stats = make()
    count(stats, 2, "seed", 3)
    stats.restore({"seed": 4, "lookup": 1, "of a later version": 9}, ["smtpd", "smtp"])
    assert stats.totals()["seed"] == 7
    assert stats.counts(0)["lookup"] == 1
    assert sum(stats.totals().values()) == 8


def test_totals_of_a_cache_go_to_the_cache_of_that_name() -> None:
    """Their order may differ, and one may be gone."""
    earlier, stats = make(), make()
    earlier.cache_row(1, 0)[CACHE_INDEX["hits"]] += 2
    earlier.cache_row(2, 1)[CACHE_INDEX["misses"]] += 3
    stats.cache_row(1, 1)[CACHE_INDEX["hits"]] += 1
    stats.restore(earlier.dump(["smtp", "smtpd"]), ["lmtp", "smtp"])
    assert not any(stats.cache_totals(0).values())
    assert stats.cache_totals(1) == {**dict.fromkeys(CACHE_INDEX, 0), "hits": 3}
    assert stats.totals()["hits"] == 3


def test_the_counters_of_a_cache() -> None:
    """They are apart from those of another cache, and some are summed over both."""
    stats = make()
    stats.cache_row(1, 0)[CACHE_INDEX["hits"]] += 2
    stats.cache_row(2, 0)[CACHE_INDEX["hits"]] += 3
    stats.cache_row(2, 1)[CACHE_INDEX["hits"]] += 10
    stats.cache_row(2, 1)[CACHE_INDEX["misses"]] += 1
    nothing = dict.fromkeys(CACHE_INDEX, 0)
    both = [{**nothing, "hits": 5}, {**nothing, "hits": 10, "misses": 1}]
    assert [stats.cache_totals(cache) for cache in range(CACHES)] == both
    assert stats.totals() == {**dict.fromkeys(INDEX, 0), **NO_SUMS, "hits": 15}
    stats.collect(2)
    assert [stats.cache_totals(cache) for cache in range(CACHES)] == both
    assert stats.cache_row(0, 1)[CACHE_INDEX["hits"]] == 10
    assert not any(stats.cache_row(2, 1))
