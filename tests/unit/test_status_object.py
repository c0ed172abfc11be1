"""The object of `status --json`: written and read again, with missing and with unknown fields."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tlsmgr.status_object import (
    DEGRADED,
    Cache,
    Farm,
    FarmStore,
    Latency,
    Malformed,
    Prng,
    Status,
    TicketKey,
    Worker,
    as_json,
    parse,
)

FULL = Status(
    pid=7,
    version="1.0",
    uptime_seconds=12.5,
    state=DEGRADED,
    reasons=("the smtp cache cannot be written",),
    config_directory="/etc/postfix",
    workers=(Worker(8, 2, 30),),
    caches={"smtp": Cache(entries=3, bytes=400, size_limit=1000, oldest_seconds=9)},
    ticket_keys=(TicketKey("0123abcd", 60, "new"),),
    next_rotation_seconds=1740,
    prng=Prng(4, 30, "getrandom", None),
    latency={"seed": Latency(12, 80, 900, 30, 400, ((16, 29), (None, 1)))},
    counters={"seed": 30},
    farm=Farm("0123abcd", (FarmStore("redis://a", ("smtp",), True),), 9, 5, 1, 0),
)
LEAST = {"pid": 7, "version": "1.0", "uptime_seconds": 0, "state": "serving"}


def test_what_is_written_is_read() -> None:
    assert parse(json.loads(json.dumps(as_json(FULL)))) == FULL


def test_missing_fields_have_defaults_and_unknown_ones_are_ignored() -> None:
    later = {**LEAST, "later": 1, "workers": [{"pid": 8, "later": 1}]}
    status = parse(later)
    assert status.workers == (Worker(8),)
    assert (status.caches, status.farm, status.prng) == ({}, None, Prng())


def test_the_least_object_has_all_the_names_of_the_contract() -> None:
    assert set(as_json(parse(LEAST))) >= {
        "pid", "version", "uptime_seconds", "state", "reasons", "config_directory", "workers",
        "caches", "ticket_keys", "next_rotation_seconds", "prng", "latency", "counters", "farm",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"pid": "7"}, "pid"),
        ({"pid": True}, "pid"),
        ({"version": None}, "version"),
        ({"workers": {}}, "workers"),
        ({"workers": [{}]}, "workers"),
        ({"caches": {"smtp": {"entries": 1.5}}}, "entries"),
        ({"caches": {"smtp": []}}, "caches.smtp"),
        ({"latency": {"seed": {"buckets": [[1, 2, 3]]}}}, "buckets"),
        ({"reasons": [1]}, "reasons"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(change: dict[str, Any], name: str) -> None:
    with pytest.raises(Malformed, match=f"^{name}: "):
        parse({**LEAST, **change})


@pytest.mark.parametrize("value", [None, [], "text", {}, {"pid": 7}])
def test_anything_else_is_no_status(value: object) -> None:
    with pytest.raises(Malformed, match=r"^status: "):
        parse(value)
