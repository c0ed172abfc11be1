"""plot - the results as a picture. Needs matplotlib.

Loads: with one number of clients a row of panels with bars; with several, a row of panels for each
load with lines over the number of clients. Scenes and mail: a row with bars each. Growth: a row
with lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.figures import medians
from bench.results import Results, longest, tail_ratio
from bench.runs import LoadRow
from tlsmgr.log import Fatal

PANEL = (5.0, 2.8)  # inches
COLUMNS = 3
LOAD_METRICS = {
    "server_cpu": "server CPU, µs per request",
    "rate": "requests/s",
    "p99": "99th percentile, µs",
}
MAIL_METRICS = {
    "rate": "messages/s",
    "server_cpu": "tlsmgr CPU, µs per message",
    "longest": "longest delivery, µs",
}
LOGARITHMIC = ("p99",)
SHORTEST = 10  # microseconds: where logarithmic bars begin


class Bar(NamedTuple):
    """A value of a server in a group of bars."""

    group: str
    server: str
    value: float | None


class Point(NamedTuple):
    """A value of a server on its line."""

    x: int
    server: str
    value: float | None


Draw = Callable[[Any], None]
"""Draws one panel on its axes."""


def matplotlib_missing() -> str | None:
    """Return why no picture can be drawn; None if it can."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return "matplotlib is not installed (the extra `plot` has it)"
    return None


def plot(results: Results, path: Path) -> None:
    """Draw the picture; the name's suffix gives the format. Fatal if it cannot be written."""
    from matplotlib.figure import Figure

    panels = list(_panels(results))
    rows = max(1, -(-len(panels) // COLUMNS))
    figure = Figure(figsize=(PANEL[0] * COLUMNS, PANEL[1] * rows), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).flat
    for axis, draw in zip(axes, panels):
        draw(axis)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels) or 1)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise Fatal(f"cannot write {path}: {error}") from None


def _panels(results: Results) -> Iterator[Draw]:
    """Yield the function that draws each panel, COLUMNS of them for each row."""
    yield from _load_panels([row for row in results.loads if row.rounds])
    if scenes := [row for row in results.scenes if row.disturbed]:
        tails = [Bar(r.scene, r.server, medians(r.disturbed)["p99"]) for r in scenes]
        yield _bars("99th percentile of seed while, µs", tails, True)
        ratios = [Bar(r.scene, r.server, tail_ratio(r)) for r in scenes]
        yield _bars("ratio of p99 to the quiet server's", ratios, False)
        waits = [Bar(r.scene, r.server, longest(r.disturbed)) for r in scenes]
        yield _bars("longest wait, µs", waits, True)
    for metric, label in MAIL_METRICS.items() if results.mail else ():
        bars = [Bar(r.mail, r.server, medians(r.rounds, (metric,))[metric]) for r in results.mail]
        yield _bars(f"mail: {label}", bars, False)
    if results.growth:
        grown = [Point(r.entries, r.server, medians(r.rounds)["rate"]) for r in results.growth]
        yield _lines("mta requests/s, 64 clients, by entries", grown)
        sizes = [Point(r.entries, r.server, r.bytes_a_session_byte) for r in results.growth]
        yield _lines("file bytes per session byte, by entries", sizes)
        memory = [Point(r.entries, r.server, sum(r.memory) / (1 << 20)) for r in results.growth]
        yield _lines("PSS of all processes, MiB, by entries", memory)


def _load_panels(rows: Sequence[LoadRow]) -> Iterator[Draw]:
    counts = sorted({row.connections for row in rows})
    if len(counts) == 1:
        clients = f"{counts[0]} client{'s' * (counts[0] > 1)}"
        for metric, label in LOAD_METRICS.items():
            bars = [Bar(r.load, r.server, medians(r.rounds)[metric]) for r in rows]
            yield _bars(f"{label}, {clients}", bars, metric in LOGARITHMIC)
        return
    for load in dict.fromkeys(row.load for row in rows):
        for metric, label in LOAD_METRICS.items():
            points = [
                Point(r.connections, r.server, medians(r.rounds)[metric])
                for r in rows
                if r.load == load
            ]
            yield _lines(f"{load}: {label}, by clients", points, metric in LOGARITHMIC)


def _bars(title: str, bars: Sequence[Bar], logarithmic: bool) -> Draw:
    """Return what draws groups of bars, a bar for each server."""
    groups = list(dict.fromkeys(bar.group for bar in bars))
    servers = list(dict.fromkeys(bar.server for bar in bars))
    width = 0.8 / max(len(servers), 1)
    values = {(bar.group, bar.server): bar.value or 0.0 for bar in bars}

    def draw(axis: Any) -> None:
        for i, server in enumerate(servers):
            heights = [values.get((group, server), 0.0) for group in groups]
            places = [place + i * width for place in range(len(groups))]
            axis.bar(places, heights, width, label=server)
        middle = 0.4 - width / 2
        axis.set_xticks([place + middle for place in range(len(groups))], groups, fontsize=8)
        axis.set_title(title)
        if logarithmic:
            axis.set_yscale("log")
            axis.set_ylim(bottom=SHORTEST)

    return draw


def _lines(title: str, points: Sequence[Point], logarithmic: bool = False) -> Draw:
    """Return what draws a line for each server."""

    def draw(axis: Any) -> None:
        for server in dict.fromkeys(point.server for point in points):
            mine = [point for point in points if point.server == server]
            axis.plot([p.x for p in mine], [p.value for p in mine], "o-", label=server)
        axis.set_title(title)
        axis.set_xscale("log")
        if logarithmic:
            axis.set_yscale("log")
        else:
            axis.set_ylim(bottom=0)

    return draw
