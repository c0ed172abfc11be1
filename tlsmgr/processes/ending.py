"""ending - how the parent ends its children: at a stop all of them, at a reload all but workers.

At a stop children read the end of a pipe and go; after STOP_TIME they are killed, and one that the
kernel still holds then is left: it ends as soon as the file system responds, and writes nothing.

At a reload the others end first, while the workers still accept. Then the workers stop to accept
and drain by themselves, so that the parent, for whose end master(8) waits, can go at once.
``Scoreboard.ending`` tells a worker which of both it is; without a word there, the parent was
killed. Runs in the parent; no wait is without a deadline.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from tlsmgr import log
from tlsmgr.processes import worker
from tlsmgr.processes.children import Child, Children
from tlsmgr.processes.scoreboard import RELOADING, STOPPING, Scoreboard

CLOSE_TIME = 0.3  # seconds for workers to close the listening sockets at a reload
STOP_TIME, KILL_TIME = 0.7, 0.5  # seconds for children to end by themselves, and when killed


@dataclass(frozen=True)
class Ending:
    """What it takes to end the children.

    Those with a slot in ``workers`` are workers. All children watch the other end of ``alive_end``.
    ``signs`` reports what ``attend`` then takes: signals, calls of children, deaths.
    """

    children: Children
    scoreboard: Scoreboard
    workers: range
    alive_end: int
    signs: select.poll
    attend: Callable[[], object]

    def end_others(self) -> None:
        """End all but workers, which go on to accept."""
        self.scoreboard.ending[0] = RELOADING
        os.close(self.alive_end)
        self._wait_until(lambda: not self._others(), STOP_TIME)
        for child in self._others():
            self.children.kill(child, signal.SIGKILL)

    def let_workers_drain(self) -> None:
        """Have workers accept no more."""
        for child in self._workers():
            self.children.kill(child, worker.DRAIN_SIGNAL)
        self._wait_until(self._all_have_closed, CLOSE_TIME)

    def stop_all(self) -> None:
        """End all children; also after ``end_others``."""
        self.children.kill_adopted(signal.SIGTERM)
        if self.scoreboard.ending[0] == RELOADING:
            for child in self.children:
                self.children.kill(child, signal.SIGTERM)
        else:
            self.scoreboard.ending[0] = STOPPING
            os.close(self.alive_end)
        self._wait_until(lambda: not len(self.children), STOP_TIME)
        for child in self.children:
            self.children.kill(child, signal.SIGKILL)
        self.children.kill_adopted(signal.SIGKILL)
        self._wait_until(lambda: not len(self.children), KILL_TIME)
        if len(self.children):
            log.warning(
                f"{len(self.children)} processes are blocked by a file system;"
                " they end when it responds"
            )

    def _workers(self) -> list[Child]:
        return [child for child in self.children if child.slot in self.workers]

    def _others(self) -> list[Child]:
        return [child for child in self.children if child.slot not in self.workers]

    def _all_have_closed(self) -> bool:
        """Return whether no worker accepts; one that is stopped does not when it resumes."""
        return all(c.stalled or self.scoreboard.has_closed(c.slot) for c in self._workers())

    def _wait_until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait for something that children do, but not for longer than that."""
        deadline = time.monotonic() + seconds
        self.attend()
        while not condition() and (left := deadline - time.monotonic()) > 0:
            self.signs.poll(left * 1000)
            self.attend()
