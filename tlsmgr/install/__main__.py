"""tlsmgr-postfix enable | disable | status: which tlsmgr a Postfix instance uses.

Each change is a line on standard output. ``enable`` makes a test start, installs the launcher,
changes master.cf, reloads Postfix, and waits until ours answers. When a step fails or is
interrupted, master.cf is put back. Each file is replaced by rename and in this order, so that
Postfix works even if this process is killed between two steps.

Exit status: 0 when done, or when it was so before; 1 with one ``fatal:`` line on standard error;
64 for a mistake on the command line. ``status`` is for monitoring: 0 when ours serves, else 2.
One such command at a time for a daemon_directory: it is locked with flock(2).
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
from pathlib import Path

from tlsmgr import __version__
from tlsmgr.bootstrap import NOTE
from tlsmgr.install import installation, trial
from tlsmgr.install.instance import STOCK, Postfix, Running
from tlsmgr.install.launcher import NAME, Launcher, read_note
from tlsmgr.log import Fatal

INSTALLATION = installation.find(os.path.abspath(f"{os.path.dirname(__file__)}/../.."))
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
USAGE_ERROR = 64  # sysexits(3), EX_USAGE
NOT_SERVING = 2  # of status


def options() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="tlsmgr-postfix",
        description="Use this tlsmgr in a Postfix instance, use Postfix's own again, or show which"
        " of them serves. See tlsmgr-postfix(8).",
    )
    parser.add_argument("command", choices=COMMANDS, help="what to do")
    parser.add_argument(
        "-c", dest="directory", metavar="CONFIG_DIR", help="the directory with main.cf and"
        " master.cf of the Postfix instance (default: that of postconf)",
    )  # fmt: skip
    version = f"%(prog)s {__version__}"
    parser.add_argument("--version", action="version", version=version, help="print the version")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, act, and return the exit status."""
    try:
        chosen = options().parse_args(arguments)
    except SystemExit as end:
        return USAGE_ERROR if end.code else 0
    for number in SIGNALS:
        signal.signal(number, _interrupted)
    try:
        if os.geteuid() != 0:
            raise Fatal("only root can do this")
        return COMMANDS[chosen.command](Postfix(chosen.directory))
    except Fatal as error:
        text = error.text
    except OSError as error:
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    _complain(f"fatal: {text}")
    return NOT_SERVING if chosen.command == "status" else 1


def enable(instance: Postfix) -> int:
    """Have master(8) start ours."""
    with _lock(instance):
        service, launcher = instance.service(), _launcher(instance)
        if service.command not in (STOCK, NAME):
            raise Fatal(
                f"{instance.master_cf}: the command of service {service.name} is"
                f" {service.command}, not {STOCK}"
            )
        trial.check_service(service)
        launcher.text()  # Fatal when it is not ours
        _warn_about_unsafe_paths()
        with launcher.candidate(INSTALLATION) as candidate:
            for text in trial.run(instance, service, candidate):
                _complain(text)
            _say("test start succeeded")
            if launcher.install(candidate):
                _say(f"installed {launcher.path}, which runs {INSTALLATION.directory}")
        _switch(instance, NAME)
    return 0


def disable(instance: Postfix) -> int:
    """Have master(8) start Postfix's own."""
    with _lock(instance):
        command, launcher = instance.service().command, _launcher(instance)
        _switch(instance, STOCK if command == NAME else command)
        Path(instance["queue_directory"], NOTE).unlink(missing_ok=True)
        if command == NAME:
            _say(f"kept {launcher.path}, which another instance may use")
    return 0


def status(instance: Postfix) -> int:
    """Show whether ours serves, and why not; what is configured; what runs."""
    command, launcher = instance.service().command, _launcher(instance)
    problem = _problem(instance, command, launcher)
    _say(f"{instance.directory}: {problem or 'ours serves'}")
    checkout = launcher.checkout() if command == NAME else None
    _say(f"configured: {command}" + (f", which runs {checkout}" if checkout else ""))
    _say(f"running: {_describe(instance)}")
    return NOT_SERVING if problem else 0


COMMANDS: Mapping[str, Callable[[Postfix], int]] = {
    "enable": enable,
    "disable": disable,
    "status": status,
}


def _problem(instance: Postfix, command: str, launcher: Launcher) -> str | None:
    """Return why ours does not serve, None when it does."""
    if command != NAME:
        return "not enabled"
    if launcher.text() is None:
        return f"{launcher.path} is missing; run enable again"
    if not instance.runs():
        return "enabled, but Postfix is not running"
    answers, running = instance.answers(), instance.tlsmgr()
    if running is not None and running.ours:
        return None if answers else f"pid {running.pid} does not answer"
    try:
        trial.run(instance, instance.service(), launcher.path)
        now = "a test start succeeds now, run enable or reload Postfix"
    except Fatal as error:
        now = error.text
    if running is None:
        return f"does not start: {now}"
    return f"Postfix's own in place of ours: {_reason(instance)} ({now})"


def _reason(instance: Postfix) -> str:
    """Return why Postfix's own runs, which the launcher noted."""
    note = read_note(instance["queue_directory"])
    if note.master == instance.master_pid() and note.reason:
        return note.reason
    return "Postfix was not reloaded"


def _switch(instance: Postfix, command: str) -> None:
    """Have master.cf name the command, and the process that serves be of it."""
    before = instance.service().command
    try:
        if before != command:
            instance.set_command(command)
            if instance.service().command != command:
                raise Fatal(f"cannot edit {instance.master_cf}")
            _say(f"{instance.master_cf}: changed the tlsmgr command from {before} to {command}")
        if not instance.runs():
            _say("Postfix is not running; takes effect at next start")
        elif before != command or _is_stale(instance, command):
            _reload(instance, command)
        else:
            _say(f"nothing to change; running: {_describe(instance)}")
    except BaseException:
        if before != command:
            _put_back(instance, before)
        raise


def _is_stale(instance: Postfix, command: str) -> bool:
    """Return whether what runs is not of the command, or older than it."""
    running = instance.tlsmgr()
    if running is None:
        return False
    if command != NAME or not running.ours:
        return running.ours or command == NAME
    launcher = Path(_launcher(instance).path).stat().st_ctime
    return max(launcher, INSTALLATION.newest()) > running.started


def _reload(instance: Postfix, command: str) -> None:
    """Reload Postfix, and wait for the answer of the right tlsmgr."""
    before = instance.tlsmgr()
    instance.reload()
    running = instance.wait_for_answer(before)
    if running is None:
        raise Fatal("no tlsmgr answers under master(8); the mail log has the reason")
    if running.ours != (command == NAME):
        raise Fatal(f"{command} does not start under master(8): {_reason(instance)}")
    _say(f"reloaded Postfix; running: {_describe(instance)}")


def _put_back(instance: Postfix, command: str) -> None:
    """Undo the change of master.cf; this is not interrupted."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    instance.set_command(command)
    _say(f"{instance.master_cf}: put back the command {command}")
    if instance.runs():
        try:
            _reload(instance, command)
        except Fatal as error:
            _complain(f"warning: {error.text}")


def _describe(instance: Postfix) -> str:
    """Return which tlsmgr runs, with its process id."""
    running: Running | None = instance.tlsmgr() if instance.runs() else None
    if running is None:
        return "nothing"
    return f"{NAME if running.ours else STOCK}, pid {running.pid}"


def _launcher(instance: Postfix) -> Launcher:
    return Launcher(instance["daemon_directory"], instance["command_directory"])


@contextlib.contextmanager
def _lock(instance: Postfix) -> Iterator[None]:
    directory = os.open(instance["daemon_directory"], os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def _warn_about_unsafe_paths() -> None:
    found = list(islice(INSTALLATION.unsafe_paths(), 2))
    if found:
        more = " and others" if len(found) > 1 else ""
        _complain(
            f"warning: not owned by root, or writable by others: {found[0]}{more};"
            " master(8) runs it as root, so anyone who can change it can become root"
        )


def _interrupted(number: int, _: object) -> None:
    raise Fatal(f"interrupted by signal {number}")


def _say(text: str) -> None:
    """Print it. Nobody may read it, and the disk may be full: what was begun is done all the same.

    What could not be written stays in the buffer, so the last flush of the process fails again.
    """
    with contextlib.suppress(OSError):
        print(text, flush=True)


def _complain(text: str) -> None:
    print(f"tlsmgr-postfix: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
