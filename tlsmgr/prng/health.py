"""health - continuous health tests of external entropy sources (SP 800-90B section 4.4).

reseed.py runs them on each reading of a device or an EGD server. A sample is a byte, with at least
one bit of entropy (H = 1). The cutoffs are those for one false alarm in 2**30 samples. Two tests
are the standard's: repetition count (a source that is stuck) and adaptive proportion (a source that
lost most of its entropy). The third is one of our own, as section 4.5 allows: a reading that equals
the one before it.

Pure arithmetic: no I/O, no log. The caller discards a reading that fails.
"""

from math import comb

ALPHA_BITS = 30  # alpha = 2**-30, the chance of a false alarm
WINDOW = 512  # samples; section 4.4.2, for samples of more than one bit
REPETITION_CUTOFF = 1 + ALPHA_BITS  # section 4.4.1: 1 + ceil(-log2(alpha) / H)


def critbinom(trials: int, alpha_bits: int) -> int:
    """Return the smallest k with P(X > k) <= 2**-alpha_bits for a fair coin's `trials` tosses."""
    tail, k = 0, trials
    while (tail + comb(trials, k)) << alpha_bits <= 1 << trials:
        tail += comb(trials, k)
        k -= 1
    return k


PROPORTION_CUTOFF = 1 + critbinom(WINDOW, ALPHA_BITS)  # section 4.4.2, for H = 1


class Health:
    """The tests of one source; their state goes on from each reading to the next, failed or not."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._last = -1
        self._run = 0
        self._watched = -1
        self._seen = 0
        self._left = 0
        self._reading = b""

    def check(self, reading: bytes) -> str:
        """Test one reading; return the fault found, or ""."""
        faults = self._repeated(reading), self._stuck(reading), self._unbalanced(reading)
        return next(filter(None, faults), "")

    def _repeated(self, reading: bytes) -> str:
        """Compare with the reading before; short ones may be equal by chance."""
        same = len(reading) >= ALPHA_BITS and reading == self._reading
        self._reading = reading
        return "delivers the same bytes again" if same else ""

    def _stuck(self, reading: bytes) -> str:
        """Run the repetition count test."""
        longest = 0
        for sample in reading:
            self._run = self._run + 1 if sample == self._last else 1
            self._last = sample
            longest = max(longest, self._run)
        if longest < REPETITION_CUTOFF:
            return ""
        return f"is stuck: one byte {REPETITION_CUTOFF} times in a row or more"

    def _unbalanced(self, reading: bytes) -> str:
        """Run the adaptive proportion test."""
        most = 0
        for sample in reading:
            if not self._left:
                self._watched, self._seen, self._left = sample, 0, WINDOW
            self._left -= 1
            self._seen += sample == self._watched
            most = max(most, self._seen)
        if most < PROPORTION_CUTOFF:
            return ""
        return f"is unbalanced: one byte {PROPORTION_CUTOFF} times in {WINDOW} or more"
