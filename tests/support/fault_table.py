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

BASELINE = 0.4  # seconds of load before the fault
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

    def cells(self) -> tuple[str, ...]:
        """Return the row as texts, in the order of HEAD."""
        p99 = f"{1000 * self.p99_before:.1f} -> {1000 * self.p99_during:.1f} ms"
        counts = map(str, (self.broken, self.failed, self.lost, self.stale))
        return self.fault, str(self.requests), f"{self.worst:.3f} s", *counts, p99, self.remark


class FaultTable:
    """All rows of this run, in the order in which the faults were tried."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    @contextlib.contextmanager
    def under_load(
        self,
        daemon: Daemon,
        fault: str,
        *,
        residents: int = 4,
        visitors: int = 1,
    ) -> Iterator[Load]:
        """Run the load for a moment, then the block, in which the fault is made and undone.

        At the end the sessions are counted, the row is added, and wrong replies are a failure.
        """
        load = Load(daemon, residents, visitors)
        try:
            time.sleep(BASELINE)
            load.fault_began = time.monotonic()
            yield load
        finally:
            load.stop()
        if daemon.is_running:
            load.count_lost()
        self.rows.append(_row(fault, load))
        assert load.wrong == [], load.wrong[:5]

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
