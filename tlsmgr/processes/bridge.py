"""bridge - the workers of an old daemon accept clients until those of its successor do.

Between two daemons nobody accepts while the next one is loaded, which takes far longer than any
request. So the message to the successor (see ``parking``) has a second descriptor with it, one end
of a bridge. As soon as the successor has the message it calls the old workers, which hold the other
end: they accept again, and get the clients that it has met on the way. When the successor serves,
or ends, its end closes, and they accept no more.

It calls them only if no file of the TLS policy was changed since they read it (``state_of``).
Otherwise clients wait for the successor: a smtpd(8) that runs by the new policy would keep, for all
its life, a ticket key that it was given by an old worker.

An old worker that is not called within CALL_TIME closes its listening sockets: there is no
successor, or another program. It still serves clients that a late successor passes on.

The bootstrap calls ``meet`` before anything else is imported, so this module imports as little as
``parking``.
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, SOCK_SEQPACKET, socket, socketpair
from stat import S_ISSOCK

from tlsmgr.processes.parking import NOW, ONE, Parked, arrivals, receive, send

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

CALL_TIME = 1.0  # seconds for a successor to call
CALL = b"!"
LONGEST_STATE = 1 << 16  # bytes


class Met:
    """What waited at a socket up to the first parked message; ``clients`` are connections."""

    __slots__ = ("clients", "parked")

    def __init__(self, parked: Parked | None, clients: list[int]) -> None:
        self.parked = parked
        self.clients = clients


def state_of(paths: Iterable[str]) -> bytes:
    """Return what tells whether these files were changed: their paths, inodes, sizes and times."""
    lines = []
    for path in paths:
        state = "none"
        try:
            found = os.stat(path)
            state = f"{found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"
        except (OSError, ValueError):  # a path that can't be is no file either
            pass
        lines.append(f"{state}\t{path}")
    return os.fsencode("\0".join(lines))[:LONGEST_STATE]


def make(policy_files: bytes = b"") -> tuple[int, int]:
    """Return the descriptors of both ends: the successor's, and that of old workers.

    The former has the ``state_of`` the files of the TLS policy to read.
    """
    ends = socketpair(AF_UNIX, SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
    try:  # noqa: SIM105  # contextlib takes long to import
        ends[1].send(policy_files)
    except OSError:  # longer than the system lets a message be: nobody is called
        pass
    return ends[0].detach(), ends[1].detach()


def meet(listener: int) -> Met:
    """Accept what waits, up to a message, and call the old workers, which get the clients."""
    clients: list[int] = []
    for arrival in arrivals(listener):
        if isinstance(arrival, Parked):
            if _is_trusted(arrival, listener):
                clients = _call(arrival.bridge, clients)
            return Met(arrival, clients)
        clients.append(arrival)
    return Met(None, clients)


def _is_trusted(parked: Parked, listener: int) -> bool:
    """Return whether it is from root, our own user, or who may replace the socket as well."""
    here = socket(fileno=listener)
    trusted = {0, os.geteuid()}
    try:
        address = here.getsockname()
        if isinstance(address, str):  # not an abstract name, which is bytes and has no directory
            trusted.add(os.stat(address.rpartition("/")[0] or ".").st_uid)
        return parked.uid in trusted and S_ISSOCK(os.fstat(parked.bridge).st_mode)
    except OSError:  # no bridge
        return False
    finally:
        here.detach()


def _call(descriptor: int, clients: list[int]) -> list[int]:
    """Call the old workers, and pass the clients on; return those that they can't have."""
    end = socket(fileno=descriptor)
    left = clients
    try:
        if not _is_unchanged(receive(end, LONGEST_STATE, 0, NOW)[0]):
            return left
        left = []
        for client in clients:
            try:
                send(end, CALL, client)
            except OSError:
                left.append(client)
            else:
                os.close(client)
        send(end, CALL)
    except OSError:  # they have gone
        pass
    finally:
        end.detach()
    return left


def _is_unchanged(state: bytes) -> bool:
    """Return whether these files still have that state."""
    lines = os.fsdecode(state).split("\0") if state else []
    return state_of(line.partition("\t")[2] for line in lines) == state


def answer(descriptor: int) -> list[int] | None:
    """Return the clients that the successor passed on; None at the end of the bridge."""
    end = socket(fileno=descriptor)
    clients: list[int] = []
    try:
        while True:
            data, found = receive(end, 1, ONE, NOW)
            clients += found
            if not data:
                return clients or None
    except BlockingIOError:  # another worker got the rest
        return clients
    except OSError:
        return clients or None
    finally:
        end.detach()
