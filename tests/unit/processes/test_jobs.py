"""Jobs run when they are due, and one that fails does not end the others."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tlsmgr.processes.jobs import AFTER_A_DEFECT, HOUR, HitRateWatch, Jobs, StatisticsLine
from tlsmgr.shm import SharedMemory
from tlsmgr.stats import CACHE_INDEX, INDEX, Stats


def test_jobs_run_when_they_are_due() -> None:
    jobs = Jobs()
    runs: list[str] = []

    def job(name: str, delay: float) -> Callable[[float], float]:
        def run(now: float) -> float:
            assert abs(now - time.time()) < 60
            runs.append(name)
            return delay

        return run

    assert jobs.run() == 60.0
    jobs.add("often", job("often", 0.0))
    jobs.add("seldom", job("seldom", 1000.0))
    jobs.add("later", job("later", 1000.0), delay=500.0)
    assert jobs.run() == 0.0
    assert runs == ["often", "seldom"]
    jobs.run()
    assert runs == ["often", "seldom", "often"]
    jobs.run_soon("later")
    jobs.run()
    assert runs[3:] == ["often", "later"]


def test_it_says_how_long_to_sleep() -> None:
    jobs = Jobs()
    jobs.add("soon", lambda now: 7.0)
    jobs.add("late", lambda now: 500.0)
    assert 6.0 < jobs.run() <= 7.0


def test_a_defect_in_a_job_is_logged_and_tried_again(capfd: pytest.CaptureFixture[str]) -> None:
    jobs = Jobs()
    jobs.add("broken", lambda now: 1 / 0)
    jobs.add("sound", lambda now: 1000.0)
    assert AFTER_A_DEFECT - 1 < jobs.run() <= AFTER_A_DEFECT
    lines = capfd.readouterr().err
    assert "error: maintenance job broken failed" in lines
    assert "panic: ZeroDivisionError" in lines
    jobs.run_soon("broken")
    jobs.run()
    assert "maintenance job broken failed" in capfd.readouterr().err


def test_the_statistics_line(capfd: pytest.CaptureFixture[str]) -> None:
    stats = Stats(SharedMemory(Stats.size(3, 2)), 3, 2)
    line = StatisticsLine(stats, 600)
    assert line.run(0.0) == 600
    assert capfd.readouterr().err == "", "nothing to say"
    stats.row(1)[INDEX["seed"]] += 3
    stats.row(2)[INDEX["seed"]] += 4
    stats.cache_row(2, 1)[CACHE_INDEX["hits"]] += 1
    line.run(0.0)
    assert capfd.readouterr().err.endswith(": statistics: seed=7 hits=1\n")
    stats.collect(2)
    stats.row(1)[INDEX["seed"]] += 1
    line.run(0.0)
    assert capfd.readouterr().err.endswith(": statistics: seed=1\n"), "since the last line"


class Caches:
    """The counters of two caches, and a watch over them."""

    def __init__(self) -> None:
        self._stats = Stats(SharedMemory(Stats.size(2, 2)), 2, 2)
        self._watch = HitRateWatch(self._stats, ["smtp", "lmtp"])

    def hour(self, hits: int, misses: int, updates: int = 50, cache: int = 0) -> None:
        """An hour with these counts."""
        row = self._stats.cache_row(1, cache)
        for name, count in (("hits", hits), ("misses", misses), ("updates", updates)):
            row[CACHE_INDEX[name]] += count
        assert self._watch.run(0.0) == HOUR


def test_a_hit_rate_that_falls_to_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """One warning, and one line when it is over."""
    caches = Caches()
    caches.hour(90, 10)
    caches.hour(5, 95)
    caches.hour(50, 50, cache=1)
    assert capfd.readouterr().err == ""
    caches.hour(0, 100)
    assert capfd.readouterr().err.endswith(
        "warning: smtp session cache: 0 of 100 lookups in the last hour found a session,"
        " and 50 sessions were stored\n"
    )
    caches.hour(1, 200)
    caches.hour(0, 100, cache=1)
    assert "lmtp session cache: 0 of 100" in capfd.readouterr().err
    caches.hour(9, 91)
    assert capfd.readouterr().err == ""
    caches.hour(10, 90)
    assert capfd.readouterr().err.endswith(": smtp session cache: lookups find sessions again\n")
    caches.hour(0, 100)
    assert "warning: smtp session cache: 0 of 100" in capfd.readouterr().err


@pytest.mark.parametrize(
    "hours",
    [
        [(0, 1000, 50)] * 3,  # it never found any: no destination is met again
        [(9, 91, 50), (0, 100, 50)],  # it never found many
        [(90, 10, 50), (0, 99, 50)],  # too few lookups to say
        [(90, 10, 50), (0, 100, 0)],  # nothing is stored: nothing can be found
        [(90, 10, 50), (1, 99, 50)],  # it has not fallen to nothing
    ],
)
def test_hit_rates_without_a_warning(
    hours: list[tuple[int, int, int]], capfd: pytest.CaptureFixture[str]
) -> None:
    caches = Caches()
    for hour in hours:
        caches.hour(*hour)
    assert capfd.readouterr().err == ""
