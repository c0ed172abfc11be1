"""control_status - the status object, from what all processes keep in shared memory.

Nothing here touches a file or waits for a lock, so that it can be asked for when a file system has
stopped to respond. How full a cache is, workers note each second; a cache of which none did for a
while is out of order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tlsmgr.latency import BUCKETS, Histogram
from tlsmgr.processes.inherited import STALL_TIME, CachePlan, Inherited
from tlsmgr.stats import INDEX
from tlsmgr.status_object import (
    DEGRADED,
    NEW,
    OLD,
    SERVING,
    Cache,
    Latency,
    Prng,
    Status,
    TicketKey,
    Worker,
)

REQUESTS = ("seed", "policy", "lookup", "tktkey", "update", "delete")
USAGE_TIME = 5.0  # seconds after which what workers noted of a cache is too old
NAME_DIGITS = 8  # of a ticket key


@dataclass(frozen=True)
class Facts:
    """What does not change while the daemon runs. ``started`` is of time.monotonic()."""

    pid: int
    version: str
    started: float
    config_directory: str
    workers: int
    entropy_source: str


@dataclass(frozen=True)
class Moment:
    """One moment: of time.monotonic(), and in seconds since 1970."""

    monotonic: float
    of_day: float


def make_status(facts: Facts, inherited: Inherited, now: Moment) -> Status:
    """Return the status at this moment."""
    reasons = tuple(_reasons(facts, inherited, now))
    second = int(now.of_day)
    rotation = inherited.ticket_keys.next_rotation(second)
    return Status(
        pid=facts.pid,
        version=facts.version,
        uptime_seconds=round(now.monotonic - facts.started, 3),
        state=DEGRADED if reasons else SERVING,
        reasons=reasons,
        config_directory=facts.config_directory,
        workers=tuple(_workers(inherited)),
        caches={
            plan.rules.cache_type: _cache(inherited, i, plan, now)
            for i, plan in enumerate(inherited.caches)
        },
        ticket_keys=tuple(
            TicketKey(
                key.name.hex()[:NAME_DIGITS], second - key.made, NEW if key.makes_tickets else OLD
            )
            for key in inherited.ticket_keys.known(second)
        ),
        next_rotation_seconds=None if rotation is None else rotation - second,
        prng=_generator(facts, inherited, now),
        latency={kind: _latency(times) for kind, times in inherited.latency.totals().items()},
        counters=inherited.stats.totals(),
    )


def _reasons(facts: Facts, inherited: Inherited, now: Moment) -> Iterator[str]:
    """Yield why the daemon is degraded, if it is."""
    scoreboard = inherited.scoreboard
    serving = sum(
        scoreboard.last_beat(slot) > now.monotonic - STALL_TIME and not scoreboard.is_retired(slot)
        for slot in scoreboard.workers
    )
    if serving < facts.workers:
        yield f"{serving} of {facts.workers} workers serve"
    if scoreboard.files_blocked[0]:
        yield "a file system does not respond; sessions are not cached"
        return
    for plan in inherited.caches:
        noted = plan.shared.usage().noted
        if now.monotonic - max(noted, facts.started) > USAGE_TIME:
            yield f"the {plan.rules.cache_type} session cache cannot be used; the log says why"


def _workers(inherited: Inherited) -> Iterator[Worker]:
    """Yield the workers that serve, also those that serve their last connections."""
    scoreboard = inherited.scoreboard
    for slot in scoreboard.workers:
        pid = scoreboard.pid(slot)
        if pid and scoreboard.last_beat(slot):
            counts = inherited.stats.row(slot)
            requests = sum(counts[INDEX[name]] for name in REQUESTS)
            yield Worker(pid, scoreboard.connections(slot), requests)


def _cache(inherited: Inherited, number: int, plan: CachePlan, now: Moment) -> Cache:
    counts, usage = inherited.stats.cache_totals(number), plan.shared.usage()
    hits = counts["hits"]
    return Cache(
        entries=usage.entries,
        bytes=usage.size,
        size_limit=usage.size_limit or plan.rules.size_limit,
        lookups=hits + counts["misses"],
        hits=hits,
        updates=counts["updates"],
        deletes=counts["deletes"],
        expired=counts["expired"],
        evicted=counts["evicted"],
        oldest_seconds=max(0, int(now.of_day) - usage.oldest) if usage.oldest else None,
    )


def _generator(facts: Facts, inherited: Inherited, now: Moment) -> Prng:
    noted = inherited.scoreboard.generator()
    return Prng(
        reseeds=noted.reseeds,
        last_reseed_seconds=_age(noted.reseeded, now),
        source=facts.entropy_source,
        exchange_saved_seconds=_age(noted.saved, now),
    )


def _age(moment: float, now: Moment) -> float | None:
    return round(now.monotonic - moment, 3) if moment else None


def _latency(times: Histogram) -> Latency:
    count = times.count
    middle, high = times.quantile(0.5), times.quantile(0.99)
    return Latency(
        p50_us=None if middle is None else round(middle, 1),
        p99_us=None if high is None else round(high, 1),
        max_us=times.longest if count else None,
        count=count,
        sum_us=times.total,
        buckets=tuple(
            (float(1 << i) if i < BUCKETS - 1 else None, number)
            for i, number in enumerate(times.counts)
        ),
    )
