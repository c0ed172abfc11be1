"""backlog - what waits to be written into an engine: bounded, and the oldest is dropped.

Updates and deletes are written behind: their clients have their replies already. While the engine
is away they wait here, 1,000 of them and 4 MiB at most, and are written when it is back, unless
they have expired meanwhile. Pure: time.monotonic() is passed in. Used by the farm process.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

MOST_ENTRIES, MOST_BYTES = 1000, 4 << 20
OWN_BYTES = 100  # that an entry takes beside its key and value, about


class Write(NamedTuple):
    """A value to store under one key, or with None: keys to delete. ``end`` is when it expires."""

    keys: tuple[bytes, ...]
    value: bytes | None
    end: float

    @property
    def size(self) -> int:
        """The bytes it takes."""
        return OWN_BYTES + sum(map(len, self.keys)) + len(self.value or b"")

    def __repr__(self) -> str:
        return f"Write({'delete' if self.value is None else f'{len(self.value)} bytes'})"


class Backlog:
    """A queue of writes, the oldest first."""

    def __init__(self, entries: int = MOST_ENTRIES, size: int = MOST_BYTES) -> None:
        self._limits = entries, size
        self._writes: deque[Write] = deque()
        self._size = 0
        self.dropped = 0
        """How many were dropped so far to make room."""

    def __len__(self) -> int:
        return len(self._writes)

    @property
    def size(self) -> int:
        """The bytes that the entries take."""
        return self._size

    def add(self, write: Write) -> None:
        """Append a write; drop the oldest ones while there are too many."""
        self._writes.append(write)
        self._size += write.size
        entries, size = self._limits
        while len(self._writes) > entries or self._size > size:
            self._size -= self._writes.popleft().size
            self.dropped += 1

    def take(self, entries: int, size: int, now: float) -> list[Write]:
        """Remove and return the oldest ones that have not expired: at least one, up to a limit."""
        taken: list[Write] = []
        left = size
        while self._writes and len(taken) < entries and left > 0:
            write = self._writes.popleft()
            self._size -= write.size
            if write.value is None or now < write.end:
                taken.append(write)
                left -= write.size
        return taken
