"""parking - how a message waits for a successor: in a connection to the daemon's own socket.

The old process connects to its own listening socket, sends the two bytes of master(8)'s wake-up
with the descriptors attached, and ends. The listening socket outlives it, and the connection waits
in its backlog; master(8) sees a socket that is readable and starts the successor at once. The
successor accepts what waits before it forks, and finds clients on the way.

A program that does not know this reads a wake-up and closes the connection, and the kernel drops
the descriptors, as it does when the listening socket is closed. So there is nothing to clean up: no
name, no file, no process.

Run by parent, workers and bootstrap. Clients wait for this module at a reload: it imports only what
the interpreter has loaded already, ``_socket`` being a tenth of ``socket``. Nothing here waits, is
fatal or is logged.
"""

from __future__ import annotations

import os
from _socket import (
    AF_UNIX,
    CMSG_LEN,
    MSG_CMSG_CLOEXEC,
    MSG_DONTWAIT,
    MSG_PEEK,
    SCM_RIGHTS,
    SO_PEERCRED,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)
from sys import byteorder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

WAKE_UP = b"W\0"  # what master(8) sends, and every tlsmgr ignores
MOST_CONNECTIONS = 1000  # accepted by a start; a backlog holds fewer
NO_BRIDGE = -1
INT = 4  # bytes of a descriptor, a pid or a uid
ONE, TWO = CMSG_LEN(INT), CMSG_LEN(2 * INT)  # room for as many descriptors
NOW = MSG_DONTWAIT | MSG_CMSG_CLOEXEC


class Parked:
    """A message that waited, the end of its bridge (NO_BRIDGE: none), and who left it."""

    __slots__ = ("bridge", "message", "pid", "uid")

    def __init__(self, message: int, bridge: int, pid: int, uid: int) -> None:
        self.message = message
        self.bridge = bridge
        self.pid = pid
        self.uid = uid

    def close(self) -> None:
        """Close both descriptors."""
        for descriptor in {self.message, self.bridge} - {NO_BRIDGE}:
            os.close(descriptor)


def park(address: str, *descriptors: int) -> None:
    """Leave up to two descriptors in the backlog of our own socket, which has this address.

    Raises OSError; TypeError for the address of another kind of socket.
    """
    connection = socket(AF_UNIX, SOCK_STREAM)
    try:
        connection.setblocking(False)
        connection.connect(address)
        send(connection, WAKE_UP, *descriptors)
    finally:
        connection.close()


def arrivals(listener: int) -> Iterator[Parked | int]:
    """Accept what waits: yield each message that was parked, and each client's connection.

    The caller closes them. The listening socket stays open, and does not block from now on.
    """
    os.set_blocking(listener, False)
    accepting = socket(fileno=listener)
    try:
        for _ in range(MOST_CONNECTIONS):
            descriptor, _address = accepting._accept()  # type: ignore[attr-defined]
            os.set_blocking(descriptor, False)
            parked = _parked(descriptor)
            if parked is None:
                yield descriptor
            else:
                os.close(descriptor)
                yield parked
    except OSError:  # nobody waits any more; or the workers meet the same error, and log it
        return
    finally:
        accepting.detach()


def _parked(descriptor: int) -> Parked | None:
    """Return what is parked here; of a client's connection nothing is read."""
    connection = socket(fileno=descriptor)
    try:
        data, descriptors = receive(connection, len(WAKE_UP), TWO, NOW | MSG_PEEK)
        found = connection.getsockopt(SOL_SOCKET, SO_PEERCRED, 3 * INT)  # struct ucred
    except OSError:
        return None
    finally:
        connection.detach()
    if data == WAKE_UP and descriptors:
        pid, uid, _gid = _integers(found)
        return Parked(descriptors[0], [*descriptors, NO_BRIDGE][1], pid, uid)
    for each in descriptors:
        os.close(each)
    return None


def send(connection: socket, data: bytes, *descriptors: int) -> None:
    """Send the data with these descriptors. Raises OSError."""
    content = b"".join(each.to_bytes(INT, byteorder) for each in descriptors)
    rights = [(SOL_SOCKET, SCM_RIGHTS, content)] if descriptors else []
    connection.sendmsg([data], rights)


def receive(connection: socket, size: int, room: int, flags: int) -> tuple[bytes, list[int]]:
    """Return data and the descriptors that came with it. Raises OSError."""
    data, rights, _, _ = connection.recvmsg(size, room, flags)
    return data, _descriptors_in(rights)


def _descriptors_in(rights: Iterable[tuple[int, int, bytes]]) -> list[int]:
    found = []
    for level, kind, content in rights:
        if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
            found += _integers(content)
    return found


def _integers(content: bytes) -> list[int]:
    ends = range(INT, len(content) + 1, INT)
    return [int.from_bytes(content[end - INT : end], byteorder, signed=True) for end in ends]
