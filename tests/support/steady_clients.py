"""steady_clients - clients with the habits of Postfix's attr_clnt(3), which must not lose a second.

Each has one connection, which it keeps. Before a request it looks whether that is readable: that
is the end of it, and costs a second, as does one that ends in a request. Only between two pieces of
work, when it waits for events, it notices the end for nothing; there it also lets go of a
connection that it has not used for IDLE seconds.

A loss does not count when the machine had kept that client from running for STARVED seconds in the
middle of its work: the server can't tell such a silence from a pause.
"""

from __future__ import annotations

import select
import threading
import time
from dataclasses import dataclass, field

from support.raw_client import Connection, data_of, seed

IDLE = 5.0  # seconds: ipc_idle
STARVED = 0.1  # seconds
REQUESTS, PAUSE = 5, 0.01  # of a piece of work; seconds of it between two requests


@dataclass
class SteadyClients:
    """That many clients, for a ``with`` statement. Each works, then waits for ``gap`` seconds."""

    path: str
    count: int
    gap: float = 0.5
    lost: int = 0  # seconds, by any client
    served: int = 0
    longest: float = 0.0  # seconds of a request, without lost ones
    failures: list[str] = field(default_factory=list)

    def __enter__(self) -> SteadyClients:
        self._stop = threading.Event()
        self._last: dict[int, float] = {}  # time of the last reply, by thread
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(self.count)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        connection: Connection | None = None
        self._last[threading.get_ident()] = time.monotonic()
        try:
            while not self._stop.is_set():
                for _ in range(REQUESTS):
                    connection = self._ask(connection)
                    time.sleep(PAUSE)
                if connection is not None and _has_ended(connection, self.gap):
                    connection.close()
                    connection = None
        except Exception as error:
            self.failures.append(repr(error))
        if connection is not None:
            connection.close()

    def _ask(self, connection: Connection | None) -> Connection | None:
        """Make a request; return the connection to keep."""
        began = time.monotonic()
        try:
            if connection is None:
                connection = Connection(self.path)
            elif _has_ended(connection, 0.0):
                raise EOFError
            assert len(data_of(connection.ask(seed(32)), b"seed")) == 32
        except (EOFError, OSError):
            if connection is not None:
                connection.close()
            with self._lock:
                self.lost += began - self._last[threading.get_ident()] < STARVED
            return None
        now = self._last[threading.get_ident()] = time.monotonic()
        with self._lock:
            self.served += 1
            self.longest = max(self.longest, now - began)
        return connection


def _has_ended(connection: Connection, seconds: float) -> bool:
    """Return whether the connection ends within that time."""
    return bool(select.select([connection.socket], [], [], seconds)[0])
