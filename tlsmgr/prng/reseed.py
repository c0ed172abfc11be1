"""The parent's job that stirs the external entropy source into the pool (tls_random_source).

Postfix's tlsmgr_reseed_event, without its end: a source that fails is one warning that names it,
told again every ten minutes while it lasts, and is tried again within a minute. Service goes on
from the kernel's generator, which the pool uses anyway; the source only adds to it. What a device
or an EGD server delivers is tested (health.py), and a reading that fails the tests is not used.

Run by the parent: open() before the jail, run() from its loop. No run blocks: while a slow source
keeps us waiting, run() asks to be called again soon. Nothing is fatal.
"""

from tlsmgr import log
from tlsmgr.prng.health import Health
from tlsmgr.prng.pool import Pool
from tlsmgr.prng.sources import Reading, SourceError, source_of
from tlsmgr.prng.timers import next_delay, retry_delay
from tlsmgr.prng.trouble import Trouble

POLL = 0.05  # seconds between two looks at a source that makes us wait


class Reseeder:
    """One source, read again and again."""

    def __init__(self, value: str, count: int, period: int, pool: Pool) -> None:
        """Take the values of tls_random_source, tls_random_bytes and tls_random_reseed_period.

        `period` is in seconds. Nothing is opened yet.
        """
        self._source = source_of(value)
        self._count = count
        self._period = period
        self._pool = pool
        self._health = Health()
        self._trouble = Trouble(f"tls_random_source = {value}")
        self._reading: Reading | None = None

    def open(self, now: float) -> None:
        """Open the source without reading it: before the jail, with the rights to do so."""
        if self._source is None:
            log.warning("no entropy source specified with parameter tls_random_source")
            return
        try:
            self._source.open()
        except SourceError as error:
            self._trouble.report(str(error), now)

    def run(self, now: float) -> float:
        """Go on with a reading, or start one; return the seconds after which to call again.

        `now` is the monotonic time in seconds.
        """
        if self._source is None:
            return next_delay(self._period, self._pool)
        try:
            data = self._step(now)
        except SourceError as error:
            return self._fail(str(error), now)
        if data is None:
            return POLL
        fault = self._health.check(data) if self._source.tested else ""
        if fault:
            return self._fail(fault, now)
        self._pool.stir(data)
        self._trouble.over()
        return next_delay(self._period, self._pool)

    def descriptors(self) -> set[int]:
        """Return the descriptors that the process that runs this keeps open."""
        return self._source.descriptors() if self._source is not None else set()

    def close(self) -> None:
        """Close the source."""
        self._reading = None
        if self._source:
            self._source.close()

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

    def _fail(self, reason: str, now: float) -> float:
        """Report a failed reading, and return the seconds after which to try again."""
        self._trouble.report(reason, now)
        return retry_delay(self._period, self._pool)
