"""instance - which tlsmgr the commands of tlsmgrctl ask: its socket and its configuration directory

`--socket` names the socket, `-c` the configuration directory. With neither, the Postfix of this
machine that has this program enabled comes first, of several instances the first in Postfix's
order, then scripts/tlsmgr-start, then the systemd service. A caller who may not enter Postfix's
private directory gets the socket of one of these if there is one, and else Postfix's, for an error
that names the directory. A Postfix that is missing, broken or uses its own tlsmgr is then no error.

A directory with a master.cf is Postfix's, any other one that of `tlsmgr-start -c`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import subprocess
from collections.abc import Mapping
from typing import NamedTuple

from tlsmgr.client import DEFAULT_TIMEOUT, TlsmgrError
from tlsmgr.config.load import load, state_directory
from tlsmgr.install.instance import SEARCH_PATH
from tlsmgr.install.launcher import NAME as COMMAND  # of the tlsmgr service in master.cf
from tlsmgr.log import Fatal

SERVICE_SOCKET = "/run/tlsmgr/tlsmgr"  # of the unit tlsmgr.socket
TIME_LIMIT = 10.0  # seconds for one postconf(1), which takes a hundredth


class Instance(NamedTuple):
    """A tlsmgr: where it listens, and where main.cf and tlsmgr.cf are; "" for no such directory."""

    socket: str
    directory: str
    is_postfix: bool


def add_options(parser: argparse.ArgumentParser, *, are_defaults: bool = False) -> None:
    """Add the options that say which tlsmgr; those of tlsmgrctl itself have the defaults."""
    parser.add_argument(
        "-c",
        dest="directory",
        metavar="CONFIG_DIR",
        default=None if are_defaults else argparse.SUPPRESS,
        help="the configuration directory of the tlsmgr (default: that of the Postfix that has"
        " this program enabled, else of tlsmgr-start or of the systemd service)",
    )
    parser.add_argument(
        "--socket",
        metavar="PATH",
        default=None if are_defaults else argparse.SUPPRESS,
        help="the server's UNIX-domain socket (default: that of CONFIG_DIR)",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=DEFAULT_TIMEOUT if are_defaults else argparse.SUPPRESS,
        help=f"give up after that time (default: {DEFAULT_TIMEOUT:g})",
    )


def socket_of(arguments: argparse.Namespace) -> str:
    """Return the path of the socket that these options mean. TlsmgrError: there is none."""
    return arguments.socket or find(os.environ, arguments.directory).socket


def find(environment: Mapping[str, str], directory: str | None = None) -> Instance:
    """Return the tlsmgr of that directory, or the default one. TlsmgrError: there is none."""
    if directory is not None:
        return _in_directory(environment, os.path.abspath(directory))
    others = (standalone(environment), Instance(SERVICE_SOCKET, "", False))
    present = next((other for other in others if os.path.exists(other.socket)), None)
    postfix = enabled_postfix(environment)
    if postfix is None:
        return present or others[0]
    may_enter = os.access(os.path.dirname(postfix.socket), os.X_OK)
    return postfix if may_enter or present is None else present


def standalone(environment: Mapping[str, str]) -> Instance:
    """Return where tlsmgr-start listens: below $XDG_STATE_HOME, or ~/.local/state."""
    return Instance(f"{state_directory(environment)}/private/tlsmgr", "", False)


def enabled_postfix(environment: Mapping[str, str]) -> Instance | None:
    """Return the Postfix that has this program enabled, None if there is none."""
    found = _postconf(
        environment, "-x", "-h", "config_directory", "multi_instance_directories"
    )  # the second line is empty without further instances
    default, *others = [*found[:1], *(word for line in found[1:] for word in line.split())] or [""]
    for directory in (default, *(other for other in others if other != default)):
        postfix = _postfix(environment, directory) if directory else None
        if postfix is not None and _command(environment, postfix) == COMMAND:
            return postfix
    return None


def any_postfix(environment: Mapping[str, str]) -> Instance | None:
    """Return the default Postfix of this machine, whichever tlsmgr it uses; None without one."""
    found = _postconf(environment, "-h", "config_directory")
    return _postfix(environment, found[0]) if found else None


def _in_directory(environment: Mapping[str, str], directory: str) -> Instance:
    if not os.path.isdir(directory):
        raise TlsmgrError(f"-c {directory}: not a directory")
    if os.path.lexists(f"{directory}/master.cf"):
        postfix = _postfix(environment, directory)
        if postfix is None:
            cause = f"`postconf -c {shlex.quote(directory)} -x` shows why"
            raise TlsmgrError(f"-c {directory}: postconf cannot read this configuration; {cause}")
        return postfix
    try:
        defaults = {"queue_directory": state_directory(environment)}
        conf = load(directory, _ignore, _ignore, defaults=defaults, optional=True)
    except Fatal as error:
        raise TlsmgrError(f"-c {directory}: {error.text}") from None
    return Instance(f"{conf.text('queue_directory')}/private/tlsmgr", directory, False)


def _postfix(environment: Mapping[str, str], directory: str) -> Instance | None:
    """Return the Postfix with that directory, whichever tlsmgr it uses; None without postconf."""
    names = ("queue_directory", "tlsmgr_service_name")
    found = _postconf(environment, "-c", directory, "-x", "-h", *names)
    if len(found) != len(names):
        return None
    return Instance(f"{found[0]}/private/{found[1]}", directory, True)


def _command(environment: Mapping[str, str], postfix: Instance) -> str:
    """Return the command of the tlsmgr service in master.cf, "" when there is none."""
    field = f"{os.path.basename(postfix.socket)}/unix/command"
    found = _postconf(environment, "-c", postfix.directory, "-F", "-h", field)
    return found[0].partition(" ")[0] if found else ""


def _postconf(environment: Mapping[str, str], *arguments: str) -> list[str]:
    """Return the output of postconf(1) as lines, none when it fails."""
    kept = {name: environment[name] for name in ("MAIL_CONFIG",) if name in environment}
    path = f"{environment.get('PATH', '')}:{SEARCH_PATH}"
    try:
        run = subprocess.run(
            ["postconf", *arguments],
            env={"PATH": path, "LANG": "C", **kept},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIME_LIMIT,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return os.fsdecode(run.stdout).splitlines() if run.returncode == 0 else []


def _ignore(_warning: str) -> None:
    """Drop a warning about the configuration: the daemon logs it, and `check` shows it."""


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if (seconds := float(text)) > 0:
            return seconds
    raise argparse.ArgumentTypeError(f"not a time in seconds, more than 0: {text}")
