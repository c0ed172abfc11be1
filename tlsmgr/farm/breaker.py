"""breaker - whether an engine is asked at all: after failures it is left alone for a while.

    CLOSED   it is asked; FAILURES failures in a row, or one stall, open the breaker
    OPEN     it is not asked, so that nobody waits for it. After a pause comes one probe: if it
             succeeds the breaker closes, if it fails the next pause is twice as long

The first pause is a second, the longest 30 s; each is shortened by up to a half, at random, so that
the hosts of a farm do not all come back at once. A pause grows on when the breaker opens again soon
after it closed: an engine that answers probes and nothing else is not asked every second.

It is open at first: one probe shows whether the engine is there. Pure: time.monotonic() and the
random numbers are passed in. Used by the farm process.
"""

from __future__ import annotations

from collections.abc import Callable

FAILURES = 5  # in a row, that open it
STALL_DEADLINES = 3  # deadlines without an answer, which open it at once
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds


class Breaker:
    """``draw`` returns a random number from 0 to 1."""

    def __init__(self, now: float, draw: Callable[[], float]) -> None:
        self._draw = draw
        self._failures = 0
        self._pause = 0.0
        self._closed_at = now
        self.is_open = True
        self.is_reported = False
        """Whether it is known to be open: the first probe decides."""
        self.probe_due = now

    def note_success(self, now: float) -> bool:
        """Note an answer; return whether that closed the breaker."""
        self._failures = 0
        if not self.is_open:
            return False
        self.is_open = self.is_reported = False
        self._closed_at = now
        return True

    def note_failure(self, now: float) -> bool:
        """Note that there was no answer, or a bad one; return whether to report that it opens."""
        self._failures += 1
        if not self.is_open and self._failures < FAILURES:
            return False
        return self.note_stall(now)

    def note_stall(self, now: float) -> bool:
        """Note that an answer is overdue; return whether to report that it opens."""
        if not self.is_open and now - self._closed_at > LONGEST_PAUSE:
            self._pause = 0.0
        self._pause = min(max(FIRST_PAUSE, 2 * self._pause), LONGEST_PAUSE)
        self.probe_due = now + self._pause * (1 - self._draw() / 2)
        self.is_open = True
        was_reported, self.is_reported = self.is_reported, True
        return not was_reported
