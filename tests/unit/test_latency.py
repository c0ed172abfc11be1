"""The latency histograms: each request counts once, in the bucket of its time."""

from __future__ import annotations

import pytest

from tlsmgr.latency import (
    AT_ONCE,
    BUCKETS,
    CHANGES,
    KINDS,
    SAMPLES,
    SEEDS,
    Histogram,
    LatencyTable,
    Timer,
    lower_bound,
)
from tlsmgr.shm import SharedMemory
from tlsmgr.stats import INDEX, Stats

SLOTS = 3


class Process:
    """The counters and the timer of one process."""

    def __init__(self, stats: Stats, table: LatencyTable, slot: int) -> None:
        self.counts = stats.row(slot)
        self.timer: Timer = table.timer(slot, self.counts)

    def answer(self, step: int, microseconds: float, **kinds: int) -> None:
        """An iteration of one step, or of the first one and another."""
        times = [microseconds] * 3
        times[:step] = [0.0] * step
        self.iterate(*times, **kinds)
        self.timer.publish()

    def iterate(self, *microseconds: float, **kinds: int) -> None:
        """An iteration whose steps ended so long after it began."""
        for kind, count in kinds.items():
            self.counts[INDEX[kind]] += count
        began = 1000.0
        at_once, seeds, changes = (began + each / 1e6 for each in microseconds)
        self.timer.keep(began, at_once, seeds, changes)


def make() -> tuple[LatencyTable, list[Process]]:
    memory = SharedMemory(1 << 16)
    stats, table = Stats(memory, SLOTS), LatencyTable(memory, SLOTS)
    return table, [Process(stats, table, slot) for slot in range(SLOTS)]


def filled(histogram: Histogram) -> dict[int, int]:
    """The buckets that are not empty."""
    return {bucket: count for bucket, count in enumerate(histogram.counts) if count}


def test_the_requests_are_neighbours_in_the_table_of_counters() -> None:
    """As a timer reads their counters with one call."""
    numbers = [INDEX[kind] for kind in KINDS]
    assert numbers == list(range(numbers[0], numbers[0] + 6))


def test_the_size_it_says_is_what_it_takes() -> None:
    for slots in (1, 3, 1028):
        LatencyTable(SharedMemory(LatencyTable.size(slots)), slots)


def test_buckets() -> None:
    table, (_, worker, _) = make()
    for microseconds in (0.5, 1.5, 2.5, 3.5, 100.5, 1_000_000.5, 1e12):
        worker.answer(SEEDS, microseconds, seed=1)
    assert filled(table.totals()["seed"]) == {0: 1, 1: 1, 2: 2, 7: 1, 20: 1, BUCKETS - 1: 1}
    assert [lower_bound(bucket) for bucket in (0, 1, 2, 7)] == [0, 1, 2, 64]


def test_all_requests_of_a_step_count_with_its_time() -> None:
    table, (_, worker, _) = make()
    worker.answer(AT_ONCE, 10.5, lookup=3, policy=1)
    worker.answer(AT_ONCE, 100.5)
    worker.answer(CHANGES, 100.5, update=2)
    worker.answer(AT_ONCE, 20.5, lookup=1, tktkey=2)
    totals = table.totals()
    assert {kind: filled(totals[kind]) for kind in KINDS} == {
        "policy": {4: 1},
        "lookup": {4: 3, 5: 1},
        "tktkey": {5: 2},
        "seed": {},
        "update": {7: 2},
        "delete": {},
    }
    assert (totals["lookup"].total, totals["lookup"].longest) == (3 * 10 + 20, 20)


def test_each_step_of_an_iteration_has_a_time_of_its_own() -> None:
    table, (_, worker, _) = make()
    worker.iterate(1.5, 10.5, 100.5, lookup=1, seed=5, update=2)
    worker.iterate(1.5, 1.5, 1.5, lookup=1)  # the other steps had nothing to answer
    worker.timer.publish()
    totals = table.totals()
    assert {kind: filled(totals[kind]) for kind in ("lookup", "seed", "update")} == {
        "lookup": {1: 2},
        "seed": {4: 5},
        "update": {7: 2},
    }
    assert (totals["seed"].longest, totals["update"].longest) == (10, 100)
    assert (totals["seed"].total, totals["update"].total) == (50, 200)


def test_what_is_refused_is_answered_at_once() -> None:
    """It is counted as what it asks for, but the step for that has nothing to answer."""
    table, (_, worker, _) = make()
    worker.iterate(10.5, 10.5, 10.5, seed=1, update=2)
    worker.timer.publish()
    totals = table.totals()
    assert (filled(totals["seed"]), totals["seed"].total) == ({4: 1}, 10)
    assert (filled(totals["update"]), totals["update"].total) == ({4: 2}, 20)


def test_times_are_published_together() -> None:
    table, (_, worker, _) = make()
    for number in range(1, 2 * SAMPLES + 2):
        worker.iterate(10.5, 10.5, 10.5, lookup=1)
        worker.iterate(10.5, 10.5, 10.5)  # there was none
        assert len(worker.timer._samples) == number % SAMPLES
    assert table.totals()["lookup"].count == 0
    worker.timer.publish()
    assert filled(table.totals()["lookup"]) == {4: 2 * SAMPLES + 1}


def test_requests_counted_before_the_timer_was_made_are_not_timed() -> None:
    """A slot of which the dead process's counters were not collected yet."""
    memory = SharedMemory(1 << 16)
    stats, table = Stats(memory, SLOTS), LatencyTable(memory, SLOTS)
    stats.row(1)[INDEX["seed"]] = 7
    timer = table.timer(1, stats.row(1))
    timer.keep(1000.0, 1000.0, 1000.0, 1000.0)
    timer.publish()
    assert table.totals()["seed"].count == 0


def test_the_times_of_the_dead_are_kept() -> None:
    table, (parent, one, two) = make()
    parent.answer(SEEDS, 300.5, seed=1)
    one.answer(SEEDS, 10.5, seed=1)
    two.answer(SEEDS, 200.5, seed=2)
    before = table.totals()
    table.collect(2)
    table.collect(2)
    assert table.totals() == before
    assert before["seed"].longest == 300
    assert not any(table._rows[2])
    table.collect(1)
    assert table.totals() == before


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 64.0), (0.5, 104.0), (0.8, 128.0), (0.9, 768.0), (1.0, 900.0)]
)
def test_quantiles(share: float, expected: float) -> None:
    """Eight requests of 64 to 128 us, two of 512 to 1024 us, the longest of 900."""
    counts = [0] * BUCKETS
    counts[7], counts[10] = 8, 2
    histogram = Histogram(tuple(counts), 0, 900)
    assert histogram.count == 10
    assert histogram.quantile(share) == pytest.approx(expected)


def test_no_quantile_without_requests() -> None:
    assert Histogram((0,) * BUCKETS, 0, 0).quantile(0.5) is None
