import os
from math import comb
from random import Random

import pytest

from tlsmgr.prng.health import PROPORTION_CUTOFF, REPETITION_CUTOFF, WINDOW, Health, critbinom


def check_all(health: Health, data: bytes, size: int) -> list[str]:
    """Check `data` in readings of `size` bytes; return what was found."""
    readings = (data[at : at + size] for at in range(0, len(data), size))
    return [fault for reading in readings if (fault := health.check(reading))]


def test_cutoffs() -> None:
    assert REPETITION_CUTOFF == 31
    assert PROPORTION_CUTOFF == 325


@pytest.mark.parametrize(("trials", "bits"), [(10, 3), (64, 20), (WINDOW, 30), (1024, 20)])
def test_critbinom(trials: int, bits: int) -> None:
    def tail(k: int) -> int:
        return sum(comb(trials, i) for i in range(k + 1, trials + 1))

    k = critbinom(trials, bits)
    assert tail(k) * 2**bits <= 2**trials < tail(k - 1) * 2**bits


@pytest.mark.parametrize("size", [1, 7, 32, 255])
def test_good_source(size: int) -> None:
    assert check_all(Health(), os.urandom(100_000), size) == []


@pytest.mark.parametrize("size", [1, 10, 31, 255])
@pytest.mark.parametrize("before", [0, 1, 40])
def test_repetition_count(size: int, before: int) -> None:
    lead = bytes(range(1, before + 1))
    assert check_all(Health(), lead + bytes(30) + b"\1", size) == []
    assert check_all(Health(), lead + bytes(31), size) == [
        "is stuck: one byte 31 times in a row or more"
    ]


def test_a_stuck_source_stays_stuck() -> None:
    health = Health()
    faults = [health.check(b"\0") for _ in range(200)]
    assert not any(faults[:30])
    assert all(faults[30:])
    assert health.check(b"\1") == ""


@pytest.mark.parametrize("size", [1, 32, 255])
def test_adaptive_proportion(size: int) -> None:
    def samples(of_512: int) -> bytes:
        """The first sample, evenly among others, so often in a window."""
        others = Random(1)
        return bytes(
            7
            if (at + 1) * of_512 // 512 > at * of_512 // 512 or at == 0
            else others.randrange(8, 256)
            for at in range(512)
        )

    below, above = samples(323), samples(325)
    assert below.count(7) == 324
    assert above.count(7) >= 325
    assert check_all(Health(), below, size) == []
    faults = check_all(Health(), above, size)
    assert faults
    assert set(faults) == {"is unbalanced: one byte 325 times in 512 or more"}


def test_a_new_window_watches_a_new_sample() -> None:
    health = Health()
    window = bytes([7] * 2 + [8]) * 170 + b"\x07\x07"
    assert len(window) == WINDOW
    assert health.check(window)
    assert health.check(os.urandom(WINDOW)) == ""


def test_the_same_reading_again() -> None:
    health = Health()
    reading, other = os.urandom(30), os.urandom(30)
    fault = "delivers the same bytes again"
    found = [health.check(data) for data in (reading, reading, reading, other, reading)]
    assert found == ["", fault, fault, "", ""]


def test_short_readings_may_be_the_same() -> None:
    health = Health()
    assert [health.check(bytes(range(29))) for _ in range(5)] == [""] * 5
