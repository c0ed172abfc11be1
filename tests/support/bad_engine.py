"""bad_engine - servers in the place of an engine that do not do what they should."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

Behaviour = Callable[[socket.socket], None]


def drip(connection: socket.socket) -> None:
    """Answer with one byte a second."""
    connection.recv(1 << 16)
    for byte in b"+PONG\r\n" * 100:
        connection.sendall(bytes([byte]))
        time.sleep(1)


def garbage(connection: socket.socket) -> None:
    """Answer whatever comes with random bytes."""
    while connection.recv(1 << 16):
        connection.sendall(os.urandom(1000))


def endless(connection: socket.socket) -> None:
    """Promise a value of a gigabyte, and send it."""
    connection.recv(1 << 16)
    connection.sendall(b"$1000000000\r\n")
    while True:
        connection.sendall(bytes(1 << 16))


def answering(reply: bytes) -> Behaviour:
    """Answer each lookup with that, and all else as it should be."""

    def behave(connection: socket.socket) -> None:
        while data := connection.recv(1 << 20):
            for command in re.findall(rb"^(PING|GET|SET|DEL)\r$", data, re.MULTILINE):
                connection.sendall({b"PING": b"+PONG\r\n", b"GET": reply}.get(command, b"+OK\r\n"))

    return behave


def close(connection: socket.socket) -> None:
    """Hang up at once."""


@contextlib.contextmanager
def served(path: Path, behave: Behaviour) -> Iterator[None]:
    """Have this server at the path of a UNIX-domain socket, for the block."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o777)
        listener.listen(16)
        threading.Thread(target=_serve, args=(listener, behave), daemon=True).start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            path.unlink()


def _serve(listener: socket.socket, behave: Behaviour) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_serve_one, args=(connection, behave), daemon=True).start()


def _serve_one(connection: socket.socket, behave: Behaviour) -> None:
    with contextlib.suppress(OSError), connection:
        behave(connection)
