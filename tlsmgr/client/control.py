"""control - the client's end of the control socket: one request, any number of reply lines.

The socket is beside the service socket, with ``-control`` at the end of its name; ``control_lines``
has the lines. The time limit is for each step: to connect, and from one line to the next. Memory is
bounded by the length of a line.

Under Postfix a tlsmgr runs from its first request on, and makes the control socket then. So where
nobody listens there, the service socket is connected to once, which makes master(8) start it.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

from tlsmgr.client import DEFAULT_TIMEOUT, Client
from tlsmgr.client.connection import ProtocolError, RequestFailed, TimedOut, unavailable
from tlsmgr.control_lines import ERROR, OK, SUFFIX, ControlRequest, format_request

LONGEST_LINE = 16 << 20  # bytes
BLOCK = 1 << 16
START_TIME = 2.0  # seconds for a daemon that was just started to make its control socket
START_PAUSE = 0.02
NO_CONTROL = "a tlsmgr serves, but it has no control socket: Postfix's own, or an older one"


def ask(
    path: str, request: ControlRequest, timeout: float | None = DEFAULT_TIMEOUT
) -> Iterator[str]:
    """Ask the tlsmgr whose service socket is at `path`; yield the data lines of the reply.

    RequestFailed: it refused, and said why. Unavailable, TimedOut, ProtocolError as for Client.
    """
    with _connected(path, timeout) as connection:
        with contextlib.suppress(BrokenPipeError):  # it may have refused us already
            connection.sendall(f"{format_request(request)}\n".encode())
        for line in _lines(connection, timeout):
            if line == OK:
                return
            if line.startswith(f"{ERROR} "):
                raise RequestFailed(line.partition(" ")[2])
            if line:  # an empty one says that the work goes on
                yield line
    raise ProtocolError("the reply is not complete: the server closed the connection")


def _connected(path: str, timeout: float | None) -> socket.socket:
    """Return a connection to the control socket; have the daemon started if need be."""
    try:
        return _connect(path, timeout)
    except (FileNotFoundError, ConnectionRefusedError):
        with Client(path, timeout) as client:
            client.connect()
    except OSError as error:
        raise unavailable(f"{path}{SUFFIX}", error, NO_CONTROL) from None
    deadline = time.monotonic() + START_TIME
    while True:
        try:
            return _connect(path, timeout)
        except OSError as error:
            if time.monotonic() >= deadline:
                raise unavailable(f"{path}{SUFFIX}", error, NO_CONTROL) from None
        time.sleep(START_PAUSE)


def _connect(path: str, timeout: float | None) -> socket.socket:
    with contextlib.ExitStack() as on_failure:
        connection = on_failure.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        connection.settimeout(timeout)
        connection.connect(f"{path}{SUFFIX}")
        on_failure.pop_all()
        return connection


def _lines(connection: socket.socket, timeout: float | None) -> Iterator[str]:
    rest = b""
    while block := _receive(connection, timeout):
        *lines, rest = (rest + block).split(b"\n")
        yield from (line.decode(errors="surrogateescape") for line in lines)
        if len(rest) > LONGEST_LINE:
            raise ProtocolError(f"a line of the reply is longer than {LONGEST_LINE} bytes")


def _receive(connection: socket.socket, timeout: float | None) -> bytes:
    try:
        return connection.recv(BLOCK)
    except TimeoutError:
        raise TimedOut(f"the server did not answer within {timeout:g} s") from None
    except ConnectionResetError:
        return b""
