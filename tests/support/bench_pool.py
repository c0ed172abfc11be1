"""Microseconds per 32-byte extract, alone and with other processes that contend for the pool.

python tests/support/bench_pool.py [SECONDS]
"""

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tlsmgr.prng.pool import Pool
from tlsmgr.shm import SharedMemory

BURST = 1000  # extracts between two looks at the clock
SEED = 32  # bytes


def measure(pool: Pool, seconds: float) -> tuple[float, float]:
    """Return the mean and the best burst's microseconds per extract."""
    extract = pool.extract
    best = total = 0.0
    bursts = 0
    while total < seconds:
        start = time.perf_counter()
        for _ in range(BURST):
            extract(SEED)
        took = time.perf_counter() - start
        best = min(best, took) if bursts else took
        total += took
        bursts += 1
    return total / bursts / BURST * 1e6, best / BURST * 1e6


def contend(pool: Pool, slot: int, counts: memoryview) -> int:
    """Start a process that draws as fast as it can, and counts; return its pid."""
    pid = os.fork()
    if pid:
        return pid
    pool.attach(slot)
    while True:
        for _ in range(10):
            pool.extract(SEED)
        counts[slot] += 10


def main() -> None:
    """Print a line for each number of contending processes."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 2.0
    for others in (0, 1, 3):
        memory = SharedMemory(4096)
        counts = memory.carve(64).cast("Q")
        pool = Pool(memory, others + 1)
        pids = [contend(pool, slot, counts) for slot in range(1, others + 1)]
        try:
            before = sum(counts)
            mean, best = measure(pool, seconds)
            drawn = sum(counts) - before + round(seconds / mean * 1e6)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        print(
            f"{others} contending: {mean:6.2f} us per extract (best {BURST}: {best:.2f} us), "
            f"{drawn / seconds:8.0f} extracts/s in all"
        )


if __name__ == "__main__":
    main()
