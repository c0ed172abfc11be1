"""main - tlsmgrctl(1), the operator's command: ask a running tlsmgr by hand.

Reads the command line, makes one request, prints the result on standard output. Any failure is one
line on standard error, never a traceback. It needs no configuration file and no package: only the
path of the server's socket, which ``place`` finds.

Commands that are one request to the server are rows of REQUESTS in ``requests``. Each other command
is a file beside this one, and a row of COMMANDS.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from tlsmgr import __version__
from tlsmgr.client import DEFAULT_TIMEOUT, Client, TlsmgrError
from tlsmgr.ctl import farm, report
from tlsmgr.ctl.place import default_socket
from tlsmgr.ctl.requests import ARGUMENTS, REQUESTS, Request, Result

NAME = "tlsmgrctl"
EXIT_OK = 0
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130  # what a shell reports for SIGINT


class Command(NamedTuple):
    """A command that is not one request: its help line, its arguments, and what it does."""

    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


COMMANDS: Mapping[str, Command] = {
    "farm": Command(farm.SUMMARY, farm.add_arguments, farm.run),
    "report": Command(report.SUMMARY, report.add_arguments, report.run),
}

DESCRIPTION = """\
Ask a running tlsmgr, the TLS session cache and PRNG manager of Postfix, what the
mail system's programs ask it. One request, one answer on standard output; binary
answers in base64 with a newline, or as they are with --raw.
"""

EPILOG = """\
exit status:
  0    done
  1    there is no such session or key, or the request failed; the reason is on
       standard error
  2    wrong usage

examples:
  tlsmgrctl policy smtp
  tlsmgrctl seed 32
  tlsmgrctl update smtp some-id <session.der
  tlsmgrctl lookup --raw smtp some-id >session.der
  tlsmgrctl report /var/log/mail.log

A cache id that starts with a dash goes after `--`. Only root and the mail owner
can ask the tlsmgr that runs under Postfix.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (default: the process's); return the exit status."""
    try:
        try:
            return _run(_parser().parse_args(argv))
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader has gone; the flush at the end must not fail as well
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_FAILED
    except OSError as error:
        return _fail(error.strerror or str(error))
    except TlsmgrError as error:
        return _fail(str(error))


def _run(arguments: argparse.Namespace) -> int:
    run: Callable[[argparse.Namespace], int] = arguments.run
    return run(arguments)


def _ask(request: Request, arguments: argparse.Namespace) -> int:
    socket = arguments.socket or default_socket(os.environ)
    with Client(socket, arguments.timeout) as client:
        result = request.run(client, arguments)
    with open(1, "wb", closefd=False) as stdout:
        stdout.write(_printable(result, raw=request.binary and arguments.raw))
    return EXIT_OK


def _printable(result: Result, raw: bool) -> bytes:
    if isinstance(result, list):
        return "".join(f"{line}\n" for line in result).encode()
    return result if raw else base64.b64encode(result) + b"\n"


def _fail(reason: str) -> int:
    print(f"{NAME}: {reason}", file=sys.stderr)
    return EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=NAME,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_options(parser, None, DEFAULT_TIMEOUT)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="requests", metavar="REQUEST", required=True)
    for name, request in REQUESTS.items():
        _add_request(commands.add_parser(name, help=request.summary), request)
    for name, command in COMMANDS.items():
        child = commands.add_parser(name, help=command.summary)
        child.set_defaults(run=command.run)
        command.add_arguments(child)
    return parser


def _add_request(parser: argparse.ArgumentParser, request: Request) -> None:
    parser.description = f"{request.summary[0].upper()}{request.summary[1:]}. {request.notes}"
    parser.set_defaults(run=partial(_ask, request))
    for name in request.arguments:
        argument = ARGUMENTS[name]
        parser.add_argument(
            name.lower(),
            metavar=name,
            help=argument.help,
            type=argument.type,
            nargs="?" if argument.optional else None,
            default=argument.default,
        )
    if request.binary:
        parser.add_argument("--raw", action="store_true", help="print bytes, not base64")
    _add_options(parser, argparse.SUPPRESS, argparse.SUPPRESS)


def _add_options(parser: argparse.ArgumentParser, socket: str | None, timeout: float | str) -> None:
    """Add the options that may stand before or after the request; those before have defaults."""
    parser.add_argument(
        "--socket",
        metavar="PATH",
        default=socket,
        help="the server's UNIX-domain socket (default: that of the Postfix that has this program"
        " enabled, else that of tlsmgr-start)",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=timeout,
        help=f"give up after that time (default: {DEFAULT_TIMEOUT:g})",
    )


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if (seconds := float(text)) > 0:
            return seconds
    raise argparse.ArgumentTypeError(f"not a time in seconds, more than 0: {text}")


if __name__ == "__main__":
    sys.exit(main())
