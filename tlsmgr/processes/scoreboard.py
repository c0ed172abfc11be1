"""scoreboard - how each process fares: a row for each slot, in shared memory.

A process writes the time of its last iteration and its number of connections into its own row, that
number at each change: a worker that is idle since must not seem to have the connections it had. The
parent reads them, to find a process that is stalled; workers read them, to share connections out;
the control process shows them. Beside the rows are what the whole daemon does, whether a file
system blocks, and what the janitor did for the random number generator.

Every value has one writer, and a reader needs no two that belong together: there is no lock.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from typing import NamedTuple

from tlsmgr.shm import SharedMemory

STALL_TIME = 1.5  # seconds without a heartbeat, after which a process counts as stalled
RUNNING, STOPPING, RELOADING = range(3)  # what the daemon does
SPREAD_SLACK = 32  # connections that a worker may have beyond its share

_GENERATOR = struct.Struct("=Qdd??")


class GeneratorFacts(NamedTuple):
    """What was done for the pool: readings of the entropy source, and times of time.monotonic().

    ``reseeded`` is the time of the last reading, ``saved`` that of the exchange file's last update;
    0 for never. The last two say that the latest try of that failed.
    """

    reseeds: int = 0
    reseeded: float = 0.0
    saved: float = 0.0
    source_fails: bool = False
    exchange_fails: bool = False


class Scoreboard:
    """A row for each slot: time of the last iteration (0 before it serves), and connections.

    Each process writes its own row; the parent marks the retired ones and clears rows. The
    values about files and the generator are written by the parent (``files_blocked``) and by the
    janitor (the others). ``ending`` is the parent's.
    """

    def __init__(self, memory: SharedMemory, slots: int, workers: range) -> None:
        self.workers = workers
        """The slots of workers."""
        self._beats = memory.carve(8 * slots).cast("d")
        self._connections = memory.carve(8 * slots).cast("Q")
        self._pids = memory.carve(8 * slots).cast("Q")
        self._retired = memory.carve(slots)
        self._away = memory.carve(slots)
        self._closed = memory.carve(slots)
        self.ending = memory.carve(1)
        """RUNNING, STOPPING or RELOADING. A parent that is gone while RUNNING was killed."""
        self._generator = memory.carve(_GENERATOR.size)
        self._checked = memory.carve(8).cast("d")
        self.files_blocked = memory.carve(1)
        """One byte; 1 while a file system blocks a process: nobody may touch session files."""

    def beat(self, slot: int, now: float) -> None:
        """Note that the process of ``slot`` runs at ``now`` (time.monotonic())."""
        self._beats[slot] = now

    def connection_count(self, slot: int) -> memoryview:
        """Return the one number of open connections, which the worker of ``slot`` sets."""
        return self._connections[slot : slot + 1]

    def note_process(self, slot: int, pid: int) -> None:
        """Note which process has this slot."""
        self._pids[slot] = pid

    def pid(self, slot: int) -> int:
        """Return the process that has this slot, 0 for none."""
        return int(self._pids[slot])

    def last_beat(self, slot: int) -> float:
        """Return the time of the last ``beat``; 0 when the process does not serve yet."""
        return float(self._beats[slot])

    def clear(self, slot: int) -> None:
        """Note that no process has this slot."""
        self._beats[slot] = 0.0
        self._connections[slot] = 0
        self._retired[slot] = self._away[slot] = self._closed[slot] = 0
        self._pids[slot] = 0

    def retire(self, slot: int) -> None:
        """Note that the process of this slot accepts no more connections."""
        self._retired[slot] = 1

    def note_closed(self, slot: int) -> None:
        """Note that this process has closed the listening sockets."""
        self._closed[slot] = 1

    def has_closed(self, slot: int) -> bool:
        """Return whether it has, or there is no process."""
        return bool(self._closed[slot]) or not self._beats[slot]

    def is_retired(self, slot: int) -> bool:
        """Return whether the process of this slot accepts no more connections."""
        return bool(self._retired[slot])

    def connections(self, slot: int) -> int:
        """Return the number of open connections."""
        return int(self._connections[slot])

    def is_crowded(self, slot: int, now: float) -> bool:
        """Return whether another worker that accepts has far fewer connections than this one."""
        mine = self._connections[slot]
        if mine <= SPREAD_SLACK:
            return False
        latest = now - STALL_TIME
        least = min(
            (
                self._connections[i]
                for i in self.workers
                if self._beats[i] >= latest and not self._retired[i]
            ),
            default=0,
        )
        return mine > least + least // 2 + SPREAD_SLACK

    @contextlib.contextmanager
    def away_from_files(self, slot: int) -> Iterator[None]:
        """Note that the process touches no session file meanwhile, but perhaps others."""
        self._away[slot] = 1
        try:
            yield
        finally:
            self._away[slot] = 0

    def is_away(self, slot: int) -> bool:
        """Return whether the process of this slot is in ``away_from_files``."""
        return bool(self._away[slot])

    def note_generator(self, facts: GeneratorFacts) -> None:
        """Note what the janitor did for the random number generator."""
        _GENERATOR.pack_into(self._generator, 0, *facts)

    def generator(self) -> GeneratorFacts:
        """Return what was noted last."""
        return GeneratorFacts(*_GENERATOR.unpack_from(self._generator, 0))

    def note_files_checked(self, now: float) -> None:
        """Note that the janitor wrote to every file and was not blocked."""
        self._checked[0] = now

    @property
    def files_checked(self) -> float:
        """The time of the last ``note_files_checked``."""
        return float(self._checked[0])
