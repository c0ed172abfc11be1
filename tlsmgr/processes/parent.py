"""parent - forks workers, reaps and replaces them, and runs the maintenance between.

The parent owns what all share and never sees a byte of a client. Its loop waits for the earliest
thing due, and then: acts on queued signals, reaps (frees the locks that a dead worker held, keeps
its counts, clears its slot), spawns what is missing, ends workers that hang, runs due jobs. What
reads the pages of a cache is done by a child as well, the sweeper, as damaged pages end a process.

A worker that dies is replaced at once; when it dies young again and again, after a growing pause.
A worker that can't start at all (BOOT_ERROR, or so many deaths in a row before any worker served)
ends the parent: one clear message, status 1. A worker without a heartbeat for ``daemon_timeout`` is
sent SIGABRT, then SIGKILL; the parent itself is ended by SIGALRM, and master(8) starts another.
When the parent ends, workers read the end of the pipe parent_alive_fd and go; at an orderly end it
waits for them, and kills what is left after ``STOP_TIME``.

Forks and waits for workers; takes the locks of pool and ticket keys as slot 0.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from tlsmgr import log
from tlsmgr.processes import signals, sweeper, worker
from tlsmgr.processes.inherited import Inherited
from tlsmgr.processes.janitor import Janitor
from tlsmgr.sessions.sweep import Sweep
from tlsmgr.shm import Recovery

WARNING_INTERVAL = 60.0  # seconds between two warnings about the same trouble
STOP_TIME = 0.7  # seconds for workers to end by themselves
ABORT_TIME = 1.0  # seconds between SIGABRT and SIGKILL
YOUNG = 1.0  # seconds; a worker that dies before this age died young
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 5.0  # seconds before replacing one that died young
FORK_PAUSE = 1.0  # seconds before a fork that failed is tried again
LOCK_POLL = 0.05  # seconds between two looks at a lock that a dead worker may have
MAX_FAILED_STARTS = 10  # deaths in a row before any worker served


@dataclass
class Child:
    """A worker, or the sweeper, as the parent sees it."""

    name: str  # what log lines call it
    slot: int
    pid: int
    started: float  # time.monotonic()
    aborted: float = 0.0  # when it was sent SIGABRT
    retired: bool = False  # it was told to go and will be replaced


class CannotServe(Exception):
    """No worker can start; the text says why."""


class Parent:
    """The loop. ``on_ready`` is called once, when every worker serves for the first time."""

    def __init__(
        self,
        inherited: Inherited,
        workers: int,
        daemon_timeout: float,
        janitor: Janitor,
        on_ready: Callable[[], None],
    ) -> None:
        self._inherited = inherited
        self._locks = (inherited.pool.lock, inherited.ticket_keys.lock)
        self._daemon_timeout = daemon_timeout
        self._janitor = janitor
        self._on_ready: Callable[[], None] | None = on_ready
        self._children: dict[int, Child] = {}  # by pid
        self._vacant = dict.fromkeys(range(1, workers + 1), 0.0)  # slot: when to fill it
        self._sweeper_slot = workers + 1
        self._pause = 0.0
        self._futile = 0
        self._stopping = False
        self._last_acts: list[Callable[[float], object]] = []
        self._watched: dict[int, Callable[[], object]] = {}
        self._limit = log.Limit(WARNING_INTERVAL)
        self._poll = select.poll()

    def watch(self, descriptor: int, act: Callable[[], object]) -> None:
        """Have ``act`` called when the descriptor becomes readable or closes."""
        self._watched[descriptor] = act
        self._poll.register(descriptor, select.POLLIN)

    def at_end(self, act: Callable[[float], object]) -> None:
        """Have ``act`` called with the time of day when no worker is left."""
        self._last_acts.append(act)

    def stop(self) -> None:
        """End the loop after this turn."""
        self._stopping = True

    def run(self) -> None:
        """Serve until told to stop. Raises CannotServe; in any case no worker is left."""
        with self._pipes(), signals.queue() as self._signal_end:
            self.watch(self._signal_end, self._take_signals)
            try:
                while not self._stopping:
                    self._iterate()
            finally:
                signal.alarm(0)
                self._end_workers()
                for act in self._last_acts:
                    act(time.time())

    # Set-up.

    @contextlib.contextmanager
    def _pipes(self) -> Iterator[None]:
        parent_alive_fd, self._lifeline_end = os.pipe()
        self._wakeup_end, wakeup_fd = os.pipe()
        os.set_blocking(wakeup_fd, False)
        os.set_blocking(self._wakeup_end, False)
        self._worker_pipes = worker.Pipes(parent_alive_fd, wakeup_fd)
        self.watch(self._wakeup_end, lambda: signals.drain(self._wakeup_end))
        yield
        for descriptor in (parent_alive_fd, wakeup_fd, self._wakeup_end):
            os.close(descriptor)

    # The loop.

    def _iterate(self) -> None:
        now = time.monotonic()
        signal.alarm(math.ceil(self._daemon_timeout))  # the watchdog of the parent itself
        delay = self._settle_locks(now)
        delay = min(delay, self._janitor.run(), self._end_the_hung(now), self._next_spawn(now))
        for descriptor, _ in self._poll.poll(max(0.0, delay) * 1000):
            self._watched[descriptor]()
        self._reap()
        self._look_for_readiness()

    def _take_signals(self) -> None:
        numbers = set(signals.drain(self._signal_end))
        if numbers & set(signals.STOP_SIGNALS):
            self.stop()

    def _look_for_readiness(self) -> None:
        if self._on_ready is None or self._vacant:
            return
        slots = [child.slot for child in self._children.values()]
        if all(self._inherited.scoreboard.last_beat(s) for s in slots if s != self._sweeper_slot):
            self._on_ready()
            self._on_ready = None

    # Children come.

    def _next_spawn(self, now: float) -> float:
        return min((due - now for due in self._vacant.values()), default=60.0)

    def _fill_slots(self, now: float) -> None:
        for slot in [slot for slot, due in self._vacant.items() if due <= now]:
            if self._spawn("worker", slot, self._worker):
                del self._vacant[slot]
            else:
                self._vacant[slot] = now + FORK_PAUSE

    def sweep(self, cache_type: str, sweep: Sweep) -> bool:
        """Have a child do it; False when there is one that does another, or none to be had."""
        if any(child.slot == self._sweeper_slot for child in self._children.values()):
            return False
        name = f"{cache_type} cache sweeper"
        return self._spawn(name, self._sweeper_slot, partial(self._sweeper, sweep))

    def _spawn(self, name: str, slot: int, work: Callable[[int], int]) -> bool:
        """Fork a child that does ``work``, which returns its exit status; False if that fails."""
        now = time.monotonic()
        held = signals.hold()
        pid = -1
        try:
            pid = os.fork()
            if pid == 0:
                _be_a_child(lambda: work(slot), held)
        except OSError as error:
            self._limit.warning("fork", f"fork: {error.strerror}; will try again", now)
            return False
        finally:
            if pid:
                signals.let_go(held)
        self._children[pid] = Child(name, slot, pid, now)
        return True

    def _worker(self, slot: int) -> int:
        return worker.main(self._inherited, slot, self._worker_pipes)

    def _sweeper(self, sweep: Sweep, slot: int) -> int:
        return sweeper.main(self._inherited, slot, self._worker_pipes.parent_alive_fd, sweep)

    # Children go.

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            child = self._children.pop(pid, None)
            if child is not None:
                self._cleanup_child(child, os.waitstatus_to_exitcode(status))

    def _cleanup_child(self, child: Child, code: int) -> None:
        """Put in order what a dead worker left, and plan its successor."""
        served = self._inherited.scoreboard.last_beat(child.slot) > 0
        self._inherited.scoreboard.clear(child.slot)
        now = time.monotonic()
        if Recovery.FREED in [lock.recover(child.slot, now) for lock in self._locks]:
            log.info(f"freed a lock that worker pid {child.pid} held when it died")
        self._inherited.stats.collect(child.slot)
        if self._stopping:
            return
        if not child.retired and (code or child.slot != self._sweeper_slot):
            log.warning(f"{child.name} pid {child.pid} {_end_in_words(code)}")
            # An end that we gave it says nothing of the cache files.
            self._janitor.child_died(-signal.SIGKILL if child.aborted else code)
        if child.slot != self._sweeper_slot:
            self._plan_successor(child, code, served)

    def _settle_locks(self, now: float) -> float:
        """Fill the slots unless a lock is lost; return the seconds until to look at locks again.

        A dead process may have a lock that is lost: all others are ended, and it is made free.
        """
        found = [lock.settle(now) for lock in self._locks]
        if Recovery.LOST not in found:
            self._fill_slots(now)
            return LOCK_POLL if Recovery.IN_DOUBT in found else math.inf
        if self._children:
            log.warning("a lock was lost when a worker died: ending all workers")
            for child in self._children.values():
                child.retired = True
                _kill(child.pid, signal.SIGKILL)
            return LOCK_POLL
        for lock in self._locks:
            lock.reset()
        return 0.0

    def _plan_successor(self, child: Child, code: int, served: bool) -> None:
        if code == worker.BOOT_ERROR:
            raise CannotServe("workers cannot start; see the messages above")
        now = time.monotonic()
        self._futile = 0 if served else self._futile + 1
        if self._futile >= MAX_FAILED_STARTS:
            raise CannotServe(f"{MAX_FAILED_STARTS} workers in a row died before they could serve")
        if now - child.started >= YOUNG or child.retired:
            self._pause = 0.0
        else:
            self._pause = min(max(FIRST_PAUSE, 2 * self._pause), LONGEST_PAUSE)
        self._vacant[child.slot] = now + self._pause

    def _end_the_hung(self, now: float) -> float:
        """End children without a heartbeat; returns the seconds until to look again."""
        for child in self._children.values():
            beat = self._inherited.scoreboard.last_beat(child.slot) or child.started
            if child.aborted:
                if now - child.aborted >= ABORT_TIME:
                    _kill(child.pid, signal.SIGKILL)
            elif now - beat > self._daemon_timeout:
                log.warning(f"{child.name} pid {child.pid} does not respond: ending it")
                child.aborted = now
                _kill(child.pid, signal.SIGABRT)
        waits_to_kill = any(child.aborted for child in self._children.values())
        return ABORT_TIME / 2 if waits_to_kill else self._daemon_timeout / 3

    def retire_workers(self) -> None:
        """Have every worker replaced by a fresh one: their cache files were made anew.

        A sweep of them ends.
        """
        for child in self._children.values():
            child.retired = True
            _kill(child.pid, signal.SIGTERM)

    def _end_workers(self) -> None:
        """Close the parent_alive_fd and wait; at the end nobody is left."""
        self._stopping = True
        os.close(self._lifeline_end)
        deadline = time.monotonic() + STOP_TIME
        while self._children and (left := deadline - time.monotonic()) > 0:
            self._poll.poll(left * 1000)
            signals.drain(self._signal_end)
            signals.drain(self._wakeup_end)
            self._reap()
        for child in self._children.values():
            _kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)
        self._children.clear()


def _be_a_child(work: Callable[[], int], held: Iterable[int]) -> NoReturn:
    status = worker.DEFECT
    try:
        signals.forget(held)
        status = work()
    finally:
        os._exit(status)


def _kill(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _end_in_words(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit status {code}"
