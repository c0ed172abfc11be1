"""runs - which load runs on which server, in which order; and growth.

The servers take turns within each load, so that disturbances meet all of them alike. A run in
which other processes used much of the machine is repeated at once; the least disturbed run counts.

Growth: the servers are started for this and filled step by step; at each size the mta load runs
with 64 clients. A server that cannot be filled in time is left out from there on, with a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from bench.drive import Generators
from bench.figures import Figures, Run, measure
from bench.loads import LOADS, SESSION_BYTES, write_filling_plan, write_load_plan
from bench.servers import Server, ServerSpec, started
from tlsmgr.log import Fatal, warning

FILLERS = 64  # clients that store the sessions before a measurement
FILL_LIMIT = 300.0  # seconds for that
FILL_SLICE = 20_000  # sessions stored from one plan

AnyRun = TypeVar("AnyRun", bound=Run)


@dataclass
class Bench:
    """The settings of all runs, and a scratch directory in which each plan is written once."""

    directory: Path
    generator: Path  # program
    seconds: float  # that a load lasts
    rounds: int
    processes: int  # generators per load
    repeats: int  # of a disturbed run
    keys: range  # of the sessions that are in each cache
    tick: Callable[[str], None]  # called before each run with its name

    _number: int = field(default=0, init=False)

    def run(
        self,
        server: Server,
        load: str,
        connections: int,
        keys: range | None = None,
    ) -> Figures:
        """Run the load; repeat it if the machine was disturbed, and return the best run."""
        return self.undisturbed(
            lambda: measure(self.generators(server, load, connections, keys), server)
        )

    def undisturbed(self, run: Callable[[], AnyRun]) -> AnyRun:
        """Run it; repeat it if the machine was disturbed, and return the best run."""
        found: list[AnyRun] = []
        while not found or (found[-1].disturbed and len(found) <= self.repeats):
            found.append(run())
        best = min(found, key=lambda figures: figures.others or 0.0)
        return replace(best, repeats=len(found) - 1)

    def generators(
        self,
        server: Server,
        load: str,
        connections: int,
        keys: range | None = None,
        seconds: float | None = None,
    ) -> Generators:
        """Return generators for that load on that server, not started yet."""
        keys = self.keys if keys is None else keys
        lenient = "-lenient" if server.lenient else ""
        plan = self.directory / f"{load}-{keys.stop}-{keys.step}{lenient}.plan"
        if not plan.exists():
            write_load_plan(plan, LOADS[load], keys, server.lenient)
        return self._generators(server, plan, connections, seconds or self.seconds, self.processes)

    def fill(self, server: Server, keys: range, limit: float = FILL_LIMIT) -> None:
        """Store the sessions of these keys. Fatal if that fails or takes over `limit` seconds."""
        for start in range(0, len(keys), FILL_SLICE):
            limit -= self._fill_slice(server, keys[start : start + FILL_SLICE], limit)

    def _fill_slice(self, server: Server, keys: range, limit: float) -> float:
        plan = self.directory / f"fill-{keys.start}-{keys.stop}.plan"
        if not plan.exists():
            write_filling_plan(plan, keys)
        with self._generators(server, plan, FILLERS, max(limit, 0.1), 1) as generators:
            generators.go()
            tally = generators.result()
        if tally.wrong:
            raise Fatal(f"{server.name}: wrong reply to update: {tally.first_wrong!r}")
        if tally.requests < len(keys):
            raise Fatal(f"{server.name}: too slow to be filled with {keys.stop} sessions in time")
        return tally.elapsed / 1e9

    def _generators(
        self, server: Server, plan: Path, connections: int, seconds: float, processes: int
    ) -> Generators:
        self._number += processes
        return Generators(
            self.generator,
            plan,
            server.name,
            server.socket,
            connections,
            seconds,
            processes,
            self._number,
        )


# Loads.


class LoadRow(NamedTuple):
    """A load with a number of clients on a server, and its figures round by round."""

    load: str
    connections: int
    server: str
    rounds: list[Figures]


def load_rows(
    servers: Sequence[str], loads: Sequence[str], connections: Sequence[int]
) -> list[LoadRow]:
    """Return a row for each measurement, in the order of the report, without figures."""
    return [LoadRow(a, b, server, []) for a in loads for b in connections for server in servers]


def run_loads(bench: Bench, servers: Sequence[Server], rows: Sequence[LoadRow]) -> None:
    """Run all rows, round by round. The caches must have been filled."""
    by_name = {server.name: server for server in servers}
    for _ in range(bench.rounds):
        for row in rows:
            bench.tick(f"{row.load} {row.connections} {row.server}")
            row.rounds.append(bench.run(by_name[row.server], row.load, row.connections))


def fill_all(bench: Bench, servers: Sequence[Server]) -> None:
    """Store the sessions that lookups are to find in each server."""
    for server in servers:
        bench.tick(f"fill {server.name}")
        bench.fill(server, bench.keys)


# Growth.

SIZES = (1_000, 10_000, 100_000, 500_000)  # entries
GROWTH_CLIENTS = 64
GROWTH_LOAD = "mta"
MOST_KEYS = 50_000  # that are requested, spread over all entries
GROW_LIMIT = 900.0  # seconds from one size to the next; stock syncs its disk for each session
OUR_GROWTH_OPTIONS = ("smtp_tls_session_cache_size_limit=4294967296",)


class GrowthRow(NamedTuple):
    """A server with that number of entries."""

    entries: int
    server: str
    rounds: list[Figures]
    file_bytes: int
    memory: list[int]  # bytes of PSS of each process

    @property
    def bytes_a_session_byte(self) -> float:
        """The size of the file relative to the sessions in it."""
        return self.file_bytes / (self.entries * SESSION_BYTES)


def run_growth(
    bench: Bench, names: Sequence[str], spec: ServerSpec, sizes: Sequence[int]
) -> Iterator[GrowthRow]:
    """Grow these servers side by side and yield their rows, size by size."""
    spec = replace(spec, options=(*OUR_GROWTH_OPTIONS, *spec.options))
    with started(names, spec) as servers:
        size = 0
        for next_size in sorted(sizes):
            servers = [s for s in servers if _grow(bench, s, range(size, next_size))]
            yield from _measure_size(bench, servers, next_size)
            size = next_size


def _grow(bench: Bench, server: Server, keys: range) -> bool:
    bench.tick(f"grow to {keys.stop} {server.name}")
    try:
        bench.fill(server, keys, GROW_LIMIT)
    except Fatal as error:
        warning(f"no growth beyond {keys.start} entries: {error.text}")
        return False
    return True


def _measure_size(bench: Bench, servers: Sequence[Server], size: int) -> list[GrowthRow]:
    figures: dict[str, list[Figures]] = {server.name: [] for server in servers}
    keys = range(0, size, -(-size // MOST_KEYS))
    for _ in range(bench.rounds):
        for server in servers:
            bench.tick(f"{GROWTH_LOAD} with {size} {server.name}")
            figures[server.name].append(bench.run(server, GROWTH_LOAD, GROWTH_CLIENTS, keys))
    return [GrowthRow(size, s.name, figures[s.name], s.cache_bytes(), s.memory()) for s in servers]
