"""rules - the configuration of one session cache, and what all who delete from it log.

Pure but for the log lines, which are stock's.
"""

from __future__ import annotations

from typing import NamedTuple

from tlsmgr import log

CLOCK_SLACK = 86400  # seconds that an entry may be saved in the future


class CacheRules(NamedTuple):
    """The configuration of one cache. Times in seconds; 0 entries: no such limit."""

    cache_type: str
    timeout: int
    size_limit: int
    entry_limit: int
    logging: bool
    single_use: str = "no"  # or yes, or strict; see ``single_use``

    def is_expired(self, saved: int, now: int) -> bool:
        """Return whether an entry saved at that time does not count any more."""
        return saved + self.timeout < now or saved > now + CLOCK_SLACK


def log_delete(rules: CacheRules, cache_id: bytes) -> None:
    """Log that a session is deleted, where the log level asks for it."""
    if rules.logging:
        log.info(f"delete {rules.cache_type} session id={id_text(cache_id)}")


def id_text(cache_id: bytes) -> str:
    """Return a cache id for the log."""
    return cache_id.decode("utf-8", "surrogateescape")
