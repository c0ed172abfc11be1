"""The order of runs of the measuring tool, and the repetition of disturbed ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.bench_figures import figures_with

from bench.figures import Figures
from bench.runs import Bench, load_rows, run_loads
from bench.servers import Server

SERVERS = [Server(name, "", list) for name in ("stock", "ours")]


def bench_in(directory: Path, rounds: int = 1, repeats: int = 1) -> Bench:
    """Settings for tests that replace `measure`, so that nothing runs."""
    generator = directory / "generator"
    return Bench(directory, generator, 0.1, rounds, 1, repeats, range(10), tick=lambda name: None)


@pytest.mark.parametrize(
    ("repeats", "others", "runs", "kept"),
    [
        (1, [0.05, 0.01], 1, 0.05),
        (1, [None, 0.01], 1, None),
        (1, [0.4, 0.01], 2, 0.01),
        (1, [0.2, 0.4, 0.01], 2, 0.2),
        (2, [0.2, 0.4, 0.3, 0.0], 3, 0.2),
        (0, [0.2, 0.01], 1, 0.2),
    ],
)
def test_a_disturbed_run_is_repeated_and_the_best_one_kept(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    repeats: int,
    others: list[float | None],
    runs: int,
    kept: float | None,
) -> None:
    waiting = [figures_with(others=share) for share in others]
    monkeypatch.setattr("bench.runs.measure", lambda generators, server: waiting.pop(0))
    found = bench_in(tmp_path, repeats=repeats).run(SERVERS[0], "seed", 1)
    assert len(others) - len(waiting) == runs == found.repeats + 1
    assert found.others == kept


def test_servers_take_turns_in_every_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def measure(generators: object, server: Server) -> Figures:
        measured.append(server.name)
        return figures_with(rate=len(measured))

    monkeypatch.setattr("bench.runs.measure", measure)
    rows = load_rows(["stock", "ours"], ["seed"], [1, 8])
    run_loads(bench_in(tmp_path, rounds=2), SERVERS, rows)
    assert measured == ["stock", "ours"] * 4
    assert [(row.connections, row.server) for row in rows] == [
        (1, "stock"), (1, "ours"), (8, "stock"), (8, "ours"),
    ]  # fmt: skip
    assert [[one.rate for one in row.rounds] for row in rows] == [[1, 5], [2, 6], [3, 7], [4, 8]]
