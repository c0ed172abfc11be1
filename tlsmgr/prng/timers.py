"""When the pool's two periodic jobs run next: the pseudo-random period of Postfix's tlsmgr.c.

For the parent's jobs reseed.py and exchange.py. Delays are whole seconds, spread evenly from zero
to the configured period, so that nobody can tell from outside when the pool is stirred; half the
period on average. Unlike Postfix, never below one second: a period of 1 s is no busy loop here.
"""

from tlsmgr.prng.pool import EntropyError, Pool

LONGEST_PERIOD = 8421504  # seconds; INT_MAX // 255, as in tlsmgr.c
SHORTEST_DELAY = 1  # seconds
RETRY = 60  # seconds; the most for which a job that failed waits


def scale(period: int, byte: int) -> int:
    """Return the delay in seconds that the random `byte`, 0 to 255, makes of `period` seconds."""
    return max(SHORTEST_DELAY, min(period, LONGEST_PERIOD) * byte // 255)


def next_delay(period: int, pool: Pool) -> int:
    """Return the delay in seconds to the next run of a job of that period."""
    try:
        byte = pool.extract(1)[0]
    except EntropyError:
        byte = 255
    return scale(period, byte)


def retry_delay(period: int, pool: Pool) -> int:
    """Return the delay in seconds after which a job that failed is tried again."""
    return min(RETRY, next_delay(period, pool))
