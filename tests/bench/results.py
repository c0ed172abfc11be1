"""results - everything that one run of the tool measured, as a tree of plain values for JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench import mail
from bench.figures import Figures, Run, median_of, medians, quotient, ratios
from bench.mail import MailRow
from bench.runs import GrowthRow, LoadRow
from bench.scenes import SceneRow
from bench.servers import Server
from tlsmgr import __version__


@dataclass(frozen=True)
class ServerNote:
    """A server after the loads: PSS of each process in bytes, and warnings that it logged."""

    name: str
    file_system: str
    memory: list[int]
    complaints: list[str]


@dataclass
class Results:
    """The rows, which are filled during the run: a run that was cut short has results too.

    `bases` are the servers that the others are compared with.
    """

    bases: Sequence[str]
    settings: dict[str, Any]
    servers: list[ServerNote] = field(default_factory=list)
    loads: list[LoadRow] = field(default_factory=list)
    scenes: list[SceneRow] = field(default_factory=list)
    mail: list[MailRow] = field(default_factory=list)
    growth: list[GrowthRow] = field(default_factory=list)

    def note(self, servers: Sequence[Server]) -> None:
        """Record memory and complaints of the servers."""
        self.servers += [
            ServerNote(s.name, s.file_system(), s.memory(), s.complaints()) for s in servers
        ]

    def quiet_runs(self) -> Mapping[str, Sequence[Run]]:
        """Return, by row, the runs in which only the server and its clients should work."""
        return {
            **self._main_runs(),
            **{f"{r.scene} {r.server}, quiet": r.quiet for r in self.scenes},
            **{f"mail {r.mail} {r.server}": r.rounds for r in self.mail},
        }

    def faults(self) -> list[str]:
        """Return what makes figures of the loads and of growth invalid."""
        faults = ((row, each.fault) for row, runs in self._main_runs().items() for each in runs)
        return sorted({f"{row}: {fault}" for row, fault in faults if fault})

    def _main_runs(self) -> dict[str, list[Figures]]:
        rows = {f"{r.load} {r.connections} {r.server}": r.rounds for r in self.loads}
        return rows | {f"{r.entries} entries {r.server}": r.rounds for r in self.growth}

    def load_ratios(self, row: LoadRow) -> dict[str, dict[str, float | None]]:
        """Return, for each base, the row's metrics relative to the base's."""
        bases = {
            base.server: base.rounds
            for base in self.loads
            if (base.load, base.connections) == (row.load, row.connections)
        }
        return {name: ratios(row.rounds, bases[name]) for name in self.bases if name in bases}

    def mail_ratios(self, row: MailRow) -> dict[str, dict[str, float | None]]:
        """Return the same for a row of mail."""
        bases = {base.server: base.rounds for base in self.mail if base.mail == row.mail}
        return {
            name: ratios(row.rounds, bases[name], mail.RATIOS)
            for name in self.bases
            if name in bases
        }

    def tree(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return {
            "version": __version__,
            "machine": machine(),
            "settings": self.settings,
            "bases": list(self.bases),
            "servers": [asdict(note) for note in self.servers],
            "loads": [self._load_tree(row) for row in self.loads],
            "scenes": [_scene_tree(row) for row in self.scenes],
            "mail": [self._mail_tree(row) for row in self.mail],
            "growth": [_growth_tree(row) for row in self.growth],
            "faults": self.faults(),
        }

    def _load_tree(self, row: LoadRow) -> dict[str, Any]:
        return {
            "load": row.load,
            "connections": row.connections,
            "server": row.server,
            "median": medians(row.rounds),
            "ratios": self.load_ratios(row),
            "rounds": [asdict(each) for each in row.rounds],
        }

    def _mail_tree(self, row: MailRow) -> dict[str, Any]:
        return {
            "mail": row.mail,
            "server": row.server,
            "median": medians(row.rounds, mail.METRICS),
            "ratios": self.mail_ratios(row),
            "rounds": [asdict(each) for each in row.rounds],
        }


def tail_ratio(row: SceneRow) -> float | None:
    """Return the 99th percentile relative to the quiet server's: the median over the rounds."""
    pairs = zip(row.disturbed, row.quiet)
    return median_of([quotient(scene.p99, quiet.p99) for scene, quiet in pairs])


def longest(rounds: Sequence[Figures]) -> float | None:
    """Return the longest latency of all rounds in microseconds."""
    return max((each.longest for each in rounds if each.longest is not None), default=None)


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
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
