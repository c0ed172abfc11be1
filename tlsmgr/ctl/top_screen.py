"""top_screen - the terminal of `tlsmgrctl top`: draws, waits for a key, draws again

Everything that needs curses. A terminal that is resized is drawn at once with the same figures. A
daemon that does not answer leaves the last figures on the screen, and a first line with the reason.
"""

from __future__ import annotations

import contextlib
import curses
import os
import time
from collections.abc import Callable

from tlsmgr.client import TlsmgrError
from tlsmgr.ctl import top_view
from tlsmgr.status_object import Status

QUIT = ("q", "Q", "\x1b")


def show(fetch: Callable[[], Status], first: Status, interval: float) -> None:
    """Show what `fetch` returns, until a key ends it. TlsmgrError: the terminal is unusable."""
    try:
        curses.setupterm()
        if curses.tigetstr("cup") is None:
            raise curses.error(f"{os.environ.get('TERM')} cannot move the cursor")
        curses.wrapper(_show, fetch, first, interval)
    except curses.error as error:
        raise TlsmgrError(f"this terminal cannot be used: {error}") from None


def _show(screen: curses.window, fetch: Callable[[], Status], now: Status, interval: float) -> None:
    """Draw until a key ends it. `screen` is the whole terminal."""
    with contextlib.suppress(curses.error):  # a terminal without colours
        curses.use_default_colors()
    with contextlib.suppress(curses.error):  # a terminal that always shows the cursor
        curses.curs_set(0)
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
