"""janitor - the parent's maintenance: jobs that do a bounded slice and say when the next is due.

Each job is a function of the time of day that returns the seconds to its next run. The janitor runs
what is due, one slice a job and turn, and tells the parent how long it may sleep. A defect in a job
is logged with its traceback and the job is tried again later: maintenance never ends the service.

Jobs here: the watch over the caches' files, their stale readers, their sweeps (which a child does),
the statistics line. The pool's jobs (reseed, exchange file) come from ``prng``. Runs in the parent,
in slot 0.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable

from tlsmgr import log
from tlsmgr.processes.inherited import CachePlan
from tlsmgr.sessions.record import KEY_BYTES
from tlsmgr.sessions.store import Store, StoreError, StoreFile, create, inode_of
from tlsmgr.stats import Stats

AFTER_A_DEFECT = 60.0  # seconds before a job that raised is tried again
WATCH_INTERVAL = 2.0  # seconds between two looks at the caches' files
READERS_INTERVAL = 600.0  # seconds between two looks for dead readers, beside those after a death
SWEEPER_BUSY = 0.1  # seconds before a sweep that could not start is tried again
RETRY_INTERVAL = 30.0  # seconds before a file that could not be made is tried again

Run = Callable[[float], float]


class Janitor:
    """The list of jobs and their times. Times are of time.time(), delays are kept monotonic."""

    def __init__(self) -> None:
        self._jobs: dict[str, Run] = {}
        self._due: dict[str, float] = {}  # time.monotonic()
        self._on_death: list[Callable[[int], None]] = []

    def add(self, name: str, run: Run, delay: float = 0.0) -> None:
        """Add a job; its first run comes after ``delay`` seconds."""
        self._jobs[name] = run
        self._due[name] = time.monotonic() + delay

    def on_death(self, act: Callable[[int], None]) -> None:
        """Have ``act`` called with the exit code (negative: signal) when a child died."""
        self._on_death.append(act)

    def child_died(self, code: int) -> None:
        """The parent reaped a worker or sweeper that should have lived."""
        for act in self._on_death:
            act(code)

    def run_soon(self, name: str) -> None:
        """Run the job in the next turn."""
        self._due[name] = time.monotonic()

    def run(self) -> float:
        """Run what is due; returns the seconds until something is due again."""
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


class FileWatch:
    """Makes the caches' files: all at start, and one anew when it was removed or is damaged.

    Their content is expendable and is rebuilt by use. Workers that have an old file open are
    replaced, which ``retire`` does.
    """

    def __init__(
        self,
        plans: tuple[CachePlan, ...],
        retire: Callable[[], None],
        random: Callable[[int], bytes],
    ) -> None:
        self._plans = [(plan, plan.file) for plan in plans if plan.file is not None]
        self._retire = retire
        self._random = random
        self._claims: dict[tuple[int, str], int] = {}  # descriptors that keep the files ours

    def make_all(self) -> None:
        """Make every file, before there are workers."""
        for plan, file in self._plans:
            if not self._make(file):
                plan.shared.report_damage()

    def child_died(self, code: int) -> None:
        """A child killed by its memory map, or an assertion of LMDB's, has met a damaged file."""
        if code in (-signal.SIGBUS, -signal.SIGSEGV, -signal.SIGABRT):
            for plan, _ in self._plans:
                plan.shared.report_damage()

    def run(self, now: float) -> float:
        """Look at every file, and make anew what needs it."""
        broken = [(p, file) for p, file in self._plans if p.shared.take_damage() | self._lost(file)]
        made = [self._make_anew(plan, file) for plan, file in broken]
        if any(made):
            self._retire()
        return WATCH_INTERVAL if all(made) else RETRY_INTERVAL

    def _lost(self, file: StoreFile) -> bool:
        claim = self._claims.get(file[:2])
        return claim is None or os.fstat(claim).st_ino != inode_of(file)

    def _make_anew(self, plan: CachePlan, file: StoreFile) -> bool:
        claim = self._claims.pop(file[:2], None)
        if claim is not None:
            os.close(claim)
        # Who still has the old file open counts its serials under another lock.
        plan.shared.renew(self._random(2 * KEY_BYTES))
        if not self._make(file):
            plan.shared.report_damage()
            return False
        what = "could not be made before, and is made now"
        if claim is not None:
            what = "was damaged or removed and is made anew"
        log.warning(
            f"{file.name} {what}:"
            f" {plan.rules.cache_type} sessions start from empty, which costs nothing but speed"
        )
        return True

    def _make(self, file: StoreFile) -> bool:
        try:
            self._claims[file[:2]] = create(file)
        except StoreError as error:
            log.warning(f"cannot make {file.name}: {error}")
            return False
        return True


class StaleReaders:
    """Frees the reader slots of dead workers: one left behind pins pages, and the file grows."""

    def __init__(self, plans: tuple[CachePlan, ...]) -> None:
        self._files = [plan.file for plan in plans if plan.file is not None]

    def run(self, now: float) -> float:
        """Look at every file; due at once when a worker died."""
        for file in self._files:
            with contextlib.suppress(StoreError):  # the file watch deals with it
                store = Store(file)
                store.clear_stale_readers()
                store.close()
        return READERS_INTERVAL


class Sweeps:
    """Starts a sweep of one cache at start and every ``timeout`` seconds (Postfix tlsmgr.c).

    ``start`` returns False when it can't be now: a child sweeps another cache.
    """

    def __init__(self, start: Callable[[], bool], timeout: int) -> None:
        self._start = start
        self._timeout = timeout

    def run(self, now: float) -> float:
        """Start it, or try again soon."""
        return self._timeout if self._start() else SWEEPER_BUSY


class StatisticsLine:
    """One info line an interval with what was counted since the last one, and one at the end."""

    def __init__(self, stats: Stats, interval: int) -> None:
        self._stats = stats
        self._interval = interval
        self._last = stats.totals()

    def run(self, now: float) -> float:
        """Write the line, if there is anything to say."""
        totals = self._stats.totals()
        counts = {name: totals[name] - self._last[name] for name in totals}
        self._last = totals
        if any(counts.values()):
            words = " ".join(f"{name}={count}" for name, count in counts.items() if count)
            log.info(f"statistics: {words}")
        return float(self._interval)
