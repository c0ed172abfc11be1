"""reseed - stirs the external entropy source into the pool (tls_random_source).

Postfix's tlsmgr_reseed_event, except that a failure does not end the program: the kernel's
generator is part of every output (pool.py), and the source only adds to it. A failure is a warning,
repeated every ten minutes while it lasts, and the source is tried again within a minute. Readings
of a device or an EGD server are tested (health.py), and discarded if they fail.

open() is called before the jail, and does not read; run() is called from the loop of the process
that maintains the pool, and never waits: while a slow source makes it wait, run() asks to be called
again soon. A process that is forked later inherits what is open. Nothing is fatal.
"""

from tlsmgr import log
from tlsmgr.prng.health import Health
from tlsmgr.prng.pool import Pool
from tlsmgr.prng.sources import Reading, SourceError, source_of
from tlsmgr.prng.timers import WARNING_INTERVAL, next_delay, retry_delay

POLL = 0.05  # seconds between two looks at a source that makes us wait


class Reseeder:
    """One source, read from time to time."""

    def __init__(self, value: str, count: int, period: int, pool: Pool) -> None:
        """Take the values of tls_random_source, tls_random_bytes and tls_random_reseed_period.

        `period` is in seconds. Nothing is opened yet.
        """
        self.readings = 0
        """How often the source was stirred into the pool by this process."""
        self.is_failing = False
        """Whether the latest try failed."""
        self._name = f"tls_random_source = {value}"
        self._source = source_of(value)
        self._count = count
        self._period = period
        self._pool = pool
        self._health = Health()
        self._reading: Reading | None = None
        self._limit = log.Limit(WARNING_INTERVAL)

    def open(self, now: float) -> None:
        """Open the source: before the jail, with the privileges that it needs."""
        if self._source is None:
            log.warning("no entropy source specified with parameter tls_random_source")
            return
        try:
            self._source.open()
        except SourceError as error:
            self._report(str(error), now)

    def run(self, now: float) -> float:
        """Start or continue a reading; return the seconds after which to call again.

        `now` is the monotonic time in seconds.
        """
        if self._source is None:
            return next_delay(self._period, self._pool)
        try:
            data = self._step(now)
            if data is None:
                return POLL
            fault = self._health.check(data) if self._source.tested else ""
        except SourceError as error:
            fault = str(error)
        if fault:
            self._report(fault, now)
            return retry_delay(self._period, self._pool)
        assert data is not None
        self._pool.stir(data)
        self.readings += 1
        self.is_failing = False
        self._limit.over(f"{self._name}: works again")
        return next_delay(self._period, self._pool)

    def descriptors(self) -> set[int]:
        """Return the descriptors that the process that calls run() must keep open."""
        return self._source.descriptors() if self._source is not None else set()

    def _step(self, now: float) -> bytes | None:
        """Return the result of the reading, or None while it has to wait."""
        reading = self._reading
        self._reading = None
        try:
            if reading is None:
                assert self._source
                reading = self._source.read(self._count)
                next(reading)
            else:
                reading.send(now)
        except StopIteration as end:
            result: bytes = end.value
            return result
        self._reading = reading
        return None

    def _report(self, reason: str, now: float) -> None:
        """Log a failure, but not each time."""
        self.is_failing = True
        self._limit.warning(reason, f"{self._name}: {reason}", now)
