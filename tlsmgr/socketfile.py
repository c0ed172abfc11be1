"""socketfile - a listening UNIX-domain socket at a path that only one daemon uses.

For the standalone daemon, before it forks. A socket file left by a daemon that was killed is
replaced; a socket that accepts connections, and any other file, is refused. The directory is locked
with flock(2) from the look at the old file until the new socket listens, so that of two daemons
that start at once, one serves and the other is refused.

Fatal: everything that goes wrong.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tlsmgr.log import Fatal

BACKLOG = 511
LONGEST_PATH = 107  # bytes; sun_path of unix(7), less the NUL
LOCK_TIME = 5.0  # seconds to wait for another starter, which holds the lock for a millisecond
LOCK_PAUSE = 0.01  # seconds between two tries


@contextlib.contextmanager
def listening(path: str, blocked: Sequence[signal.Signals]) -> Iterator[socket.socket]:
    """Yield a socket that listens at ``path``; remove its file at the end, if it is still ours.

    The signals that would end the program are blocked while the file exists and its removal is not
    yet certain.
    """
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise Fatal(f"socket path over {LONGEST_PATH} bytes: {path}")
    directory = os.path.dirname(path)
    make_directory(directory)
    with contextlib.ExitStack() as cleanup:
        listener = cleanup.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        busy = f"{directory} is locked by another program"
        with locked(directory, LOCK_TIME, busy), _signals_blocked(blocked):
            _remove_stale(path)
            _bind(listener, path)
            cleanup.callback(remove_own, path, os.stat(path).st_ino)
        yield listener


def make_directory(path: str) -> None:
    """Make the directory, with mode 0700, and those above it, where they are missing."""
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        raise Fatal(f"cannot make directory {path}: {error.strerror}") from None


def remove_own(path: str, inode: int) -> None:
    """Remove the socket's file, unless it is another one by now."""
    with contextlib.suppress(OSError):
        if os.stat(path).st_ino == inode:
            os.unlink(path)


@contextlib.contextmanager
def locked(directory: str, patience: float, refusal: str) -> Iterator[int]:
    """Hold the lock of a directory, which is the descriptor's.

    Fatal, with the refusal: not free within the seconds.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise Fatal(f"cannot open directory {directory}: {error.strerror}") from None
    try:
        _lock(descriptor, directory, time.monotonic() + patience, refusal)
        yield descriptor
    finally:
        os.close(descriptor)


def is_locked(path: str) -> bool:
    """Return whether another process holds a lock of flock(2) on the file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        os.close(descriptor)
    return False


def _lock(descriptor: int, directory: str, deadline: float, refusal: str) -> None:
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise Fatal(refusal) from None
        except OSError as error:
            raise Fatal(f"cannot lock {directory}: {error.strerror}") from None
        time.sleep(LOCK_PAUSE)


@contextlib.contextmanager
def _signals_blocked(numbers: Sequence[signal.Signals]) -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _remove_stale(path: str) -> None:
    """Remove a socket file on which nobody listens. Fatal: somebody does, or it is no socket."""
    try:
        if not os.path.lexists(path):
            return
        if not Path(path).is_socket():
            raise Fatal(f"{path} exists and is not a socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            probe.connect(path)
    except ConnectionRefusedError:
        os.unlink(path)
    except OSError as error:
        raise Fatal(f"cannot tell whether {path} is in use: {error.strerror}") from None
    else:
        raise Fatal(f"{path} is in use: another tlsmgr serves there")


def _bind(listener: socket.socket, path: str) -> None:
    try:
        listener.bind(path)
    except OSError as error:
        raise Fatal(f"cannot listen on {path}: {error.strerror}") from None
    listener.listen(BACKLOG)
    listener.setblocking(False)
