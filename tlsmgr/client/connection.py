"""client_stream - the client's end of a connection to a tlsmgr: attribute lists out and in

Below the client library: connect, announcement, one request, one reply, and the errors that all
of them may end in. It promises that nothing waits beyond the deadline that the caller passes in,
whatever the server does or does not send, and that memory is bounded. It gives no meaning to
requests and replies, and never repeats anything: HungUp tells the caller that it may.

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
    """Whatever went wrong between us and a tlsmgr; the text is one line and holds no secret."""


class Unavailable(TlsmgrError):
    """No server there: cannot connect, or it hung up twice."""


class TimedOut(TlsmgrError):
    """The server did not accept, read or answer within the time limit."""


class ProtocolError(TlsmgrError):
    """The peer said something that no tlsmgr says."""


class BadRequest(TlsmgrError):
    """The server refused the request (status -2), or it has no form on the wire."""


class RequestFailed(TlsmgrError):
    """The server could not do what was asked (status -1), where that is more than "not found"."""


class HungUp(Exception):
    """The server closed the connection, or said what nobody had asked for."""


class Deadline:
    """The moment when the call that is under way has taken too long."""

    def __init__(self, timeout: float | None) -> None:
        self._timeout = math.inf if timeout is None else timeout
        self._end = time.monotonic() + self._timeout

    def remaining(self) -> float:
        """Seconds left, more than 0; TimedOut when there are none."""
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
        """Connect, and read the announcement, which comes before anything is asked."""
        try:
            self._connect(deadline)
        except OSError as exc:
            raise Unavailable(f"connect to {self._path}: {exc.strerror or exc}") from None
        if self._read_list(deadline) != [(b"protocol", PROTOCOL)]:
            raise ProtocolError(f"{self._path}: the server does not announce itself as tlsmgr")

    def _connect(self, deadline: Deadline) -> None:
        """A full listen queue gives EAGAIN at once and nothing to wait for, so ask again."""
        while True:
            try:
                return self._socket.connect(self._path)
            except BlockingIOError:
                time.sleep(min(BACKLOG_PAUSE, deadline.remaining()))

    def exchange(self, message: bytes, deadline: Deadline) -> Attributes:
        """Send a request, and read the reply.

        What can be read before a request is sent is no reply (src/util/attr_clnt.c). A reply
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
        """Send it all; False when the server spoke or hung up before it had everything."""
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
        """*( name NUL value NUL ) NUL"""
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
        """Wait for something to happen on the socket; the events of poll(2)."""
        while True:
            for _, events in poll.poll(math.ceil(min(deadline.remaining(), 60.0) * 1000)):
                return events


def encode(attributes: Attributes) -> bytes:
    """The bytes of an attribute list."""
    return b"".join(b"%b\0%b\0" % attribute for attribute in attributes) + b"\0"
