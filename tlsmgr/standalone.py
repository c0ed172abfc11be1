"""standalone - the daemon as a person starts it: ``scripts/tlsmgr-start``.

Nothing of Postfix is needed. Without ``-c`` all is kept under $XDG_STATE_HOME/tlsmgr, or
~/.local/state/tlsmgr, mode 0700, with all three session caches on. With ``-c DIR`` main.cf and
tlsmgr.cf of that directory are read, where they exist; directories that main.cf does not name are
the state directory, so that an installed Postfix is left alone.

It listens on a socket of its own (``private/tlsmgr`` under the queue directory, or ``--socket``),
keeps the caller's identity, and logs to standard error, with ``--daemon`` to syslog. One daemon
uses a socket, and one a data directory, which it locks with flock(2) until it ends. Under systemd
it serves on the sockets that it is given. At SIGHUP it tries a start (``processes.trial``), then
runs itself again in the same process, with the socket and the lock (``reexec``).

Exit status: 0 after SIGTERM or SIGINT; 1 with one ``fatal:`` line when it cannot start; 64 for a
mistake on the command line.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import pwd
import signal
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING

from tlsmgr import __version__, daemonize, log, systemd
from tlsmgr.config import maillog_client
from tlsmgr.config.load import Configuration, load, state_directory
from tlsmgr.log import Fatal
from tlsmgr.pidfile import pid_file
from tlsmgr.socketfile import is_locked, listening, locked, make_directory, remove_own

if TYPE_CHECKING:
    from tlsmgr.processes.parent import Parent
    from tlsmgr.processes.program import Program
    from tlsmgr.reexec import Kept, Place

ENDINGS = (signal.SIGTERM, signal.SIGINT)
PROCESS_NAME = "tlsmgr"  # in ps(1), and in log lines
USAGE_ERROR = 64  # sysexits(3), EX_USAGE
STANDARD_ERROR = 2  # its descriptor
PR_SET_DUMPABLE = 4  # prctl(2)

CACHES = {
    f"{cache_type}_tls_session_cache_database": f"btree:${{data_directory}}/{cache_type}_scache"
    for cache_type in ("smtpd", "smtp", "lmtp")
}


def options() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="tlsmgr-start",
        description="Serve TLS sessions, ticket keys and random bytes to Postfix's programs on a"
        " UNIX socket, without Postfix's master(8). Stops at SIGTERM or ctrl-C; SIGHUP reads"
        " the configuration again.",
    )
    parser.add_argument(
        "-c",
        dest="directory",
        metavar="DIR",
        help="read main.cf and tlsmgr.cf in DIR (default: the state directory)",
    )
    parser.add_argument(
        "-o", dest="overrides", metavar="name=value", action="append", default=[],
        help="set a parameter of main.cf or tlsmgr.cf; may be repeated, the last one wins",
    )  # fmt: skip
    parser.add_argument(
        "--socket",
        metavar="PATH",
        help="listen here (default: private/tlsmgr in the queue directory)",
    )
    parser.add_argument(
        "--daemon", action="store_true", help="serve in the background, and log to syslog"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="read the configuration, load what a start needs, print what is wrong, and exit",
    )
    parser.add_argument("--pid-file", metavar="PATH", help="write the process id of the parent")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return the exit status."""
    try:
        chosen = options().parse_args(arguments)
    except SystemExit as end:
        return USAGE_ERROR if end.code else 0
    try:
        (check if chosen.check else start)(chosen)
    except Fatal as error:
        log.fatal(error.text)
        return 1
    return 0


def check(chosen: argparse.Namespace) -> None:
    """Read the configuration, load what a start needs, and print what it would use. Raises Fatal.

    ``trial`` compares the output with that of the start.
    """
    from tlsmgr import daemon
    from tlsmgr.processes.jail import Identity

    _forbid_dumps()
    conf = configuration(chosen.directory, chosen.overrides, state_directory(os.environ))
    facts = _facts(conf, chosen)
    daemon.check(conf, daemon.StartMode((), Identity(*me())))
    sys.stdout.buffer.write(os.fsencode(facts))  # a path may have any byte


def start(chosen: argparse.Namespace) -> None:
    """Read the configuration, take socket and directories, serve until the end. Raises Fatal."""
    from tlsmgr import reexec
    from tlsmgr.processes import bridge

    _forbid_dumps()
    _open_standard_descriptors()
    kept = reexec.take(os.environ)
    early = bridge.meet(kept.listeners[0]) if kept else None

    # Imported here, so that --help and --version need none of the packages, and that in a reload
    # the old workers serve meanwhile.
    from tlsmgr import daemon
    from tlsmgr.processes.jail import Identity
    from tlsmgr.processes.names import name_process

    program = reexec.program()
    ends_with_terminal = not chosen.daemon and (
        kept.ends_with_terminal if kept else reexec.ends_with_terminal()
    )
    name_process(PROCESS_NAME)
    _handle_early_signals()
    os.umask(0o077)
    if kept and chosen.daemon:
        maillog_client.connect_early(os.environ, PROCESS_NAME)
    with contextlib.ExitStack() as stack:
        place = _kept_place(kept, stack) if kept else None
        conf = configuration(chosen.directory, chosen.overrides, state_directory(os.environ))
        program = program._replace(facts=_facts(conf, chosen))
        place = place or _first_place(conf, chosen, stack)
        path = os.fsdecode(place.listeners[0].getsockname())
        on_ready = _on_ready(conf, chosen, path, kept is not None, stack)
        if chosen.pid_file:
            stack.enter_context(pid_file(_absolute(chosen.pid_file), kept is not None))
        watchdog = systemd.Watchdog(path, os.environ)
        mode = daemon.StartMode(
            place.listeners,
            Identity(*me()),
            on_ready=on_ready,
            jobs={"watchdog": watchdog.run} if watchdog.interval else {},
            early=early,
            on_hangup=partial(_on_hangup, program, ends_with_terminal),
            older=kept.older if kept else (),
        )
        left = daemon.serve(conf, mode)
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)  # a late one must not stop the cleaning
        if left is not None:
            on_ready()  # if the signal came before
            systemd.notify_reload(os.environ)
            reexec.run_again(program, place, left, ends_with_terminal)
        systemd.notify(os.environ, "STOPPING=1")


def _facts(conf: Configuration, chosen: argparse.Namespace) -> str:
    """Return what a reload cannot change, as ``--check`` prints it."""
    return f"socket {_socket_path(conf, chosen)}\ndata_directory {conf.text('data_directory')}\n"


def _socket_path(conf: Configuration, chosen: argparse.Namespace) -> str:
    return _absolute(chosen.socket or f"{conf.text('queue_directory')}/private/tlsmgr")


def _kept_place(kept: Kept, stack: contextlib.ExitStack) -> Place:
    """Return the listening sockets and the lock of the run before."""
    place = kept.place()
    stack.callback(os.close, place.lock)
    if place.inode:
        stack.callback(remove_own, place.listeners[0].getsockname(), place.inode)
    return place


def _first_place(
    conf: Configuration, chosen: argparse.Namespace, stack: contextlib.ExitStack
) -> Place:
    """Return the listening sockets and the lock, taken now. Raises Fatal."""
    from tlsmgr.reexec import Place

    make_directory(conf.text("queue_directory"))
    make_directory(conf.text("data_directory"))
    listeners, inode = systemd.listeners(os.environ), 0
    if not listeners:
        path = _socket_path(conf, chosen)
        listeners = (stack.enter_context(listening(path, ENDINGS)),)
        inode = os.stat(path).st_ino
    return Place(listeners, stack.enter_context(_only_user_of(conf.text("data_directory"))), inode)


def _on_ready(
    conf: Configuration,
    chosen: argparse.Namespace,
    path: str,
    is_reload: bool,
    stack: contextlib.ExitStack,
) -> Callable[[], None]:
    """Go to the background, if so chosen; return the function to call when the workers serve.

    It acts once.
    """
    on_ready: Callable[[], None] = partial(_announce, path)
    if is_reload:
        on_ready = partial(systemd.notify, os.environ, "READY=1")
    elif chosen.daemon:
        on_ready = stack.enter_context(daemonize.detached(on_ready))
    if chosen.daemon:
        maillog_client.connect(conf, PROCESS_NAME, also_stderr=not is_reload)
    return cache(on_ready)


def _announce(path: str) -> None:
    """Print the socket's path: the workers serve. A reader that has gone is no error."""
    systemd.notify(os.environ, "READY=1")
    with contextlib.suppress(OSError):
        os.write(1, os.fsencode(path) + b"\n")


def _on_hangup(program: Program, ends_with_terminal: bool, parent: Parent) -> Callable[[], None]:
    """Return what SIGHUP does: a reload, or an end if the terminal of the start has gone."""
    from tlsmgr import reexec
    from tlsmgr.processes.trial import Trial

    trial = Trial(program, parent)

    def hang_up() -> None:
        if ends_with_terminal and not reexec.has_terminal():
            parent.stop()
        else:
            trial.begin()

    return hang_up


def _handle_early_signals() -> None:
    """Let a signal during the start end the program in order; SIGHUP waits for the parent's loop.

    The parent installs handlers of its own later.
    """

    def leave(*_: object) -> None:
        sys.exit(0)

    for number in ENDINGS:
        signal.signal(number, leave)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP,))


def _open_standard_descriptors() -> None:
    """Have 0 to 2 open, so that no socket or file of ours becomes standard output or error."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= STANDARD_ERROR:
        os.set_inheritable(descriptor, True)  # for a reload
    os.close(descriptor)


def _forbid_dumps() -> None:
    """No core file, no debugger of the same user, and /proc/PID/mem for root alone.

    Under master(8) the change of identity has the same effect.
    """
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def _only_user_of(directory: str) -> contextlib.AbstractContextManager[int]:
    """Return the lock of the data directory. Fatal: master(8) or another daemon has it."""
    cure = "-o data_directory=DIR gives this one its own"
    if is_locked(f"{directory}/master.lock"):
        raise Fatal(f"a running Postfix uses {directory}; {cure}")
    return locked(directory, 0.0, f"another tlsmgr uses {directory}; {cure}")


def _absolute(path: str) -> str:
    try:
        return os.path.abspath(path)
    except OSError as error:
        raise Fatal(f"cannot find the current directory: {error.strerror}") from None


def configuration(directory: str | None, overrides: Sequence[str], state: str) -> Configuration:
    """Return the configuration, with the state directory for directories it does not name."""
    defaults = {"queue_directory": state, "data_directory": state}
    if directory is not None and not os.path.isdir(directory):
        raise Fatal(f"-c {directory}: not a directory")
    if directory is None or not os.path.exists(f"{directory}/main.cf"):
        defaults.update(CACHES)
    return load(
        os.path.abspath(directory or state),
        log.warning,
        overrides=overrides,
        defaults=defaults,
        optional=True,
    )


def me() -> tuple[str, int, int]:
    """Return name, user id and group id of the caller, which the daemon keeps."""
    uid = os.geteuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    return name, uid, os.getegid()


if __name__ == "__main__":
    sys.exit(main())
