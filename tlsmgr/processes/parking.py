"""parking - how a descriptor waits for a successor: in a connection to the daemon's own socket.

The old process connects to its own listening socket, sends the two bytes of master(8)'s wake-up
with the descriptor attached, and ends. The listening socket outlives it, and the connection waits
in its backlog; master(8) sees a socket that is readable and starts the successor at once. The
successor accepts what waits before it forks. Clients that it finds on the way go to its workers.

A program that does not know this reads a wake-up and closes the connection, and the kernel drops
the descriptor, as it does when the listening socket is closed. So there is nothing to clean up: no
name, no file, no process.

Run by parent and workers. Nothing here waits, is fatal or is logged.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

WAKE_UP = b"W\0"  # what master(8) sends, and every tlsmgr ignores
MOST_CONNECTIONS = 1000  # accepted by a start; a backlog holds fewer
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_INT = struct.Struct("i")  # room for one descriptor, not more
# recv_fds() does the same, but up to Python 3.13 it does not pass its flags on.
_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC


class Parked(NamedTuple):
    """A descriptor that waited, and the process that left it."""

    descriptor: int
    pid: int
    uid: int


def park(address: str, descriptor: int) -> None:
    """Leave the descriptor in the backlog of our own socket, which has this address.

    Raises OSError; TypeError for the address of another kind of socket.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        connection.connect(address)
        socket.send_fds(connection, [WAKE_UP], [descriptor])


def arrivals(listener: socket.socket) -> Iterator[Parked | int]:
    """Accept what waits: yield each descriptor that was parked, and each client's connection.

    The caller closes them. The listener does not block.
    """
    for _ in range(MOST_CONNECTIONS):
        try:
            connection, _address = listener.accept()
        except OSError:  # nobody waits any more; or the workers meet the same error, and log it
            return
        with connection:
            parked = _parked(connection)
            if parked is None:
                connection.setblocking(False)
                yield connection.detach()
            else:
                yield parked


def _parked(connection: socket.socket) -> Parked | None:
    """Return what is parked here; of a client's connection nothing is read."""
    try:
        data, rights, _, _ = connection.recvmsg(len(WAKE_UP), socket.CMSG_LEN(_INT.size), _PEEK)
        found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except OSError:
        return None
    descriptors = [
        _INT.unpack(content)[0]
        for level, kind, content in rights
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS) and len(content) == _INT.size
    ]
    if data != WAKE_UP or not descriptors:
        for each in descriptors:
            with contextlib.suppress(OSError):
                os.close(each)
        return None
    pid, uid, _gid = _CREDENTIALS.unpack(found)
    return Parked(descriptors[0], pid, uid)
