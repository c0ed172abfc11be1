"""bench_figures - figures of the measuring tool, made up."""

from __future__ import annotations

import dataclasses

from bench.figures import Figures

PLAIN = Figures(
    server_cpu=5.0,
    requests=1000,
    seconds=2.0,
    rate=500.0,
    p50=10.0,
    p99=20.0,
    p99_9=30.0,
    longest=40.0,
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
