"""control_client - a connection to a daemon's control socket, byte by byte."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

TIMEOUT = 30.0  # seconds; limit for any reply on a loaded machine


class ControlConnection:
    """A connection to the control socket beside a service socket. Close it, or use `with`."""

    def __init__(self, service: str, receive_buffer: int = 0) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(TIMEOUT)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.connect(f"{service}-control")

    def __enter__(self) -> ControlConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send bytes; a server that has closed the connection already is no error."""
        with contextlib.suppress(BrokenPipeError):
            self.socket.sendall(data)

    def read_to_end(self) -> bytes:
        """Return everything until the server closes; a reset counts as closing."""
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while data := self.socket.recv(1 << 16):
                received += data
        return received


def ask(service: str, line: str | bytes) -> list[str]:
    """Return the lines of a reply, the last one included."""
    with ControlConnection(service) as connection:
        connection.send((line if isinstance(line, bytes) else line.encode()) + b"\n")
        reply = connection.read_to_end().decode("ascii")
    assert reply.endswith("\n"), "not a whole line"
    return reply.splitlines()


def data_of(service: str, line: str) -> list[Any]:
    """Return the objects of a reply, which must end with `ok`."""
    *lines, last = ask(service, line)
    assert last == "ok", last
    return [json.loads(each) for each in lines if each]  # an empty one: the work goes on


def status_of(service: str) -> Any:
    """Return the status object."""
    (status,) = data_of(service, "status")
    return status
