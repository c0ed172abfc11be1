"""raw_client - a connection to a tlsmgr that sends and returns bytes exactly as they are.

The functions below the class make the six requests and the replies to them. A reply is the bytes
of one attribute list.
"""

from __future__ import annotations

import base64
import fcntl
import socket
import termios
import time

ANNOUNCEMENT = b"protocol\0tlsmgr_protocol\0\0"
TIMEOUT = 30.0  # seconds; limit for any reply on a loaded machine

OK = b"status\x000\0\0"
NOT_DONE = b"status\x004294967295\0\0"
BAD_REQUEST = b"status\x004294967294\0\0"


class Connection:
    """A connection after the server's announcement. Close it, or use `with`."""

    def __init__(self, path: str, timeout: float = TIMEOUT) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._buffer = bytearray()
        _connect(self.socket, path, timeout)
        self.socket.settimeout(timeout)
        assert self.read_list() == ANNOUNCEMENT

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it."""
        self.socket.close()

    def send(self, data: bytes, segment: int = 0) -> None:
        """Send the data in writes of `segment` bytes; 0 means one write."""
        for start in range(0, len(data), segment or len(data) or 1):
            self.socket.sendall(data[start : start + segment] if segment else data)

    def ask(self, request: bytes, segment: int = 0) -> bytes:
        """Send a request and return its reply."""
        self.send(request, segment)
        return self.read_list()

    def half_close(self) -> None:
        """Shut down the sending direction."""
        self.socket.shutdown(socket.SHUT_WR)

    def wait_until_taken(self) -> None:
        """Wait until the server has read everything: later data is another segment to it."""
        deadline = time.monotonic() + TIMEOUT
        while fcntl.ioctl(self.socket, termios.TIOCOUTQ, bytes(4)) != bytes(4):
            assert time.monotonic() < deadline, "the server does not read"
            time.sleep(0.001)

    def read_list(self) -> bytes:
        """Return one attribute list with its terminator. Raises EOFError at the end of input."""
        at = 0
        while True:
            end = self._find_nul(at)
            if end == at:
                return self._take(end + 1)
            at = self._find_nul(end + 1) + 1

    def read_to_end(self) -> bytes:
        """Return everything until the server closes; a reset counts as closing."""
        try:
            while data := self.socket.recv(1 << 16):
                self._buffer += data
        except ConnectionResetError:
            pass
        return self._take(len(self._buffer))

    def _find_nul(self, start: int) -> int:
        while (end := self._buffer.find(0, start)) < 0:
            start = len(self._buffer)
            data = self.socket.recv(1 << 18)
            if not data:
                raise EOFError(f"end of stream behind {bytes(self._buffer[:200])!r}")
            self._buffer += data
        return end

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken


def _connect(endpoint: socket.socket, path: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    endpoint.setblocking(False)
    while True:
        try:
            return endpoint.connect(path)
        except BlockingIOError:  # the backlog is full
            assert time.monotonic() < deadline, "backlog full"
            time.sleep(0.002)


def attributes(*pairs: tuple[bytes, bytes]) -> bytes:
    """Return an attribute list."""
    return b"".join(b"%b\0%b\0" % pair for pair in pairs) + b"\0"


def seed(size: int | bytes) -> bytes:
    """Return a request for random bytes."""
    text = size if isinstance(size, bytes) else b"%d" % size
    return attributes((b"request", b"seed"), (b"size", text))


def policy(cache_type: bytes) -> bytes:
    """Return a request for a cache type's policy."""
    return attributes((b"request", b"policy"), (b"cache_type", cache_type))


def lookup(cache_type: bytes, cache_id: bytes) -> bytes:
    """Return a request for a session."""
    return attributes((b"request", b"lookup"), (b"cache_type", cache_type), (b"cache_id", cache_id))


def update(cache_type: bytes, cache_id: bytes, session: bytes) -> bytes:
    """Return a request to store a session."""
    return attributes(
        (b"request", b"update"),
        (b"cache_type", cache_type),
        (b"cache_id", cache_id),
        (b"session", base64.b64encode(session)),
    )


def delete(cache_type: bytes, cache_id: bytes) -> bytes:
    """Return a request to delete a session."""
    return attributes((b"request", b"delete"), (b"cache_type", cache_type), (b"cache_id", cache_id))


def tktkey(name: bytes = b"") -> bytes:
    """Return a request for a ticket key."""
    return attributes((b"request", b"tktkey"), (b"keyname", base64.b64encode(name)))


def found(session: bytes) -> bytes:
    """Return the reply to a lookup that finds this session."""
    return attributes((b"status", b"0"), (b"session", base64.b64encode(session)))


NO_SESSION = attributes((b"status", b"4294967295"), (b"session", b""))
NO_KEY = attributes((b"status", b"4294967295"), (b"keybuf", b""))


def policy_is(cachable: int, timeout: int, status: bytes = b"0") -> bytes:
    """Return the reply to a request for a policy."""
    return b"status\0%b\0cachable\0%d\0timeout\0%d\0\0" % (status, cachable, timeout)


# A refusal has the attribute that was requested; BAD_REQUEST is for requests without one, and for
# requests that cannot be identified.
REFUSED_SEED = attributes((b"status", b"4294967294"), (b"seed", b""))
REFUSED_POLICY = policy_is(0, 0, b"4294967294")
REFUSED_LOOKUP = attributes((b"status", b"4294967294"), (b"session", b""))
REFUSED_KEY = attributes((b"status", b"4294967294"), (b"keybuf", b""))


def data_of(reply: bytes, name: bytes) -> bytes:
    """Return the data of a reply, which must have status 0 and this attribute."""
    fields = reply.split(b"\0")
    assert fields[:3] == [b"status", b"0", name], reply[:200]
    assert fields[4:] == [b"", b""], reply[:200]
    return base64.b64decode(fields[3], validate=True)


def expect_seed(connection: Connection, size: int) -> bytes:
    """Request random bytes, check that all come, and return them."""
    data = data_of(connection.ask(seed(size)), b"seed")
    assert len(data) == size
    return data
