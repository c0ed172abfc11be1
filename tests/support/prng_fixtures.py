"""Fixtures for tests of the pool and of what builds on it."""

import os
from collections.abc import Callable

import pytest

from tlsmgr.prng.pool import _STATE, _STATE_AT, SOUND, Pool
from tlsmgr.shm import Lock, SharedMemory

NOON = 1_700_000_000 * 10**9
SECOND = 10**9


class Kernel:
    """A generator in the place of the kernel's: constant bytes, counted, and failing at will."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.fails: Callable[[], bool] = lambda: False
        self.short = 0
        self.byte = b"k"

    def __call__(self, n: int) -> bytes:
        self.asked.append(n)
        if self.fails():
            raise OSError(38, os.strerror(38))
        return self.byte * (n - self.short)


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> int:
        return self.now


def constant_pool(clock: Callable[[], int] | None = None) -> Pool:
    """A pool without any chance in it: two of them in one process give the same output."""
    return Pool(SharedMemory(4096), 3, Kernel(), clock or Clock())


def stored(pool: Pool) -> tuple[bytes, bytes, int, int]:
    """V, C, reseed_counter and the time of the last reseed, as they are in shared memory."""
    assert pool._area[0] == SOUND
    v, c, reseed_counter, reseeded = _STATE.unpack_from(pool._area, _STATE_AT)
    return v, c, reseed_counter, reseeded


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pool(kernel: Kernel, clock: Clock) -> Pool:
    """A pool of three slots with a kernel and a clock of ours."""
    made = Pool(SharedMemory(4096), 3, kernel, clock)
    kernel.asked.clear()
    return made


@pytest.fixture
def real_pool() -> Pool:
    return Pool(SharedMemory(4096), 3)


@pytest.fixture
def memory() -> SharedMemory:
    return SharedMemory(65536)


@pytest.fixture
def lock(memory: SharedMemory) -> Lock:
    return Lock(memory, 9)
