import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlsmgr.prng.pool import EntropyError, Pool
from tlsmgr.prng.timers import LONGEST_PERIOD, RETRY, next_delay, retry_delay, scale
from tlsmgr.shm import SharedMemory


@pytest.mark.parametrize(
    ("period", "byte", "delay"),
    [
        (3600, 255, 3600),
        (3600, 0, 1),
        (3600, 128, 1807),
        (3600, 1, 14),
        (1, 254, 1),
        (1, 255, 1),
        (255, 7, 7),
        (8421504, 255, 8421504),
        (8421505, 255, 8421504),
        (2**31, 127, 4194239),
    ],
)
def test_scale(period: int, byte: int, delay: int) -> None:
    assert scale(period, byte) == delay


@given(period=st.integers(1, 2**31), byte=st.integers(0, 255))
def test_bounds(period: int, byte: int) -> None:
    assert 1 <= scale(period, byte) <= min(period, LONGEST_PERIOD)
    assert scale(period, byte) <= scale(period, 255) == min(period, LONGEST_PERIOD)


def test_delays_spread_over_the_period() -> None:
    pool = Pool(SharedMemory(4096), 2)
    delays = [next_delay(255, pool) for _ in range(5000)]
    # Missing a value of 255 in 5,000 draws has a chance of 255 * (254 / 255)**5000 < 1e-6.
    assert set(delays) == set(range(1, 256))
    assert max(retry_delay(10**6, pool) for _ in range(5000)) == RETRY


def test_no_random_bytes() -> None:
    def kernel(n: int) -> bytes:
        if broken:
            raise OSError(38, "Function not implemented")
        return bytes(n)

    broken = False
    pool = Pool(SharedMemory(4096), 2, kernel)
    broken = True
    with pytest.raises(EntropyError):
        pool.extract(1)
    assert next_delay(300, pool) == 300
    assert retry_delay(300, pool) == RETRY
