"""growth - what becomes of throughput, file and memory as the cache grows

The servers are started for this and filled step by step; at each size the mta load runs, with 64
clients, in several rounds. A server that can't be filled in time drops out, by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from bench.bench import Bench
from bench.loads import SESSION_BYTES
from bench.measure import Figures, measure
from bench.server import Server
from bench.servers import ServerSpec, started
from tlsmgr.log import Fatal, warning

SIZES = (1_000, 10_000, 100_000, 500_000)  # entries
CLIENTS = 64
MOST_KEYS = 50_000  # that are asked for, spread over all entries
LOAD = "mta"
FILL_LIMIT = 900.0  # seconds from one size to the next; stock's disk is asked for each session
OUR_PARAMETERS = ("smtp_tls_session_cache_size_limit=4294967296",)


class GrowthRow(NamedTuple):
    """A server with so many entries."""

    entries: int
    server: str
    rounds: list[Figures]
    file_bytes: int
    memory: list[int]  # bytes of PSS of each process

    @property
    def bytes_a_session_byte(self) -> float:
        """How much larger the file is than what was stored."""
        return self.file_bytes / (self.entries * SESSION_BYTES)


def run_growth(
    bench: Bench, names: Sequence[str], wish: ServerSpec, sizes: Sequence[int]
) -> Iterator[GrowthRow]:
    """Grow all these kinds of servers side by side."""
    wish = replace(wish, options=(*OUR_PARAMETERS, *wish.options))
    with started(names, wish) as servers:
        size = 0
        for next_size in sorted(sizes):
            servers = [s for s in servers if _grow(bench, s, range(size, next_size))]
            yield from _measure_all(bench, servers, next_size)
            size = next_size


def _grow(bench: Bench, server: Server, keys: range) -> bool:
    bench.tick(f"grow to {keys.stop} {server.name}")
    try:
        bench.fill(server, keys, FILL_LIMIT)
    except Fatal as error:
        warning(f"no growth beyond {keys.start} entries: {error.text}")
        return False
    return True


def _measure_all(bench: Bench, servers: Sequence[Server], size: int) -> list[GrowthRow]:
    figures: dict[str, list[Figures]] = {server.name: [] for server in servers}
    keys = range(0, size, -(-size // MOST_KEYS))
    for _ in range(bench.rounds):
        for server in servers:
            bench.tick(f"{LOAD} with {size} {server.name}")
            generators = bench.generators(server, LOAD, CLIENTS, keys)
            figures[server.name].append(measure(generators, server))
    return [GrowthRow(size, s.name, figures[s.name], s.cache_bytes(), s.memory()) for s in servers]
