"""The measuring tool's arithmetic: buckets, percentiles, CPU time, medians, ratios."""

from __future__ import annotations

import dataclasses
import math
import random
import subprocess
import sys
from collections import Counter

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.bench_figures import PLAIN, figures_with

from bench.drive import Tally
from bench.figures import (
    SUB_BITS,
    Usage,
    figures,
    median_of,
    medians,
    middle_of,
    percentile,
    quotient,
    ratios,
    usage,
)
from bench.report import disturbances
from bench.servers import Server, family


def bucket_of(latency: int) -> int:
    """The bucket in which generator.c counts a latency."""
    shift = max(0, latency.bit_length() - 1 - SUB_BITS)
    return (shift << SUB_BITS) + (latency >> shift)


# Histogram.


@given(st.integers(0, 1 << 45))
def test_a_bucket_is_one_percent_wide(latency: int) -> None:
    assert abs(middle_of(bucket_of(latency)) - latency) <= latency / 128


@given(st.integers(0, 1 << 45))
def test_a_longer_latency_is_in_no_earlier_bucket(latency: int) -> None:
    assert 0 <= bucket_of(latency + 1) - bucket_of(latency) <= 1


@pytest.mark.parametrize("percent", [0.1, 50, 99, 99.9, 100])
def test_percentile_is_that_of_the_sorted_list(percent: float) -> None:
    chance = random.Random(5)
    latencies = sorted(round(chance.lognormvariate(10, 1)) for _ in range(3000))
    rank = max(1, math.ceil(round(percent / 100 * len(latencies), 6)))
    found = percentile(Counter(map(bucket_of, latencies)), percent)
    assert found == pytest.approx(latencies[rank - 1], rel=0.01)


def test_percentile_of_small_numbers_is_exact() -> None:
    histogram = Counter({bucket_of(n): 1 for n in range(1, 101)})
    assert [percentile(histogram, p) for p in (1, 50, 99, 100)] == [1, 50, 99, 100]
    thousand = Counter({1: 999, 2: 1})
    assert [percentile(thousand, p) for p in (99.9, 99.95)] == [1, 2]


def test_percentile_of_nothing() -> None:
    assert percentile(Counter(), 50) is None


# Figures.


def tally_with(**values: object) -> Tally:
    plain: dict[str, object] = dict.fromkeys(Tally._fields, 0)
    plain |= {"requests": 4, "elapsed": 2 * 10**9, "first_wrong": b"", "histogram": Counter()}
    return Tally(**(plain | values))  # type: ignore[arg-type]


def test_figures_of_a_run() -> None:
    histogram = Counter(bucket_of(n * 1000) for n in (10, 20, 30, 40))
    tally = tally_with(cpu=10**9, busiest=0.5, histogram=histogram, longest=35_000)
    found = figures(tally, Usage({1: 1.0, 2: 1.0}, 10.0), Usage({1: 1.5, 2: 1.5}, 12.5))
    assert (found.rate, found.requests, found.seconds) == (2.0, 4, 2.0)
    assert found.server_cpu == 250_000  # one second for four requests
    assert found.p50 == pytest.approx(20, rel=0.01)
    assert found.p99 == found.longest == pytest.approx(40, rel=0.01)
    assert found.fault is None


def test_others_are_neither_server_nor_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    tally = tally_with(cpu=10**9)
    found = figures(tally, Usage({1: 0.0}, 0.0), Usage({1: 1.0}, 3.0))
    assert found.others == pytest.approx(0.25)  # 1 of the 4 seconds that two CPUs had


def test_a_client_left_waiting_counts_as_longest() -> None:
    tally = tally_with(requests=1, histogram=Counter({bucket_of(1000): 1}), longest=2 * 10**9)
    assert figures(tally, Usage({}, 0), Usage({}, 0)).longest == 2e6


def test_without_replies_there_are_no_latencies() -> None:
    found = figures(tally_with(requests=0), Usage({1: 0.0}, 0), Usage({1: 1.0}, 0))
    assert (found.p50, found.p99_9, found.longest, found.server_cpu) == (None,) * 4
    assert found.fault == "no reply at all"


def test_cpu_time_is_unknown_when_it_is_another_server() -> None:
    found = figures(tally_with(), Usage({1: 0.0}, 0), Usage({2: 1.0}, 0))
    assert (found.server_cpu, found.others) == (None, None)
    assert disturbances({"seed 1 ours": [found]}) == ""


def test_cpu_time_of_a_child_that_exited_is_its_parents() -> None:
    found = figures(tally_with(), Usage({1: 0.0, 2: 0.5}, 0), Usage({1: 1.5, 3: 0.0}, 0))
    assert found.server_cpu == 250_000


def test_cpu_time_of_reaped_children_counts() -> None:
    burn = "import sys, time\nwhile time.process_time() < 0.3: pass"
    serve = (
        "import subprocess, sys\nsys.stdin.readline()\n"
        f"subprocess.run([sys.executable, '-c', {burn!r}])\nprint(flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", serve], stdin=-1, stdout=-1, text=True) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        process = psutil.Process(parent.pid)
        server = Server("burning", "", lambda: family(process))
        before = usage(server)
        parent.stdin.write("\n")
        parent.stdin.flush()
        assert parent.stdout.readline() == "\n"
        used = usage(server).server_since(before)
        assert used is not None
        assert used > 0.25


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"wrong": 3, "first_wrong": "b'x'"}, "3 wrong replies, the first begins with b'x'"),
        ({"lost": 2}, "the server closed 2 connections"),
        ({}, None),
    ],
)
def test_faults(values: dict[str, object], fault: str | None) -> None:
    assert dataclasses.replace(PLAIN, **values).fault == fault  # type: ignore[arg-type]


# Rounds.


def test_median_of_present_values() -> None:
    assert median_of([3, None, 1, 2]) == 2
    assert median_of([1, 2, 3, 10]) == 2.5
    assert median_of([None, None]) is None
    assert median_of([]) is None


def test_medians_are_taken_metric_by_metric() -> None:
    found = medians([figures_with(rate=r, p99=p) for r, p in ((1, 30), (2, 10), (9, None))])
    assert (found["rate"], found["p99"], found["p50"]) == (2, 20, 10)


def test_a_ratio_is_the_median_of_the_ratios_within_each_round() -> None:
    mine = [figures_with(rate=rate) for rate in (100, 30, 8)]
    base = [figures_with(rate=rate) for rate in (10, 10, 2)]
    assert ratios(mine, base)["rate"] == 4  # of 10, 3 and 4; that of the medians would be 3
    assert ratios(base, base)["rate"] == 1


def test_quotient() -> None:
    assert quotient(6, 3) == 2
    assert quotient(None, 3) is quotient(6, None) is quotient(6, 0) is None
