"""figures - one run of a load becomes figures; the figures of several rounds become medians.

CPU time is that of all processes of the server, from the start of the load to the last result;
connections made before do not count. The CPU time that other processes use meanwhile is a figure
too: a run in which they used much is disturbed.

Latencies come in buckets, each at most 1 % wide. The bucket's number follows from the latency in
nanoseconds: below 128 it is the latency itself, above that each power of two has 128 buckets, as
in generator.c.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import psutil

from bench.drive import SECOND, Generators, Histogram, Tally
from bench.servers import Server

DISTURBED = 0.1  # share of the machine used by others from which a run counts as disturbed
MICROSECOND = 1e3  # in nanoseconds
IDLE = ("idle", "iowait", "guest", "guest_nice")  # guests are part of user time already
SUB_BITS = 7
CPUCLOCK_SCHED = 2  # the scheduler's clock, in nanoseconds


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the figures of all runs have in common."""

    others: float | None  # share of the machine that all other processes used
    repeats: int = 0  # earlier runs, discarded because they were disturbed

    @property
    def disturbed(self) -> bool:
        """Whether other processes used much of the machine."""
        return self.others is not None and self.others > DISTURBED


@dataclass(frozen=True)
class Figures(Run):
    """The figures of one run. Latencies in microseconds; None where there is no value."""

    server_cpu: float | None  # microseconds per request, all processes
    requests: int
    seconds: float
    rate: float  # requests per second
    p50: float | None
    p99: float | None
    p99_9: float | None
    longest: float | None  # latency, or the time that a client waited without a reply
    generator: float  # share of one CPU that the busiest generator used, 0 to 1
    wrong: int  # replies other than those due
    lost: int  # connections closed by the server
    refused: int  # connect(2) calls that met a full listen queue
    waiting: int  # clients without a reply for over a second at the end
    first_wrong: str

    @property
    def fault(self) -> str | None:
        """Why the figures are invalid, or None."""
        if self.wrong:
            return f"{self.wrong} wrong replies, the first begins with {self.first_wrong}"
        if self.lost:
            return f"the server closed {self.lost} connections"
        return None if self.requests else "no reply at all"


METRICS = ("server_cpu", "rate", "p50", "p99", "p99_9", "longest", "generator", "others")
RATIOS = ("server_cpu", "rate", "p50", "p99")


# One run.


class Usage(NamedTuple):
    """CPU seconds used so far: by each process of the server, its first one first; by all."""

    server: dict[int, float]
    machine: float

    def server_since(self, before: Usage) -> float | None:
        """Return the server's CPU seconds since then; None if it is another server now.

        The time of a child that has exited since is part of its parent's.
        """
        first = next(iter(before.server), None)
        if first is not None and first not in self.server:
            return None
        return sum(self.server.values()) - sum(before.server.values())


def usage(server: Server) -> Usage:
    """Return the CPU time used by now."""
    times = psutil.cpu_times()
    busy = sum(value for name, value in times._asdict().items() if name not in IDLE)
    return Usage({p.pid: _cpu(p) for p in server.processes()}, busy)


def _cpu(process: psutil.Process) -> float:
    """Return the CPU seconds of the process and of the children that it has reaped."""
    with contextlib.suppress(psutil.NoSuchProcess, OSError):
        times = process.cpu_times()  # in steps of 10 ms, too long for a server that does little
        own = time.clock_gettime(cpu_clock(process.pid))
        return own + float(times.children_user + times.children_system)
    return 0.0


def cpu_clock(pid: int) -> int:
    """Return the id of the process's CPU clock, as clock_getcpuclockid(3) makes it on Linux."""
    return (~pid << 3) | CPUCLOCK_SCHED


def measure(
    generators: Generators,
    server: Server,
    meanwhile: contextlib.AbstractContextManager[object] | None = None,
) -> Figures:
    """Apply the load and return its figures; `meanwhile` is entered for its duration."""
    with generators, meanwhile or contextlib.nullcontext():
        before = usage(server)
        generators.go()
        tally = generators.result()
        after = usage(server)
    return figures(tally, before, after)


def figures(tally: Tally, before: Usage, after: Usage) -> Figures:
    """Return the figures of a run."""
    seconds = tally.elapsed / SECOND
    server = after.server_since(before)
    machine = after.machine - before.machine - tally.cpu / SECOND  # without the generators
    others = None if server is None else (machine - server) / seconds / (os.cpu_count() or 1)
    p50, p99, p99_9, last = (
        _microseconds(percentile(tally.histogram, percent)) for percent in (50, 99, 99.9, 100)
    )
    return Figures(
        server_cpu=server * 1e6 / tally.requests if server is not None and tally.requests else None,
        requests=tally.requests,
        seconds=seconds,
        rate=tally.requests / seconds,
        p50=p50,
        p99=p99,
        p99_9=p99_9,
        longest=max(last or 0.0, tally.longest / MICROSECOND) or None,
        generator=tally.busiest,
        others=None if others is None else max(0.0, others),
        wrong=tally.wrong,
        lost=tally.lost,
        refused=tally.refused,
        waiting=tally.waiting,
        first_wrong=repr(tally.first_wrong),
    )


def _microseconds(nanoseconds: float | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / MICROSECOND


# Latencies.


def middle_of(bucket: int) -> float:
    """Return the latency, in nanoseconds, in the middle of the bucket."""
    shift = max(0, (bucket >> SUB_BITS) - 1)
    lowest = (bucket - (shift << SUB_BITS)) << shift
    return lowest + ((1 << shift) - 1) / 2


def percentile(histogram: Histogram, percent: float) -> float | None:
    """Return the smallest latency that at least `percent` of all do not exceed; None for none."""
    due = round(histogram.total() * percent / 100, 6)  # 99.9 has no exact binary fraction
    seen = 0
    for bucket in sorted(histogram):
        seen += histogram[bucket]
        if seen >= due:
            return middle_of(bucket)
    return None


# Rounds.


def medians(rounds: Sequence[Run], metrics: Sequence[str] = METRICS) -> dict[str, float | None]:
    """Return the median of each metric over those rounds that have a value."""
    return {name: median_of([getattr(each, name) for each in rounds]) for name in metrics}


def ratios(
    rounds: Sequence[Run], base: Sequence[Run], metrics: Sequence[str] = RATIOS
) -> dict[str, float | None]:
    """Return each metric relative to the base: the median of the ratios within each round."""

    def ratio(name: str) -> float | None:
        pairs = ((getattr(a, name), getattr(b, name)) for a, b in zip(rounds, base))
        return median_of([quotient(a, b) for a, b in pairs])

    return {name: ratio(name) for name in metrics}


def quotient(dividend: float | None, divisor: float | None) -> float | None:
    """Return the quotient; None if a value is missing or the divisor is 0."""
    return dividend / divisor if dividend is not None and divisor else None


def median_of(values: Sequence[Any]) -> float | None:
    """Return the median of the values that are not None; None if there are none."""
    present = [float(value) for value in values if value is not None]
    return median(present) if present else None
