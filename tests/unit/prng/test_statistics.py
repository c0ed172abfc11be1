"""The statistics of FIPS 140-2 section 4.9.1 on 1.25 MB of the pool's output.

They say nothing about unpredictability; they find a mechanism that is wired up wrongly. A perfect
generator fails them too, now and then: of its blocks of 20,000 bits, monobit and poker fail one in
10,000 each by design, a long run turns up in 20,000 / 2**26 = 1 of 3,400, and one of the twelve
counts of runs is out of bounds in about 1 of 3,300 (90 of 300,000 blocks of os.urandom). Of
N = 500 blocks a few may therefore fail; for each test we allow the least number k with
P(X > k) < 1e-9, where X is binomial(N, p).
"""

from collections import Counter
from math import comb
from random import Random

from tlsmgr.prng.pool import Pool
from tlsmgr.shm import SharedMemory

BLOCK = 2500  # bytes
BLOCKS = 500
DIGITS = 5000  # of a block, in hexadecimal
FALSE_ALARM = 1e-9

RUNS = {1: (2315, 2685), 2: (1114, 1386), 3: (527, 723), 4: (240, 384), 5: (103, 209)}
RUNS_OF_SIX_UP = (103, 209)
LONG_RUN = 26

CHANCES = {"monobit": 1.0e-4, "poker": 1.0e-4, "runs": 3.0e-4, "long run": 3.0e-4}
"""The chance that a block of a perfect generator fails each test."""


def faults(block: bytes) -> set[str]:
    """Return the names of the tests that a block of 20,000 bits fails."""
    found = set()
    if not 9725 < int.from_bytes(block, "big").bit_count() < 10275:
        found.add("monobit")
    squares = sum(count * count for count in Counter(block.hex()).values())
    if not 2.16 < 16 / DIGITS * squares - DIGITS < 46.17:
        found.add("poker")
    bits = f"{int.from_bytes(block, 'big'):0{BLOCK * 8}b}"
    for other in "01":
        runs = Counter(map(len, bits.split(other)))
        del runs[0]
        if max(runs, default=0) >= LONG_RUN:
            found.add("long run")
        short = sum(runs[length] for length in RUNS)
        in_bounds = [low <= runs[length] <= high for length, (low, high) in RUNS.items()]
        if not all(in_bounds) or not _within(runs.total() - short, RUNS_OF_SIX_UP):
            found.add("runs")
    return found


def _within(count: int, bounds: tuple[int, int]) -> bool:
    return bounds[0] <= count <= bounds[1]


def allowed(blocks: int, chance: float) -> int:
    """Return the least k with P(X > k) < FALSE_ALARM for X binomial(blocks, chance)."""
    below, k = 0.0, -1
    while 1 - below >= FALSE_ALARM:
        k += 1
        below += comb(blocks, k) * chance**k * (1 - chance) ** (blocks - k)
    return k


def count_faults(data: bytes) -> Counter[str]:
    """Return how many blocks of `data` fail each test."""
    blocks = (data[at : at + BLOCK] for at in range(0, len(data), BLOCK))
    return Counter(name for block in blocks for name in faults(block))


def test_the_tests_find_what_is_not_random() -> None:
    """Each test fails where it should, so that none of them passes by being wrong."""
    random = Random(1).randbytes(BLOCK)
    assert not faults(random)
    assert faults(bytes(BLOCK)) == {"monobit", "poker", "runs", "long run"}
    assert "monobit" in faults(bytes(byte | 1 for byte in random))
    assert "poker" in faults(random[: BLOCK // 8] * 8)
    assert "runs" in faults(b"\x55" * BLOCK)
    assert "long run" in faults(random[:1000] + bytes(4) + random[1004:])


def test_statistics_of_the_pool() -> None:
    pool = Pool(SharedMemory(4096), 2)
    failed = count_faults(b"".join(pool.extract(BLOCK) for _ in range(BLOCKS)))
    assert all(failed[name] <= allowed(BLOCKS, CHANCES[name]) for name in CHANCES), failed


def test_statistics_of_seeds() -> None:
    """The same on seeds of 32 bytes, each of which is an output of its own."""
    pool = Pool(SharedMemory(4096), 2)
    seeds = b"".join(pool.extract(32) for _ in range(BLOCKS * BLOCK // 32 + 1))
    failed = count_faults(seeds[: BLOCKS * BLOCK])
    assert all(failed[name] <= allowed(BLOCKS, CHANCES[name]) for name in CHANCES), failed


def test_allowed_failures() -> None:
    found = {name: allowed(BLOCKS, chance) for name, chance in CHANCES.items()}
    assert found == {"monobit": 5, "poker": 5, "runs": 6, "long run": 6}
