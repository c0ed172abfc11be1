"""auxiliaries - the processes beside the workers, each alone with its task and its slot.

An auxiliary process is forked at the start and again whenever it ends: at once, or after a pause
when it died young. The janitor is one. To add one, add its slot to ``setup.Slots`` and a call of
``Parent.add_auxiliary`` to ``daemon``.

Used by the parent only; the table, without a process or a clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from tlsmgr.processes.restarts import FORK_PAUSE, LONGEST_PAUSE, YOUNG

Entry = Callable[[], int]  # runs in the child and returns its exit status


class Start(NamedTuple):
    """How a child starts: whether it may touch session files, and its entry point."""

    uses_files: bool
    entry: Entry


@dataclass(eq=False)
class Auxiliary:
    """One of them. ``due`` is the time of time.monotonic() from which it may be forked.

    ``start`` is called before each fork. One that ``follows_files`` is ended by SIGTERM, for a
    successor, when a file was made new or when it runs without files and could have them.
    """

    name: str  # in log lines
    slot: int
    start: Callable[[], Start]
    follows_files: bool = False
    due: float = 0.0

    def note_failed_fork(self, now: float) -> None:
        """Note that the system did not let us fork."""
        self.due = now + FORK_PAUSE

    def note_end(self, now: float, started: float, asked: bool) -> None:
        """Plan its successor; ``asked``: it was told to end."""
        died_young = not asked and now - started < YOUNG
        self.due = now + (LONGEST_PAUSE if died_young else 0.0)
