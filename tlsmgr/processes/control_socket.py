"""control_socket - the control socket: made before the jail, removed at an orderly end.

It is beside the service socket, with ``-control`` at the end of its name, mode 0600, and belongs to
the owner of the daemon. Under master(8) the service socket's name is relative to the queue
directory, in which this process works. A socket that is there already was left by a daemon that was
killed, and is replaced; two daemons never have one service socket. A service that does not listen
on a named UNIX-domain socket has no control socket.

The parent makes it and keeps a descriptor of its directory, with which it can remove it in the
jail. Nothing is fatal: a socket that can't be made is a warning, and the service goes on without.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from tlsmgr import log
from tlsmgr.control_lines import SUFFIX
from tlsmgr.processes import jail

BACKLOG = 16
NOBODY_ELSE = 0o177  # umask for mode 0600


@dataclass(frozen=True)
class ControlSocket:
    """The listening socket, and where its file is."""

    listener: socket.socket
    directory: int
    name: str
    inode: int

    def remove(self) -> None:
        """Remove the file, unless it is another socket's by now."""
        with contextlib.suppress(OSError):
            if (
                os.stat(self.name, dir_fd=self.directory, follow_symlinks=False).st_ino
                == self.inode
            ):
                os.unlink(self.name, dir_fd=self.directory)


def make(listeners: Sequence[socket.socket], identity: jail.Identity) -> ControlSocket | None:
    """Return the control socket of the service that listens there, None if it has none."""
    path = next(filter(None, map(_path_beside, listeners)), None)
    if path is None:
        return None
    try:
        with jail.effective(identity):
            return _make(path)
    except OSError as error:
        reason = error.strerror or str(error)
        log.warning(f"cannot make the control socket {path}: {reason}; tlsmgrctl is of no use")
        return None


def _path_beside(listener: socket.socket) -> str | None:
    """Return the path of the control socket; None where the listener is no named UNIX one."""
    if listener.family != socket.AF_UNIX:
        return None
    name = listener.getsockname()
    return f"{name}{SUFFIX}" if isinstance(name, str) and name else None


def _make(path: str) -> ControlSocket:
    directory, name = os.path.split(path)
    with contextlib.ExitStack() as on_failure:
        descriptor = os.open(directory or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        on_failure.callback(os.close, descriptor)
        _remove_stale(name, descriptor)
        listener = on_failure.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        umask = os.umask(NOBODY_ELSE)
        try:
            listener.bind(path)
        finally:
            os.umask(umask)
        inode = os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_ino
        listener.listen(BACKLOG)
        listener.setblocking(False)
        on_failure.pop_all()
        return ControlSocket(listener, descriptor, name, inode)


def _remove_stale(name: str, directory: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
        if not stat.S_ISSOCK(mode):
            raise FileExistsError(0, "there is a file that is no socket")
        os.unlink(name, dir_fd=directory)
