"""control_status - the status object, from what all processes keep in shared memory.

Nothing here touches a file or waits for a lock, so that it can be asked for when a file system has
stopped to respond. How full a cache is, workers note each second; a cache of which none did for a
while is out of order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlsmgr.config.caches import REMOTE_TYPE
from tlsmgr.latency import BUCKETS, Histogram
from tlsmgr.processes.inherited import CachePlan, Inherited
from tlsmgr.processes.scoreboard import STALL_TIME
from tlsmgr.processes.setup import Slots
from tlsmgr.stats import INDEX
from tlsmgr.status_object import (
    DEGRADED,
    NEW,
    OLD,
    SERVING,
    Cache,
    Farm,
    FarmStore,
    Latency,
    Prng,
    Status,
    TicketKey,
    Worker,
)

if TYPE_CHECKING:  # a host without a farm does not load it
    from tlsmgr.processes.farm_plan import FarmPlan

REQUESTS = ("seed", "policy", "lookup", "tktkey", "update", "delete")
USAGE_TIME = 5.0  # seconds after which what workers noted of a cache is too old
NAME_DIGITS = 8  # of a ticket key


@dataclass(frozen=True)
class Facts:
    """What does not change while the daemon runs. ``started`` is of time.monotonic().

    The last two say what is configured, whether or not it can be used.
    """

    pid: int
    version: str
    started: float
    config_directory: str
    workers: int
    entropy_source: str
    wants_farm_keys: bool = False  # a secret of a farm is configured
    wants_farm_store: bool = False


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
    counters = inherited.stats.totals()
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
        counters=counters,
        farm=_farm(inherited, counters, second),
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
    yield from _reasons_of_generator(facts, inherited, now)
    yield from _reasons_of_farm(facts, inherited, int(now.of_day))
    if scoreboard.files_blocked[0]:
        yield "a file system does not respond; sessions are not cached"
        return
    for plan in inherited.caches:
        noted = plan.shared.usage().noted
        if _is_kept_elsewhere(plan, inherited.farm):
            continue
        if now.monotonic - max(noted, facts.started) > USAGE_TIME:
            yield f"the {plan.rules.cache_type} session cache cannot be used; the log says why"


def _is_kept_elsewhere(plan: CachePlan, farm: FarmPlan | None) -> bool:
    """Return whether a cache has no file here, but a server: see ``_reasons_of_farm``."""
    is_shared = farm is not None and plan.rules.cache_type.encode() in farm.caches
    return is_shared and plan.table.startswith(f"{REMOTE_TYPE}:")


def _reasons_of_generator(facts: Facts, inherited: Inherited, now: Moment) -> Iterator[str]:
    scoreboard, noted = inherited.scoreboard, inherited.scoreboard.generator()
    janitor = Slots(facts.workers).janitor
    if noted.source_fails:
        yield f"the entropy source {facts.entropy_source} cannot be used; the log says why"
    if noted.exchange_fails:
        yield "the PRNG exchange file cannot be updated; the log says why"
    silent = 0 < scoreboard.last_beat(janitor) <= now.monotonic - STALL_TIME
    if silent and scoreboard.is_away(janitor):
        yield "the entropy source or the PRNG exchange file does not respond"


def _reasons_of_farm(facts: Facts, inherited: Inherited, second: int) -> Iterator[str]:
    plan = inherited.farm
    if facts.wants_farm_keys and not inherited.ticket_keys.uses_source(second):
        yield "the farm secret cannot be used, ticket keys are not shared; the log says why"
    engines = () if plan is None else plan.engines
    if facts.wants_farm_store and all(engine.kind == REMOTE_TYPE for engine in engines):
        yield "tlsmgr_farm_store cannot be used, sessions are not shared; the log says why"
    for store in _stores(plan):
        if not store.answers:
            yield f"{store.name} does not answer; sessions are not shared"


def _farm(inherited: Inherited, counters: Mapping[str, int], second: int) -> Farm | None:
    """Return what this host shares with others, None for nothing."""
    keys, plan = inherited.ticket_keys, inherited.farm
    is_shared = keys.uses_source(second)
    if plan is None and not is_shared:
        return None
    return Farm(
        key=keys.known(second)[0].name.hex()[:NAME_DIGITS] if is_shared else None,
        stores=tuple(_stores(plan)),
        asked=counters["farm_lookups"],
        found=counters["farm_found"],
        late=counters["farm_late"],
        dropped=counters["farm_dropped"],
    )


def _stores(plan: FarmPlan | None) -> Iterator[FarmStore]:
    for lane, engine in enumerate(() if plan is None else plan.engines):
        assert plan is not None
        caches = tuple(name.decode() for name, its in plan.caches.items() if its == lane)
        yield FarmStore(engine.name, caches, bool(plan.open_lanes[lane]))


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
