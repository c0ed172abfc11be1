"""reexec - run the program again in place of this process: how a start by hand is reloaded.

The process keeps its id, and with it the pid file, the service of systemd(1), and the old workers,
which drain as its children. The listening sockets and the lock of the data directory go over as
open descriptors, whose numbers are in one variable of the environment. ``take`` removes that before
anything else is run, and ignores one that is not for this process.

The signals that ``processes.parent`` has blocked stay blocked and pending until the new parent
queues them, so that none ends the program or is lost meanwhile.

Used by the standalone daemon's parent, before most modules are loaded: until ``bridge`` has called
the old workers, clients wait. Fatal: the program cannot be run again.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import sys
from collections.abc import MutableMapping
from typing import NamedTuple, NoReturn

from tlsmgr.log import Fatal
from tlsmgr.processes.program import Program

VARIABLE = "TLSMGR_RELOAD"
TERMINAL = "/dev/tty"

_UNUSABLE = (ValueError, TypeError, OverflowError, RecursionError, OSError)


class Place(NamedTuple):
    """What one daemon has for itself."""

    listeners: tuple[socket.socket, ...]
    lock: int  # the descriptor that locks the data directory
    inode: int  # of the socket's file; 0: it is not ours


class Kept(NamedTuple):
    """What goes over to the next run, apart from what is parked at the socket."""

    listeners: tuple[int, ...]  # descriptors
    lock: int
    inode: int
    older: tuple[int, ...]  # processes that drain
    ends_with_terminal: bool

    def place(self) -> Place:
        """Return the descriptors as they are used."""
        sockets = tuple(socket.socket(fileno=descriptor) for descriptor in self.listeners)
        for listener in sockets:
            listener.setblocking(False)
        return Place(sockets, self.lock, self.inode)


def program() -> Program:
    """Return how this program was started; before its umask and directory are changed."""
    arguments = (sys.executable, *sys.orig_argv[1:])
    umask = os.umask(0o077)
    os.umask(umask)
    return Program(arguments, len(arguments) - len(sys.argv[1:]), _start_directory(), umask)


def _start_directory() -> str:
    """Return the directory that relative paths begin at; in one that is closed to us none does."""
    try:
        return os.getcwd() if os.access(".", os.X_OK) else "/"
    except OSError:
        return "/"


def take(environment: MutableMapping[str, str]) -> Kept | None:
    """Return what the run before left to this process; None at the first start."""
    text = environment.pop(VARIABLE, "")
    try:
        pid, listeners, lock, inode, older, ends = json.loads(text)
        kept = Kept(tuple(listeners), int(lock), int(inode), tuple(map(int, older)), bool(ends))
        if pid != os.getpid() or not _are_ours(kept):
            return None
    except _UNUSABLE:  # none, or somebody else's
        return None
    for descriptor in (*kept.listeners, kept.lock):
        os.set_inheritable(descriptor, False)
    return kept


def _are_ours(kept: Kept) -> bool:
    """Return whether the descriptors are what they should be. Raises OSError."""
    is_locked = stat.S_ISDIR(os.fstat(kept.lock).st_mode)
    return is_locked and bool(kept.listeners) and all(map(_listens, kept.listeners))


def _listens(descriptor: int) -> bool:
    """Return whether it is a listening socket. Raises OSError."""
    passed = socket.socket(fileno=descriptor)
    try:
        return bool(passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    finally:
        passed.detach()


def run_again(
    start: Program, place: Place, older: tuple[int, ...], ends_with_terminal: bool
) -> NoReturn:
    """Become the program that was started. Raises Fatal."""
    descriptors = tuple(listener.fileno() for listener in place.listeners)
    for descriptor in (*descriptors, place.lock):
        os.set_inheritable(descriptor, True)
    kept = Kept(descriptors, place.lock, place.inode, older, ends_with_terminal)
    environment = {**os.environ, VARIABLE: json.dumps([os.getpid(), *kept])}
    path = start.arguments[0]
    try:
        os.umask(start.umask)
        os.chdir(start.directory)
        os.execve(path, start.arguments, environment)
    except OSError as error:
        raise Fatal(f"cannot run {path} in {start.directory}: {error.strerror}") from None


def ends_with_terminal() -> bool:
    """Return whether a hangup of the terminal is to end this program: not with nohup(1)."""
    return signal.getsignal(signal.SIGHUP) != signal.SIG_IGN and has_terminal()


def has_terminal() -> bool:
    """Return whether this process has a controlling terminal."""
    try:
        os.close(os.open(TERMINAL, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
    except OSError:
        return False
    return True
