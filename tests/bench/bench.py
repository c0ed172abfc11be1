"""bench - what all parts of one measurement have in common: its settings and its scratch directory

Makes generators that fit the settings, and the plan files for them, each file once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.drive import Generators
from bench.loads import KEYS, LOADS
from bench.plan import for_filling, for_load, write_plan
from bench.server import Server
from tlsmgr.log import Fatal

FILLERS = 64  # clients that store the sessions before a measurement
FILL_LIMIT = 300.0  # seconds for that
FILL_SLICE = 20_000  # sessions stored from one plan


@dataclass
class Bench:
    """Settings: how long a run lasts, how many rounds, how many generator processes."""

    directory: Path
    command: Sequence[str]  # of a generator
    seconds: float
    rounds: int
    processes: int
    tick: Callable[[str], None]  # told what comes next, at each run

    _number: int = field(default=0, init=False)

    def generators(
        self,
        server: Server,
        load: str,
        connections: int,
        keys: range = range(KEYS),
        seconds: float | None = None,
    ) -> Generators:
        """Generators for that load on that server, not started yet."""
        lenient = "-lenient" if server.lenient else ""
        plan = self.directory / f"{load}-{keys.stop}-{keys.step}{lenient}.plan"
        if not plan.exists():
            write_plan(plan, for_load(LOADS[load], keys, server.lenient))
        return self._generators(server, plan, connections, seconds or self.seconds, self.processes)

    def _generators(
        self, server: Server, plan: Path, connections: int, seconds: float, processes: int
    ) -> Generators:
        self._number += processes
        return Generators(
            self.command,
            plan,
            server.name,
            server.socket,
            connections,
            seconds,
            processes,
            self._number,
        )

    def fill(self, server: Server, keys: range, limit: float = FILL_LIMIT) -> None:
        """Store the sessions of these keys. Fatal: not within that many seconds, or wrongly."""
        for start in range(0, len(keys), FILL_SLICE):
            limit -= self._fill_slice(server, keys[start : start + FILL_SLICE], limit)

    def _fill_slice(self, server: Server, keys: range, limit: float) -> float:
        plan = self.directory / f"fill-{keys.start}-{keys.stop}.plan"
        if not plan.exists():
            write_plan(plan, for_filling(keys))
        with self._generators(server, plan, FILLERS, max(limit, 0.1), 1) as generators:
            generators.go()
            tally = generators.result()
        if tally.wrong:
            raise Fatal(f"{server.name}: wrong reply to update: {tally.first_wrong!r}")
        if tally.requests < len(keys):
            raise Fatal(f"{server.name}: too slow to be filled with {keys.stop} sessions in time")
        return tally.elapsed / 1e9
