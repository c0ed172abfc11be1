"""report_plot - the picture of a report: rates of the services over time, and their connections

The first panel has the resumption rate of each service by hour. Below it each service has a panel
with its connections by hour: resumed, full, unknown. All panels share the time axis. It needs
matplotlib, which is imported only here and only for a picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from tlsmgr.ctl.log_files import Problem
from tlsmgr.ctl.mail_log import Outcome
from tlsmgr.ctl.report_count import Counts, Tally

SERVICES = 5  # panels, for the busiest services
WIDTH, RATE_HEIGHT, COUNT_HEIGHT = 11.0, 3.4, 2.1  # inches
DOTS = 150  # an inch
MARKED = 72  # hours; of more the rates are lines without marks
HOUR = timedelta(hours=1)
COLOURS = {  # differ in grey, too
    Outcome.RESUMED: "#1f6f8b",
    Outcome.FULL: "#f2a65a",
    Outcome.UNKNOWN: "#cccccc",
}
LINES = ("#222222", "#b5446e", "#4c9f38", "#6a4c93", "#8d6e34")
NAN = float("nan")
_EMPTY = Tally()


class Point(NamedTuple):
    """A service's connections in the hour that begins then."""

    hour: datetime
    tally: Tally


def check(path: Path) -> None:
    """Problem: there can be no such picture."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise Problem(
            "--plot needs the Python package matplotlib: pip install matplotlib"
        ) from None
    kinds = Figure().canvas.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in kinds:
        raise Problem(f"{path}: the name must end in one of: .{', .'.join(sorted(kinds))}")


def draw(counts: Counts, path: Path) -> None:
    """Draw the picture. Problem: it cannot be written."""
    from matplotlib.figure import Figure

    series = series_of(counts)
    height = RATE_HEIGHT + COUNT_HEIGHT * len(series)
    figure = Figure(figsize=(WIDTH, height), dpi=DOTS, layout="constrained")
    ratios = [RATE_HEIGHT] + [COUNT_HEIGHT] * len(series)
    panels = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)
    rates, *volumes = panels[:, 0]
    _draw_rates(rates, series)
    for axis, (service, points) in zip(volumes, series.items()):
        _draw_counts(axis, service, points)
    if volumes:
        _legend(volumes[0])
        _time_axis(volumes[-1], next(iter(series.values()))[0].hour)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise Problem(f"cannot write {path}: {reason}") from None


def series_of(counts: Counts) -> Mapping[str, Sequence[Point]]:
    """Return the points of the busiest services; an empty hour ends each run of hours."""
    series: dict[str, list[Point]] = {name: [] for name in list(counts.services)[:SERVICES]}
    for (hour, service), tally in counts.hours.items():
        if service in series:
            series[service].append(Point(hour, tally))
    return {service: list(_with_gaps(points)) for service, points in series.items()}


def _with_gaps(points: Sequence[Point]) -> Iterator[Point]:
    for point, following in zip(points, [*points[1:], None]):
        yield point
        end = point.hour + HOUR
        if following is None or following.hour > end:
            yield Point(end, _EMPTY)


def _draw_rates(axis: Any, series: Mapping[str, Sequence[Point]]) -> None:
    longest = max((len(points) for points in series.values()), default=0)
    style = "o-" if longest <= MARKED else "-"
    for (service, points), colour in zip(series.items(), LINES):
        percents = [NAN if tally.rate is None else 100 * tally.rate for _, tally in points]
        middles = [point.hour + HOUR / 2 for point in points]
        axis.plot(
            middles, percents, style, color=colour, markersize=4, linewidth=1.8, label=service
        )
    axis.set_ylim(-2, 102)
    axis.set_ylabel("resumed, %")
    axis.set_title("TLS session resumption by hour", loc="left", fontweight="bold")
    axis.grid(alpha=0.3)
    if series:
        _legend(axis)
    else:
        axis.text(0.5, 0.5, "no TLS connection in the log", transform=axis.transAxes, ha="center")


def _draw_counts(axis: Any, service: str, points: Sequence[Point]) -> None:
    hours = [point.hour for point in points]
    floor = [0] * len(points)
    for outcome, colour in COLOURS.items():
        top = [low + point.tally[outcome] for low, point in zip(floor, points)]
        label = outcome.name.lower()
        axis.fill_between(hours, floor, top, step="post", color=colour, linewidth=0, label=label)
        floor = top
    axis.set_ylim(bottom=0)
    axis.set_ylabel("connections")
    _plain([axis.set_title(f"{service}, connections by hour", loc="left", fontsize=10)])
    axis.grid(alpha=0.3)
    axis.margins(x=0.01)


def _legend(axis: Any) -> None:
    """Put the legend to the right of the panel, where it hides nothing."""
    legend = axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    _plain(legend.get_texts())


def _time_axis(axis: Any, first: datetime) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(tz=first.tzinfo)
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=first.tzinfo))
    axis.set_xlabel(f"time, {first.tzinfo}")


def _plain(texts: Sequence[Any]) -> None:
    """Show names as they are: a dollar sign begins no formula."""
    for text in texts:
        text.set_parse_math(False)
