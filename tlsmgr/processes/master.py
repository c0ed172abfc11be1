"""master - the interface of master(8): options, descriptors, generation, status messages.

master(8) starts the parent with its options in argv, a status channel on descriptor 5, listening
sockets from 6 on, and the generation in the environment. It gets TAKEN and AVAIL once, with the
parent's pid, when the workers serve: a service that dies before it sent them is not started again
for a minute. The status channel closes at a reload, at a stop, and when master dies.

Only the parent runs this, before it has workers, and ``notify`` once. Options that master never
gives are fatal, with Postfix's texts (multi_server.c, master_proto.h).
"""

from __future__ import annotations

import contextlib
import getopt
import os
import re
import socket
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tlsmgr import log
from tlsmgr.log import Fatal

STATUS_FD = 5  # master_proto.h: MASTER_STATUS_FD
LISTEN_FD = 6  # MASTER_LISTEN_FD, and the following
FLOW_FDS = (3, 4)  # MASTER_FLOW_READ, MASTER_FLOW_WRITE: not for us
TAKEN, AVAIL = 0, 1
LAST_GENERATION = 0xFFFFFFFF  # an unsigned int
TRANSPORTS = ("inet", "unix", "pass")

_STATUS = struct.Struct("=iIi")  # struct MASTER_STATUS: pid, generation, availability
_GETOPT = "cdDi:lm:n:o:s:St:uvVz"


@dataclass(frozen=True)
class Options:
    """The generic options of a Postfix daemon, as given."""

    chroot: bool = False  # -c
    attached: bool = False  # -d: standard input may be a terminal
    debug: bool = False  # -D: run debugger_command
    single: bool = False  # -l: process limit 1
    service_name: str = "tlsmgr"  # -n
    overrides: tuple[str, ...] = ()  # -o, and what -i and -m set
    sockets: int = 1  # -s
    on_stdin: bool = False  # -S: one request on standard input
    transport: str | None = None  # -t
    unprivileged: bool = False  # -u: become mail_owner
    verbose: int = 0  # -v
    to_stderr: bool = False  # -V
    unlimited: bool = False  # -z: process limit 0
    words: tuple[str, ...] = ()  # what is left


_FLAGS: Mapping[str, str] = {
    "-c": "chroot",
    "-d": "attached",
    "-D": "debug",
    "-l": "single",
    "-S": "on_stdin",
    "-u": "unprivileged",
    "-V": "to_stderr",
    "-z": "unlimited",
}
_TEXTS: Mapping[str, str] = {"-n": "service_name", "-t": "transport"}
_OVERRIDES: Mapping[str, str] = {"-i": "max_idle=", "-m": "max_use=", "-o": ""}


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> Options:
    """Return the options in argv, without argv[0]. MAIL_VERBOSE and MAIL_DEBUG are -v and -D."""
    try:
        pairs, words = getopt.getopt(list(arguments), _GETOPT)
    except getopt.GetoptError as error:
        raise Fatal(f"invalid option: {error.opt}") from None
    found: dict[str, Any] = {
        "debug": "MAIL_DEBUG" in environment,
        "verbose": int("MAIL_VERBOSE" in environment),
        "words": tuple(words),
    }
    for name, value in pairs:
        _take(found, name, value)
    return Options(**found)


def _take(found: dict[str, Any], name: str, value: str) -> None:
    if name in _FLAGS:
        found[_FLAGS[name]] = True
    elif name in _TEXTS:
        found[_TEXTS[name]] = value
    elif name in _OVERRIDES:
        found["overrides"] = (*found.get("overrides", ()), _OVERRIDES[name] + value)
    elif name == "-s":
        found["sockets"] = _socket_count(value)
    else:
        found["verbose"] += 1  # -v


def _socket_count(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) == 0:
        raise Fatal(f"invalid socket_count: {text}")
    return int(text)


def check(options: Options) -> None:
    """Check the rules for a service that master starts; they do not hold with -S. Raises Fatal."""
    if options.words:
        raise Fatal(f"unexpected command-line argument: {options.words[0]}")
    if options.on_stdin:
        return
    if not options.single:
        raise Fatal(f"service {options.service_name} requires a process limit of 1")
    if options.transport is None:
        raise Fatal("no transport type specified")
    if options.transport.lower() not in TRANSPORTS:
        raise Fatal(f"unsupported transport type: {options.transport}")


def refuse_terminal(options: Options, process_name: str) -> None:
    """Raise Fatal, and print it as well, when standard input is a terminal: a person started us."""
    if not (options.on_stdin or options.attached) and os.isatty(0):
        refusal = "do not run this command by hand"  # multi_server.c
        if not options.to_stderr:
            print(f"{process_name}: fatal: {refusal}", file=sys.stderr)
        raise Fatal(refusal)


def generation(environment: Mapping[str, str]) -> int:
    """Return the spawn counter that master put, in octal, into the environment."""
    text = environment.get("GENERATION", "0")
    if not re.fullmatch("[0-7]+", text) or int(text, 8) > LAST_GENERATION:
        raise Fatal(f"bad generation: {text}")
    return int(text, 8)


def run_debugger(command: str) -> None:
    """Run the command of the -D option (Postfix debug_process.c)."""
    if not command:
        raise Fatal("no debugger_command variable set up")
    log.info(f"running: {command}")
    os.system(command)


def take_descriptors(count: int) -> tuple[socket.socket, ...]:
    """Return the listening sockets. No program that is run inherits master's descriptors."""
    for descriptor in FLOW_FDS:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    try:
        os.set_inheritable(STATUS_FD, False)
        listeners = tuple(socket.socket(fileno=LISTEN_FD + i) for i in range(count))
        for listener in listeners:
            listener.setblocking(False)
            listener.set_inheritable(False)
    except OSError as error:
        raise Fatal(
            f"missing listen or status descriptor (not started by master(8)?): {error.strerror}"
        ) from None
    return listeners


def notifier(own_generation: int) -> Callable[[], None]:
    """Return the function to call when the workers serve: it sends master TAKEN and AVAIL."""

    def notify() -> None:
        for availability in (TAKEN, AVAIL):
            with contextlib.suppress(OSError):  # master is gone: the channel says so, too
                os.write(STATUS_FD, _STATUS.pack(os.getpid(), own_generation, availability))

    return notify
