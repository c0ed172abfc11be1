"""accepting_server - a server in a thread, for a ``with`` statement: what several of them share."""

from __future__ import annotations

import socket
import threading
from typing import TypeVar

_Server = TypeVar("_Server", bound="AcceptingServer")


class AcceptingServer:
    """Accepts from a listening socket, and has ``take`` called with each connection in turn."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._thread = threading.Thread(target=self._accept)

    def __enter__(self: _Server) -> _Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # ends accept()
        self._thread.join()
        self._listener.close()

    def take(self, connection: socket.socket) -> None:
        """Serve it, and close it."""
        raise NotImplementedError

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.take(connection)
