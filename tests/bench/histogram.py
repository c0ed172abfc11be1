"""histogram - latencies in buckets, each at most 1 % wide; and the percentiles that come of them.

The number of a bucket follows from the latency in nanoseconds: below 128 it is the latency, and
from there on each power of two has 128 buckets. Same as in generator.c. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

SUB_BITS = 7

Histogram = Counter[int]
"""How many latencies are in the bucket of that number."""


def bucket_of(latency: int) -> int:
    """The number of the bucket for a latency of so many nanoseconds, 0 or more."""
    shift = max(0, latency.bit_length() - 1 - SUB_BITS)
    return (shift << SUB_BITS) + (latency >> shift)


def middle_of(bucket: int) -> float:
    """The latency, in nanoseconds, that stands for all in the bucket."""
    shift = max(0, (bucket >> SUB_BITS) - 1)
    lowest = (bucket - (shift << SUB_BITS)) << shift
    return lowest + ((1 << shift) - 1) / 2


def merge(histograms: Iterable[Histogram]) -> Histogram:
    """All latencies together."""
    total: Histogram = Counter()
    for histogram in histograms:
        total.update(histogram)
    return total


def percentile(histogram: Histogram, percent: float) -> float | None:
    """The smallest latency, in nanoseconds, that at least ``percent`` of all do not exceed.

    None when there are none at all.
    """
    due = round(histogram.total() * percent / 100, 6)  # 99.9 has no exact binary fraction
    seen = 0
    for bucket in sorted(histogram):
        seen += histogram[bucket]
        if seen >= due:
            return middle_of(bucket)
    return None
