"""results - all that one run of the tool found, as a tree of plain values for JSON"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.growth import GrowthRow
from bench.measure import Figures, median_of, medians, quotient, ratios
from bench.rounds import Row
from bench.scenes import SceneRow
from bench.server import Server


@dataclass(frozen=True)
class ServerNote:
    """A server after the loads: bytes of PSS of each process, and what it logged of trouble."""

    name: str
    file_system: str
    memory: list[int]
    complaints: list[str]


@dataclass
class Results:
    """Filled as the run goes on, so that a run that was cut short still has something to show.

    `bases` are the servers that the others are compared with.
    """

    bases: Sequence[str]
    settings: dict[str, Any]
    servers: list[ServerNote] = field(default_factory=list)
    loads: list[Row] = field(default_factory=list)
    scenes: list[SceneRow] = field(default_factory=list)
    growth: list[GrowthRow] = field(default_factory=list)

    def note(self, servers: Sequence[Server]) -> None:
        """Remember what there is to say about the servers themselves."""
        self.servers += [
            ServerNote(s.name, s.file_system(), s.memory(), s.complaints()) for s in servers
        ]

    def undisturbed(self) -> list[Figures]:
        """Of every run in which nothing but one server and its generators should have worked."""
        rounds = [row.rounds for row in self.loads] + [row.rounds for row in self.growth]
        rounds += [row.quiet for row in self.scenes]
        return [each for runs in rounds for each in runs]

    def faults(self) -> list[str]:
        """What makes figures of the loads and of growth worthless."""
        rows = [(f"{r.load} {r.connections}", r.server, r.rounds) for r in self.loads]
        rows += [(f"{r.entries} entries", r.server, r.rounds) for r in self.growth]
        found = ((what, server, each.fault) for what, server, runs in rows for each in runs)
        return sorted({f"{what} {server}: {fault}" for what, server, fault in found if fault})

    def load_ratios(self, row: Row) -> dict[str, dict[str, float | None]]:
        """By base: the row's metrics in parts of the base's."""
        bases = {
            base.server: base.rounds
            for base in self.loads
            if (base.load, base.connections) == (row.load, row.connections)
        }
        return {name: ratios(row.rounds, bases[name]) for name in self.bases if name in bases}

    def tree(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "machine": machine(),
            "settings": self.settings,
            "bases": list(self.bases),
            "servers": [asdict(note) for note in self.servers],
            "loads": [self._load_tree(row) for row in self.loads],
            "scenes": [_scene_tree(row) for row in self.scenes],
            "growth": [_growth_tree(row) for row in self.growth],
            "faults": self.faults(),
        }

    def _load_tree(self, row: Row) -> dict[str, Any]:
        return {
            "load": row.load,
            "connections": row.connections,
            "server": row.server,
            "median": medians(row.rounds),
            "ratios": self.load_ratios(row),
            "rounds": [asdict(each) for each in row.rounds],
        }


def tail_ratio(row: SceneRow) -> float | None:
    """The 99th percentile of a scene in parts of the quiet server's: the median over rounds."""
    pairs = zip(row.disturbed, row.quiet)
    return median_of([quotient(scene.p99, quiet.p99) for scene, quiet in pairs])


def longest(rounds: Sequence[Figures]) -> float | None:
    """The longest latency of all rounds, in microseconds."""
    return max((each.longest for each in rounds if each.longest is not None), default=None)


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    return {
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
    }


def _scene_tree(row: SceneRow) -> dict[str, Any]:
    return {
        "scene": row.scene,
        "server": row.server,
        "p99_ratio": tail_ratio(row),
        "longest": longest(row.disturbed),
        "quiet": [asdict(each) for each in row.quiet],
        "disturbed": [asdict(each) for each in row.disturbed],
    }


def _growth_tree(row: GrowthRow) -> dict[str, Any]:
    return {
        "entries": row.entries,
        "server": row.server,
        "median": medians(row.rounds),
        "file_bytes": row.file_bytes,
        "bytes_a_session_byte": row.bytes_a_session_byte,
        "memory": row.memory,
        "rounds": [asdict(each) for each in row.rounds],
    }
