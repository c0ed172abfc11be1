"""latency - how long requests take: a histogram for each kind of request, in shared memory.

A request takes from the moment at which its worker reads it to its reply. A worker reads the
requests that wait, and answers them together in three steps: lookups, policies and ticket keys as
it reads them; then all seeds; then all changes of the caches. It looks at the clock once a step,
and all requests of a step count with the time of its end: never less than what the client saw, and
no cost for each request. What waits while the worker is busy with the requests before is not read
yet, and that time is not in the figures. A lookup that has to write (see
``sessions.single_use``) counts in the first step all the same.

Buckets are powers of two of microseconds. Each process has histograms of its own, without a lock;
when one has died, the parent adds its counts to its own. What a worker that is killed had measured
in its last second may be lost. Nothing here is fatal or logged.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from itertools import chain, compress
from operator import mul, sub

from tlsmgr.shm import SharedMemory
from tlsmgr.stats import INDEX

AT_ONCE, SEEDS, CHANGES = range(3)  # the steps
STEP_OF = {
    "seed": SEEDS,
    "policy": AT_ONCE,
    "lookup": AT_ONCE,
    "tktkey": AT_ONCE,
    "update": CHANGES,
    "delete": CHANGES,
}
"""The step that answers each kind of request; in this order they are neighbours in COUNTERS."""
KINDS = tuple(STEP_OF)

SAMPLES = 64  # iterations whose times a timer keeps before it adds them up
BUCKETS = 26  # bucket k: less than 2**k microseconds, the last one: 16 s and more
_SUM, _MAX, _WIDTH = BUCKETS, BUCKETS + 1, BUCKETS + 2
_MICRO = 1e6
_MOST_BITS = 64  # of a time in microseconds


@dataclass(frozen=True, slots=True)
class Histogram:
    """The times of one kind of request, in whole microseconds: counts by bucket, sum, longest."""

    counts: tuple[int, ...]
    total: int
    longest: int

    @property
    def count(self) -> int:
        """The number of requests."""
        return sum(self.counts)

    def quantile(self, share: float) -> float | None:
        """Return the time that this share of requests did not exceed; None without requests.

        Within a bucket the times are taken to be spread evenly.
        """
        wanted, below = share * self.count, 0
        for bucket, count in enumerate(self.counts):
            if count and below + count >= wanted:
                start, end = float(lower_bound(bucket)), float(1 << bucket)
                return min(start + (end - start) * (wanted - below) / count, float(self.longest))
            below += count
        return None


def lower_bound(bucket: int) -> int:
    """Return the least number of microseconds in a bucket."""
    return (1 << bucket) >> 1


class LatencyTable:
    """The histograms of all slots; slot 0 is the parent's. Made before the fork."""

    def __init__(self, memory: SharedMemory, slots: int) -> None:
        self._rows = [memory.carve(self.size(1)).cast("Q") for _ in range(slots)]

    @staticmethod
    def size(slots: int) -> int:
        """Return the bytes of shared memory that the histograms of `slots` slots take."""
        return slots * len(KINDS) * _WIDTH * 8

    def timer(self, slot: int, counts: memoryview) -> Timer:
        """Return the timer of the process of this slot, whose counters those are."""
        return Timer(self._rows[slot], counts)

    def totals(self) -> dict[str, Histogram]:
        """Return the histograms over all slots, by kind of request."""
        return {kind: self._total(i * _WIDTH) for i, kind in enumerate(KINDS)}

    def _total(self, start: int) -> Histogram:
        parts = [row[start : start + _WIDTH].tolist() for row in self._rows]
        sums = list(map(sum, zip(*parts)))
        return Histogram(tuple(sums[:BUCKETS]), sums[_SUM], max(part[_MAX] for part in parts))

    def collect(self, slot: int) -> None:
        """Move the counts of a dead process to slot 0: the parent, after it reaped it."""
        ours, theirs = self._rows[0], self._rows[slot]
        for i in range(len(theirs)):
            ours[i] = max(ours[i], theirs[i]) if i % _WIDTH == _MAX else ours[i] + theirs[i]
            theirs[i] = 0


class Timer:
    """Adds the times of one process. Kinds of request are seen in its counters of requests.

    ``keep`` only keeps what was measured. Every 64 iterations that goes into histograms of this
    process's own, all of a kind at a time; ``publish`` copies these. To do all of it each time took
    a worker with a single client 8 % of its CPU time, as code that runs once between two waits is
    not in the processor's caches.
    """

    __slots__ = ("_added", "_area", "_kinds", "_noted", "_samples", "_view")

    def __init__(self, area: memoryview, counts: memoryview) -> None:
        self._area = area
        first = INDEX[KINDS[0]]
        self._view = counts[first : first + len(KINDS)]
        self._added = self._noted = self._view.tobytes()
        self._samples: list[tuple[bytes, float, float, float, float]] = []
        starts = range(0, len(area), _WIDTH)
        self._kinds = [_Sums(area[start : start + _WIDTH].tolist()) for start in starts]

    def keep(self, began: float, at_once: float, seeds: float, changes: float) -> None:
        """Keep the times of an iteration, for the requests that were counted in it.

        When it began and when each step ended, in seconds of time.monotonic(). A step that had
        nothing to answer ended with the first one: what was counted for it was refused, at once.
        """
        counts = self._view.tobytes()
        if counts != self._noted:
            self._noted = counts
            self._samples.append((counts, began, at_once, seeds, changes))
            if len(self._samples) >= SAMPLES:
                self._add()

    def publish(self) -> None:
        """Bring the histograms in shared memory up to date; a worker does so once a second."""
        if self._samples:
            self._add()
        self._area[:] = array("Q", chain.from_iterable(sums.row() for sums in self._kinds))

    def _add(self) -> None:
        packed, began, *ends = zip(*self._samples)
        totals = array("Q", self._added + b"".join(packed))  # of all kinds, before and after each
        for i, (sums, step) in enumerate(zip(self._kinds, STEP_OF.values())):
            total = totals[i :: len(KINDS)]
            if total[0] != total[-1]:
                counts = list(map(sub, total[1:], total))
                sums.add(counts, [int((t - t0) * _MICRO) for t, t0 in zip(ends[step], began)])
        self._added = self._noted
        self._samples.clear()


class _Sums:
    """A histogram that is added to."""

    __slots__ = ("_counts", "_longest", "_total")

    def __init__(self, row: list[int]) -> None:
        self._counts = [*row[:BUCKETS], *bytes(_MOST_BITS - BUCKETS)]  # by the bits of a time
        self._total, self._longest = row[_SUM], row[_MAX]

    def add(self, counts: list[int], times: list[int]) -> None:
        """Add so many requests of each iteration, which took so many microseconds each."""
        sums = self._counts
        for count, bits in zip(counts, map(int.bit_length, times)):
            sums[bits] += count
        self._total += sum(map(mul, counts, times))
        self._longest = max(self._longest, *compress(times, counts))

    def row(self) -> list[int]:
        """Return the histogram as it is in shared memory."""
        last = BUCKETS - 1
        counts = self._counts
        return [*counts[:last], sum(counts[last:]), self._total, self._longest]
