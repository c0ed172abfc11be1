"""farm_lane - one engine in the farm process: its queues, its breaker, and the thread that waits.

The loop of the farm process never waits for an engine: ``Runner`` calls the client library in a
thread of its own, one job at a time. While a job runs, lookups and writes queue up and then go
together, so that one round trip serves all workers. Writes go first: a session that was stored is
found by all who ask later.

A job that takes longer than STALL_DEADLINES deadlines is a stall, or twice as long if this process
itself did not get the processor meanwhile: the breaker opens, and the connection is shut down again
and again until the thread comes back. A library that waits all the same (for a name server) keeps
its thread and no one else. Bounded: MOST_LOOKUPS and the backlog.

Lookups are answered "nothing" at once while the breaker is open. What an overdue job found is still
an answer: the worker keeps it for the next client. One warning when the engine goes, one info line
when it is back. Runs in the farm process.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from tlsmgr import log
from tlsmgr.farm.backlog import Backlog, Write
from tlsmgr.farm.breaker import STALL_DEADLINES, Breaker
from tlsmgr.farm.codec import LARGEST_VALUE
from tlsmgr.farm.engine import NOTHING, Engine, Job, Outcome, Settings, Value, make, reason

MOST_LOOKUPS = 4096  # that wait
LOOKUPS_AT_ONCE = 512
BYTES_FOUND = 8 << 20  # by the lookups of a job
WRITES_AT_ONCE, BYTES_AT_ONCE = 128, 512 << 10  # so that lookups do not wait for many writes
PROBE_TIME = 2.0  # seconds for a probe, which may have to connect; no client waits for it
LOOP_DELAY = 0.02  # seconds by which the loop is late, that tell of a busy host
ABORT_INTERVAL = 0.1  # seconds between two tries to end a job


class Lookup(NamedTuple):
    """A lookup of a worker: where its answer goes (``end``, ``serial``, ``number``), its keys."""

    end: int
    serial: int
    number: int
    keys: tuple[bytes, ...]


Result = tuple[Lookup, Value]


class Runner:
    """The thread. ``wake_fd`` gets a byte when a job is done; the engine is made at the first."""

    def __init__(self, make_engine: Callable[[], Engine], wake_fd: int) -> None:
        self._make_engine = make_engine
        self._wake_fd = wake_fd
        self._engine: Engine | None = None
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._done: deque[Outcome] = deque()
        threading.Thread(target=self._loop, daemon=True).start()

    def start(self, job: Job) -> None:
        """Have a job done; the one before must be done already."""
        self._jobs.put(job)

    def take(self) -> Outcome | None:
        """Return the outcome of the job, once; None while it is not done."""
        return self._done.popleft() if self._done else None

    def abort(self) -> None:
        """Try to end the job that runs."""
        if self._engine is not None:
            with contextlib.suppress(Exception):  # the library, used by two threads
                self._engine.abort()

    def _loop(self) -> None:
        # A signal that the main thread blocks would come to this one, and be handled at once.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            self._done.append(self._run(self._jobs.get()))
            with contextlib.suppress(BlockingIOError):
                os.write(self._wake_fd, b"!")

    def _run(self, job: Job) -> Outcome:
        try:
            if self._engine is None:
                self._engine = self._make_engine()
            return self._engine.run(job)
        except ImportError as error:
            return Outcome(failure=reason(error), hopeless=True)
        except MemoryError:
            self.abort()
            return Outcome(failure="its answer is too long")
        except Exception as error:
            self.abort()  # a connection that is half used is of no use
            return Outcome(failure=reason(error))


def _bounded(values: Sequence[Value]) -> Iterator[Value]:
    """Yield the values, and NOTHING for one that is no session, or that is one too many."""
    left = BYTES_FOUND
    for value in values:
        size = len(value.value)
        if size > LARGEST_VALUE or size > left:
            yield NOTHING
        else:
            left -= size
            yield value


class Lane:
    """One engine. ``now`` is time.monotonic(); ``draw`` returns random numbers from 0 to 1."""

    def __init__(
        self, settings: Settings, wake_fd: int, now: float, draw: Callable[[], float]
    ) -> None:
        self._name = settings.name
        self._stall_time = STALL_DEADLINES * settings.deadline
        self._runner = Runner(lambda: make(settings, self._stall_time), wake_fd)
        self._breaker = Breaker(now, draw)
        self._backlog = Backlog()
        self._lookups: deque[Lookup] = deque()
        self._job: Job | None = None
        self._asked: Sequence[Lookup] = ()  # whose keys are in the job
        self._started = self._overdue = 0.0  # when the job began, and when it stalls
        self._stalled = self._excused = False
        self._hopeless = False
        self._refuses = False
        self._lost = 0

    @property
    def is_open(self) -> bool:
        """Whether workers may ask."""
        return not (self._breaker.is_open or self._hopeless)

    @property
    def dropped(self) -> int:
        """How many writes were dropped or refused so far."""
        return self._backlog.dropped + self._lost

    def add_lookup(self, lookup: Lookup) -> list[Result]:
        """Queue a lookup; return the ones that are answered at once."""
        self._lookups.append(lookup)
        if not self.is_open:
            return self._give_up()
        if len(self._lookups) > MOST_LOOKUPS:
            return [(self._lookups.popleft(), NOTHING)]
        return []

    def add_write(self, write: Write) -> None:
        """Queue a write."""
        if self._hopeless:
            self._lost += 1
        else:
            self._backlog.add(write)

    def run(self, now: float) -> list[Result]:
        """Take what the thread has done, and give it what is next; return answers."""
        results = self._finish(now)
        if self._job is not None:
            return results + self._watch(now)
        if self._hopeless:
            return results + self._give_up()
        if self._breaker.is_open:
            results += self._give_up()
            if now >= self._breaker.probe_due:
                self._start(Job((), (), now), (), now + max(PROBE_TIME, self._stall_time))
        elif self._lookups or len(self._backlog):
            writes = self._backlog.take(WRITES_AT_ONCE, BYTES_AT_ONCE, now)
            count = min(LOOKUPS_AT_ONCE, len(self._lookups))
            asked = [self._lookups.popleft() for _ in range(count)]
            if writes or asked:
                job = Job(writes, [lookup.keys for lookup in asked], now)
                self._start(job, asked, now + self._stall_time)
        return results

    def due(self, now: float) -> float:
        """Return the seconds until ``run`` has something to do, if no message comes before."""
        if self._job is not None:
            return max(0.0, self._overdue - now)
        if self._hopeless or not self._breaker.is_open:
            return float("inf")
        return max(0.0, self._breaker.probe_due - now)

    def _start(self, job: Job, asked: Sequence[Lookup], overdue: float) -> None:
        self._job, self._asked, self._started, self._overdue = job, asked, job.now, overdue
        self._stalled = self._excused = False
        self._runner.start(job)

    def _watch(self, now: float) -> list[Result]:
        """Open the breaker when the job is overdue, and end the job."""
        if now >= self._overdue:
            if not self._excused and now - self._overdue > LOOP_DELAY:
                self._excused = True
                self._overdue = now + self._stall_time  # this process did not run, nor its thread
                return []
            if not self._stalled:
                self._stalled = self._excused = True
                waited = int(1000 * (now - self._started))
                self._report_open(self._breaker.note_stall(now), f"no answer within {waited} ms")
            self._overdue = now + ABORT_INTERVAL
            self._runner.abort()
        return [] if self.is_open else self._give_up()

    def _finish(self, now: float) -> list[Result]:
        outcome = self._runner.take()
        if outcome is None or self._job is None:
            return []
        job, asked = self._job, self._asked
        self._job, self._asked = None, ()
        if outcome.failure:
            self._lost += len(job.writes)
            self._note_failure(outcome, now)
            return [(lookup, NOTHING) for lookup in asked]
        self._note_success(job, outcome, now)
        return list(zip(asked, _bounded(outcome.values)))

    def _note_failure(self, outcome: Outcome, now: float) -> None:
        if outcome.hopeless:
            self._hopeless = True
            log.error(f"{self._name}: {outcome.failure}; sessions are not shared")
        elif not self._stalled:
            self._report_open(self._breaker.note_failure(now), outcome.failure)

    def _note_success(self, job: Job, outcome: Outcome, now: float) -> None:
        self._lost += outcome.refused
        if outcome.refused and not self._refuses:
            log.warning(f"{self._name} refuses to store sessions: {outcome.refusal}")
        elif self._refuses and job.writes and not outcome.refused:
            log.info(f"{self._name} stores sessions again")
        if job.writes:
            self._refuses = outcome.refused > 0
        if not self._stalled and self._breaker.note_success(now):
            log.info(f"{self._name} answers: sessions are shared")

    def _report_open(self, is_due: bool, cause: str) -> None:
        if is_due:
            reason = cause.rstrip(".")  # that of the client library is a sentence
            log.warning(f"{self._name}: {reason}; sessions are not shared until it answers")

    def _give_up(self) -> list[Result]:
        """Answer all lookups that wait."""
        results = [(lookup, NOTHING) for lookup in self._lookups]
        self._lookups.clear()
        return results
