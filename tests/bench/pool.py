"""pool - microseconds per 32-byte extract of the PRNG pool, alone and with contending processes.

cd tests; ../.venv/bin/python -m bench.pool [SECONDS]
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
import time

from tlsmgr.prng.pool import Pool
from tlsmgr.shm import SharedMemory

BURST = 1000  # extracts between two calls of the clock
SEED = 32  # bytes


def measure(pool: Pool, seconds: float) -> tuple[int, float, float]:
    """Return the number of extracts, their mean, and the mean of the best burst in microseconds."""
    extract = pool.extract
    total, best = 0.0, float("inf")
    bursts = 0
    while total < seconds:
        start = time.perf_counter()
        for _ in range(BURST):
            extract(SEED)
        took = time.perf_counter() - start
        best = min(best, took)
        total += took
        bursts += 1
    count = bursts * BURST
    return count, total / count * 1e6, best / BURST * 1e6


def contend(pool: Pool, slot: int, counts: memoryview) -> int:
    """Start a process that extracts continuously and counts in its slot; return its pid."""
    pid = os.fork()
    if pid:
        return pid
    pool.attach(slot)
    while True:
        pool.extract(SEED)
        counts[slot] += 1


def main() -> None:
    """Print a line for each number of contending processes."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 2.0
    for others in (0, 1, 3):
        pool = Pool(SharedMemory(4096), others + 1)
        counts = memoryview(mmap.mmap(-1, 8 * (others + 1))).cast("Q")
        pids = [contend(pool, slot, counts) for slot in range(1, others + 1)]
        try:
            before = sum(counts)
            extracts, mean, best = measure(pool, seconds)
            extracts += sum(counts) - before
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        print(
            f"{others} contending: {mean:6.2f} us per extract (best burst {best:.2f} us), "
            f"{extracts / seconds:8.0f} extracts/s in all"
        )


if __name__ == "__main__":
    main()
