"""report - the results as text tables with notes on their validity; and a progress bar.

The CPU time that a request costs the server comes first: it does not depend on the CPU time that
the generator takes, as the rate does on a machine with few CPUs. The progress bar is shown on a
terminal only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TextIO

from bench import mail
from bench.figures import DISTURBED, Run, median_of, medians, quotient
from bench.loads import KEYS
from bench.results import Results, longest, tail_ratio

LIMIT_SHARE = 0.9  # of one CPU, from which on the generator is the limit
MOST_DISTURBED = 8  # rows that are named
MIB = 1 << 20

LEGEND = """\
Medians over the rounds. CPU is the CPU time per request, in microseconds, of all processes of the
server; latencies (p50, p99, p99.9) are in microseconds; gen is the share of one CPU that the load
generator used. Ratios to a server are medians of the ratios in each round: "cpu" for CPU time per
request (less is better), "x" for requests per second (more is better)."""
MAIL_LEGEND = """\
Medians over the rounds. CPU is the CPU time of tlsmgr per message, all CPU that of all of Postfix,
both ends of the connection and tlsmgr; busy is the share of the machine's CPU time that was used;
p50 and longest are the times of deliveries from connect to the reply. Times are in microseconds.
Ratios to a server: "x" for messages per second, "cpu" for the CPU time of tlsmgr."""
LIMIT_NOTE = "* The generator was the limit: the server can do more. Try --generators 2."


def report(results: Results) -> str:
    """Return the text that is shown at the end."""
    parts = [
        _loads(results) if results.loads else "",
        _scenes(results) if results.scenes else "",
        _mail(results) if any(row.rounds for row in results.mail) else "",
        _growth(results) if results.growth else "",
        _servers(results) if results.servers else "",
        disturbances(results.quiet_runs()),
        "\n".join(f"INVALID: {fault}" for fault in results.faults()),
    ]
    return "\n\n".join(part for part in parts if part)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return columns of text; the first `left` columns are left-aligned."""
    widths = [max(map(len, column)) for column in zip(headings, *rows)]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths))
        )
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(headings), rule, *map(line, rows)])


def number(value: float | None, digits: int = 0) -> str:
    """Return the number with that many decimals, or a dash for None."""
    return "-" if value is None else f"{value:,.{digits}f}"


def ratio(value: float | None) -> str:
    """Return the ratio with about three significant digits."""
    return "-" if value is None else f"{value:.3g}" if value < 1 else f"{value:.2f}"


def _loads(results: Results) -> str:
    headings = ["load", "clients", "server", "CPU", "requests/s", "p50", "p99", "p99.9", "gen"]
    for base in results.bases:
        headings += [f"cpu {base}", "x"]
    rows = []
    limited = False
    for row in results.loads:
        if not row.rounds:
            continue
        middle = medians(row.rounds)
        limit = (middle["generator"] or 0.0) >= LIMIT_SHARE
        limited |= limit
        cells = [row.load, str(row.connections), row.server, number(middle["server_cpu"], 1)]
        cells += [number(middle[name]) for name in ("rate", "p50", "p99", "p99_9")]
        cells.append(_share(middle["generator"]) + " *"[limit])
        for ratios in results.load_ratios(row).values():
            cells += [ratio(ratios["server_cpu"]), ratio(ratios["rate"])]
        rows.append(cells)
    notes = [LEGEND, LIMIT_NOTE] if limited else [LEGEND]
    return "\n".join([table(headings, rows, left=3), "", *notes])


def _scenes(results: Results) -> str:
    headings = ["seed while", "server", "p99 quiet", "p99 then", "ratio", "longest", "(median)",
                "requests/s"]  # fmt: skip
    rows = [
        [
            row.scene,
            row.server,
            number(medians(row.quiet)["p99"]),
            number(medians(row.disturbed)["p99"]),
            ratio(tail_ratio(row)),
            number(longest(row.disturbed)),
            number(medians(row.disturbed)["longest"]),
            number(medians(row.disturbed)["rate"]),
        ]
        for row in results.scenes
        if row.disturbed
    ]
    return table(headings, rows, left=2)


def _mail(results: Results) -> str:
    headings = ["mail", "server", "messages/s", "CPU", "all CPU", "busy", "resumed", "p50",
                "longest"]  # fmt: skip
    for base in results.bases:
        headings += [f"x {base}", "cpu"]
    rows = []
    for row in results.mail:
        middle = medians(row.rounds, mail.METRICS)
        cells = [row.mail, row.server, number(middle["rate"], 1), number(middle["server_cpu"])]
        cells += [number(middle["postfix_cpu"]), _share(middle["busy"]), _share(middle["resumed"])]
        cells += [number(middle["p50"]), number(middle["longest"])]
        for ratios in results.mail_ratios(row).values():
            cells += [ratio(ratios["rate"]), ratio(ratios["server_cpu"])]
        rows.append(cells)
    return "\n".join([table(headings, rows, left=2), "", MAIL_LEGEND])


def _growth(results: Results) -> str:
    base = growth_base([row.entries for row in results.growth])
    headings = ["entries", "server", "CPU", "mta/s", f"x {base:,}", "file MiB", "bytes/byte",
                "PSS MiB", "most"]  # fmt: skip
    rows = []
    at_base = {r.server: medians(r.rounds)["rate"] for r in results.growth if r.entries == base}
    for row in results.growth:
        middle = medians(row.rounds)
        rows.append(
            [
                f"{row.entries:,}",
                row.server,
                number(middle["server_cpu"], 1),
                number(middle["rate"]),
                ratio(quotient(middle["rate"], at_base.get(row.server))),
                number(row.file_bytes / MIB, 1),
                number(row.bytes_a_session_byte, 2),
                *_memory(row.memory),
            ]
        )
    return table(headings, rows, left=2)


def growth_base(sizes: Sequence[int]) -> int:
    """Return the size that others are compared with: that of the loads, or else the smallest."""
    return KEYS if KEYS in sizes else min(sizes)


def _servers(results: Results) -> str:
    rows = [
        [note.name, note.file_system or "-", str(len(note.memory)), *_memory(note.memory)]
        for note in results.servers
    ]
    lines = [
        f"{note.name} logged {len(note.complaints)} warnings or errors, the first: "
        + note.complaints[0]
        for note in results.servers
        if note.complaints
    ]
    headings = ["server", "data on", "processes", "PSS MiB", "most"]
    return "\n".join([table(headings, rows, left=2), *lines])


def _memory(memory: Sequence[int]) -> tuple[str, str]:
    """The cells for all processes together and for the largest."""
    return number(sum(memory) / MIB, 1), number(max(memory, default=0) / MIB, 1)


def disturbances(rows: Mapping[str, Sequence[Run]]) -> str:
    """Return what other processes used during these runs, and which runs they disturbed."""
    runs = [each for rounds in rows.values() for each in rounds]
    others = [each.others for each in runs if each.others is not None]
    if not others:
        return ""
    lines = [
        f"Other processes used {_share(median_of(others))} of the machine's CPU time"
        f" (median of {len(others)} runs), at most {_share(max(others))}."
    ]
    if repeated := sum(each.repeats > 0 for each in runs):
        lines.append(f"Repeated because of more than {_share(DISTURBED)}: {repeated} runs.")
    disturbed = [
        f"DISTURBED: {name}: {len(shares)} of {len(rounds)} runs (others: {', '.join(shares)})"
        for name, rounds in rows.items()
        if (shares := [_share(each.others) for each in rounds if each.disturbed])
    ]
    lines += disturbed[:MOST_DISTURBED]
    if (more := len(disturbed) - MOST_DISTURBED) > 0:
        lines.append(f"DISTURBED: {more} further rows")
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


WIDTH = 30  # characters of the progress bar


class Progress:
    """A progress bar for `total` runs. `with` removes it at the end."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self._total = max(total, 1)
        self._begun = -1  # runs; the current one is not done
        self._start = time.monotonic()
        self._stream = sys.stderr if stream is None else stream
        self._shown = self._stream.isatty()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._show("")

    def tick(self, name: str) -> None:
        """Note that the next run begins."""
        self._begun += 1
        done = min(self._begun, self._total)
        bar = "#" * (WIDTH * done // self._total)
        self._show(f"[{bar:.<{WIDTH}}] {done}/{self._total}{self._left(done)}  {name}")

    def _left(self, done: int) -> str:
        """Return the estimated time for the rest."""
        if not done:
            return ""
        seconds = round((time.monotonic() - self._start) / done * (self._total - done))
        return f"  {seconds // 60}:{seconds % 60:02d} left"

    def _show(self, line: str) -> None:
        if self._shown:
            self._stream.write(f"\r{line}\x1b[K")
            self._stream.flush()
