"""sessions - tlsmgrctl list and drop: the sessions of a cache, shown and forgotten

A session is shown as soon as the daemon has found it. Of a cache id, printable characters are shown
as they are, and `%XX` for any other byte, for space and for per cent; TEXT is written in the same
way, so that what is shown can be copied. Other characters in TEXT stand for their own bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from tlsmgr.client import ProtocolError
from tlsmgr.client.control import ask
from tlsmgr.config.parameters import CACHE_TYPES
from tlsmgr.control_lines import BadLine, DropRequest, ListRequest, read_id
from tlsmgr.ctl.instance import add_options, socket_of
from tlsmgr.ctl.quantities import span

LIST = "the sessions of a cache: age, size, protocol and cache id"
DROP = "make a cache forget sessions, and say how many"
LIST_DESCRIPTION = """\
List the sessions of a cache: age, bytes, protocol, and cache id, which
contains the destination of an outbound session. The cache id that was stored
first comes first.
"""
DROP_DESCRIPTION = """\
Make a cache forget the sessions with TEXT in their cache ids, or all sessions.
The next connection to such a destination does a full handshake.
"""
MATCH = "with this in their cache id; %%XX stands for a byte, as ids are shown"
FLUSH_INTERVAL = 0.1  # seconds that a line may wait for others
EXIT_OK = 0


def add_list_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tlsmgrctl list`."""
    _add_arguments(parser, LIST_DESCRIPTION)
    parser.add_argument("--match", metavar="TEXT", type=_part, help=f"only sessions {MATCH}")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")


def add_drop_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tlsmgrctl drop`."""
    _add_arguments(parser, DROP_DESCRIPTION)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--match", metavar="TEXT", type=_some_part, help=f"sessions {MATCH}")
    which.add_argument("--all", action="store_true", help="all sessions of the cache")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _add_arguments(parser: argparse.ArgumentParser, description: str) -> None:
    parser.description = description
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_options(parser)
    parser.add_argument("type", metavar="TYPE", choices=CACHE_TYPES, help="smtpd, smtp or lmtp")


def run_list(arguments: argparse.Namespace) -> int:
    """Run `tlsmgrctl list`; return the exit status. Raises TlsmgrError."""
    request = ListRequest(arguments.type, arguments.match)
    shown = 0.0
    for line in _read_ahead(ask(socket_of(arguments), request, arguments.timeout)):
        print(printable(line) if arguments.json else _described(line))
        if time.monotonic() - shown > FLUSH_INTERVAL:
            sys.stdout.flush()
            shown = time.monotonic()
    return EXIT_OK


def _read_ahead(lines: Iterator[str]) -> Iterator[str]:
    """Yield the lines. They are read without a pause: the daemon waits for no slow reader."""
    ready: queue.SimpleQueue[str | Exception | None] = queue.SimpleQueue()

    def read() -> None:
        try:
            for line in lines:
                ready.put(line)
        except Exception as error:
            ready.put(error)
        else:
            ready.put(None)

    threading.Thread(target=read, daemon=True).start()
    while (line := ready.get()) is not None:
        if isinstance(line, Exception):
            raise line
        yield line


def run_drop(arguments: argparse.Namespace) -> int:
    """Run `tlsmgrctl drop`; return the exit status. Raises TlsmgrError."""
    request = DropRequest(arguments.type, None if arguments.all else arguments.match)
    for line in ask(socket_of(arguments), request, arguments.timeout):
        count = _read(line).get("dropped")
        text = f"{count} {arguments.type} {'session' if count == 1 else 'sessions'} dropped"
        print(printable(line if arguments.json else text))
    return EXIT_OK


def _described(line: str) -> str:
    row = _read(line)
    try:
        age, size, cache_id = int(row["age_seconds"]), int(row["bytes"]), str(row["id"])
    except (KeyError, TypeError, ValueError):
        raise ProtocolError("a line of the reply is no session") from None
    protocol = str(row.get("protocol") or "-")
    return printable(f"{span(age):>8} {size:>6} {protocol:<7} {cache_id}")


def _read(line: str) -> dict[str, Any]:
    """Return the object in a line of the reply."""
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ProtocolError("a line of the reply is no JSON object")
    return value


def printable(text: str) -> str:
    """Return the text with `?` for what a terminal might obey."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _part(text: str) -> bytes:
    try:
        return read_id(os.fsencode(text))
    except BadLine as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _some_part(text: str) -> bytes:
    if not text:
        raise argparse.ArgumentTypeError("empty; --all stands for all sessions")
    return _part(text)
