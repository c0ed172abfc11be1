"""stats - counters in shared memory: one set for each process, which that process alone writes.

Counters are 64-bit numbers. A worker adds to its own without a lock; any process may read all of
them, and a sum may miss only what is being added at that moment. When a worker dies, the parent
adds its counts to the parent's own, so that no count is lost or doubled.

To add a counter, add a row to COUNTERS. Nothing here is fatal or logged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tlsmgr.shm import SharedMemory


class Counter(NamedTuple):
    """A counter's name, and its meaning."""

    name: str
    meaning: str


COUNTERS = (
    Counter("connections", "connections accepted"),
    Counter("seed", "seed requests"),
    Counter("policy", "policy requests"),
    Counter("lookup", "lookup requests"),
    Counter("hits", "lookups that found a session"),
    Counter("update", "update requests"),
    Counter("delete", "delete requests"),
    Counter("tktkey", "ticket key requests"),
    Counter("unknown_keys", "ticket keys asked for by a name that is not known"),
    Counter("wakeups", "wake-ups by master"),
    Counter("malformed", "requests refused as malformed"),
    Counter("batches", "transactions for updates and deletes"),
    Counter("dropped", "updates dropped because a cache could not be written in time"),
)
INDEX: Mapping[str, int] = {counter.name: i for i, counter in enumerate(COUNTERS)}

_COUNTER_BYTES = 8
_ROW = (
    -(-len(COUNTERS) * _COUNTER_BYTES // 64) * 64
)  # whole cache lines, so that processes share none


class Stats:
    """The counters of all slots; slot 0 is the parent's. Made before the fork."""

    def __init__(self, memory: SharedMemory, slots: int) -> None:
        self._rows = [memory.carve(_ROW).cast("Q") for _ in range(slots)]

    @staticmethod
    def size(slots: int) -> int:
        """Return the bytes of shared memory that the counters of `slots` slots take."""
        return slots * _ROW

    def row(self, slot: int) -> memoryview:
        """Return the counters of a slot; its process alone writes: ``row[INDEX[name]] += 1``."""
        return self._rows[slot]

    def counts(self, slot: int) -> dict[str, int]:
        """Return the counts of one slot by name."""
        return {name: self._rows[slot][i] for name, i in INDEX.items()}

    def totals(self) -> dict[str, int]:
        """Return the sums over all slots by name."""
        return {name: sum(row[i] for row in self._rows) for name, i in INDEX.items()}

    def add_totals(self, totals: Mapping[str, int]) -> None:
        """Add the totals of an earlier daemon to slot 0; a name that is not known is left out."""
        for name, count in totals.items():
            if name in INDEX:
                self._rows[0][INDEX[name]] += count

    def collect(self, slot: int) -> None:
        """Move the counts of a dead process to slot 0: the parent, after it reaped it."""
        for i in range(len(COUNTERS)):
            self._rows[0][i] += self._rows[slot][i]
            self._rows[slot][i] = 0
