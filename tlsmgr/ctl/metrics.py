"""metrics - tlsmgrctl metrics: the status object for Prometheus

Prints once, writes a file once, or serves HTTP until a signal ends it, from this process and not
from the daemon. It needs prometheus_client, which is imported only here and in its neighbours.

The file is replaced by rename, so that node_exporter never reads half of it, and is in the classic
text format, the only one that node_exporter reads. When no daemon answers, the file says so, in
place of old figures, and the exit status is 1; a server says so too, and goes on.
"""

from __future__ import annotations

import argparse
import os
import stat
import sys
import tempfile
import time
from pathlib import Path

from tlsmgr.client import TlsmgrError
from tlsmgr.ctl.instance import add_options
from tlsmgr.ctl.metrics_address import Address, parse
from tlsmgr.ctl.status_fetch import fetcher
from tlsmgr.status_object import Status

SUMMARY = "metrics for Prometheus: print, write to a file, or serve"
DESCRIPTION = """\
Print the metrics in the OpenMetrics format, write them to a file for
node_exporter, or serve them to Prometheus by HTTP, at the path /metrics, until
interrupted.
"""
MODE = 0o644  # of the text file: node_exporter is another user
EXIT_OK, EXIT_FAILED = 0, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `tlsmgrctl metrics`."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_options(parser)
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--text", action="store_true", help="print the classic text format instead")
    ways.add_argument(
        "--textfile", metavar="FILE", type=Path, help="write that file, in the classic text format"
    )
    ways.add_argument(
        "--listen",
        metavar="ADDRESS",
        type=_address,
        help="serve HTTP on unix:PATH or inet:HOST:PORT",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run `tlsmgrctl metrics`; return the exit status. Raises TlsmgrError and OSError."""
    try:
        from prometheus_client import generate_latest
        from prometheus_client.openmetrics.exposition import generate_latest as generate_open

        from tlsmgr.ctl import metrics_http
        from tlsmgr.ctl.metrics_families import registry
    except ImportError:
        raise TlsmgrError(
            "metrics needs the Python package prometheus_client: pip install prometheus_client"
        ) from None
    fetch = fetcher(arguments)
    if arguments.listen is not None:
        metrics_http.serve(arguments.listen, fetch)
        return EXIT_OK
    problem: TlsmgrError | None = None
    status: Status | None = None
    try:
        status = fetch()
    except TlsmgrError as error:
        problem = error
    if arguments.textfile is not None:
        _replace(arguments.textfile, generate_latest(registry(status, time.time())))
    if problem is not None:
        raise problem
    if arguments.textfile is None:
        generate = generate_latest if arguments.text else generate_open
        sys.stdout.write(generate(registry(status, time.time())).decode())
    return EXIT_OK


def _replace(path: Path, content: bytes) -> None:
    """Put a file with this content in the place of that one, in one step."""
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):  # /dev/stdout
        raise TlsmgrError(f"cannot write {path}: not a regular file")
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with open(descriptor, "wb") as file:
                os.fchmod(descriptor, MODE)
                file.write(content)
            os.rename(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise TlsmgrError(f"cannot write {path}: {error.strerror}") from None


def _address(text: str) -> Address:
    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
