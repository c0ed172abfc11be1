"""plot - the results as a picture: bars for loads and scenes, lines for growth. Needs matplotlib.

One row of panels for each number of clients, one for the scenes, one for growth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.measure import medians
from bench.results import Results, longest, tail_ratio
from tlsmgr.log import Fatal

PANEL = (5.0, 2.8)  # inches
COLUMNS = 3
LOAD_METRICS = {
    "rate": "requests/s",
    "p99": "99th percentile, µs",
    "server_cpu": "server CPU, µs a request",
}
LOGARITHMIC = ("p99",)
SHORTEST = 10  # microseconds: where logarithmic bars begin


class Bar(NamedTuple):
    """A value of a server, in a group of bars that belong together."""

    group: str
    server: str
    value: float | None


Draw = Callable[[Any], None]
"""Draws one panel on its axes."""


def matplotlib_missing() -> str | None:
    """Why there can be no picture; None if there can."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return "matplotlib is not installed (the extra `bench` has it)"
    return None


def plot(results: Results, path: Path) -> None:
    """Draw the picture; its type follows from the name's end. Fatal: it can't be written."""
    from matplotlib.figure import Figure

    panels = list(_panels(results))
    lines = max(1, -(-len(panels) // COLUMNS))
    figure = Figure(figsize=(PANEL[0] * COLUMNS, PANEL[1] * lines), layout="constrained")
    axes = figure.subplots(lines, COLUMNS, squeeze=False).flat
    for axis, draw in zip(axes, panels):
        draw(axis)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels) or 1)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise Fatal(f"cannot write {path}: {error}") from None


def _panels(results: Results) -> Iterator[Draw]:
    """What draws each panel, line by line; COLUMNS of them in a line."""
    for count in dict.fromkeys(row.connections for row in results.loads):
        rows = [row for row in results.loads if row.connections == count and row.rounds]
        for metric, label in LOAD_METRICS.items():
            bars = [Bar(r.load, r.server, medians(r.rounds)[metric]) for r in rows]
            title = f"{label}, {count} client{'s' * (count > 1)}"
            yield _bars(title, bars, metric in LOGARITHMIC)
    if scenes := [row for row in results.scenes if row.disturbed]:
        tails = [Bar(r.scene, r.server, medians(r.disturbed)["p99"]) for r in scenes]
        yield _bars("99th percentile of seed while, µs", tails, True)
        ratios = [Bar(r.scene, r.server, tail_ratio(r)) for r in scenes]
        yield _bars("ratio to the quiet server", ratios, False)
        waits = [Bar(r.scene, r.server, longest(r.disturbed)) for r in scenes]
        yield _bars("longest wait, µs", waits, True)
    if results.growth:
        grown = [(r.entries, r.server, medians(r.rounds)["rate"]) for r in results.growth]
        yield _lines("mta requests/s, 64 clients, by entries", grown)
        sizes = [(r.entries, r.server, r.bytes_a_session_byte) for r in results.growth]
        yield _lines("file bytes a session byte, by entries", sizes)
        memory = [(r.entries, r.server, sum(r.memory) / (1 << 20)) for r in results.growth]
        yield _lines("PSS of all processes, MiB, by entries", memory)


def _bars(title: str, bars: Sequence[Bar], logarithmic: bool) -> Draw:
    """Groups of bars, a bar for each server."""
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


def _lines(title: str, points: Sequence[tuple[int, str, float | None]]) -> Draw:
    """A line for each server."""

    def draw(axis: Any) -> None:
        for server in dict.fromkeys(name for _, name, _ in points):
            mine = [(x, y) for x, name, y in points if name == server]
            axis.plot([x for x, _ in mine], [y for _, y in mine], "o-", label=server)
        axis.set_title(title)
        axis.set_xscale("log")
        axis.set_ylim(bottom=0)

    return draw
