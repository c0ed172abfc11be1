"""scripted_server - a server on a UNIX-domain socket that follows a script, correct or not.

One script per connection, in the order in which clients connect. A script is a sequence of steps:
bytes are sent, HEAR receives a request and records it, HOLD waits for the client to close, and any
other function is called with the connection. The connection is closed after its last step. The
socket is closed after the last script, so that a further connection is refused, or at the end of
the `with` block; scripts that were not needed are no failure.
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
    """Step: receive one request, up to 64 KiB, which clients send in one piece."""
    return connection.recv(1 << 16)


def HOLD(connection: socket.socket) -> None:
    """Step: send nothing until the client closes."""
    while connection.recv(1 << 16):
        pass


Step = bytes | Callable[[socket.socket], bytes | None]


class ScriptedServer:
    """Runs the scripts in a thread. `with` waits for the current one and reports its failure."""

    def __init__(self, path: Path, *scripts: Sequence[Step]) -> None:
        self.path = path
        self.requests: list[bytes] = []  # recorded by HEAR
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
                    if not self._play(script):
                        return
        except BaseException as exc:
            self._failure = exc

    def _play(self, script: Sequence[Step]) -> bool:
        """Accept a connection and follow the script; False if the socket was shut down."""
        try:
            connection, _ = self._listener.accept()
        except OSError as exc:
            if exc.errno == errno.EINVAL:
                return False
            raise
        self.accepted += 1
        connection.settimeout(LIMIT)
        with connection:
            for step in script:
                if isinstance(step, bytes):
                    connection.sendall(step)
                elif heard := step(connection):
                    self.requests.append(heard)
        return True
