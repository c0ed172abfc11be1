"""top_view - the screen of `tlsmgrctl top` as lines, from two status objects

Pure functions. Rates and latencies are those of the time between the two objects; without an
earlier object of the same daemon they are "-". The order of the lines is that of their weight, so
that a screen that is too low loses the least.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tlsmgr.ctl.quantities import count, latency, share, size, span
from tlsmgr.status_object import SERVING, Latency, Status, Worker

REQUESTS = ("seed", "policy", "lookup", "update", "delete", "tktkey")
REQUEST_HEADING = ("REQUEST", "PER S", "TOTAL", "P50", "P99", "MAX")
CACHE_HEADING = (
    "CACHE", "ENTRIES", "SIZE", "FULL", "HITS", "LOOK/S", "UPD/S", "EXPIRED", "EVICTED", "OLDEST",
)  # fmt: skip
WORKER_HEADING = ("WORKER", "CLIENTS", "PER S", "TOTAL")
COLUMN = 8  # characters of a column


def lines(before: Status | None, now: Status, width: int, height: int) -> list[str]:
    """Return at most `height` lines of at most `width` characters."""
    earlier = before if before is not None and _are_in_order(before, now) else None
    shown = [
        *_heading(now),
        "",
        *table(REQUEST_HEADING, _request_rows(earlier, now)),
        "",
        *table(CACHE_HEADING, _cache_rows(earlier, now)),
        "",
        *_secrets(now),
        "",
    ]
    shown += _worker_lines(earlier, now, height - len(shown))
    return fitted(shown, width, height)


def fitted(shown: Sequence[str], width: int, height: int) -> list[str]:
    """Return the lines cut to the screen, with a `?` for what cannot be printed."""
    kept = [line[: max(width, 0)] for line in shown[: max(height, 0)]]
    return ["".join(c if c.isprintable() else "?" for c in line).rstrip() for line in kept]


def _are_in_order(before: Status, now: Status) -> bool:
    """Return whether one daemon made both, in that order."""
    return before.pid == now.pid and before.uptime_seconds < now.uptime_seconds


def _heading(now: Status) -> Iterator[str]:
    clients = sum(worker.clients for worker in now.workers)
    yield (
        f"tlsmgr {now.version}  pid {now.pid}  up {span(now.uptime_seconds)}  {now.state}"
        f"  {count(clients)} clients  {now.config_directory}"
    )
    if now.state != SERVING:
        yield from (f"  ! {reason}" for reason in now.reasons)


def _request_rows(earlier: Status | None, now: Status) -> Iterator[Sequence[str]]:
    old = earlier.latency if earlier else {}
    for name in REQUESTS:
        times = now.latency.get(name, Latency())
        interval = _interval(old.get(name, Latency()), times) if earlier else {}
        yield (
            name,
            _rate(earlier, now, sum(interval.values()) if earlier else 0),
            count(times.count),
            latency(quantile(interval, 0.5)),
            latency(quantile(interval, 0.99)),
            latency(times.max_us),
        )


def _interval(old: Latency, new: Latency) -> dict[float, int]:
    """Return the counts between two objects by upper bound; without buckets, all in one."""
    before = dict(old.buckets)
    if not new.buckets:
        return {float("inf"): new.count - old.count}
    return {
        float("inf") if upper is None else upper: number - before.get(upper, 0)
        for upper, number in new.buckets
    }


def quantile(buckets: Mapping[float, int], part: float) -> float | None:
    """Return the time that `part` of the requests stayed below, in microseconds.

    Within a bucket the requests are taken to be spread evenly. None: no requests, or no bound.
    """
    wanted, below, lower = part * sum(buckets.values()), 0, 0.0
    for upper in sorted(buckets):
        number = buckets[upper]
        if number > 0 and below + number >= wanted:
            if upper == float("inf"):
                return lower or None
            return lower + (upper - lower) * (wanted - below) / number
        below, lower = below + number, upper
    return None


def _cache_rows(earlier: Status | None, now: Status) -> Iterator[Sequence[str]]:
    for name, cache in now.caches.items():
        old = earlier.caches.get(name, cache) if earlier else cache
        lookups = cache.lookups - old.lookups
        yield (
            name,
            count(cache.entries),
            size(cache.bytes),
            share(cache.bytes, cache.size_limit),
            share(cache.hits - old.hits, lookups) if lookups else share(cache.hits, cache.lookups),
            _rate(earlier, now, lookups),
            _rate(earlier, now, cache.updates - old.updates),
            count(cache.expired),
            count(cache.evicted),
            span(cache.oldest_seconds),
        )


def _secrets(now: Status) -> Iterator[str]:
    """Yield the lines on ticket keys, the generator, and the farm."""
    keys = ", ".join(f"{k.name} {k.serves} {span(k.age_seconds)}" for k in now.ticket_keys)
    turn = f"; next in {span(now.next_rotation_seconds)}" if now.next_rotation_seconds else ""
    unknown = now.counters.get("unknown_keys", 0)
    yield f"KEYS   {keys or 'none yet'}{turn}; unknown names: {count(unknown)}"
    prng = now.prng
    yield (
        f"PRNG   {count(prng.reseeds)} reseeds, last {span(prng.last_reseed_seconds)} ago"
        f" from {prng.source or '-'}; exchange file {span(prng.exchange_saved_seconds)} ago"
    )
    yield from farm_lines(now)


def farm_lines(now: Status) -> Iterator[str]:
    """Yield the lines on the farm, if there is one."""
    farm = now.farm
    if farm is None:
        return
    yield f"FARM   the ticket key is {farm.key}" if farm.key else "FARM   ticket keys are our own"
    for store in farm.stores:
        state = "answers" if store.answers else "does not answer"
        yield f"       {store.name} ({', '.join(store.caches)}) {state}"
    if farm.stores:
        yield (
            f"       lookups: {count(farm.asked)} asked, {count(farm.found)} found,"
            f" {count(farm.late)} late; {count(farm.dropped)} updates dropped"
        )


def _worker_lines(earlier: Status | None, now: Status, room: int) -> list[str]:
    """Return the table of workers, the busiest first; the last line counts those left out."""
    old = {worker.pid: worker for worker in earlier.workers} if earlier else {}
    done = {w.pid: w.requests - old.get(w.pid, Worker(w.pid)).requests for w in now.workers}
    busiest = sorted(now.workers, key=lambda w: (-done[w.pid], w.pid))
    kept = busiest if len(busiest) < room else busiest[: max(room - 2, 0)]
    rows = (
        (str(w.pid), count(w.clients), _rate(earlier, now, done[w.pid]), count(w.requests))
        for w in kept
    )
    left = [f"and {len(busiest) - len(kept)} more"] if len(kept) < len(busiest) else []
    return [*table(WORKER_HEADING, rows), *left]


def _rate(earlier: Status | None, now: Status, difference: int) -> str:
    """Return a difference of counts as a number per second."""
    if earlier is None:
        return "-"
    return count(difference / (now.uptime_seconds - earlier.uptime_seconds))


def table(heading: Sequence[str], rows: Iterator[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table, columns of COLUMN characters, the first one to the left."""
    for row in (heading, *rows):
        yield row[0].ljust(COLUMN) + "".join(cell.rjust(COLUMN) for cell in row[1:])
