"""rotate - tlsmgrctl rotate: a new session ticket key from now on

The key before it opens its tickets for its time, and the one before that is forgotten.
"""

from __future__ import annotations

import argparse
import json

from tlsmgr.client import ProtocolError
from tlsmgr.client.control import ask
from tlsmgr.control_lines import RotateRequest
from tlsmgr.ctl.instance import add_options, socket_of

SUMMARY = "make a new session ticket key; the one before it still opens its tickets"
DESCRIPTION = """\
Make a new session ticket key, from now on the one for new tickets. The key
before it opens the tickets that it made, for its time; the one before that is
forgotten. smtpd(8) processes that have the old key go on with it until it is
due, or until they end.
"""
EXIT_OK = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tlsmgrctl rotate`."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Run `tlsmgrctl rotate`; return the exit status. Raises TlsmgrError."""
    (line,) = ask(socket_of(arguments), RotateRequest(), arguments.timeout)
    try:
        name = str(json.loads(line)["name"])
    except (ValueError, KeyError, TypeError):
        raise ProtocolError("the reply has no name of a key") from None
    print(line if arguments.json else f"the key for new tickets is now {name}")
    return EXIT_OK
