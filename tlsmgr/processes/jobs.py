"""jobs - periodic maintenance: functions that do a bounded piece of work and say when to run again.

A job is called with the time of day and returns the seconds to its next run. ``Jobs.run`` runs the
jobs that are due and returns how long the caller may sleep. A defect in a job is logged with its
traceback and the job is tried again later: maintenance never ends the service.

The parent runs one list (what follows from counters), the janitor another one (everything that
touches files). Nothing here is fatal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from tlsmgr import log
from tlsmgr.stats import Stats

HOUR = 3600.0
ENOUGH_LOOKUPS = 100  # in an hour: less says nothing about the hit rate
USUAL, NOTHING = 0.1, 0.01  # hit rates: at least, and less than

AFTER_A_DEFECT = 60.0  # seconds before a job that raised is tried again

Run = Callable[[float], float]


class Jobs:
    """The list of jobs and their times. Jobs get time.time(); delays count on time.monotonic()."""

    def __init__(self) -> None:
        self._jobs: dict[str, Run] = {}
        self._due: dict[str, float] = {}  # time.monotonic()

    def add(self, name: str, run: Run, delay: float = 0.0) -> None:
        """Add a job; its first run comes after ``delay`` seconds."""
        self._jobs[name] = run
        self._due[name] = time.monotonic() + delay

    def run_soon(self, name: str) -> None:
        """Run the job at the next call of ``run``."""
        self._due[name] = time.monotonic()

    def run(self) -> float:
        """Run what is due; return the seconds until something is due again."""
        for name, run in self._jobs.items():
            if self._due[name] <= time.monotonic():
                self._due[name] = self._run_one(name, run) + time.monotonic()
        now = time.monotonic()
        return max(0.0, min((due - now for due in self._due.values()), default=60.0))

    @staticmethod
    def _run_one(name: str, run: Run) -> float:
        try:
            return run(time.time())
        except Exception as bug:
            log.error(f"maintenance job {name} failed")
            log.traceback(bug)
            return AFTER_A_DEFECT


class StatisticsLine:
    """One info line an interval with what was counted since the last one, and one at the end."""

    def __init__(self, stats: Stats, interval: int) -> None:
        self._stats = stats
        self._interval = interval
        self._last = stats.totals()

    def run(self, now: float) -> float:
        """Log the line, unless all counts are zero; return the interval in seconds."""
        totals = self._stats.totals()
        counts = {name: totals[name] - self._last[name] for name in totals}
        self._last = totals
        if any(counts.values()):
            text = " ".join(f"{name}={count}" for name, count in counts.items() if count)
            log.info(f"statistics: {text}")
        return float(self._interval)


class HitRateWatch:
    """Warns when a cache stops to find sessions while sessions are stored, once each time.

    It looks at the hit rate of each hour. It has fallen when it is NOTHING, was USUAL in an hour
    before, and is not back since.
    """

    def __init__(self, stats: Stats, caches: Sequence[str]) -> None:
        self._stats = stats
        self._caches = caches
        self._last = [stats.cache_totals(i) for i in range(len(caches))]
        self._usual: set[str] = set()  # caches that had a usual hit rate
        self._fallen: set[str] = set()

    def run(self, now: float) -> float:
        """Look at the hour that is over; return the seconds of the next one."""
        for i, name in enumerate(self._caches):
            totals, last = self._stats.cache_totals(i), self._last[i]
            self._last[i] = totals
            self._judge(name, {key: totals[key] - last[key] for key in totals})
        return HOUR

    def _judge(self, name: str, counts: Mapping[str, int]) -> None:
        lookups = counts["hits"] + counts["misses"]
        if lookups < ENOUGH_LOOKUPS:
            return
        rate = counts["hits"] / lookups
        if rate >= USUAL:
            self._usual.add(name)
            if name in self._fallen:
                self._fallen.remove(name)
                log.info(f"{name} session cache: lookups find sessions again")
        elif rate < NOTHING and counts["updates"] and name in self._usual - self._fallen:
            self._fallen.add(name)
            log.warning(
                f"{name} session cache: {counts['hits']} of {lookups} lookups in the last hour"
                f" found a session, and {counts['updates']} sessions were stored"
            )
