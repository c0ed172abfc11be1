"""What the measuring tool measures: loads, plans, and the options that choose them."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from bench import loads, options
from bench.loads import KINDS, LOADS, Load
from bench.plan import for_filling, for_load, read_plan, write_plan
from tlsmgr.client.connection import encode

# Loads and plans.


def test_ids_and_sessions_have_their_sizes() -> None:
    ids = {loads.cache_id(number) for number in range(1000)}
    assert len(ids) == 1000
    assert {len(each) for each in ids} == {loads.ID_BYTES} == {120}
    assert len(loads.cache_id(499_999)) == 120
    assert len(loads.session(1)) == loads.SESSION_BYTES == 1200
    assert loads.session(1) != loads.session(2)


def test_an_update_stores_what_the_lookup_expects() -> None:
    update, lookup = loads.exchange("update", 77), loads.exchange("lookup", 77)
    assert update.tail == lookup.want_tail
    assert lookup.reply_length == len(lookup.want + lookup.want_tail)
    name = [(b"request", b"lookup"), (b"cache_type", b"smtp"), (b"cache_id", loads.cache_id(77))]
    assert lookup.head + lookup.tail == encode(name)


@pytest.mark.parametrize("load", LOADS.values(), ids=list(LOADS))
@pytest.mark.parametrize("lenient", [False, True])
def test_a_plan_reads_as_it_was_written(tmp_path: Path, load: Load, lenient: bool) -> None:
    plan = for_load(load, range(0, 90, 3), lenient)
    write_plan(tmp_path / "plan", plan)
    assert read_plan(tmp_path / "plan") == plan
    assert [len(step.exchanges) for step in plan.steps] == [
        30 if KINDS[kind].keyed else 1 for kind in load.requests
    ]


def test_a_filling_plan_is_done_once(tmp_path: Path) -> None:
    write_plan(tmp_path / "plan", for_filling(range(5)))
    assert read_plan(tmp_path / "plan").once


def test_what_is_no_plan(tmp_path: Path) -> None:
    (tmp_path / "plan").write_bytes(bytes(100))
    with pytest.raises(ValueError, match="no plan"):
        read_plan(tmp_path / "plan")


# Options.


def test_servers_are_stocks_two_and_ours() -> None:
    assert options.parse(["--vs-stock"]).servers == ["stock", "stock-tmpfs", "ours"]
    assert options.parse(["--vs-stock", "ceiling"]).servers[-1] == "ceiling"
    assert options.parse([]).servers == ["ours"]


def test_lists_of_names_and_numbers() -> None:
    read_names, read_numbers = options.names(["a", "b", "c"]), options.numbers([1, 2])
    assert [read_names(text) for text in ("c,a", "all", "none")] == [
        ["a", "c"],
        ["a", "b", "c"],
        [],
    ]
    assert [read_numbers(text) for text in ("64,1,64", "all", "none")] == [[1, 64], [1, 2], []]
    for read, text in ((read_names, "a,x"), (read_numbers, "0"), (read_numbers, "many")):
        with pytest.raises(argparse.ArgumentTypeError):
            read(text)
