"""standalone - the daemon as a person starts it: ``scripts/tlsmgr-start``.

Nothing of Postfix is needed. Without ``-c`` all is kept under $XDG_STATE_HOME/tlsmgr, or
~/.local/state/tlsmgr, mode 0700, with all three session caches on. With ``-c DIR`` main.cf and
tlsmgr.cf of that directory are read, where they exist; what main.cf does not say about directories
still is the state directory, so that a Postfix installed here is left alone.

It listens on a socket of its own (``private/tlsmgr`` under the queue directory, or ``--socket``),
keeps the identity of the person, and logs to standard error, with ``--daemon`` to syslog. A socket
file that nobody answers is replaced; a live one is refused.

Exit status: 0 after SIGTERM, SIGINT or SIGHUP; 1 with one ``fatal:`` line when it can't start; 64
for a mistake on the command line.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from tlsmgr import daemon, daemonize, log
from tlsmgr.config import maillog
from tlsmgr.config.load import Configuration, load
from tlsmgr.log import Fatal
from tlsmgr.processes.jail import Identity

BACKLOG = 511
ENDINGS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
USAGE_ERROR = 64  # sysexits(3), EX_USAGE
LONGEST_SOCKET_PATH = 107  # bytes; sun_path of unix(7), less the NUL

CACHES = {
    f"{cache_type}_tls_session_cache_database": f"btree:${{data_directory}}/{cache_type}_scache"
    for cache_type in ("smtpd", "smtp", "lmtp")
}


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="tlsmgr-start",
        description="Serve TLS sessions, ticket keys and random bytes to Postfix's programs on a"
        " UNIX socket, without Postfix's master(8). Stops at SIGTERM or ctrl-C.",
    )
    parser.add_argument(
        "-c", dest="directory", metavar="DIR", help="read main.cf and tlsmgr.cf in DIR (optional)"
    )
    parser.add_argument(
        "-o", dest="overrides", metavar="name=value", action="append", default=[],
        help="set a parameter of main.cf or tlsmgr.cf; may be repeated, the last one wins",
    )  # fmt: skip
    parser.add_argument(
        "--socket",
        metavar="PATH",
        help="listen here (default: private/tlsmgr in the state directory)",
    )
    parser.add_argument(
        "--daemon", action="store_true", help="serve in the background, and log to syslog"
    )
    parser.add_argument("--pid-file", metavar="PATH", help="write the process id of the parent")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, serve, and return the exit status."""
    try:
        chosen = options().parse_args(arguments)
    except SystemExit as end:
        return USAGE_ERROR if end.code else 0
    try:
        start(chosen)
    except Fatal as error:
        log.fatal(error.text)
        return 1
    return 0


def start(chosen: argparse.Namespace) -> None:
    """Everything from the configuration to the end of service. Raises Fatal."""
    _end_in_order()
    os.umask(0o077)
    state = state_directory(os.environ)
    conf = configuration(chosen.directory, chosen.overrides, state)
    _make_directory(conf.text("queue_directory"))
    _make_directory(conf.text("data_directory"))
    path = os.path.abspath(chosen.socket or f"{conf.text('queue_directory')}/private/tlsmgr")
    pid_file = os.path.abspath(chosen.pid_file) if chosen.pid_file else None
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listening(path))
        on_ready: Callable[[], None] = partial(_announce, path)
        if chosen.daemon:
            on_ready = stack.enter_context(daemonize.detached(on_ready))
            maillog.connect(conf, "tlsmgr", also_stderr=True)
        if pid_file:
            stack.enter_context(_pid_file(pid_file))
        daemon.serve(conf, daemon.StartMode((listener,), me(), on_ready=on_ready))
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)  # one of them too late must not undo it


def _announce(path: str) -> None:
    """Say on standard output that it serves; whether anybody reads that makes no difference."""
    with contextlib.suppress(OSError):
        os.write(1, os.fsencode(path) + b"\n")


def _end_in_order() -> None:
    """A signal during the start is the end of it; the parent has its own ways when it serves."""

    def end(*_: object) -> None:
        sys.exit(0)

    for number in ENDINGS:
        signal.signal(number, end)


def state_directory(environment: Mapping[str, str]) -> str:
    """Where the daemon keeps its state when nobody says otherwise (XDG base directories)."""
    base = environment.get("XDG_STATE_HOME", "")
    if not os.path.isabs(base):  # the specification has relative ones ignored
        base = os.path.expanduser("~/.local/state")
    return f"{base}/tlsmgr"


def configuration(directory: str | None, overrides: Sequence[str], state: str) -> Configuration:
    """The configuration, with the state directory for what main.cf leaves open."""
    defaults = {"queue_directory": state, "data_directory": state}
    if directory is None:
        defaults.update(CACHES)
    elif not os.path.isdir(directory):
        raise Fatal(f"-c {directory}: not a directory")
    elif not os.path.exists(f"{directory}/main.cf"):
        defaults.update(CACHES)
    return load(
        os.path.abspath(directory or state),
        log.warning,
        overrides=overrides,
        defaults=defaults,
        optional=True,
    )


def me() -> Identity:
    """Whoever started the program, and will stay."""
    uid = os.geteuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    return Identity(name, uid, os.getegid())


def _make_directory(path: str) -> None:
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        raise Fatal(f"cannot make directory {path}: {error.strerror}") from None


@contextlib.contextmanager
def listening(path: str) -> Iterator[socket.socket]:
    """A socket that listens at ``path``; its file goes at the end, if it still is ours."""
    if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
        raise Fatal(f"socket path over {LONGEST_SOCKET_PATH} bytes: {path}")
    _make_directory(os.path.dirname(path))
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    inode = 0
    held = signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)  # until the file is known as ours
    try:
        _bind(listener, path)
        inode = os.stat(path).st_ino
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        yield listener
    finally:
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == inode:
                os.unlink(path)
        listener.close()


def _bind(listener: socket.socket, path: str) -> None:
    try:
        listener.bind(path)
    except OSError as error:
        raise Fatal(f"cannot listen on {path}: {error.strerror}") from None
    listener.listen(BACKLOG)
    listener.setblocking(False)


def _remove_stale(path: str) -> None:
    """Remove a socket file that nobody answers. Fatal: somebody does, or it is no socket."""
    if not os.path.lexists(path):
        return
    if not Path(path).is_socket():
        raise Fatal(f"{path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as error:
            raise Fatal(f"cannot tell whether {path} is in use: {error.strerror}") from None
    raise Fatal(f"{path} is in use: another tlsmgr serves there")


@contextlib.contextmanager
def _pid_file(path: str) -> Iterator[None]:
    """The process id in a file, which goes at the end if it still says that. Follows no link."""
    ours = f"{os.getpid()}\n"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666)
        with open(fd, "w") as file:
            file.write(ours)
    except OSError as error:
        raise Fatal(f"cannot write {path}: {error.strerror}") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if Path(path).read_text() == ours:
                os.unlink(path)


if __name__ == "__main__":
    sys.exit(main())
