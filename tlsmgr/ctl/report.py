"""report - tlsmgrctl report: the TLS resumption rate in the mail log

Reads the files, counts the connections, prints tables or JSON, and draws the picture. It needs no
running tlsmgr and no Postfix, only the logs: those of another host are fine.

A file that cannot be read gives a warning, and the report has all the others. The exit status is
0; 1 after a warning or without a report.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tlsmgr.client import TlsmgrError
from tlsmgr.ctl import report_plot, report_view
from tlsmgr.ctl.log_files import LogFile, Problem, Progress
from tlsmgr.ctl.mail_log import Clock, MailLog
from tlsmgr.ctl.report_count import Counts
from tlsmgr.ctl.report_view import FileRead

SUMMARY = "the TLS resumption rate in the mail log"
DESCRIPTION = """\
Count the TLS connections in Postfix's log by service, hour, TLS version and
peer, and show which share of them resumed a session. The files may be
compressed by gzip, and come in any order; `-` is standard input. Needs no
running tlsmgr.
"""
TOP = 20
EXIT_OK, EXIT_FAILED = 0, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tlsmgrctl report`."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("logs", metavar="LOG", nargs="+", help="a file of the mail log, or -")
    parser.add_argument("--json", action="store_true", help="print one JSON object, no tables")
    parser.add_argument(
        "--plot",
        metavar="FILE",
        type=Path,
        help="also draw a picture; its type follows from the end of the name (.png, .svg, .pdf)",
    )
    parser.add_argument(
        "--top",
        metavar="N",
        type=_natural,
        default=TOP,
        help=f"the N busiest peers of each service, 0 for all (default: {TOP})",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run `tlsmgrctl report`; return the exit status. Raises TlsmgrError."""
    picture: Path | None = arguments.plot
    try:
        if picture is not None:
            report_plot.check(picture)
        counts, files = _read(arguments.logs)
        if all(file.problem is not None and not file.lines for file in files):
            raise Problem("no file of the log can be read")
        show = report_view.json_object if arguments.json else report_view.lines
        _print(show(counts, files, arguments.top))
        if picture is not None:
            report_plot.draw(counts, picture)
    except Problem as problem:
        raise TlsmgrError(str(problem)) from None
    return EXIT_FAILED if any(file.problem is not None for file in files) else EXIT_OK


def _print(shown: Sequence[str] | dict[str, object]) -> None:
    if isinstance(shown, dict):
        print(json.dumps(shown, indent=1))
    else:
        print("\n".join(shown))


def _read(names: Sequence[str]) -> tuple[Counts, list[FileRead]]:
    """Count the connections of these files, and warn of files that cannot be read."""
    found: list[LogFile] = []
    files: list[FileRead] = []
    for name in dict.fromkeys(names):
        try:
            found.append(LogFile(name))
        except Problem as problem:
            files.append(FileRead(name, 0, str(problem)))
    counts = Counts()
    found.sort(key=lambda file: file.written)  # a handshake's lines may be in two files
    files += _count(counts, found)
    for file in files:
        if file.problem is not None:
            print(f"tlsmgrctl: warning: {file.problem}", file=sys.stderr)
    return counts, files


def _count(counts: Counts, found: Sequence[LogFile]) -> list[FileRead]:
    """Count the connections of these files, and return how much of each was read."""
    files = []
    log, done = MailLog(), 0
    with Progress(sum(file.size for file in found), sys.stderr) as progress:
        for file in found:
            reason = None
            try:
                clock = Clock(file.newest)
                for lines in file.blocks():
                    counts.add(log.connections(lines, clock))
                    progress.update(done + file.position(), time.monotonic())
            except Problem as problem:
                reason = str(problem)
            done += file.size
            files.append(FileRead(file.name, file.lines, reason))
    return files


def _natural(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"not a number: {text}")
    return int(text)
