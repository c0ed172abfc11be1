"""bridge - the workers of an old daemon accept clients until those of its successor do.

Between two daemons nobody accepts while the next one is loaded, which takes far longer than any
request. So the message to the successor (see ``parking``) has a second descriptor with it, one end
of a bridge. As soon as the successor has the message it calls the old workers, which hold the other
end: they accept again, and get the clients that it has met on the way. When the successor serves,
or ends, its end closes: they accept no more, and close theirs. A successor that has to leave a
message itself waits for that, as they would take the message for a client.

It calls them at once only if no file of the TLS policy was changed since they read it
(``state_of``), else when it has found that the policy is the same (``late_call``). When it is not,
clients wait for the successor: a smtpd(8) that runs by the new policy would keep, for all its life,
a ticket key that it was given by an old worker.

An old worker that is not called within CALL_TIME closes its listening sockets and its end: there is
no successor, or another program, or one so late that its clients wait for it.

The bootstrap calls ``meet`` before anything else is imported, so this module imports as little as
``parking``.
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, SHUT_WR, SOCK_SEQPACKET, socket, socketpair
from stat import S_ISSOCK

from tlsmgr.processes.parking import NOW, ONE, Parked, arrivals, receive, send

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

CALL_TIME = 1.0  # seconds for a successor to call
CALL = b"!"
LONGEST_STATE = 1 << 16  # bytes
CLOCK_STEP = 0.02  # seconds that the clock of a file system may be late
FOR_EVER = float("inf")


class Met:
    """What waited at a socket up to the first parked message; ``clients`` are connections.

    ``policy`` is the digest of the TLS policy of old workers that were not called because a file of
    it was changed, else "".
    """

    __slots__ = ("clients", "parked", "policy")

    def __init__(self, parked: Parked | None, clients: list[int]) -> None:
        self.parked = parked
        self.clients = clients
        self.policy = ""


def state_of(paths: Iterable[str], policy: str = "", began: float = FOR_EVER) -> bytes:
    """Return what tells whether these files were changed: their paths, inodes, sizes and times.

    Before that is the digest of the policy that is in them, which was read after ``began``, of
    time.time(). A file that was changed since, perhaps after it was read, counts as changed.
    """
    lines = [policy]
    for path in paths:
        state = "none"
        try:
            found = os.stat(path)
            if found.st_ctime < began - CLOCK_STEP:
                state = f"{found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"
            else:
                state = "unknown"
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
            met = Met(arrival, clients)
            if _is_trusted(arrival, listener):
                _call_if_unchanged(met, arrival.bridge)
            return met
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


def _call_if_unchanged(met: Met, descriptor: int) -> None:
    """Call the old workers, or note their policy if a file of it was changed."""
    end = socket(fileno=descriptor)
    try:
        state = receive(end, LONGEST_STATE, 0, NOW)[0]
    except OSError:  # it was too long to be sent
        return
    finally:
        end.detach()
    policy, *lines = os.fsdecode(state).split("\0")
    if state_of((line.partition("\t")[2] for line in lines), policy) == state:
        _call(met, descriptor)
    else:
        met.policy = policy


def call_late(met: Met, policy: str) -> None:
    """Call the old workers after all if their policy was this one, which is of now."""
    if met.parked is not None and policy and policy == met.policy:
        met.policy = ""
        _call(met, met.parked.bridge)


def _call(met: Met, descriptor: int) -> None:
    """Call the old workers, and pass the clients on; those that they can't have stay."""
    end = socket(fileno=descriptor)
    clients, met.clients = met.clients, []
    try:
        for client in clients:
            try:
                send(end, CALL, client)
            except OSError:
                met.clients.append(client)
            else:
                os.close(client)
        send(end, CALL)
    except OSError:  # they have gone
        pass
    finally:
        end.detach()


def end(descriptor: int, patience: float) -> None:
    """Have the old workers accept no more; wait so many seconds for them to have closed."""
    try:
        here = socket(fileno=descriptor)
    except OSError:  # what was left with the message is no socket
        os.close(descriptor)
        return
    try:
        here.settimeout(patience)
        here.shutdown(SHUT_WR)
        while here.recv(1):  # until none of them has the other end
            pass
    except OSError:  # not in that time
        pass
    finally:
        here.close()


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
