"""sources - external entropy sources: `dev:PATH`, `egd:PATH`, or a file name (tls_random_source).

A source is opened before the jail, with the privileges that the process has then, and read later,
also by a process that was forked in between. A reading is a generator: it yields while it has to
wait, gets the time by send(), and returns the bytes. Only a disk can block it, neither a FIFO nor a
silent EGD server; each of its operations gives up after 10 s.

After a failure the next reading opens the source again. If that fails, as it may in the jail, it
reads a device or a file through the descriptor that is open. Names below the current directory are
kept relative to it, because in the jail that directory is the root.

The EGD protocol: we send the bytes 1 and n; the server answers with the number of bytes that it
gives, and with these bytes (Postfix tls_prng_egd.c). As in Postfix, a device and an EGD server are
asked for at most 255 bytes, a file for any number; unlike in Postfix, a file is read at every
reseed, not only at the first.

Nothing is fatal or logged here: a failure is a SourceError with the reason.
"""

import os
import socket
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Protocol, TypeVar

TIME_LIMIT = 10.0  # seconds; for each operation, as in Postfix tlsmgr.c
LONGEST_READING = 255  # bytes; of a device or an EGD server
PIECE = 65536  # bytes of a file read in one go

Result = TypeVar("Result")
Reading = Generator[None, float, bytes]


class SourceError(Exception):
    """The source cannot be opened, or a reading failed; the text says why."""


class Source(Protocol):
    """The interface of all kinds of source."""

    tested: bool
    """Whether its bytes are samples of noise, which must pass the health tests."""

    def open(self) -> None:
        """Open it, or raise SourceError. Does not wait."""

    def read(self, n: int) -> Reading:
        """Start a reading of up to `n` bytes; its result has at least one. Raises SourceError."""

    def descriptors(self) -> set[int]:
        """Return the descriptors that are open."""


def source_of(value: str) -> Source | None:
    """Return the unopened source that the value of tls_random_source names; None for none."""
    for prefix, kind in _KINDS.items():
        if value.startswith(prefix):
            return kind(value[len(prefix) :])
    return File(value) if value else None


class _Named:
    """A device or a file: a descriptor, opened by name."""

    kind = ""

    def __init__(self, path: str) -> None:
        """Take the name of the source; nothing is opened yet."""
        self._path = path
        self._name = _lasting_name(path)
        self._fd = -1

    def open(self) -> None:
        """Open it and close what was open, or raise SourceError. Does not wait."""
        try:
            fd = os.open(self._name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except (OSError, ValueError) as error:
            raise SourceError(f"cannot open {self.kind} {self._path}: {_reason(error)}") from None
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd

    def descriptors(self) -> set[int]:
        """Return the descriptor, if it is open."""
        return {self._fd} if self._fd >= 0 else set()

    def _open_if_possible(self) -> None:
        """Open it again; if that fails, as it may in the jail, keep the descriptor that is open."""
        try:
            self.open()
        except SourceError:
            if self._fd < 0:
                raise

    def _read_once(self, n: int) -> Reading:
        """Read once: as many bytes as are there, none at the end of the file."""
        what = f"cannot read from {self.kind} {self._path}"
        return (yield from _attempt(lambda: os.read(self._fd, n), what))


class Device(_Named):
    """`dev:PATH`: a reading is one read(2), and may be short."""

    kind = "entropy device"
    tested = True
    _failed = True  # or not open yet

    def open(self) -> None:
        """Open the device, or raise SourceError."""
        super().open()
        self._failed = False

    def read(self, n: int) -> Reading:
        """Read up to `n` bytes, at most 255."""
        if self._failed:
            self._open_if_possible()
        self._failed = True
        data = yield from self._read_once(min(n, LONGEST_READING))
        if not data:
            raise SourceError(f"cannot read from {self.kind} {self._path}: end of file")
        self._failed = False
        return data


class File(_Named):
    """A regular file: a reading is its first bytes, untested, whether they changed or not."""

    kind = "entropy file"
    tested = False

    def read(self, n: int) -> Reading:
        """Read the first `n` bytes of the file, fewer if it is shorter."""
        self._open_if_possible()
        with suppress(OSError):
            os.lseek(self._fd, 0, os.SEEK_SET)
        pieces = []
        while n > 0 and (piece := (yield from self._read_once(min(n, PIECE)))):
            pieces.append(piece)
            n -= len(piece)
        if not pieces:
            raise SourceError(f"cannot read from {self.kind} {self._path}: it is empty")
        return b"".join(pieces)


class Egd:
    """`egd:PATH`: an entropy gathering daemon behind a UNIX stream socket."""

    tested = True

    def __init__(self, path: str) -> None:
        """Take the name of the server's socket; nothing is connected yet."""
        self._path = path
        self._name = _lasting_name(path)
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """Connect to the server, or raise SourceError. Does not wait."""
        self._close()
        try:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.setblocking(False)
            self._socket.connect(self._name)
        except (OSError, ValueError) as error:
            self._close()
            what = f"cannot connect to EGD server {self._path}"
            raise SourceError(f"{what}: {_reason(error)}") from None

    def read(self, n: int) -> Reading:
        """Ask for `n` bytes, at most 255, and return the bytes that the server gives, 1 to 255."""
        if self._socket is None:
            self.open()
        assert self._socket
        try:
            return (yield from self._converse(self._socket, bytes([1, min(n, LONGEST_READING)])))
        except SourceError:
            self._close()  # out of step: the next bytes may answer the question before
            raise

    def descriptors(self) -> set[int]:
        """Return the descriptor of the connection, if there is one."""
        return {self._socket.fileno()} if self._socket else set()

    def _close(self) -> None:
        """Close the connection if there is one."""
        if self._socket:
            self._socket.close()
        self._socket = None

    def _converse(self, server: socket.socket, question: bytes) -> Reading:
        """Send the question, and receive the count and then the bytes."""
        with suppress(OSError):  # an answer to a process that asked, and died
            server.recv(1 + LONGEST_READING)
        yield from _attempt(
            lambda: server.send(question), f"cannot write to EGD server {self._path}"
        )
        count = (yield from self._receive(server, 1))[0]
        if not count:
            raise SourceError(f"EGD server {self._path} reports zero bytes available")
        return (yield from self._receive(server, count))

    def _receive(self, server: socket.socket, n: int) -> Reading:
        """Receive `n` bytes, in any number of pieces."""
        what = f"cannot read {n} bytes from EGD server {self._path}"
        received = b""

        def receive() -> bytes:
            nonlocal received
            while len(received) < n:
                piece = server.recv(n - len(received))
                if not piece:
                    raise SourceError(f"{what}: lost connection")
                received += piece
            return received

        return (yield from _attempt(receive, what))


_KINDS: dict[str, Callable[[str], Source]] = {"dev:": Device, "egd:": Egd}


def _attempt(operation: Callable[[], Result], what: str) -> Generator[None, float, Result]:
    """Call `operation` at each step until it need not wait; give up after ten seconds."""
    deadline: float | None = None
    while True:
        try:
            return operation()
        except BlockingIOError:
            now = yield
        except OSError as error:
            raise SourceError(f"{what}: {_reason(error)}") from None
        deadline = now + TIME_LIMIT if deadline is None else deadline
        if now >= deadline:
            raise SourceError(f"{what}: timed out")


def _lasting_name(path: str) -> str:
    """Return a name that means the same file before the jail and, if possible, in it."""
    here = os.path.join(os.getcwd(), "")
    return path[len(here) :] if path.startswith(here) else path


def _reason(error: OSError | ValueError) -> str:
    """Return the text for an error; a ValueError is a name with a zero byte."""
    return getattr(error, "strerror", None) or str(error)
