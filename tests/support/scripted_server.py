"""scripted_server - a server on a UNIX-domain socket that does what a script says, right or wrong

One script per connection, in the order in which clients connect; a script is a sequence of steps:
bytes are sent, HEAR waits for a request and records it, HOLD waits for the client to close, and
a function is called with the connection. The connection is closed after its last step. The socket
is closed after the last script, so that one connection too many is refused, or at the end of the
`with` block: a script that nobody came for is none of the server's failures.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

ANNOUNCEMENT = b"protocol\0tlsmgr_protocol\0\0"
LIMIT = 30.0  # seconds; no script and no test waits longer


def HEAR(connection: socket.socket) -> bytes:
    """Step: take one request, up to 64 KiB; clients send it in one piece."""
    return connection.recv(1 << 16)


def HOLD(connection: socket.socket) -> None:
    """Step: say nothing until the client closes."""
    while connection.recv(1 << 16):
        pass


Step = bytes | Callable[[socket.socket], bytes | None]


class ScriptedServer:
    """Runs the scripts in a thread. `with` waits for the current one, and passes failures on."""

    def __init__(self, path: Path, *scripts: Sequence[Step]) -> None:
        self.path = path
        self.requests: list[bytes] = []  # what HEAR heard
        self.accepted = 0  # connections so far
        self._scripts = scripts
        self._failure: BaseException | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with contextlib.suppress(OSError):  # closed after the last script
            self._listener.shutdown(socket.SHUT_RDWR)  # a blocking accept() gives EINVAL
        self._thread.join(LIMIT if kind is None else 0.0)
        if kind is None:
            assert not self._thread.is_alive(), "the script did not come to its end"
            assert self._failure is None, repr(self._failure)

    def _run(self) -> None:
        try:
            with self._listener:
                for script in self._scripts:
                    self._play(script)
        except BaseException as exc:
            self._failure = exc

    def _play(self, script: Sequence[Step]) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as exc:
            if exc.errno == errno.EINVAL:
                return
            raise
        self.accepted += 1
        connection.settimeout(LIMIT)
        with connection:
            for step in script:
                if isinstance(step, bytes):
                    connection.sendall(step)
                elif heard := step(connection):
                    self.requests.append(heard)
