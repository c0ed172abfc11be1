"""The screen of `tlsmgrctl top` as lines, from two status objects."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.status_samples import FARM, busy, degraded

from tlsmgr.ctl.top_view import lines, quantile
from tlsmgr.status_object import Status, Worker

WIDTH, HEIGHT = 80, 24
LEAST = Status(1, "1.0", 0.0, "serving")


def row(shown: list[str], name: str) -> list[str]:
    (line,) = [line for line in shown if line.split()[:1] == [name]]
    return line.split()


def test_rates_are_those_between_the_two_objects() -> None:
    shown = lines(busy(60), busy(62), WIDTH, HEIGHT)
    # 100 a second: a tenth up to 8 us, 80 up to 16, a tenth up to 64.
    assert row(shown, "seed") == ["seed", "100", "6200", "12us", "59us", "900us"]
    assert row(shown, "smtp")[1:7] == ["1234", "64.0MiB", "50%", "90%", "10", "5"]
    assert row(shown, "5001") == ["5001", "3", "101", "6262"]


def test_a_request_that_was_not_made_has_no_latency() -> None:
    shown = lines(busy(60), replace(busy(62), latency=busy(60).latency), WIDTH, HEIGHT)
    assert row(shown, "seed") == ["seed", "0", "6000", "-", "-", "900us"]
    assert row(shown, "policy") == ["policy", "0", "0", "-", "-", "-"]


@pytest.mark.parametrize("before", [None, replace(busy(60), pid=1), busy(62)])
def test_without_an_earlier_object_of_this_daemon_there_are_no_rates(before: Status) -> None:
    shown = lines(before, busy(62), WIDTH, HEIGHT)
    assert row(shown, "seed") == ["seed", "-", "6200", "-", "-", "900us"]
    assert row(shown, "smtp")[4:7] == ["90%", "-", "-"]  # the hit rate since the start
    assert row(shown, "5001") == ["5001", "3", "-", "6262"]


def test_all_of_it_fits_on_a_small_terminal() -> None:
    shown = lines(busy(60), busy(61, workers=2), WIDTH, HEIGHT)
    assert shown[0] == "tlsmgr 1.0  pid 4711  up 1min1s  serving  6 clients  /etc/postfix"
    assert "KEYS   0123abcd new 10min, 89abcdef old 40min; next in 20min; unknown names: 2" in shown
    assert any(line.startswith("PRNG   4 reseeds, last 30s ago from getrandom") for line in shown)
    assert shown[-1].startswith("5000") or shown[-1].startswith("5001")
    assert len(shown) <= HEIGHT
    assert max(map(len, shown)) <= WIDTH


def test_the_busiest_workers_are_shown_and_the_others_counted() -> None:
    shown = lines(busy(60), busy(61, workers=64), WIDTH, HEIGHT)
    assert len(shown) == HEIGHT
    first = next(i for i, line in enumerate(shown) if line.startswith("WORKER")) + 1
    kept = [line.split()[0] for line in shown[first:-1]]
    assert kept == [str(5063 - i) for i in range(len(kept))]
    assert shown[-1] == f"and {64 - len(kept)} more"


def test_a_worker_that_is_new_counts_from_nothing() -> None:
    now = replace(busy(62), workers=(Worker(9, 1, 40),))
    assert row(lines(busy(60), now, WIDTH, HEIGHT), "9") == ["9", "1", "20", "40"]


def test_the_reasons_of_a_degraded_daemon_come_first() -> None:
    shown = lines(None, degraded(busy(60), "no room in /x", "no pool"), WIDTH, HEIGHT)
    assert "degraded" in shown[0]
    assert shown[1:3] == ["  ! no room in /x", "  ! no pool"]


def test_a_farm_has_a_line() -> None:
    shown = lines(None, replace(busy(60), farm=FARM), WIDTH, HEIGHT)
    start = shown.index("FARM   the ticket key is 0123abcd")
    assert shown[start + 1 : start + 4] == [
        "       redis://a (smtp, lmtp) answers",
        "       memcache:/b (smtpd) does not answer",
        "       lookups: 12 asked, 7 found, 1 late; 2 updates dropped",
    ]


@pytest.mark.parametrize("width", [0, 1, 10, 79, 200])
@pytest.mark.parametrize("height", [0, 1, 5, 19, 23, 50])
def test_any_size(width: int, height: int) -> None:
    for now in (busy(61, workers=30), LEAST):
        shown = lines(busy(60), now, width, height)
        assert len(shown) <= height
        assert all(len(line) <= width for line in shown)


def test_a_daemon_that_knows_nothing_of_all_that() -> None:
    shown = lines(None, LEAST, WIDTH, HEIGHT)
    assert row(shown, "seed") == ["seed", "-", "0", "-", "-", "-"]
    assert any(line == "KEYS   none yet; unknown names: 0" for line in shown)


def test_what_cannot_be_printed_is_replaced() -> None:
    shown = lines(None, degraded(busy(1), "path \x1b[2J\n\udcff"), WIDTH, HEIGHT)
    assert shown[1] == "  ! path ?[2J??"


@pytest.mark.parametrize(
    ("buckets", "part", "time"),
    [
        ({}, 0.5, None),
        ({8: 0, float("inf"): 0}, 0.5, None),
        ({8: 10}, 0.5, 4),
        ({8: 10, 16: 10}, 0.5, 8),
        ({8: 10, 16: 10}, 0.75, 12),
        ({8: 1, float("inf"): 9}, 0.99, 8),
        ({float("inf"): 9}, 0.5, None),
    ],
)
def test_quantile(buckets: dict[float, int], part: float, time: float | None) -> None:
    assert quantile(buckets, part) == time
