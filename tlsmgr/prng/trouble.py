"""A trouble that lasts is told in one line, not in one line a try.

For the parent's jobs reseed.py and exchange.py, which go on without what fails and try again. Pure
but for the log line; time is passed in.
"""

from tlsmgr import log

REPEAT = 600.0  # seconds; a lasting trouble is told again after that time


class Trouble:
    """What is wrong now with one thing that the configuration names."""

    def __init__(self, subject: str) -> None:
        """`subject` opens each line: the parameter and its value."""
        self._subject = subject
        self._reason = ""
        self._told = 0.0

    def report(self, reason: str, now: float) -> None:
        """Log a warning, unless the same one was logged in the last ten minutes."""
        if reason == self._reason and now - self._told < REPEAT:
            return
        self._reason, self._told = reason, now
        log.warning(f"{self._subject}: {reason}")

    def over(self) -> None:
        """Say so once if there was a trouble."""
        if self._reason:
            log.info(f"{self._subject}: works again")
        self._reason = ""
