"""restarts - when a worker that died is replaced, when the daemon gives up, and when it is ready.

A worker is replaced at once; one that died young, after a pause that doubles each time. Before any
worker has served, one that can't start, or MAX_FAILED_STARTS deaths in a row, end the daemon
(CannotServe): the configuration or the system is at fault, and a fatal line is clearer than a loop.
Later both only delay the replacement. Used by the parent; no process or clock is touched here.
"""

from __future__ import annotations

from collections.abc import Callable

from tlsmgr.processes.worker_start import BOOT_ERROR

YOUNG = 1.0  # seconds; a worker that dies before this age died young
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 5.0  # seconds before replacing one that died young
FORK_PAUSE = 1.0  # seconds before a fork that failed is tried again
MAX_FAILED_STARTS = 5  # deaths in a row before any worker served


class CannotServe(Exception):
    """No worker can start; the text says why."""


class Readiness:
    """Calls ``on_first`` once, when a worker serves, and ``on_all`` once, when all do."""

    def __init__(
        self, workers: int, on_first: Callable[[], None], on_all: Callable[[], None]
    ) -> None:
        self._due = [(1, on_first), (workers, on_all)]

    def note(self, serving: int) -> None:
        """Note how many workers serve."""
        while self._due and serving >= self._due[0][0]:
            _, call = self._due.pop(0)
            call()


class Restarts:
    """The times of time.monotonic() at which workers may be forked."""

    def __init__(self) -> None:
        self.due = 0.0
        """The time from which a worker may be forked."""
        self._pause = 0.0
        self._failed_starts = 0
        self._has_served = False

    def note_service(self) -> None:
        """Note that a worker serves."""
        self._has_served = True

    def note_failed_fork(self, now: float) -> None:
        """Note that the system did not let us fork."""
        self.due = now + FORK_PAUSE

    def note_death(self, now: float, started: float, served: bool, code: int) -> None:
        """Plan the replacement of a worker that nobody told to go. Raises CannotServe.

        ``code`` is its exit status.
        """
        self._has_served |= served
        if not self._has_served and code == BOOT_ERROR:
            raise CannotServe("workers cannot start; see the messages above")
        self._failed_starts = 0 if served else self._failed_starts + 1
        if not self._has_served and self._failed_starts >= MAX_FAILED_STARTS:
            raise CannotServe(f"{MAX_FAILED_STARTS} workers in a row died before they could serve")
        if now - started >= YOUNG:
            self._pause = 0.0
        else:
            self._pause = min(max(FIRST_PAUSE, 2 * self._pause), LONGEST_PAUSE)
        self.due = now + self._pause
