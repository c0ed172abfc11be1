"""Jobs run when they are due, and one that fails does not end the others."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tlsmgr.processes.jobs import AFTER_A_DEFECT, Jobs, StatisticsLine
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
