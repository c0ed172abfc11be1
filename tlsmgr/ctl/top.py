"""top - tlsmgrctl top: what the daemon does now, on the whole terminal

Asks for the status object again and again, and shows `top_view` of the last two. A daemon that does
not answer, or ends, is shown with the reason and asked again, so that `top` can be left running
over a reload. Nothing is drawn before the first answer, so that a first failure is a plain line.
Of packages it needs none, but the curses of Python's library, which some systems leave out.
"""

from __future__ import annotations

import argparse
import sys

from tlsmgr.client import TlsmgrError
from tlsmgr.ctl.instance import add_options
from tlsmgr.ctl.status_fetch import fetcher

SUMMARY = "a live view of requests, latencies, caches and workers"
DESCRIPTION = """\
Show what the tlsmgr does, refreshed each second: requests per second and their
latency since the last refresh, caches, ticket keys, and workers, the busiest
first. `q` ends it, any other key refreshes.
"""
PERIOD = 1.0  # seconds
EXIT_OK = 0


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
    try:
        from tlsmgr.ctl import top_screen
    except ImportError:
        raise TlsmgrError("top needs curses, which this Python lacks") from None
    fetch = fetcher(arguments)
    top_screen.show(fetch, fetch(), arguments.interval)
    return EXIT_OK


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.05 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"not a time from 0.05 to 3600 seconds: {text}")
    return seconds
