"""clients - one worker's connections: bytes in, bytes out, and nobody waits for anybody.

A client is a descriptor, a reader while a request is in pieces, and the part of a reply that the
peer has not taken yet. While a reply is stuck nothing more is read from that client, so that both
buffers are bounded and a slow or silent peer costs only itself. Clients with something half-done
are remembered with the time; ``overdue`` names those to give up.

Runs in a worker, on non-blocking descriptors. Nothing is fatal: a connection that fails is closed.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator

from tlsmgr.wire import ANNOUNCEMENT, RequestReader

READ_SIZE = 32768


class Client:
    """One connection."""

    __slots__ = ("fd", "mistakes", "output", "reader", "since", "waits")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.reader: RequestReader | None = None  # only while it holds something
        self.output = b""  # of a reply, what the peer has not taken
        self.since = 0.0  # time.monotonic() since when something is half-done; 0: nothing is
        self.mistakes = 0  # malformed requests so far
        self.waits = False  # for the end of the turn, when its change is carried out


class Clients:
    """All connections of a worker, on its epoll object."""

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self._by_fd: dict[int, Client] = {}
        self.get = self._by_fd.get  # by descriptor; None for what is no client
        self._unfinished: set[Client] = set()

    def __len__(self) -> int:
        return len(self._by_fd)

    def welcome(self, fd: int) -> None:
        """Take over an accepted connection, which does not block, and announce the protocol."""
        client = self._by_fd[fd] = Client(fd)
        self._epoll.register(fd, select.EPOLLIN)
        self.send(client, ANNOUNCEMENT)

    def read(self, client: Client) -> bytes | None:
        """What has arrived: b"" at the end of input, None when there is nothing after all."""
        try:
            return os.read(client.fd, READ_SIZE)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def send(self, client: Client, reply: bytes) -> None:
        """Write a reply, or keep what the peer does not take now."""
        try:
            sent = os.write(client.fd, reply)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.drop(client)
            return
        if sent < len(reply):
            client.output = reply[sent:]
            self._epoll.modify(client.fd, select.EPOLLOUT)
            self.note_progress(client, time.monotonic())

    def send_rest(self, client: Client) -> bool:
        """Write more of a stuck reply; True when it is all gone and reading goes on."""
        rest, client.output = client.output, b""
        self._epoll.modify(client.fd, select.EPOLLIN)
        self.send(client, rest)
        return not client.output and client.fd in self._by_fd

    def drop(self, client: Client) -> None:
        """Close the connection; what was half-done is forgotten."""
        if self.is_open(client):  # else the descriptor may be another client's by now
            del self._by_fd[client.fd]
            os.close(client.fd)  # which takes it off the epoll object
        self._unfinished.discard(client)

    def is_open(self, client: Client) -> bool:
        """Whether this very connection is still there."""
        return self._by_fd.get(client.fd) is client

    def note_progress(self, client: Client, now: float) -> None:
        """Remember or forget the client, by whether it has something half-done now."""
        if not self.is_open(client):
            return
        if client.output or client.reader is not None:
            client.since = now
            self._unfinished.add(client)
        elif client.since:
            client.since = 0.0
            self._unfinished.discard(client)

    def overdue(self, before: float) -> Iterator[Client]:
        """Clients whose half-done business has not moved since ``before``."""
        return iter([client for client in self._unfinished if client.since < before])

    def close_all(self) -> None:
        """Close every connection."""
        for client in list(self._by_fd.values()):
            self.drop(client)
