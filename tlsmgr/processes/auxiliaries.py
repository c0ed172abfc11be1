"""auxiliaries - the processes beside the workers, each alone with its task and its slot.

An auxiliary process is forked at the start and again whenever it ends: at once, or after a pause
when it died young. The janitor is one. To add one, add its slot to ``setup.Slots`` and a call of
``Parent.add_auxiliary`` to ``daemon``.

One that a file system blocks cannot be ended, and keeps its slot. With a spare slot it gets a
substitute meanwhile, without files, which is ended when files can be used again.

Used by the parent only; the table, without a process or a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tlsmgr.processes.children import Child
from tlsmgr.processes.restarts import FORK_PAUSE, LONGEST_PAUSE, YOUNG

Entry = Callable[[], int]  # runs in the child and returns its exit status


class Start(NamedTuple):
    """How a child starts: whether it may touch session files, and its entry point."""

    uses_files: bool
    entry: Entry


@dataclass(eq=False)
class Auxiliary:
    """One of them. ``due`` is the time of time.monotonic() from which it may be forked.

    ``start`` is called before each fork, with the slot. One that ``follows_files`` is ended by
    SIGTERM, for a successor, when a file was made new or when it runs without files and could have
    them.
    """

    name: str  # in log lines
    slot: int
    start: Callable[[int], Start]
    follows_files: bool = False
    spare: int | None = None  # the slot of a substitute
    due: float = 0.0

    def note_failed_fork(self, now: float) -> None:
        """Note that the system did not let us fork."""
        self.due = now + FORK_PAUSE

    def note_end(self, now: float, started: float, asked: bool) -> None:
        """Plan its successor; ``asked``: it was told to end."""
        died_young = not asked and now - started < YOUNG
        self.due = now + (LONGEST_PAUSE if died_young else 0.0)


class Auxiliaries:
    """All of them, by slot."""

    def __init__(self) -> None:
        self._by_slot: dict[int, Auxiliary] = {}

    def add(self, auxiliary: Auxiliary) -> None:
        """Add one."""
        self._by_slot[auxiliary.slot] = auxiliary

    def of(self, slot: int) -> Auxiliary | None:
        """Return the one that has this slot, or this spare slot; None for that of a worker."""
        found = (each for each in self._by_slot.values() if slot in (each.slot, each.spare))
        return next(found, None)

    def missing(
        self, children: Iterable[Child], files_blocked: bool, now: float
    ) -> Iterator[tuple[Auxiliary, int]]:
        """Yield those to fork now, each with the slot that it gets."""
        by_slot = {child.slot: child for child in children}
        for auxiliary in self._by_slot.values():
            if now < auxiliary.due or auxiliary.spare in by_slot:
                continue
            child = by_slot.get(auxiliary.slot)
            if child is None:
                yield auxiliary, auxiliary.slot
            elif auxiliary.spare is not None and files_blocked and child.stalled:
                yield auxiliary, auxiliary.spare
