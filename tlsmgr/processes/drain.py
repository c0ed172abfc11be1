"""drain - when a worker that accepts no more clients lets go of those that it has.

A Postfix client that finds its connection closed when it wants to use it waits for a second. It
notices for nothing only while it waits for events, between two pieces of work, and there it lets go
of a connection by itself, IDLE_TIME after its last request (ipc_idle). So a connection is left to
its client at first. Then it is closed in a pause of the client: a long one early, and towards
DRAIN_TIME a shorter one, so that a client that is never idle for long loses no second either.

Runs in a worker; pure.
"""

from __future__ import annotations

from collections.abc import Iterable

DRAIN_TIME = 10.0  # seconds for clients to leave
IDLE_TIME = 5.0  # seconds in which no connection is closed
PAUSE_PART = 5  # a connection is closed after this part of the time that is left, in silence
LONGEST_STEP, STEP_PART = 0.1, 50  # seconds between two looks; that part of the time that is left


class Drain:
    """One drain, which began at ``now``. Times are of time.monotonic()."""

    def __init__(self, now: float) -> None:
        self.began = now
        self._end = now + DRAIN_TIME
        self._heard: dict[int, float] = {}  # when there was an event, by descriptor

    def note(self, events: Iterable[tuple[int, int]], now: float) -> None:
        """Note that these descriptors had an event."""
        for descriptor, _ in events:
            self._heard[descriptor] = now

    def may_close(self, descriptor: int, now: float) -> bool:
        """Return whether this connection may be closed, if nothing is half-done."""
        if now - self.began < IDLE_TIME:
            return False
        return now - self._heard.get(descriptor, self.began) >= (self._end - now) / PAUSE_PART

    def is_over(self, now: float) -> bool:
        """Return whether the time is up."""
        return now >= self._end

    def timeout(self, now: float) -> float:
        """Return the seconds until the next look."""
        return min(LONGEST_STEP, max(0.0, self._end - now) / STEP_PART)
