"""metrics_families - the status object as metrics of Prometheus, through prometheus_client

A table of counters and gauges, and functions for what has labels. Names follow Prometheus' rules: a
prefix, base units, `_total` for counters, and labels of few values only: no destination, no id, no
key. A counter of tlsmgr.stats that has no row here is `postfix_tlsmgr_NAME_total`, so that the
metrics have the names of the statistics line. No counter is a difference of two others, which could
decrease when they are not read at one moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from tlsmgr.stats import COUNTERS
from tlsmgr.status_object import IN_PLACE, SERVING, Farm, Latency, Status

PREFIX = "postfix_tlsmgr"
MEANINGS = {counter.name: counter.meaning for counter in COUNTERS}
CACHE_REQUESTS = {"lookup": "lookups", "update": "updates", "delete": "deletes"}
OTHER_REQUESTS = ("seed", "policy", "tktkey")
CACHE_EVICTIONS = {"expired": "expired", "evicted": "limit"}  # field, reason
IN_FAMILIES = {*CACHE_REQUESTS, *OTHER_REQUESTS, *CACHE_EVICTIONS, "hits"}
"""Counters that are in the families below, with labels."""
MICRO = 1e-6


class StatusCollector(Collector):
    """One status object, or None when no daemon answers, as a collector of prometheus_client."""

    def __init__(self, status: Status | None, now: float) -> None:
        self._status = status
        self._now = now

    def collect(self) -> Iterable[Metric]:
        """Return all metrics."""
        up = self._status is not None and self._status.pid != IN_PLACE
        yield _gauge("up", "Whether the tlsmgr answers on its control socket.", float(up))
        if self._status is not None:
            yield from families(self._status, self._now)


def registry(status: Status | None, now: float) -> CollectorRegistry:
    """Return a registry with these metrics alone. `now` is in seconds of time.time()."""
    fresh = CollectorRegistry(auto_describe=False)
    fresh.register(StatusCollector(status, now))
    return fresh


def families(status: Status, now: float) -> Iterator[Metric]:
    """Yield the metrics of a daemon that answers."""
    yield InfoMetricFamily(
        f"{PREFIX}_build",
        "Version and configuration directory.",
        {"version": status.version, "config_directory": status.config_directory},
    )
    yield from _of_daemon(status, now)
    yield from _of_requests(status)
    yield from _of_caches(status)
    yield from _of_ticket_keys(status, now)
    yield from _of_generator(status, now)
    if status.farm is not None:
        yield from _of_farm(status.farm)


def _of_daemon(status: Status, now: float) -> Iterator[Metric]:
    yield _gauge("start_timestamp_seconds", "When it started.", now - status.uptime_seconds)
    degraded = float(status.state != SERVING)
    yield _gauge("degraded", "1 when it does not serve all that is configured.", degraded)
    clients = sum(worker.clients for worker in status.workers)
    yield _gauge("clients", "Connected clients.", clients)
    yield _gauge("workers", "Worker processes.", len(status.workers))
    for name, value in status.counters.items():
        if name not in IN_FAMILIES:
            text = MEANINGS.get(name, name.replace("_", " "))
            yield _counter(name, f"{text.capitalize()}.", value)


def _of_requests(status: Status) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        f"{PREFIX}_requests", "Requests, by cache where there is one.", labels=("request", "cache")
    )
    for name in OTHER_REQUESTS:
        if name in status.counters:
            requests.add_metric((name, ""), status.counters[name])
    for cache_type, cache in status.caches.items():
        for name, attribute in CACHE_REQUESTS.items():
            requests.add_metric((name, cache_type), getattr(cache, attribute))
    yield requests
    times = HistogramMetricFamily(
        f"{PREFIX}_request_duration_seconds",
        "Time from the last byte of a request to its reply.",
        labels=("request",),
        unit="seconds",
    )
    for name, latency in status.latency.items():
        if latency.buckets:
            total = None if latency.sum_us is None else latency.sum_us * MICRO
            times.add_metric((name,), list(_cumulative(latency)), total)
    yield times


def _cumulative(latency: Latency) -> Iterator[tuple[str, float]]:
    """Yield the buckets as Prometheus has them: each counts all before it, and the last is +Inf."""
    below = 0
    for upper, number in latency.buckets:
        below += number
        if upper is not None:
            yield f"{upper * MICRO:.6g}", below
    yield "+Inf", below


CACHE_GAUGES = (
    ("entries", "entries", "Sessions in the cache."),
    ("bytes", "size_bytes", "Bytes of sessions in the cache."),
    ("size_limit", "size_limit_bytes", "Largest number of bytes."),
    ("oldest_seconds", "oldest_session_age_seconds", "Age of the oldest session."),
)


def _of_caches(status: Status) -> Iterator[Metric]:
    for attribute, name, text in CACHE_GAUGES:
        full = f"{PREFIX}_cache_{name}"
        gauge = GaugeMetricFamily(full, text, labels=("cache",), unit=_unit(name))
        for cache_type, cache in status.caches.items():
            if (value := getattr(cache, attribute)) is not None:
                gauge.add_metric((cache_type,), value)
        yield gauge
    hits = CounterMetricFamily(
        f"{PREFIX}_cache_hits", "Lookups that found a session.", labels=("cache",)
    )
    removed = CounterMetricFamily(
        f"{PREFIX}_cache_evictions",
        "Sessions that were removed: too old, or at the limit.",
        labels=("cache", "reason"),
    )
    for cache_type, cache in status.caches.items():
        hits.add_metric((cache_type,), cache.hits)
        for attribute, reason in CACHE_EVICTIONS.items():
            removed.add_metric((cache_type, reason), getattr(cache, attribute))
    yield hits
    yield removed


def _of_ticket_keys(status: Status, now: float) -> Iterator[Metric]:
    ages = GaugeMetricFamily(
        f"{PREFIX}_ticket_key_age_seconds",
        "Age of the youngest ticket key that makes tickets (new) or opens them only (old).",
        labels=("serves",),
        unit="seconds",
    )
    youngest: dict[str, float] = {}
    for key in status.ticket_keys:
        youngest[key.serves] = min(key.age_seconds, youngest.get(key.serves, key.age_seconds))
    for serves, age in youngest.items():
        ages.add_metric((serves,), age)
    yield ages
    if status.next_rotation_seconds is not None:
        yield _gauge(
            "ticket_key_next_rotation_timestamp_seconds",
            "When the next request for a ticket key gets a new one.",
            now + status.next_rotation_seconds,
        )


def _of_generator(status: Status, now: float) -> Iterator[Metric]:
    prng = status.prng
    yield _counter("prng_reseeds", "How often the generator was reseeded.", prng.reseeds)
    moments = (
        ("prng_last_reseed", "When the generator was last reseeded.", prng.last_reseed_seconds),
        ("prng_exchange_saved", "When the exchange file was saved.", prng.exchange_saved_seconds),
    )
    for name, text, age in moments:
        if age is not None:
            yield _gauge(f"{name}_timestamp_seconds", text, now - age)


def _of_farm(farm: Farm) -> Iterator[Metric]:
    if farm.key is not None:
        text = "The beginning of the name of the farm's ticket key as a number: equal on all hosts."
        yield _gauge("farm_key_fingerprint", text, int(farm.key, 16))
    answers = GaugeMetricFamily(
        f"{PREFIX}_farm_store_up",
        "Whether a store of shared sessions answers.",
        labels=("store",),
    )
    for store in farm.stores:
        answers.add_metric((store.name,), float(store.answers))
    yield answers


def _unit(name: str) -> str:
    """Return the unit that ends the name, "" for a bare number."""
    return next((unit for unit in ("seconds", "bytes") if name.endswith(f"_{unit}")), "")


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, value, unit=_unit(name))


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"{PREFIX}_{name}", text, value)
