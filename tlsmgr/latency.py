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

import time
from array import array
from dataclasses import dataclass

from tlsmgr.shm import SharedMemory
from tlsmgr.stats import INDEX

STEPS = (("policy", "lookup", "tktkey"), ("seed",), ("update", "delete"))
AT_ONCE, SEEDS, CHANGES = range(3)  # the steps
KINDS = tuple(kind for step in STEPS for kind in step)

SAMPLES = 32  # times that a timer keeps before it adds them up
BUCKETS = 26  # bucket k: less than 2**k microseconds, the last one: 16 s and more
_SUM, _MAX, _WIDTH = BUCKETS, BUCKETS + 1, BUCKETS + 2
_MICRO = 1e6


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

    ``note`` keeps what it has measured, and every 32 times this goes into histograms of this
    process's own; ``publish`` copies these. To do all of it each time took a worker with a single
    client 8 % of its CPU time, as code that runs once between two waits is not in the processor's
    caches. At 64 clients no difference was seen.
    """

    __slots__ = ("_clock", "_samples", "_steps")

    def __init__(self, area: memoryview, counts: memoryview) -> None:
        self._clock = time.monotonic
        self._steps = [_Step(kinds, area, counts) for kinds in STEPS]
        self._samples: list[tuple[_Step, list[int], float]] = []  # with the seconds that it took

    def note(self, step: int, since: float) -> None:
        """Note that all requests of a step that were counted are answered; they were read then.

        ``since`` is of time.monotonic().
        """
        answered = self._steps[step]
        counts = answered.view.tolist()
        if counts != answered.noted:
            answered.noted = counts
            self._samples.append((answered, counts, self._clock() - since))
            if len(self._samples) >= SAMPLES:
                self._add()

    def publish(self) -> None:
        """Bring the histograms in shared memory up to date; a worker does so once a second."""
        self._add()
        for step in self._steps:
            step.publish()

    def _add(self) -> None:
        for step, counts, seconds in self._samples:
            step.add(counts, int(seconds * _MICRO))
        self._samples.clear()


class _Step:
    """The counters of the requests that a step answers, and the histograms of these requests.

    Counts go from ``view`` to ``noted``, with their times, and from there to ``added`` and into
    ``sums``, the histograms of this process.
    """

    __slots__ = ("added", "noted", "rows", "sums", "view")

    def __init__(self, kinds: tuple[str, ...], area: memoryview, counts: memoryview) -> None:
        first = INDEX[kinds[0]]
        self.view = counts[first : first + len(kinds)]  # neighbours in stats.COUNTERS
        self.noted = self.added = self.view.tolist()
        starts = [KINDS.index(kind) * _WIDTH for kind in kinds]
        self.rows = [area[start : start + _WIDTH] for start in starts]
        self.sums = [row.tolist() for row in self.rows]  # a list takes a third of the time

    def add(self, counts: list[int], passed: int) -> None:
        """Add the requests up to these counts, which took that many microseconds."""
        bucket = min(passed.bit_length(), BUCKETS - 1)
        for sums, before, count in zip(self.sums, self.added, counts):
            if count != before:
                sums[bucket] += count - before
                sums[_SUM] += (count - before) * passed
                if passed > sums[_MAX]:
                    sums[_MAX] = passed
        self.added = counts

    def publish(self) -> None:
        """Show others what was added."""
        for row, sums in zip(self.rows, self.sums):
            row[:] = array("Q", sums)
