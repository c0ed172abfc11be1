"""tlsmgr-postfix enable | disable | status: which tlsmgr a Postfix instance uses.

Each change is a line on standard output. The order of steps is such that Postfix works after each
of them, and what was done is undone when a later one fails, is interrupted, or leaves Postfix with
a tlsmgr that does not answer: first the launcher, then its trial, then master.cf, then the reload,
then a request to the one that runs.

Exit status: 0 when done, or when it was so before; 1 with one ``fatal:`` line on standard error;
64 for a mistake on the command line. ``status``: 0 when ours is enabled, 1 when not.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice

from tlsmgr.install import change, trial
from tlsmgr.install.change import say
from tlsmgr.install.instance import STOCK, Instance, Service
from tlsmgr.install.launcher import NAME, Content, Launcher
from tlsmgr.log import Fatal

CHECKOUT = os.path.abspath(f"{os.path.dirname(__file__)}/../..")
USAGE_ERROR = 64  # sysexits(3), EX_USAGE


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="tlsmgr-postfix",
        description="Put this tlsmgr in the place of Postfix's own, put that back, or say which of"
        " them is in use. See tlsmgr-postfix(8).",
    )
    parser.add_argument("command", choices=COMMANDS, help="what to do")
    parser.add_argument(
        "-c", dest="directory", metavar="CONFIG_DIR", help="the directory with main.cf and"
        " master.cf of the Postfix instance (default: that of postconf)",
    )  # fmt: skip
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, act, and return the exit status."""
    try:
        chosen = options().parse_args(arguments)
    except SystemExit as end:
        return USAGE_ERROR if end.code else 0
    for number in change.SIGNALS:
        signal.signal(number, _interrupted)
    try:
        if os.geteuid() != 0:
            raise Fatal("only root can do this")
        return COMMANDS[chosen.command](Instance(chosen.directory))
    except Fatal as error:
        return _fail(error.text)
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def enable(instance: Instance) -> int:
    """Have master(8) start ours."""
    with _alone(instance), contextlib.ExitStack() as undo:
        service, launcher = instance.service(), _launcher(instance)
        trial.check_service(service)
        trial.check_configuration(instance, service, _warn)
        _warn_of_strangers()
        fresh = change.install(launcher, _with_user(launcher.read(), instance, service), undo)
        if fresh or service.command != NAME:
            trial.run(instance, service, launcher.path)
            say("tried it: it starts and answers")
        _switch(instance, NAME, undo, fresh)
        undo.pop_all()
    return 0


def disable(instance: Instance) -> int:
    """Have master(8) start what it started before."""
    with _alone(instance), contextlib.ExitStack() as undo:
        command, launcher = instance.service().command, _launcher(instance)
        content = launcher.read() or Content(CHECKOUT)
        if command == NAME:
            command = content.users.get(instance.directory, STOCK)
        program = f"{instance['daemon_directory']}/{command}"
        if not os.access(program, os.X_OK):
            raise Fatal(f"cannot execute {program}, which was in use before")
        _switch(instance, command, undo)
        undo.pop_all()
        change.release(launcher, content.without_user(instance.directory))
    return 0


def status(instance: Instance) -> int:
    """Say which one master.cf names, and which one runs."""
    command, content = instance.service().command, _launcher(instance).read()
    enabled = command == NAME and content is not None
    say(f"{instance.directory}: {'enabled' if enabled else 'not enabled'}")
    if command == NAME:
        what = f"which runs {content.checkout}" if content else "which is missing: enable it again"
        say(f"configured: {command}, {what}")
    else:
        say(f"configured: {command}")
    say(f"running: {change.describe(instance)}")
    return 0 if enabled else 1


COMMANDS: Mapping[str, Callable[[Instance], int]] = {
    "enable": enable,
    "disable": disable,
    "status": status,
}


def _switch(
    instance: Instance, command: str, undo: contextlib.ExitStack, fresh: bool = False
) -> None:
    """From the line in master.cf to the process that serves; ``fresh``: the command is new."""
    edited = change.edit(instance, command, undo)
    running = instance.tlsmgr()
    stale = running is not None and running.ours != (command == NAME)
    if edited or fresh or stale:
        change.reload(instance, command)
    else:
        how = "enabled" if command == NAME else "not enabled"
        say(f"{instance.directory}: {how}, as before; running: {change.describe(instance)}")


def _with_user(before: Content | None, instance: Instance, service: Service) -> Content:
    """What the launcher is to say: with this instance, and the command that it has or had."""
    users = dict(before.users) if before else {}
    if service.command == NAME:
        users.setdefault(instance.directory, STOCK)
    else:
        users[instance.directory] = service.command
    return Content(CHECKOUT, users)


def _launcher(instance: Instance) -> Launcher:
    return Launcher(instance["daemon_directory"], instance["command_directory"])


@contextlib.contextmanager
def _alone(instance: Instance) -> Iterator[None]:
    """Keep a second of these commands from changing the same launcher meanwhile."""
    directory = os.open(instance["daemon_directory"], os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def _warn_of_strangers() -> None:
    found = list(islice(trial.unsafe_paths(CHECKOUT), 2))
    if found:
        more = " and others" if len(found) > 1 else ""
        _warn(
            f"not owned by root, or writable by others: {found[0]}{more};"
            " who can change it can become root, since master(8) runs it as root"
        )


def _interrupted(number: int, _: object) -> None:
    raise Fatal(f"interrupted by signal {number}")


def _fail(text: str) -> int:
    _complain(f"fatal: {text}")
    return 1


def _warn(text: str) -> None:
    _complain(f"warning: {text}")


def _complain(text: str) -> None:
    print(f"tlsmgr-postfix: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
