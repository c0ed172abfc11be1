"""top - tlsmgrctl top: what the daemon does now, on the whole terminal

Asks for the status object again and again, and shows `top_view` of the last two. A daemon that does
not answer, or ends, is shown with the reason and asked again, so that `top` can be left running
over a reload. Keys: `q` ends it, any other key refreshes. Only the curses of Python's library are
needed; nothing is drawn before the first answer, so that a first failure is a plain line.
"""

from __future__ import annotations

import argparse
import curses
import sys
import time
from collections.abc import Callable

from tlsmgr.client import TlsmgrError
from tlsmgr.ctl import top_view
from tlsmgr.ctl.place import add_options
from tlsmgr.ctl.status_fetch import fetcher
from tlsmgr.status_object import Status

SUMMARY = "a live view of requests, latencies, caches and workers"
DESCRIPTION = """\
Show what the tlsmgr does, refreshed each second: requests per second and their
latency since the last refresh, caches, ticket keys, and workers, the busiest first.
`q` ends it, any other key refreshes.
"""
PERIOD = 1.0  # seconds
QUIT = ("q", "Q", "\x1b")
EXIT_OK, EXIT_FAILED = 0, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tlsmgrctl top`."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_options(parser)
    parser.add_argument(
        "--interval",
        metavar="SECONDS",
        type=_seconds,
        default=PERIOD,
        help=f"refresh that often (default: {PERIOD:g})",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run `tlsmgrctl top` until a key ends it; return the exit status."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise TlsmgrError("top needs a terminal; `tlsmgrctl status` prints the same once")
    fetch = fetcher(arguments)
    first = fetch()
    try:
        curses.wrapper(_show, fetch, first, arguments.interval)
    except curses.error as error:
        raise TlsmgrError(f"this terminal cannot be used: {error}") from None
    return EXIT_OK


def _show(screen: curses.window, fetch: Callable[[], Status], now: Status, interval: float) -> None:
    """Draw until a key ends it. `screen` is the whole terminal."""
    curses.use_default_colors()
    _hide_cursor()
    before, problem = None, ""
    while True:
        _draw(screen, before, now, problem)
        if _wait(screen, before, now, problem, interval):
            return
        try:
            latest = fetch()
        except (TlsmgrError, OSError) as error:
            problem = str(error)
        else:
            before, now, problem = now, latest, ""


def _wait(
    screen: curses.window, before: Status | None, now: Status, problem: str, interval: float
) -> bool:
    """Wait for the next refresh, drawing again at a new size. Return whether a key ends it."""
    until = time.monotonic() + interval
    while (left := until - time.monotonic()) > 0:
        screen.timeout(max(1, int(left * 1000)))
        try:
            key = screen.get_wch()
        except curses.error:  # no key in that time
            return False
        if key in QUIT:
            return True
        if key != curses.KEY_RESIZE:
            return False
        curses.update_lines_cols()
        _draw(screen, before, now, problem)
    return False


def _draw(screen: curses.window, before: Status | None, now: Status, problem: str) -> None:
    height, width = screen.getmaxyx()
    lines = top_view.lines(before, now, width, height)
    if problem:
        notice = f"no answer, trying again: {problem}"
        lines = [*top_view.fitted([notice], width, height), *lines[1:]]
    screen.erase()
    for row, line in enumerate(lines):
        style = curses.A_REVERSE if row == 0 else curses.A_NORMAL
        text = line.ljust(width) if row == 0 else line
        # insstr() can write into the last cell of the screen, where addstr() fails.
        screen.insstr(row, 0, text, style)
    screen.refresh()


def _hide_cursor() -> None:
    try:
        curses.curs_set(0)
    except curses.error:
        return  # a terminal that always shows it


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.05 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"not a time from 0.05 to 3600 seconds: {text}")
    return seconds
