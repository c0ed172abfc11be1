"""status_view - a status object as lines for a person

Pure functions: totals since the start of the daemon. `top_view` shows what happens at present.
"""

from __future__ import annotations

from collections.abc import Iterator

from tlsmgr.ctl.quantities import count, latency, share, size, span
from tlsmgr.ctl.top_view import REQUESTS, farm_lines, table
from tlsmgr.status_object import IN_PLACE, NEW, Latency, Status

CACHE_HEADING = (
    "CACHE", "ENTRIES", "SIZE", "FULL", "LOOKUPS", "HITS", "UPDATES", "EXPIRED",
    "EVICTED", "OLDEST",
)  # fmt: skip
REQUEST_HEADING = ("REQUEST", "COUNT", "P50", "P99", "MAX")
WORKER_HEADING = ("WORKER", "CLIENTS", "SERVED")
SERVES = {NEW: "makes new tickets"}  # any other value: opens old ones


def lines(status: Status) -> list[str]:
    """Return the lines; of 80 characters, or more where the configuration directory is long."""
    if status.pid == IN_PLACE:
        return list(_title(status))
    return [
        *_title(status),
        *_heading(status),
        "",
        *_table_of_caches(status),
        "",
        *table(REQUEST_HEADING, _requests(status)),
        "",
        *table(WORKER_HEADING, _workers(status)),
        "",
        *_ticket_keys(status),
        *_generator(status),
        *farm_lines(status),
    ]


def _title(status: Status) -> Iterator[str]:
    yield f"tlsmgr {status.version}, pid {status.pid}: {status.state}"
    yield from (f"  ! {reason}" for reason in status.reasons)


def _heading(status: Status) -> Iterator[str]:
    clients = sum(worker.clients for worker in status.workers)
    yield f"configuration  {status.config_directory or '-'}"
    yield f"uptime         {span(status.uptime_seconds)}"
    connections = status.counters.get("connections", 0)
    yield f"clients        {count(clients)} connected, {count(connections)} in total"


def _table_of_caches(status: Status) -> Iterator[str]:
    if not status.caches:
        yield "no session cache is configured"
        return
    yield from table(CACHE_HEADING, _caches(status))


def _caches(status: Status) -> Iterator[tuple[str, ...]]:
    for name, cache in status.caches.items():
        yield (
            name,
            count(cache.entries),
            size(cache.bytes),
            share(cache.bytes, cache.size_limit),
            count(cache.lookups),
            share(cache.hits, cache.lookups),
            count(cache.updates),
            count(cache.expired),
            count(cache.evicted),
            span(cache.oldest_seconds),
        )


def _requests(status: Status) -> Iterator[tuple[str, ...]]:
    for name in REQUESTS:
        times = status.latency.get(name, Latency())
        yield (
            name,
            count(times.count),
            latency(times.p50_us),
            latency(times.p99_us),
            latency(times.max_us),
        )


def _workers(status: Status) -> Iterator[tuple[str, ...]]:
    for worker in status.workers:
        yield str(worker.pid), count(worker.clients), count(worker.requests)


def _ticket_keys(status: Status) -> Iterator[str]:
    for key in status.ticket_keys:
        serves = SERVES.get(key.serves, "opens old tickets")
        turn = status.next_rotation_seconds
        successor = f", next in {span(turn)}" if key.serves == NEW and turn is not None else ""
        yield f"ticket key     {key.name}, {span(key.age_seconds)} old, {serves}{successor}"
    if not status.ticket_keys:
        yield "ticket key     none: no client has asked for one yet"
    unknown = status.counters.get("unknown_keys", 0)
    yield f"               {count(unknown)} requests named a key that is not known"


def _generator(status: Status) -> Iterator[str]:
    prng = status.prng
    last = prng.last_reseed_seconds
    ago = f", the last one {span(last)} ago" if last is not None else ""
    yield f"random source  {prng.source or 'none'}, {count(prng.reseeds)} reseeds{ago}"
    saved = prng.exchange_saved_seconds
    yield f"exchange file  {'not saved' if saved is None else f'saved {span(saved)} ago'}"
