"""stats - the counter table: a row a counter, a slot a process, written by that process alone.

Counters are 64-bit words in shared memory. A worker adds to its own slot without a lock; anybody
may read all slots, and a sum is right to within what is being added just then. When a worker dies
the parent moves its counts to its own slot, so that nothing is counted twice or lost.

A counter is added by adding a row. Nothing here is fatal or logged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tlsmgr.shm import SharedMemory


class Counter(NamedTuple):
    """A counter's name, and what it counts in a few words."""

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
    Counter("wakeups", "wake-ups by master"),
    Counter("malformed", "requests refused as malformed"),
    Counter("batches", "transactions for updates and deletes"),
    Counter("dropped", "updates dropped because a cache could not be written in time"),
)
INDEX: Mapping[str, int] = {counter.name: i for i, counter in enumerate(COUNTERS)}

_WORD = 8
_ROW = -(-len(COUNTERS) * _WORD // 64) * 64  # whole cache lines: no two processes write to one


class Stats:
    """The table of all slots; slot 0 is the parent's. Made before the fork."""

    def __init__(self, memory: SharedMemory, slots: int) -> None:
        self._rows = [memory.carve(_ROW).cast("Q") for _ in range(slots)]

    @staticmethod
    def size(slots: int) -> int:
        """Bytes of shared memory that a table for so many slots takes."""
        return slots * _ROW

    def row(self, slot: int) -> memoryview:
        """The words of one slot: ``row[INDEX[name]] += 1`` counts, for the slot's process only."""
        return self._rows[slot]

    def counts(self, slot: int) -> dict[str, int]:
        """What one slot counted, by name."""
        return {name: self._rows[slot][i] for name, i in INDEX.items()}

    def totals(self) -> dict[str, int]:
        """What all slots counted, by name."""
        return {name: sum(row[i] for row in self._rows) for name, i in INDEX.items()}

    def collect(self, slot: int) -> None:
        """Move a dead process's counts to the parent's slot; for the parent, after the reap."""
        for i in range(len(COUNTERS)):
            self._rows[0][i] += self._rows[slot][i]
            self._rows[slot][i] = 0
