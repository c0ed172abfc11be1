"""timers - when reseed.py and exchange.py run next: the pseudo-random period of Postfix's tlsmgr.c.

Delays are whole seconds, spread evenly from zero to the configured period (half of it on average),
so that an outsider cannot know when the pool is stirred. Unlike in Postfix they are never below one
second: a period of 1 s does not make the program busy.
"""

from tlsmgr.prng.pool import EntropyError, Pool

LONGEST_PERIOD = 8421504  # seconds; INT_MAX // 255, as in tlsmgr.c
SHORTEST_DELAY = 1  # seconds
RETRY = 60  # seconds; the longest delay after a failure
WARNING_INTERVAL = 600.0  # seconds after which a warning about a lasting failure is repeated


def scale(period: int, byte: int) -> int:
    """Return the share of `period` seconds that the random `byte`, 0 to 255, selects."""
    return max(SHORTEST_DELAY, min(period, LONGEST_PERIOD) * byte // 255)


def next_delay(period: int, pool: Pool) -> int:
    """Return the delay in seconds until the next run of a job with that period."""
    try:
        byte = pool.extract(1)[0]
    except EntropyError:
        byte = 255
    return scale(period, byte)


def retry_delay(period: int, pool: Pool) -> int:
    """Return the delay in seconds after which a job that failed runs again."""
    return min(RETRY, next_delay(period, pool))
