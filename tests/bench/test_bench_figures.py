"""The measuring tool's arithmetic: buckets, percentiles, medians, ratios; and its tables."""

from __future__ import annotations

import dataclasses
import io
import math
import random
import subprocess
import sys
from collections import Counter

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.drive import Tally
from bench.growth import GrowthRow
from bench.histogram import bucket_of, merge, middle_of, percentile
from bench.measure import (
    Figures,
    Usage,
    figures,
    median_of,
    medians,
    quotient,
    ratios,
    usage,
)
from bench.progress import Progress
from bench.report import noise, ratio, report, table
from bench.results import Results
from bench.rounds import Row
from bench.server import Server, family

PLAIN = Figures(
    requests=1000,
    seconds=2.0,
    rate=500.0,
    p50=10.0,
    p99=20.0,
    p99_9=30.0,
    longest=40.0,
    server_cpu=5.0,
    generator=0.2,
    others=0.0,
    wrong=0,
    lost=0,
    refused=0,
    waiting=0,
    first_wrong="b''",
)


def figures_with(**values: float | None) -> Figures:
    return dataclasses.replace(PLAIN, **values)  # type: ignore[arg-type]


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


def test_merged_histograms_count_together() -> None:
    assert merge([Counter({1: 2, 5: 1}), Counter({5: 3})]) == Counter({1: 2, 5: 4})


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


def test_others_are_what_is_neither_server_nor_generator(monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert noise([found]) == ""


def test_cpu_time_of_a_child_that_went_is_its_parents() -> None:
    found = figures(tally_with(), Usage({1: 0.0, 2: 0.5}, 0), Usage({1: 1.5, 3: 0.0}, 0))
    assert found.server_cpu == 250_000


def test_a_process_has_used_what_its_children_used() -> None:
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


def test_median_of_what_is_there() -> None:
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


# Results and report.


def results_of(*rows: Row, bases: tuple[str, ...] = ("slow",)) -> Results:
    return Results(bases, {}, loads=list(rows))


def test_ratios_are_to_the_same_load() -> None:
    slow = Row("seed", 1, "slow", [figures_with(rate=100)])
    other = Row("seed", 64, "slow", [figures_with(rate=7)])
    fast = Row("seed", 1, "fast", [figures_with(rate=300, server_cpu=1.0)])
    found = results_of(slow, other, fast).load_ratios(fast)
    assert found["slow"]["rate"] == 3
    assert found["slow"]["server_cpu"] == pytest.approx(0.2)


def test_report_shows_ratios_faults_and_the_generator_as_limit() -> None:
    slow = Row("seed", 1, "slow", [figures_with(rate=100)])
    fast = Row("seed", 1, "fast", [figures_with(rate=300, generator=0.99, wrong=1)])
    lines = report(results_of(slow, fast)).splitlines()
    row = next(line.split() for line in lines if " fast " in line)
    assert row == ["seed", "1", "fast", "300", "10", "20", "30", "5.0", "99%*", "3.00", "1.00"]
    assert any(line.startswith("* the generator was the limit") for line in lines)
    assert "the limit" not in report(results_of(slow))
    assert any(line.startswith("WORTHLESS: seed 1 fast: 1 wrong replies") for line in lines)


def test_report_of_a_run_that_was_cut_short() -> None:
    done, not_done = Row("seed", 1, "slow", [PLAIN]), Row("mta", 1, "slow", [])
    results = results_of(done, not_done)
    assert "mta" not in report(results).split("Medians")[0]
    assert results.tree()["loads"][1]["median"]["rate"] is None
    assert report(results_of()) == ""


def test_growth_is_compared_with_the_size_of_the_loads() -> None:
    rows = [
        GrowthRow(entries, "ours", [figures_with(rate=rate)], entries * 2400, [1 << 20])
        for entries, rate in ((1_000, 50.0), (10_000, 100.0), (100_000, 80.0))
    ]
    text = report(Results((), {}, growth=rows))
    assert "x 10,000" in text
    last = next(line.split() for line in text.splitlines() if line.startswith("100,000"))
    assert (last[2], last[3], last[6]) == ("80", "0.8", "2.00")


def test_noise_is_said() -> None:
    assert "doubtful" not in noise([PLAIN])
    assert "in 1 runs more than 10%" in noise([PLAIN, PLAIN, figures_with(others=0.3)])


def test_table_columns_are_aligned() -> None:
    assert table(["a", "b"], [["long", "1"], ["x", "22"]]).splitlines() == [
        "a      b",
        "----  --",
        "long   1",
        "x     22",
    ]


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (12.345, "12.35"), (0.12345, "0.123"), (1.0, "1.00")]
)
def test_ratio_as_text(value: float | None, text: str) -> None:
    assert ratio(value) == text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_shown_to_a_person_only() -> None:
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        with Progress(2, stream) as progress:
            progress.tick("first")
            progress.tick("second")
            progress.tick("one that nobody expected")
    assert "0/2" in terminal.getvalue()
    assert "1/2  0:00 left  second" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")
    assert file.getvalue() == ""
