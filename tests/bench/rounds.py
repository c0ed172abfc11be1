"""rounds - every load on every server, in turn, several rounds

The servers take turns within each load, so that whatever else the machine does meets all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from bench.bench import Bench
from bench.loads import KEYS
from bench.measure import Figures, measure
from bench.server import Server


class Row(NamedTuple):
    """A load with so many clients on a server, and its figures round by round."""

    load: str
    connections: int
    server: str
    rounds: list[Figures]


def load_rows(
    servers: Sequence[str], loads: Sequence[str], connections: Sequence[int]
) -> list[Row]:
    """A row for each measurement, in the order of the report, without figures."""
    return [Row(a, b, server, []) for a in loads for b in connections for server in servers]


def run_loads(bench: Bench, servers: Sequence[Server], rows: Sequence[Row]) -> None:
    """Run them all; the caches must be filled before."""
    by_name = {server.name: server for server in servers}
    for _ in range(bench.rounds):
        for row in rows:
            bench.tick(f"{row.load} {row.connections} {row.server}")
            server = by_name[row.server]
            row.rounds.append(measure(bench.generators(server, row.load, row.connections), server))


def fill(bench: Bench, servers: Sequence[Server]) -> None:
    """Store the sessions that lookups are to find."""
    for server in servers:
        bench.tick(f"fill {server.name}")
        bench.fill(server, range(KEYS))
