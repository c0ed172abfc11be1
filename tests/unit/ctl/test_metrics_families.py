"""The status object as metrics: names, labels, values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import pytest
from support.status_samples import FARM, busy, degraded

from tlsmgr.ctl.metrics_families import IN_FAMILIES, registry
from tlsmgr.stats import COUNTERS, SUMMED
from tlsmgr.status_object import Status

NOW = 1_000_000.0
LEAST = Status(1, "1.0", 0.0, "serving")


def values(status: Status | None) -> dict[str, float]:
    """The value of each sample, by name and labels as Prometheus writes them."""
    found: dict[str, float] = {}
    for family in registry(status, NOW).collect():
        for sample in family.samples:
            key = sample.name.removeprefix("postfix_tlsmgr_") + _labels(sample.labels)
            assert key not in found
            found[key] = sample.value
    return found


def _labels(labels: Mapping[str, str]) -> str:
    pairs = ",".join(f"{name}={value}" for name, value in labels.items() if value)
    return f"{{{pairs}}}" if pairs else ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("up", 1),
        ("degraded", 0),
        ("clients", 6),
        ("workers", 2),
        ("start_timestamp_seconds", NOW - 60),
        ("build_info{version=1.0,config_directory=/etc/postfix}", 1),
        ("connections_total", 1200),
        ("malformed_total", 1),
        ("unknown_keys_total", 2),
        ("requests_total{request=seed}", 6000),
        ("requests_total{request=tktkey}", 5),
        ("requests_total{request=lookup,cache=smtp}", 600),
        ("requests_total{request=update,cache=smtp}", 300),
        ("requests_total{request=delete,cache=smtp}", 60),
        ("cache_hits_total{cache=smtp}", 540),
        ("cache_entries{cache=smtp}", 1234),
        ("cache_size_bytes{cache=smtp}", 64 << 20),
        ("cache_size_limit_bytes{cache=smtp}", 128 << 20),
        ("cache_oldest_session_age_seconds{cache=smtp}", 1800),
        ("cache_evictions_total{cache=smtp,reason=expired}", 7),
        ("cache_evictions_total{cache=smtp,reason=limit}", 3),
        ("ticket_key_age_seconds{serves=new}", 600),
        ("ticket_key_age_seconds{serves=old}", 2400),
        ("ticket_key_next_rotation_timestamp_seconds", NOW + 1200),
        ("prng_reseeds_total", 4),
        ("prng_last_reseed_timestamp_seconds", NOW - 30),
        ("prng_exchange_saved_timestamp_seconds", NOW - 720),
        ("request_duration_seconds_bucket{request=seed,le=8e-06}", 600),
        ("request_duration_seconds_bucket{request=seed,le=1.6e-05}", 5400),
        ("request_duration_seconds_bucket{request=seed,le=6.4e-05}", 6000),
        ("request_duration_seconds_bucket{request=seed,le=+Inf}", 6000),
        ("request_duration_seconds_count{request=seed}", 6000),
        ("request_duration_seconds_sum{request=seed}", 0.09),
    ],
)
def test_a_value(name: str, value: float) -> None:
    assert values(busy(60))[name] == pytest.approx(value)


def test_an_empty_cache_has_no_oldest_session() -> None:
    assert "cache_oldest_session_age_seconds{cache=smtpd}" not in values(busy(60))


def test_a_degraded_daemon() -> None:
    assert values(degraded(busy(60), "no room"))["degraded"] == 1


def test_no_daemon() -> None:
    assert values(None) == {"up": 0}


def test_the_program_of_postfix_in_place_of_this_one() -> None:
    found = values(Status(0, "1.0", 0.0, "degraded", ("why",)))
    assert (found["up"], found["degraded"]) == (0, 1)


def test_a_farm() -> None:
    """Its key as a number, which hosts compare, and not as a label, which changes each hour."""
    found = values(replace(busy(60), farm=FARM))
    assert found["farm_key_fingerprint"] == 0x0123ABCD
    assert found["farm_store_up{store=redis://a}"] == 1
    assert found["farm_store_up{store=memcache:/b}"] == 0
    assert not [name for name in values(busy(60)) if name.startswith("farm")]


def test_a_daemon_that_says_the_least() -> None:
    assert values(LEAST)["up"] == 1


@pytest.mark.parametrize("counter", [counter.name for counter in COUNTERS])
def test_metrics_have_the_names_of_the_statistics_line(counter: str) -> None:
    status = Status(1, "1.0", 0.0, "serving", counters={counter: 9})
    if counter in IN_FAMILIES:
        names = " ".join(values(busy(60)))
        assert (
            f"request={counter}" in names
            or f"cache_{counter}_total" in names
            or (counter == "policy" and values(status)["requests_total{request=policy}"] == 9)
        )
    else:
        assert values(status)[f"{counter}_total"] == 9


@pytest.mark.parametrize("counter", SUMMED)
def test_a_counter_of_a_cache_comes_once(counter: str) -> None:
    """By cache, and not once more as the sum over all of them."""
    status = Status(1, "1.0", 0.0, "serving", counters={counter: 9})
    assert 9 not in values(status).values()


def test_a_counter_of_a_later_version_is_a_metric_too() -> None:
    status = Status(1, "1.0", 0.0, "serving", counters={"farm_stalls": 9})
    assert values(status)["farm_stalls_total"] == 9


def test_labels_have_few_values() -> None:
    """No id, no key, no destination: what they could be is in this list."""
    labels = {"request", "cache", "reason", "serves", "le", "version", "config_directory", "store"}
    for family in registry(replace(busy(60), farm=FARM), NOW).collect():
        for sample in family.samples:
            assert set(sample.labels) <= labels
            assert not re.search("0123abcd|89abcdef", "".join(sample.labels.values()))
