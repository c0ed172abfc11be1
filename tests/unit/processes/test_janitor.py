"""The janitor: jobs in time, and what happens to one that fails; the smaller jobs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.cache_files import CacheFiles, end_of_child, held_open

from tlsmgr.processes.inherited import CachePlan
from tlsmgr.processes.janitor import AFTER_A_DEFECT, Janitor, StaleReaders, StatisticsLine
from tlsmgr.sessions.store import Store, remove
from tlsmgr.shm import SharedMemory
from tlsmgr.stats import INDEX, Stats

# ----------------------------------------------------------------------------------------- janitor


def test_jobs_run_when_they_are_due() -> None:
    janitor = Janitor()
    runs: list[str] = []

    def job(name: str, delay: float) -> Callable[[float], float]:
        def run(now: float) -> float:
            assert abs(now - time.time()) < 60
            runs.append(name)
            return delay

        return run

    assert janitor.run() == 60.0
    janitor.add("often", job("often", 0.0))
    janitor.add("seldom", job("seldom", 1000.0))
    janitor.add("later", job("later", 1000.0), delay=500.0)
    assert janitor.run() == 0.0
    assert runs == ["often", "seldom"]
    janitor.run()
    assert runs == ["often", "seldom", "often"]
    janitor.run_soon("later")
    janitor.run()
    assert runs[3:] == ["often", "later"]


def test_it_says_how_long_to_sleep() -> None:
    janitor = Janitor()
    janitor.add("soon", lambda now: 7.0)
    janitor.add("late", lambda now: 500.0)
    assert 6.0 < janitor.run() <= 7.0


def test_a_defect_in_a_job_is_logged_and_tried_again(capfd: pytest.CaptureFixture[str]) -> None:
    janitor = Janitor()
    janitor.add("broken", lambda now: 1 / 0)
    janitor.add("sound", lambda now: 1000.0)
    assert AFTER_A_DEFECT - 1 < janitor.run() <= AFTER_A_DEFECT
    lines = capfd.readouterr().err
    assert "error: maintenance job broken failed" in lines
    assert "panic: ZeroDivisionError" in lines
    janitor.run_soon("broken")
    janitor.run()
    assert "maintenance job broken failed" in capfd.readouterr().err


def test_a_death_is_told_to_all_who_asked() -> None:
    janitor = Janitor()
    told: list[tuple[str, int]] = []
    janitor.on_death(lambda code: told.append(("first", code)))
    janitor.on_death(lambda code: told.append(("second", code)))
    janitor.child_died(-9)
    assert told == [("first", -9), ("second", -9)]


# ---------------------------------------------------------------------------------- smaller jobs


def test_stale_readers(tmp_path: Path) -> None:
    files = CacheFiles(tmp_path)

    def read_and_die() -> None:
        Store(files.file).read(bytes(16))
        os.kill(os.getpid(), signal.SIGKILL)

    job = StaleReaders((CachePlan(files.rules, files.shared, files.file),))
    with held_open(files):
        assert end_of_child(read_and_die)[1] == -signal.SIGKILL
        assert job.run(0.0) > 60
        assert files.store().clear_stale_readers() == 0
        files.close()
    remove(files.file)
    job.run(0.0)  # the file watch deals with it
    files.remove()


def test_the_statistics_line(capfd: pytest.CaptureFixture[str]) -> None:
    stats = Stats(SharedMemory(Stats.size(3)), 3)
    line = StatisticsLine(stats, 600)
    assert line.run(0.0) == 600
    assert capfd.readouterr().err == "", "nothing to say"
    stats.row(1)[INDEX["seed"]] += 3
    stats.row(2)[INDEX["seed"]] += 4
    stats.row(2)[INDEX["hits"]] += 1
    line.run(0.0)
    assert capfd.readouterr().err.endswith(": statistics: seed=7 hits=1\n")
    stats.collect(2)
    stats.row(1)[INDEX["seed"]] += 1
    line.run(0.0)
    assert capfd.readouterr().err.endswith(": statistics: seed=1\n"), "since the last line"
