"""farm_outbox - the answers for one worker that its socket does not take yet.

A worker may be slower than its engine for a moment, and many long sessions may be found at once:
they wait here, in order. MOST_BYTES of them: a worker that takes nothing for so long has given up
its lookups, and what comes then is dropped. Runs in the farm process.
"""

from __future__ import annotations

import socket
from collections import deque

MOST_BYTES = 8 << 20


class Outbox:
    """For the socket of one worker, which does not block."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._waiting: deque[bytes] = deque()
        self._size = 0

    def __bool__(self) -> bool:
        """Whether something waits."""
        return bool(self._waiting)

    def add(self, datagram: bytes) -> None:
        """Queue a datagram, or drop it."""
        if self._size + len(datagram) <= MOST_BYTES:
            self._waiting.append(datagram)
            self._size += len(datagram)

    def send(self) -> None:
        """Send as many as the socket takes; one that it never takes is dropped."""
        while self._waiting:
            try:
                self._end.send(self._waiting[0])
            except BlockingIOError:
                return
            except OSError:
                pass
            self._size -= len(self._waiting.popleft())
