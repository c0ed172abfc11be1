"""fault_table - the table at the end of a run of the fault kit: one row for each fault.

``FaultTable.under_load`` runs the clients of ``fault_load`` around a fault and adds the row.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from support.daemon_process import Daemon
from support.fault_load import Load, part
from support.machine_pace import MachinePace

BASELINE = 0.4  # seconds of load before the fault
SLOWER, LEAST = 10.0, 0.01  # factor, and seconds: how slow the 99th percentile of seeds may get
HEAD = ("fault", "requests", "worst wait", "again", "failed", "lost", "stale", "seed p99", "remark")


class Row(NamedTuple):
    """The figures of one fault. Times in seconds."""

    fault: str
    requests: int
    worst: float  # on the first connection
    broken: int  # requests that needed a second connection
    failed: int  # requests that got no reply there either
    lost: int  # acknowledged updates
    stale: int  # lookups that gave an older session
    p99_before: float
    p99_during: float
    remark: str

    def joined(self, other: Row) -> Row:
        """Return both as one row: the sums of what is counted, the longer times."""
        return Row(
            self.fault,
            self.requests + other.requests,
            max(self.worst, other.worst),
            self.broken + other.broken,
            self.failed + other.failed,
            self.lost + other.lost,
            self.stale + other.stale,
            max(self.p99_before, other.p99_before),
            max(self.p99_during, other.p99_during),
            other.remark,
        )

    def cells(self) -> tuple[str, ...]:
        """Return the row as texts, in the order of HEAD."""
        p99 = f"{1000 * self.p99_before:.1f} -> {1000 * self.p99_during:.1f} ms"
        counts = map(str, (self.broken, self.failed, self.lost, self.stale))
        return self.fault, str(self.requests), f"{self.worst:.3f} s", *counts, p99, self.remark


class FaultTable:
    """All rows of this run, in the order in which the faults were tried."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(self, row: Row) -> None:
        """Add a row; a fault that was tried before keeps its row, with the worse figures."""
        for at, before in enumerate(self.rows):
            if before.fault == row.fault:
                self.rows[at] = before.joined(row)
                return
        self.rows.append(row)

    @contextlib.contextmanager
    def under_load(
        self,
        daemon: Daemon,
        fault: str,
        *,
        residents: int = 4,
        visitors: int = 1,
        others_serve: bool = True,
    ) -> Iterator[Load]:
        """Run the load for a moment, then the block, in which the fault is made and undone.

        At the end the sessions are counted, and the row is added. Wrong replies are a failure, and
        slow seeds are one unless the fault leaves nobody who serves, or the machine was as slow.
        """
        load, pace = Load(daemon, residents, visitors), MachinePace()
        try:
            time.sleep(BASELINE)
            load.fault_began = time.monotonic()
            yield load
        finally:
            load.stop()
            pace.stop()
        if daemon.is_running:
            load.count_lost()
        row = _row(fault, load)
        self.add(row)
        assert load.wrong == [], load.wrong[:5]
        usual = max(row.p99_before, LEAST, part(pace.waits_since(load.fault_began), 0.99))
        assert not others_serve or row.p99_during < SLOWER * usual, (row, usual)

    def lines(self) -> list[str]:
        """Return the table, a line for each row below the head."""
        table = [HEAD, *(row.cells() for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return [_line(cells, widths) for cells in table]


def _row(fault: str, load: Load) -> Row:
    return Row(
        fault,
        len(load.waits()),
        load.worst,
        len(load.broken),
        len(load.failed),
        load.lost,
        load.stale,
        part(load.seed_waits(is_during=False), 0.99),
        part(load.seed_waits(is_during=True), 0.99),
        load.remark,
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *numbers, last = cells
    middle = [cell.rjust(width) for cell, width in zip(numbers, widths[1:-1], strict=True)]
    return "  ".join([first.ljust(widths[0]), *middle, last]).rstrip()
