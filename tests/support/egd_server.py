"""A real EGD server: the protocol of Postfix tls_prng_egd.c, and all that can go wrong with it.

It serves one client after another in a thread, each by the next of its manners (the last one for
all that follow). A question is 2 bytes: 1 and how many bytes; the answer is a count and the bytes.
"""

import os
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

Manner = Callable[["Client"], None]


class Client:
    """A connection, and what may be done to it."""

    def __init__(self, connection: socket.socket, server: "EgdServer") -> None:
        self._connection = connection
        self._server = server

    def question(self) -> int:
        """Wait for a question; return how many bytes it wants, or 0 when the client is gone."""
        question = b""
        while len(question) < 2:
            piece = self._connection.recv(2 - len(question))
            if not piece:
                return 0
            question += piece
        self._server.questions.append(question)
        return question[1]

    def send(self, data: bytes) -> None:
        """Send an answer or a part of one."""
        self._connection.sendall(data)

    def pause(self) -> None:
        """Wait until the test says go on, or the server is closed."""
        self._server.pauses.set()
        self._server.go_on.wait(30)

    def wait_for_the_end(self) -> None:
        """Wait until the client hangs up."""
        while self._connection.recv(100):
            pass


def willing(client: Client) -> None:
    """Give what is asked for."""
    while n := client.question():
        client.send(bytes([n]) + os.urandom(n))


def generous(client: Client) -> None:
    """Give 200 bytes to any question."""
    while client.question():
        client.send(bytes([200]) + os.urandom(200))


def sparing(client: Client) -> None:
    """Give 4 bytes to any question."""
    while client.question():
        client.send(bytes([4]) + os.urandom(4))


def stuck(client: Client) -> None:
    """Give zeros."""
    while n := client.question():
        client.send(bytes([n]) + bytes(n))


def repeating(client: Client) -> None:
    """Give the same bytes each time."""
    while n := client.question():
        client.send(bytes([n]) + bytes(range(n)))


def unwilling(client: Client) -> None:
    """Have no bytes to give."""
    while client.question():
        client.send(b"\0")


def silent(client: Client) -> None:
    """Never answer."""
    client.question()
    client.wait_for_the_end()


def stalling(client: Client) -> None:
    """Announce bytes and send half of them."""
    n = client.question()
    client.send(bytes([n]) + os.urandom(n // 2))
    client.wait_for_the_end()


def slow(client: Client) -> None:
    """Send one byte at a time, and pause in the middle until the test says go on."""
    while n := client.question():
        answer = bytes([n]) + os.urandom(n)
        for at in range(len(answer)):
            if at == len(answer) // 2:
                client.pause()
            client.send(answer[at : at + 1])


def short(client: Client) -> None:
    """Announce bytes, send one less, and hang up."""
    n = client.question()
    client.send(bytes([n]) + os.urandom(n - 1))


def dying(client: Client) -> None:
    """Hang up on the question."""
    client.question()


def gone(_: Client) -> None:
    """Hang up at once."""


class EgdServer:
    """The server at `path`; `with` serves until the end of the block."""

    def __init__(self, path: Path, *manners: Manner) -> None:
        self.path = path
        self.questions: list[bytes] = []
        self.clients = 0
        self.pauses = threading.Event()
        self.go_on = threading.Event()
        self._manners: Sequence[Manner] = manners or (willing,)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection = socket.socket()  # the one at hand
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> "EgdServer":
        self.path.unlink(missing_ok=True)
        self._listener.bind(str(self.path))
        self._listener.listen(5)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.go_on.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(30)
        assert not self._thread.is_alive()
        self.path.unlink(missing_ok=True)

    def _serve(self) -> None:
        with suppress(OSError):  # the listener was closed
            while True:
                self._connection, _ = self._listener.accept()
                manner = self._manners[min(self.clients, len(self._manners) - 1)]
                self.clients += 1
                with self._connection, suppress(OSError):
                    manner(Client(self._connection, self))
