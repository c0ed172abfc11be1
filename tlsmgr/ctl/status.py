"""status - tlsmgrctl status: what the daemon is, has and did, once

Exit status: 0 when it serves all that is configured; 1 when it is degraded, or not there. The
reasons are on standard error, so that a script that only looks at the exit status can log them.
With `--json` the object is printed as the daemon sent it, with fields that this program may not
know.
"""

from __future__ import annotations

import argparse
import sys

from tlsmgr.ctl import status_view
from tlsmgr.ctl.instance import add_options, socket_of
from tlsmgr.ctl.status_fetch import fetch_text, read
from tlsmgr.status_object import SERVING

SUMMARY = "what the daemon is, has and did; exit status 1 if it is degraded or not there"
DESCRIPTION = """\
Show the state of the tlsmgr: uptime, workers, caches, ticket keys, random
number generator, and requests with their latency since its start. The exit
status is 0 if it serves all that is configured, else 1, with the reason on
standard error.
"""
EXIT_OK, EXIT_FAILED = 0, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tlsmgrctl status`."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Run `tlsmgrctl status`; return the exit status. Raises TlsmgrError."""
    text = fetch_text(socket_of(arguments), arguments.timeout)
    status = read(text)
    print(text if arguments.json else "\n".join(status_view.lines(status)))
    if status.state == SERVING:
        return EXIT_OK
    for reason in status.reasons or (f"its state is {status.state}",):
        print(f"tlsmgrctl: {reason}", file=sys.stderr)
    return EXIT_FAILED
