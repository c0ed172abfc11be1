"""connection - the client's end of a connection to a tlsmgr: attribute lists out and in.

The lower half of the client library: connect, announcement, one request, one reply, and the errors
that all of them may raise. Nothing waits beyond the deadline that the caller passes in, and memory
is bounded. Requests and replies have no meaning here. Nothing is repeated: HungUp says that the
caller may do so.

A list is *( name NUL value NUL ) NUL (src/util/attr_print0.c, attr_scan0.c).
"""

from __future__ import annotations

import math
import select
import socket
import time
from collections.abc import Sequence

BACKLOG_PAUSE = 0.01  # seconds between two tries while the listen queue is full
VALUE_LIMIT = 64 << 20  # bytes of one name or value; stock stores sessions of many megabytes
ATTRIBUTE_LIMIT = 100  # attributes of one reply; no request has more than three
PROTOCOL = b"tlsmgr_protocol"

Attributes = Sequence[tuple[bytes, bytes]]


class TlsmgrError(Exception):
    """A failure between us and a tlsmgr; the text is one line and has no secret."""


class Unavailable(TlsmgrError):
    """No server: cannot connect, or it hung up twice."""


class TimedOut(TlsmgrError):
    """The server did not accept, read or answer within the time limit."""


class ProtocolError(TlsmgrError):
    """The peer sent something that no tlsmgr sends."""


class BadRequest(TlsmgrError):
    """The server refused the request (status -2), or it cannot be written on the wire."""


class RequestFailed(TlsmgrError):
    """The request failed in the server (status -1), where that does not mean "not found"."""


class HungUp(Exception):
    """The server closed the connection, or sent something before it was asked."""


class Deadline:
    """The end of the time limit of one call."""

    def __init__(self, timeout: float | None) -> None:
        self._timeout = math.inf if timeout is None else timeout
        self._end = time.monotonic() + self._timeout

    def remaining(self) -> float:
        """Return the seconds left, more than 0. TimedOut: none are."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimedOut(f"the server did not answer within {self._timeout:g} s")
        return left


class Connection:
    """One UNIX-domain stream, non-blocking, and the bytes received but not yet consumed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._buffer = bytearray()
        self._input, self._any = select.poll(), select.poll()
        self._input.register(self._socket, select.POLLIN)
        self._any.register(self._socket, select.POLLIN | select.POLLOUT)

    def close(self) -> None:
        self._socket.close()

    def open(self, deadline: Deadline) -> None:
        """Connect, and read the announcement, which the server sends first."""
        try:
            self._connect(deadline)
        except OSError as error:
            raise unavailable(self._path, error, "no tlsmgr serves there") from None
        if self._read_list(deadline) != [(b"protocol", PROTOCOL)]:
            raise ProtocolError(f"{self._path}: the server does not announce itself as tlsmgr")

    def _connect(self, deadline: Deadline) -> None:
        """Connect. A full listen queue is EAGAIN with nothing to wait for, so this tries again."""
        while True:
            try:
                return self._socket.connect(self._path)
            except BlockingIOError:
                time.sleep(min(BACKLOG_PAUSE, deadline.remaining()))

    def exchange(self, message: bytes, deadline: Deadline) -> Attributes:
        """Send a request, and return the reply.

        Input that is there before a request is sent is not a reply (src/util/attr_clnt.c). A reply
        that comes before the whole request was sent refuses it, and ends the conversation.
        """
        if self._buffer or self._input.poll(0):
            raise HungUp
        complete = self._send(message, deadline)
        reply = self._read_list(deadline)
        if not complete:
            self._socket.shutdown(socket.SHUT_RDWR)
        return reply

    def _send(self, message: bytes, deadline: Deadline) -> bool:
        """Send it all; return False when the server replied or hung up before the end."""
        left = memoryview(message)
        while left:
            try:
                left = left[self._socket.send(left) :]
            except BlockingIOError:
                if self._wait(self._any, deadline) != select.POLLOUT:
                    return False
            except (BrokenPipeError, ConnectionResetError):
                return False
        return True

    def _read_list(self, deadline: Deadline) -> Attributes:
        """Return the next attribute list."""
        attributes: list[tuple[bytes, bytes]] = []
        while name := self._read_string(deadline):
            if len(attributes) == ATTRIBUTE_LIMIT:
                raise ProtocolError(f"more than {ATTRIBUTE_LIMIT} attributes in the reply")
            attributes.append((name, self._read_string(deadline)))
        return attributes

    def _read_string(self, deadline: Deadline) -> bytes:
        searched = 0
        while (end := self._buffer.find(0, searched)) < 0:
            searched = len(self._buffer)
            if searched > VALUE_LIMIT:
                raise ProtocolError(f"more than {VALUE_LIMIT} bytes in one attribute of the reply")
            self._wait(self._input, deadline)
            self._receive()
        string = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return string

    def _receive(self) -> None:
        try:
            data = self._socket.recv(1 << 18)
        except ConnectionResetError:
            data = b""
        if not data:
            raise HungUp
        self._buffer += data

    def _wait(self, poll: select.poll, deadline: Deadline) -> int:
        """Wait for an event on the socket; return the events of poll(2)."""
        while True:
            for _, events in poll.poll(math.ceil(min(deadline.remaining(), 60.0) * 1000)):
                return events


def unavailable(path: str, error: OSError, missing: str) -> Unavailable:
    """Return why nobody can connect there; `missing` explains that nobody listens."""
    hint = ""
    if isinstance(error, PermissionError):
        hint = "; only root and the owner of the tlsmgr may use it"
    elif isinstance(error, FileNotFoundError | ConnectionRefusedError):
        hint = f"; {missing}"
    return Unavailable(f"connect to {path}: {error.strerror or error}{hint}")


def encode(attributes: Attributes) -> bytes:
    """Return the bytes of an attribute list."""
    return b"".join(b"%b\0%b\0" % attribute for attribute in attributes) + b"\0"
