"""control - the client's end of the control socket: one request line, lines of JSON in return

The socket is beside the service socket, with `-control` at the end of its name. The server ends its
reply with the line `ok`, or with `error TEXT`, which is a RequestFailed, and closes the connection.
Nothing waits beyond the time limit, which is that of the whole reply, and memory is bounded by the
length of one line.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

from tlsmgr.client.connection import (
    Deadline,
    ProtocolError,
    RequestFailed,
    TimedOut,
    Unavailable,
)

SUFFIX = "-control"
LINE_LIMIT = 16 << 20  # bytes
BLOCK = 1 << 16


def request(path: str, line: str, timeout: float | None = None) -> Iterator[str]:
    """Ask the tlsmgr whose service socket is at `path`; yield the reply's lines before the last."""
    deadline, path = Deadline(timeout), path + SUFFIX
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.settimeout(None if timeout is None else deadline.remaining())
            connection.connect(path)
            connection.sendall(os.fsencode(f"{line}\n"))
            for text in _lines(connection, deadline, timeout):
                if text == "ok":
                    return
                if text.startswith("error "):
                    raise RequestFailed(text.removeprefix("error "))
                yield text
        except TimeoutError:
            raise TimedOut(f"the server did not answer within {timeout:g} s") from None
        except OSError as error:
            raise Unavailable(f"connect to {path}: {error.strerror or error}") from None
    raise ProtocolError("the reply is not complete")


def _lines(connection: socket.socket, deadline: Deadline, timeout: float | None) -> Iterator[str]:
    rest = b""
    while True:
        connection.settimeout(None if timeout is None else deadline.remaining())
        if not (block := connection.recv(BLOCK)):
            return
        *lines, rest = (rest + block).split(b"\n")
        yield from (line.decode(errors="surrogateescape") for line in lines)
        if len(rest) > LINE_LIMIT:
            raise ProtocolError(f"a line of the reply is longer than {LINE_LIMIT} bytes")
