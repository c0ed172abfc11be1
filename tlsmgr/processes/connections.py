"""connections - the connections of one worker: bytes in, bytes out; no client can block another.

A connection is a descriptor and a state:

    READY     nothing is half-done            -> READING   part of a request came
                                              -> WAITING   a request is answered with others
                                              -> AWAY      other hosts may have the answer
                                              -> WRITING   the client does not take its reply
    READING   its reader holds part of a      -> READY     the request is complete and answered
              request                         -> WAITING, AWAY, WRITING   as above
    WAITING   the end of the iteration, or    -> READY, READING     the reply is sent
              the next one, goes on with it   -> WRITING
    AWAY      other hosts are asked; nothing  -> WAITING  they answered, or the deadline passed
              is read meanwhile
    WRITING   the rest of a reply is kept;    -> READY, READING     the client took all of it
              nothing is read meanwhile

A slow or silent client costs only itself. Memory is bounded: per request (REQUEST_LIMIT of wire),
and for all half-done business of a worker together (MEMORY_LIMIT): then the largest one is closed.
Runs in a worker, on non-blocking descriptors. Nothing is fatal; a connection that fails is closed.
"""

from __future__ import annotations

import os
import select
import time

from tlsmgr.wire import ANNOUNCEMENT, RequestReader

READ_SIZE = 32768
MEMORY_LIMIT = 64 << 20  # bytes held for all connections of a worker

READY, READING, WAITING, WRITING, AWAY = range(5)


class Connection:
    """One connection."""

    __slots__ = ("fd", "held", "mistakes", "output", "reader", "since", "state")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.state = READY
        self.reader: RequestReader | None = None  # only while it holds something
        self.output = b""  # the part of a reply that the client has not taken
        self.since = 0.0  # time.monotonic() since when something is half-done; 0: nothing is
        self.held = 0  # bytes of reader and output, when last looked at
        self.mistakes = 0  # requests that were refused so far


class Connections:
    """All connections of a worker, on its epoll object."""

    def __init__(self, epoll: select.epoll, count: memoryview | None = None) -> None:
        """``count`` is one number that other processes see: how many there are."""
        self._epoll = epoll
        self._count = memoryview(bytearray(8)).cast("Q") if count is None else count
        self._by_fd: dict[int, Connection] = {}
        self.get = self._by_fd.get  # by descriptor; None for another descriptor
        self._unfinished: set[Connection] = set()
        self._held = 0

    def __len__(self) -> int:
        return len(self._by_fd)

    def add(self, fd: int) -> None:
        """Take over an accepted connection, which does not block, and announce the protocol."""
        connection = self._by_fd[fd] = Connection(fd)
        self._count[0] = len(self._by_fd)
        self._epoll.register(fd, select.EPOLLIN)
        self.send(connection, ANNOUNCEMENT)

    def read(self, connection: Connection) -> bytes | None:
        """Return what has arrived: b"" at the end of input, None when there is nothing."""
        try:
            return os.read(connection.fd, READ_SIZE)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def send(self, connection: Connection, reply: bytes) -> None:
        """Write a reply, or keep the part that the client does not take now."""
        try:
            sent = os.write(connection.fd, reply)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.drop(connection)
            return
        if sent < len(reply):
            connection.output = reply[sent:]
            connection.state = WRITING
            self._epoll.modify(connection.fd, select.EPOLLOUT)
            self.note_progress(connection, time.monotonic())

    def send_rest(self, connection: Connection) -> bool:
        """Write more of a stuck reply; return whether all of it is gone and reading goes on."""
        rest, connection.output = connection.output, b""
        self._epoll.modify(connection.fd, select.EPOLLIN)
        self.reply_sent(connection)
        self.send(connection, rest)
        return connection.state != WRITING and self.is_open(connection)

    def reply_sent(self, connection: Connection) -> None:
        """Leave the states WAITING and WRITING: the reply is sent."""
        connection.state = READY if connection.reader is None else READING

    def ignore(self, connection: Connection, event: int) -> None:
        """Hear nothing more of an AWAY connection that has sent more; drop one that has ended."""
        if event & (select.EPOLLHUP | select.EPOLLERR):
            self.drop(connection)
        else:
            self._epoll.modify(connection.fd, 0)

    def listen_again(self, connection: Connection) -> None:
        """Undo ``ignore``, for a connection that is not AWAY any more."""
        self._epoll.modify(connection.fd, select.EPOLLIN)
        connection.state = WAITING

    def drop(self, connection: Connection) -> None:
        """Close the connection and forget half-done business."""
        if self.is_open(connection):  # else the descriptor may be another one's by now
            del self._by_fd[connection.fd]
            self._count[0] = len(self._by_fd)
            os.close(connection.fd)  # which takes it off the epoll object
        self._forget(connection)

    def is_open(self, connection: Connection) -> bool:
        """Return whether this very connection is still there."""
        return self._by_fd.get(connection.fd) is connection

    def note_progress(self, connection: Connection, now: float) -> None:
        """Note the time and the memory of half-done business, or that there is none."""
        if not self.is_open(connection):
            return
        if connection.output or connection.reader is not None:
            held = len(connection.output)
            held += connection.reader.size if connection.reader is not None else 0
            self._held += held - connection.held
            connection.held = held
            connection.since = now
            self._unfinished.add(connection)
        elif connection.since:
            self._forget(connection)

    def timed_out(self, before: float) -> list[Connection]:
        """Return the connections whose half-done business has not moved since ``before``."""
        return [connection for connection in self._unfinished if connection.since < before]

    def ready(self) -> list[Connection]:
        """Return the connections with which nothing is half-done."""
        return [connection for connection in self._by_fd.values() if connection.state == READY]

    def largest(self) -> Connection | None:
        """Return the connection to close because MEMORY_LIMIT is exceeded, or None.

        Not one that waits for its reply: by then its descriptor may be another client's.
        """
        if self._held <= MEMORY_LIMIT:
            return None
        idle = (each for each in self._unfinished if each.state != WAITING)
        return max(idle, key=lambda connection: connection.held, default=None)

    def close_all(self) -> None:
        """Close every connection."""
        for connection in list(self._by_fd.values()):
            self.drop(connection)

    def _forget(self, connection: Connection) -> None:
        self._held -= connection.held
        connection.held = 0
        connection.since = 0.0
        self._unfinished.discard(connection)
