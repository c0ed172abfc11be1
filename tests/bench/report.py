"""report - the results as text tables, and what a reader must know to trust them or not"""

from __future__ import annotations

from collections.abc import Sequence

from bench.loads import KEYS
from bench.measure import Figures, median_of, medians, quotient
from bench.results import Results, longest, tail_ratio

LIMIT_SHARE = 0.9  # of one CPU that a generator uses when it is the limit
NOISY = 0.1  # share of the machine that others use when the figures are doubtful
MIB = 1 << 20

LEGEND = """\
Medians over rounds. Latencies and CPU time in microseconds; CPU time a request is that of all
processes of the server; gen is the share of one CPU that the load generator used. Ratios to a
server, as medians of those of each round: x = requests a second (more is better), cpu = CPU time
a request (less is better)."""
LIMIT_NOTE = "* the generator was the limit: the server can do more; try --generators 2"


def report(results: Results) -> str:
    """Everything that a terminal shows at the end."""
    parts = [
        _loads(results) if results.loads else "",
        _scenes(results) if results.scenes else "",
        _growth(results) if results.growth else "",
        _servers(results) if results.servers else "",
        noise(results.undisturbed()),
        "\n".join(f"WORTHLESS: {fault}" for fault in results.faults()),
    ]
    return "\n\n".join(part for part in parts if part)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns of text, the first `left` of them flush left."""
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
    """A number with so many digits after the point, and a dash for none."""
    return "-" if value is None else f"{value:,.{digits}f}"


def ratio(value: float | None) -> str:
    """A ratio with about three digits that count."""
    return "-" if value is None else f"{value:.3g}" if value < 1 else f"{value:.2f}"


def _loads(results: Results) -> str:
    headings = ["load", "clients", "server", "requests/s", "p50", "p99", "p99.9", "CPU", "gen"]
    for base in results.bases:
        headings += [f"x {base}", "cpu"]
    rows = []
    limited = False
    for row in results.loads:
        if not row.rounds:
            continue
        middle = medians(row.rounds)
        limit = (middle["generator"] or 0.0) >= LIMIT_SHARE
        limited |= limit
        cells = [row.load, str(row.connections), row.server, number(middle["rate"])]
        cells += [number(middle[name]) for name in ("p50", "p99", "p99_9")]
        cells += [number(middle["server_cpu"], 1), _share(middle["generator"]) + " *"[limit]]
        for ratios in results.load_ratios(row).values():
            cells += [ratio(ratios["rate"]), ratio(ratios["server_cpu"])]
        rows.append(cells)
    notes = [LEGEND, LIMIT_NOTE] if limited else [LEGEND]
    return "\n".join([table(headings, rows, left=3), "", *notes])


def _scenes(results: Results) -> str:
    headings = ["seed while", "server", "p99 quiet", "p99 then", "ratio", "longest", "requests/s"]
    rows = [
        [
            row.scene,
            row.server,
            number(medians(row.quiet)["p99"]),
            number(medians(row.disturbed)["p99"]),
            ratio(tail_ratio(row)),
            number(longest(row.disturbed)),
            number(medians(row.disturbed)["rate"]),
        ]
        for row in results.scenes
        if row.disturbed
    ]
    return table(headings, rows, left=2)


def _growth(results: Results) -> str:
    base = growth_base([row.entries for row in results.growth])
    headings = ["entries", "server", "mta/s", f"x {base:,}", "CPU", "file MiB", "bytes/byte",
                "PSS MiB", "most"]  # fmt: skip
    rows = []
    at_base = {r.server: medians(r.rounds)["rate"] for r in results.growth if r.entries == base}
    for row in results.growth:
        middle = medians(row.rounds)
        rows.append(
            [
                f"{row.entries:,}",
                row.server,
                number(middle["rate"]),
                ratio(quotient(middle["rate"], at_base.get(row.server))),
                number(middle["server_cpu"], 1),
                number(row.file_bytes / MIB, 1),
                number(row.bytes_a_session_byte, 2),
                number(sum(row.memory) / MIB, 1),
                number(max(row.memory, default=0) / MIB, 1),
            ]
        )
    return table(headings, rows, left=2)


def growth_base(sizes: Sequence[int]) -> int:
    """The size with which others are compared: that of the loads, or else the smallest."""
    return KEYS if KEYS in sizes else min(sizes)


def _servers(results: Results) -> str:
    rows = [
        [
            note.name,
            note.file_system or "-",
            str(len(note.memory)),
            number(sum(note.memory) / MIB, 1),
            number(max(note.memory, default=0) / MIB, 1),
        ]
        for note in results.servers
    ]
    lines = [
        f"{note.name} logged {len(note.complaints)} warnings or worse, the first: "
        + note.complaints[0]
        for note in results.servers
        if note.complaints
    ]
    return "\n".join(
        [table(["server", "data on", "processes", "PSS MiB", "most"], rows, left=2), *lines]
    )


def noise(figures: Sequence[Figures]) -> str:
    """What else the machine did meanwhile."""
    others = [each.others for each in figures if each.others is not None]
    if not others:
        return ""
    text = (
        f"Others used {_share(median_of(others))} of the machine's CPU time"
        f" (median of {len(others)} runs), {_share(max(others))} at most"
    )
    doubtful = sum(share > NOISY for share in others)
    if not doubtful:
        return f"{text}."
    return f"{text}; in {doubtful} runs more than {_share(NOISY)}, which makes these doubtful."


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
