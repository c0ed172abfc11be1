"""The counter table: each process writes its own row, and nothing is lost when one dies."""

from __future__ import annotations

import os
import signal

import pytest
from support.cache_files import end_of_child, in_child
from support.memory_kinds import kind as kind

from tlsmgr.shm import SharedMemory
from tlsmgr.stats import COUNTERS, INDEX, Stats

SLOTS = 5

pytestmark = pytest.mark.usefixtures("kind")


def make(slots: int = SLOTS) -> Stats:
    return Stats(SharedMemory(Stats.size(slots)), slots)


def count(stats: Stats, slot: int, name: str, times: int) -> None:
    row = stats.row(slot)
    for _ in range(times):
        row[INDEX[name]] += 1


def test_the_table_names_what_is_counted() -> None:
    assert len({counter.name for counter in COUNTERS}) == len(COUNTERS) == len(INDEX)
    assert all(counter.meaning for counter in COUNTERS)
    assert {"seed", "policy", "lookup", "update", "delete", "tktkey"} <= INDEX.keys()


def test_the_size_it_says_is_what_it_takes() -> None:
    for slots in (1, 2, 100, 513):
        assert len(Stats(SharedMemory(Stats.size(slots)), slots).counts(slots - 1)) == len(COUNTERS)


def test_counting() -> None:
    stats = make()
    assert set(stats.totals().values()) == {0}
    count(stats, 1, "seed", 3)
    count(stats, 2, "seed", 4)
    count(stats, 2, "hits", 1)
    assert stats.counts(1)["seed"] == 3
    assert stats.counts(2) == {**dict.fromkeys(INDEX, 0), "seed": 4, "hits": 1}
    assert stats.totals() == {**dict.fromkeys(INDEX, 0), "seed": 7, "hits": 1}


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
    assert stats.totals() == dict.fromkeys(INDEX, (SLOTS - 1) * (20_000 // len(INDEX)))
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
    stats.add_totals({"seed": 4, "lookup": 1, "of a later version": 9})
    assert stats.totals()["seed"] == 7
    assert stats.counts(0)["lookup"] == 1
    assert sum(stats.totals().values()) == 8
