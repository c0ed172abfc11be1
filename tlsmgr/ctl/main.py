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
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from tlsmgr import __version__
from tlsmgr.client import Client, TlsmgrError
from tlsmgr.ctl import check, farm, metrics, report, rotate, sessions, status, top
from tlsmgr.ctl.instance import add_options, socket_of
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
    "status": Command(status.SUMMARY, status.add_arguments, status.run),
    "list": Command(sessions.LIST, sessions.add_list_arguments, sessions.run_list),
    "drop": Command(sessions.DROP, sessions.add_drop_arguments, sessions.run_drop),
    "rotate": Command(rotate.SUMMARY, rotate.add_arguments, rotate.run),
    "top": Command(top.SUMMARY, top.add_arguments, top.run),
    "metrics": Command(metrics.SUMMARY, metrics.add_arguments, metrics.run),
    "check": Command(check.SUMMARY, check.add_arguments, check.run),
    "farm": Command(farm.SUMMARY, farm.add_arguments, farm.run),
    "report": Command(report.SUMMARY, report.add_arguments, report.run),
}

DEFAULT_COMMAND = "status"

DESCRIPTION = """\
Show and steer a running tlsmgr, the TLS session cache and PRNG manager of
Postfix, or ask it what the mail system's programs ask it: seed, policy,
lookup, update, delete, tktkey. Binary answers are in base64 with a newline, or
as they are with --raw. Without a command it is `tlsmgrctl status`.
"""

EPILOG = """\
exit status:
  0    done
  1    there is no such session or key, the request failed, status found the
       daemon degraded or not there, check has findings, or report could not
       read a file; the reason of a failure is on standard error
  2    wrong usage
  130  interrupted

examples:
  tlsmgrctl
  tlsmgrctl list smtp --match example.com
  tlsmgrctl check
  tlsmgrctl policy smtp
  tlsmgrctl seed 32
  tlsmgrctl update smtp some-id <session.der
  tlsmgrctl lookup --raw smtp some-id >session.der
  tlsmgrctl report /var/log/mail.log

A cache id that starts with a dash goes after `--`. Only root and the mail
owner can ask the tlsmgr that runs under Postfix.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (default: the process's); return the exit status."""
    _replace_closed_streams()
    try:
        try:
            return _run(parse(sys.argv[1:] if argv is None else argv))
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader has gone
        _drop_output()
        return EXIT_FAILED
    except OSError as error:
        _drop_output()
        return _fail(error.strerror or str(error))
    except TlsmgrError as error:
        return _fail(str(error))


def _drop_output() -> None:
    """Have what was printed and not written go nowhere: the flush at exit must not fail as well."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _replace_closed_streams() -> None:
    """Take the number of a standard descriptor that is closed, so that no connection gets it.

    To read from it, or to print, fails as on a closed descriptor. Complaints are lost.
    """
    if sys.stdin is None:
        sys.stdin = os.fdopen(os.open(os.devnull, os.O_WRONLY), closefd=False)
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", closefd=False)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments; without a command those of the default one."""
    parser = command_line()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        arguments = parser.parse_args([*argv, DEFAULT_COMMAND])
    return arguments


def _run(arguments: argparse.Namespace) -> int:
    run: Callable[[argparse.Namespace], int] = arguments.run
    return run(arguments)


def _ask(request: Request, arguments: argparse.Namespace) -> int:
    with Client(socket_of(arguments), arguments.timeout) as client:
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


def command_line() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=NAME,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser, are_defaults=True)
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
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
    add_options(parser)


if __name__ == "__main__":
    sys.exit(main())
