"""The object of `status --json`: written and read again, with missing and with unknown fields."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from support.checkout import CHECKOUT

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


def page_block() -> str:
    """The object as tlsmgrctl(1) shows it."""
    page = (CHECKOUT / "man/tlsmgrctl.1").read_text()
    return page.partition(".Bd -literal\n{pid")[2].partition("\n.Ed")[0]


def names_in(value: object) -> set[str]:
    """The names of all objects in a value; what has names of its own is left out."""
    if isinstance(value, list | tuple):
        return set().union(*map(names_in, value))
    if not isinstance(value, dict):
        return set()
    below = [item for name, item in value.items() if name != "counters"]
    own = set() if {"smtp", "seed"} & value.keys() else set(value)
    return own.union(*map(names_in, below))


def test_the_names_of_the_contract_are_in_the_page() -> None:
    shown = set(re.findall(r"[a-z][a-z0-9_]+", page_block())) | {"pid"}
    assert shown == names_in(as_json(FULL))


def test_names_that_other_programs_use() -> None:
    """They were promised: a new name for one of these is a mistake."""
    assert names_in(as_json(FULL)) >= {
        "pid", "version", "uptime_seconds", "state", "workers", "clients", "requests", "caches",
        "entries", "bytes", "size_limit", "lookups", "hits", "updates", "deletes", "expired",
        "evicted", "oldest_seconds", "ticket_keys", "name", "age_seconds", "serves", "prng",
        "reseeds", "last_reseed_seconds", "source", "exchange_saved_seconds", "latency",
        "p50_us", "p99_us", "max_us", "count",
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
