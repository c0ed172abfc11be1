"""The pool while its lock is out of reach: it answers all the same."""

import time

import pytest
from support.lock_steps import BY_NAME
from support.memory_kinds import kind as kind
from support.prng_children import fork, kill, stop, wait_until_stopped
from support.prng_children import no_child_is_left as no_child_is_left
from support.prng_fixtures import Kernel, constant_pool
from support.prng_fixtures import clock as clock
from support.prng_fixtures import kernel as kernel
from support.prng_fixtures import pool as pool
from support.prng_fixtures import real_pool as real_pool

from tlsmgr.prng.pool import IMPATIENCE, PATIENCE, EntropyError, Pool
from tlsmgr.shm import Recovery

pytestmark = pytest.mark.usefixtures("kind")


def hold_the_lock(pool: Pool, slot: int) -> int:
    """Stop a child that holds the lock; return its pid."""

    def work() -> None:
        pool.attach(slot)
        BY_NAME["marked as holding"].arrange(pool.lock, stop)
        pool.extract(32)

    pid = fork(work)
    wait_until_stopped(pid)
    return pid


def test_a_stopped_holder_stops_nobody(real_pool: Pool) -> None:
    holder = hold_the_lock(real_pool, 1)
    state = bytes(real_pool._area)
    start = time.monotonic()
    outputs = {real_pool.extract(32) for _ in range(20)}
    assert time.monotonic() - start < 10
    assert len(outputs) == 20
    assert len(real_pool.extract(100_000)) == 100_000
    assert bytes(real_pool._area) == state
    kill(holder)
    assert real_pool.lock.recover(1, 0.0) is Recovery.FREED
    real_pool.extract(32)
    assert bytes(real_pool._area) != state


def test_the_wait_for_the_lock_is_long_only_once(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = hold_the_lock(pool, 1)
    waits: list[float] = []
    acquire = pool.lock.acquire

    def noting(slot: int, timeout: float) -> bool:
        waits.append(timeout)
        return acquire(slot, timeout)

    monkeypatch.setattr(pool.lock, "acquire", noting)
    for _ in range(3):
        pool.extract(32)
    kill(holder)
    assert pool.lock.recover(1, 0.0) is Recovery.FREED
    pool.extract(32)
    pool.extract(32)
    assert waits == [PATIENCE, IMPATIENCE, IMPATIENCE, IMPATIENCE, PATIENCE]


def test_output_without_the_lock_takes_the_same_inputs(pool: Pool, kernel: Kernel) -> None:
    holder = hold_the_lock(pool, 1)
    kernel.asked.clear()
    outputs = {pool.extract(32) for _ in range(20)}  # the kernel's bytes are always the same
    assert len(outputs) == 20
    assert sorted(kernel.asked) == [16] * 20 + [32] * 40
    kernel.fails = lambda: True
    with pytest.raises(EntropyError):
        pool.extract(32)
    kill(holder)


def test_what_is_stirred_without_the_lock_goes_in_later(pool: Pool, kernel: Kernel) -> None:
    control = constant_pool()
    holder = hold_the_lock(pool, 1)
    pool.stir(b"data")
    assert len(pool._pending) == 32
    kill(holder)
    assert pool.lock.recover(1, 0.0) is Recovery.FREED
    control._counter = pool._counter
    assert pool.extract(32) != control.extract(32)
    assert pool._pending == b""


def test_wipe_while_a_stopped_worker_holds_the_lock(pool: Pool) -> None:
    holder = hold_the_lock(pool, 1)
    pool.wipe()
    assert bytes(pool._area) == bytes(len(pool._area))
    kill(holder)
