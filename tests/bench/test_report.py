"""The measuring tool's output: ratios, tables, notes on validity, the progress bar."""

from __future__ import annotations

import io

import pytest
from support.bench_figures import PLAIN, figures_with

from bench.report import Progress, disturbances, ratio, report, table
from bench.results import Results
from bench.runs import GrowthRow, LoadRow


def results_of(*rows: LoadRow, bases: tuple[str, ...] = ("slow",)) -> Results:
    return Results(bases, {}, loads=list(rows))


def test_ratios_are_to_the_same_load() -> None:
    slow = LoadRow("seed", 1, "slow", [figures_with(rate=100)])
    other = LoadRow("seed", 64, "slow", [figures_with(rate=7)])
    fast = LoadRow("seed", 1, "fast", [figures_with(rate=300, server_cpu=1.0)])
    found = results_of(slow, other, fast).load_ratios(fast)
    assert found["slow"]["rate"] == 3
    assert found["slow"]["server_cpu"] == pytest.approx(0.2)


def test_report_shows_ratios_faults_and_the_generator_as_limit() -> None:
    slow = LoadRow("seed", 1, "slow", [figures_with(rate=100)])
    fast = LoadRow("seed", 1, "fast", [figures_with(rate=300, generator=0.99, wrong=1)])
    lines = report(results_of(slow, fast)).splitlines()
    row = next(line.split() for line in lines if " fast " in line)
    assert row == ["seed", "1", "fast", "5.0", "300", "10", "20", "30", "99%*", "1.00", "3.00"]
    assert any(line.startswith("* The generator was the limit") for line in lines)
    assert "the limit" not in report(results_of(slow))
    assert any(line.startswith("INVALID: seed 1 fast: 1 wrong replies") for line in lines)


def test_report_of_a_run_that_was_cut_short() -> None:
    done, not_done = LoadRow("seed", 1, "slow", [PLAIN]), LoadRow("mta", 1, "slow", [])
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
    assert (last[3], last[4], last[6]) == ("80", "0.8", "2.00")


def test_disturbed_runs_are_named() -> None:
    quiet, noisy = PLAIN, figures_with(others=0.3)
    assert disturbances({"seed 1 ours": [quiet]}).splitlines() == [
        "Other processes used 0% of the machine's CPU time (median of 1 runs), at most 0%."
    ]
    lines = disturbances({"seed 1 ours": [quiet, noisy], "mta 1 ours": [quiet]}).splitlines()
    assert lines[0].endswith("at most 30%.")
    assert lines[1:] == ["DISTURBED: seed 1 ours: 1 of 2 runs (others: 30%)"]


def test_not_all_disturbed_runs_are_named() -> None:
    rows = {f"seed {n} ours": [figures_with(others=0.3)] for n in range(20)}
    lines = disturbances(rows).splitlines()
    assert lines[-2:] == [
        "DISTURBED: seed 7 ours: 1 of 1 runs (others: 30%)",
        "DISTURBED: 12 further rows",
    ]


def test_repeated_runs_are_counted() -> None:
    rounds = [PLAIN, figures_with(repeats=1), figures_with(repeats=2)]
    assert "Repeated because of more than 10%: 2 runs." in disturbances({"seed 1 ours": rounds})


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


def test_progress_is_shown_on_a_terminal_only() -> None:
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        with Progress(2, stream) as progress:
            progress.tick("first")
            progress.tick("second")
            progress.tick("one too many")
    assert "0/2" in terminal.getvalue()
    assert "1/2  0:00 left  second" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")
    assert file.getvalue() == ""
