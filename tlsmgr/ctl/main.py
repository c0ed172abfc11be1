"""main - tlsmgrctl(1), the operator's command: ask a running tlsmgr by hand

Reads the command line, makes one request, prints the result on standard output. It promises one
line on standard error for whatever goes wrong, never a traceback, and the exit status below.
It needs no configuration: the socket's path is all that it must know of the server.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
import sys
from collections.abc import Sequence

from tlsmgr.client import DEFAULT_TIMEOUT, Client, TlsmgrError
from tlsmgr.ctl import report
from tlsmgr.ctl.requests import ARGUMENTS, REQUESTS, Request, Result

NAME = "tlsmgrctl"
EXIT_OK = 0
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130  # what a shell reports for SIGINT

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
  tlsmgrctl lookup smtp some-id --raw >session.der
  tlsmgrctl --socket /var/spool/postfix/private/tlsmgr policy smtpd

The last one asks the tlsmgr that runs under Postfix, and needs to be root.
A cache id that starts with a dash goes after `--`.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with those arguments (default: the process's); the exit status."""
    try:
        try:
            return _run(_parser().parse_args(argv))
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader has seen enough; nor must the flush at exit complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_FAILED
    except OSError as exc:
        return _fail(exc.strerror or str(exc))
    except TlsmgrError as exc:
        return _fail(str(exc))


def _run(arguments: argparse.Namespace) -> int:
    if arguments.request is None:
        return report.run(arguments)
    request: Request = arguments.request
    with Client(arguments.socket, arguments.timeout) as client:
        result = request.run(client, arguments)
    with open(1, "wb", closefd=False) as stdout:
        stdout.write(_printable(result, raw=request.binary and arguments.raw))
    return EXIT_OK


def _printable(result: Result, raw: bool) -> bytes:
    if isinstance(result, str):
        return result.encode()
    return result if raw else base64.b64encode(result) + b"\n"


def _fail(reason: str) -> int:
    print(f"{NAME}: {reason}", file=sys.stderr)
    return EXIT_FAILED


def default_socket() -> str:
    """Where scripts/tlsmgr-start listens: below $XDG_STATE_HOME, or ~/.local/state."""
    state = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):  # the XDG specification says to ignore such a value
        state = os.path.expanduser("~/.local/state")
    return os.path.join(state, "tlsmgr/private/tlsmgr")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=NAME,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_options(parser, default_socket(), DEFAULT_TIMEOUT)
    parser.set_defaults(request=None)
    requests = parser.add_subparsers(title="requests", metavar="REQUEST", required=True)
    for name, request in REQUESTS.items():
        _add_request(requests.add_parser(name, help=request.summary), request)
    report.add_arguments(requests.add_parser("report", help=report.SUMMARY))
    return parser


def _add_request(parser: argparse.ArgumentParser, request: Request) -> None:
    parser.description = f"{request.summary[0].upper()}{request.summary[1:]}. {request.notes}"
    parser.set_defaults(request=request)
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


def _add_options(parser: argparse.ArgumentParser, socket: str, timeout: float | str) -> None:
    """The options that are good before and after the request; only the former set defaults."""
    parser.add_argument(
        "--socket",
        metavar="PATH",
        default=socket,
        help=f"the server's UNIX-domain socket (default: {default_socket()})",
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
