"""measure - one run of a load becomes figures; the figures of several rounds become medians.

CPU time is that of all processes of the server (psutil, to 10 ms), from the moment when the
clients may start to the moment when the last result is there; connections made before do not count.
What else went on on the machine in that time is a figure too, since it makes all others doubtful.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import psutil

from bench.drive import SECOND, Generators, Tally
from bench.histogram import percentile
from bench.server import Server

MICROSECOND = 1e3  # in nanoseconds
IDLE = ("idle", "iowait", "guest", "guest_nice")  # guests count as user time already


@dataclass(frozen=True)
class Figures:
    """What one run showed. Latencies in microseconds; None where there is nothing to tell."""

    requests: int
    seconds: float
    rate: float  # requests a second
    p50: float | None
    p99: float | None
    p99_9: float | None
    longest: float | None  # latency, or how long a client waited in vain
    server_cpu: float | None  # microseconds a request, all processes
    generator: float  # share of one CPU that the busiest generator used, 0 to 1
    others: float | None  # share of the machine that was neither server nor generator nor idle
    wrong: int  # replies other than due
    lost: int  # connections closed by the server
    refused: int  # connect(2) that met a full listen queue
    waiting: int  # clients left without a reply for over a second
    first_wrong: str

    @property
    def fault(self) -> str | None:
        """Why the figures are worth nothing, or None."""
        if self.wrong:
            return f"{self.wrong} wrong replies, the first begins with {self.first_wrong}"
        if self.lost:
            return f"the server closed {self.lost} connections"
        return None if self.requests else "no reply at all"


METRICS = ("rate", "p50", "p99", "p99_9", "longest", "server_cpu", "generator", "others")
RATIOS = ("rate", "p50", "p99", "server_cpu")


class Usage(NamedTuple):
    """CPU seconds used so far: by each process of the server, the first one first; by all."""

    server: dict[int, float]
    machine: float

    def server_since(self, before: Usage) -> float | None:
        """What the server has used; None when it is not the same server any more.

        A child that has gone meanwhile is no gap: its parent's time contains it then.
        """
        first = next(iter(before.server), None)
        if first is not None and first not in self.server:
            return None
        return sum(self.server.values()) - sum(before.server.values())


def usage(server: Server) -> Usage:
    """What has been used by now."""
    times = psutil.cpu_times()
    busy = sum(value for name, value in times._asdict().items() if name not in IDLE)
    return Usage({p.pid: _cpu(p) for p in server.processes()}, busy)


def _cpu(process: psutil.Process) -> float:
    """Its own CPU seconds, and those of the children that it has reaped."""
    with contextlib.suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(sum((times.user, times.system, times.children_user, times.children_system)))
    return 0.0


def measure(
    generators: Generators,
    server: Server,
    meanwhile: contextlib.AbstractContextManager[object] | None = None,
) -> Figures:
    """Apply the load, with `meanwhile` entered as long as it lasts."""
    with generators, meanwhile or contextlib.nullcontext():
        before = usage(server)
        generators.go()
        tally = generators.result()
        after = usage(server)
    return figures(tally, before, after)


def figures(tally: Tally, before: Usage, after: Usage) -> Figures:
    """The figures of a run."""
    seconds = tally.elapsed / SECOND
    server = after.server_since(before)
    machine = after.machine - before.machine - tally.cpu / SECOND  # without the generator's
    others = None if server is None else (machine - server) / seconds / (os.cpu_count() or 1)
    p50, p99, p99_9, last = (
        _microseconds(percentile(tally.histogram, percent)) for percent in (50, 99, 99.9, 100)
    )
    return Figures(
        requests=tally.requests,
        seconds=seconds,
        rate=tally.requests / seconds,
        p50=p50,
        p99=p99,
        p99_9=p99_9,
        longest=max(last or 0.0, tally.longest / MICROSECOND) or None,
        server_cpu=server * 1e6 / tally.requests if server is not None and tally.requests else None,
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


# Rounds.


def medians(rounds: Sequence[Figures]) -> dict[str, float | None]:
    """The median of each metric over the rounds, of those in which there was one."""
    return {name: median_of([getattr(each, name) for each in rounds]) for name in METRICS}


def ratios(rounds: Sequence[Figures], base: Sequence[Figures]) -> dict[str, float | None]:
    """Each metric in parts of the base's: the median of the ratios within each round."""

    def ratio(name: str) -> float | None:
        pairs = ((getattr(a, name), getattr(b, name)) for a, b in zip(rounds, base))
        return median_of([quotient(a, b) for a, b in pairs])

    return {name: ratio(name) for name in RATIOS}


def quotient(dividend: float | None, divisor: float | None) -> float | None:
    """Their quotient; None when one is missing, or the divisor is 0."""
    return dividend / divisor if dividend is not None and divisor else None


def median_of(values: Sequence[Any]) -> float | None:
    """The median of those that are there, None when none is."""
    there = [float(value) for value in values if value is not None]
    return median(there) if there else None
