"""stats - counters in shared memory: one set for each process, which that process alone writes.

Counters are 64-bit numbers. A worker adds to its own without a lock; any process may read all of
them, and a sum may miss only what is being added at that moment. When a worker dies, the parent
adds its counts to the parent's own, so that no count is lost or doubled.

A set is a row of numbers: COUNTERS, then CACHE_COUNTERS once for each cache. To add a counter, add
a row to one of the tables; it is in the statistics line and in the metrics under that name.
Nothing here is fatal or logged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    Counter("tktkey", "ticket key requests"),
    Counter("update", "update requests"),
    Counter("delete", "delete requests"),
    Counter("unknown_keys", "ticket keys asked for by a name that is not known"),
    Counter("wakeups", "wake-ups by master"),
    Counter("malformed", "requests refused as malformed"),
    Counter("batches", "batches of updates and deletes"),
    Counter("dropped", "updates dropped because a cache could not be written in time"),
    Counter("farm_lookups", "lookups that asked the other hosts of the farm"),
    Counter("farm_found", "sessions of other hosts that were found, in time or late"),
    Counter("farm_late", "lookups that the farm did not answer before the deadline"),
    Counter("farm_dropped", "updates and deletes that the other hosts do not get"),
)
CACHE_COUNTERS = (
    Counter("hits", "lookups that found a session"),
    Counter("misses", "lookups that found none"),
    Counter("updates", "sessions stored"),
    Counter("deletes", "sessions deleted by a request or an operator"),
    Counter("expired", "sessions removed because they were too old"),
    Counter("evicted", "sessions removed because the cache was full"),
)
"""The counters of one cache. Every lookup is a hit or a miss, so that one addition counts both."""

SUMMED = ("hits", "expired", "evicted")  # over the caches, beside COUNTERS, in ``totals``

INDEX: Mapping[str, int] = {counter.name: i for i, counter in enumerate(COUNTERS)}
CACHE_INDEX: Mapping[str, int] = {counter.name: i for i, counter in enumerate(CACHE_COUNTERS)}

_COUNTER_BYTES = 8
_LINE = 64  # rows are whole cache lines, so that processes share none


class Stats:
    """The counters of all slots; slot 0 is the parent's. Made before the fork."""

    def __init__(self, memory: SharedMemory, slots: int, caches: int = 0) -> None:
        self._rows = [memory.carve(_row_bytes(caches)).cast("Q") for _ in range(slots)]
        self._caches = range(caches)

    @staticmethod
    def size(slots: int, caches: int = 0) -> int:
        """Return the bytes of shared memory that the counters of `slots` slots take."""
        return slots * _row_bytes(caches)

    def row(self, slot: int) -> memoryview:
        """Return the counters of a slot; its process alone writes: ``row[INDEX[name]] += 1``."""
        return self._rows[slot][: len(COUNTERS)]

    def cache_row(self, slot: int, cache: int) -> memoryview:
        """Return the counters of a slot for one cache, for CACHE_INDEX."""
        start = len(COUNTERS) + cache * len(CACHE_COUNTERS)
        return self._rows[slot][start : start + len(CACHE_COUNTERS)]

    def counts(self, slot: int) -> dict[str, int]:
        """Return the counts of one slot by name, without those of caches."""
        return {name: self._rows[slot][i] for name, i in INDEX.items()}

    def totals(self) -> dict[str, int]:
        """Return the sums over all slots by name; those in SUMMED over all caches, too."""
        totals = {name: sum(row[i] for row in self._rows) for name, i in INDEX.items()}
        caches = [self.cache_totals(cache) for cache in self._caches]
        return totals | {name: sum(each[name] for each in caches) for name in SUMMED}

    def cache_totals(self, cache: int) -> dict[str, int]:
        """Return the sums over all slots by name, for one cache."""
        return _sums(self.cache_row(slot, cache) for slot in range(len(self._rows)))

    def dump(self, caches: Sequence[str]) -> dict[str, int]:
        """Return all totals, for the next daemon: those of a cache as `smtp.hits`, for example."""
        totals = dict(self.totals())
        for i, cache in enumerate(caches):
            totals |= {f"{cache}.{name}": count for name, count in self.cache_totals(i).items()}
        return totals

    def restore(self, totals: Mapping[str, int], caches: Sequence[str]) -> None:
        """Add what an earlier daemon dumped to slot 0; a name that is not known is left out."""
        places = dict(INDEX)
        for number, cache in enumerate(caches):
            start = len(COUNTERS) + number * len(CACHE_COUNTERS)
            places |= {f"{cache}.{name}": start + i for name, i in CACHE_INDEX.items()}
        for name, count in totals.items():
            if name in places:
                self._rows[0][places[name]] += count

    def collect(self, slot: int) -> None:
        """Move the counts of a dead process to slot 0: the parent, after it reaped it."""
        for i in range(len(self._rows[0])):
            self._rows[0][i] += self._rows[slot][i]
            self._rows[slot][i] = 0


def private_cache_row() -> memoryview:
    """Return counters for one cache that no other process sees."""
    return memoryview(bytearray(_COUNTER_BYTES * len(CACHE_COUNTERS))).cast("Q")


def _sums(rows: Iterable[memoryview]) -> dict[str, int]:
    columns = zip(*rows)
    return {counter.name: sum(column) for counter, column in zip(CACHE_COUNTERS, columns)}


def _row_bytes(caches: int) -> int:
    numbers = len(COUNTERS) + caches * len(CACHE_COUNTERS)
    return -(-numbers * _COUNTER_BYTES // _LINE) * _LINE
