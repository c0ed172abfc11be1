"""The inputs of each output of the pool, so that none is ever repeated."""

import os
from collections.abc import Callable

import pytest
from support.prng_children import fork, reap, run
from support.prng_children import no_child_is_left as no_child_is_left
from support.prng_fixtures import NOON, Clock, Kernel, constant_pool, stored
from support.prng_fixtures import clock as clock
from support.prng_fixtures import kernel as kernel
from support.prng_fixtures import pool as pool
from support.prng_fixtures import real_pool as real_pool

from tlsmgr.prng.pool import Pool
from tlsmgr.shm import SharedMemory


def from_child(work: Callable[[], bytes]) -> bytes:
    """Return what `work` returns in a forked child."""
    reader, writer = os.pipe()
    pid = fork(lambda: os.write(writer, work()))
    os.close(writer)
    with open(reader, "rb") as pipe:
        found = pipe.read()
    assert reap(pid) == 0
    return found


def test_constant_pools_are_the_same() -> None:
    """The next tests assume this."""
    assert constant_pool().extract(32) == constant_pool().extract(32)


def test_two_pools_made_at_the_same_time_differ() -> None:
    clock = Clock()
    pools = [Pool(SharedMemory(4096), 2, clock=clock) for _ in range(2)]
    assert pools[0].extract(32) != pools[1].extract(32)


def test_the_time_goes_into_each_output() -> None:
    clock = Clock()
    early, late = constant_pool(clock), constant_pool(clock)
    first = early.extract(32)
    clock.now += 1
    assert late.extract(32) != first


def test_the_kernel_goes_into_each_output() -> None:
    kernel = Kernel()
    pool, other = Pool(SharedMemory(4096), 2, kernel, Clock()), constant_pool()
    assert pool.extract(32) == other.extract(32)
    kernel.byte = b"K"
    assert pool.extract(32) != other.extract(32)


def test_the_kernel_is_asked_for_each_output(pool: Pool, kernel: Kernel) -> None:
    for _ in range(3):
        pool.extract(32)
    assert kernel.asked == [32] * 3


def test_a_counter_goes_into_each_output(pool: Pool) -> None:
    state = bytes(pool._area)
    first = pool.extract(32)
    pool._area[:] = state  # as a clone of the machine would have it
    assert pool.extract(32) != first


def test_a_clone_does_not_repeat(real_pool: Pool) -> None:
    state, counter = bytes(real_pool._area), real_pool._counter
    real_pool._clock = Clock()
    first = real_pool.extract(32)
    real_pool._area[:], real_pool._counter = state, counter
    assert real_pool.extract(32) != first


def test_the_pid_goes_into_each_output() -> None:
    pool, other = constant_pool(), constant_pool()
    expected = other.extract(32)

    def child() -> bytes:
        pool.attach(0)
        return pool.extract(32)

    assert from_child(child) != expected
    assert constant_pool().extract(32) == expected


@pytest.mark.parametrize("data", [b"", b"x", b"x" * 1024, b"x" * 100_000])
def test_stir(data: bytes) -> None:
    stirred, control = constant_pool(), constant_pool()
    stirred.stir(data)
    control.extract(0)  # what a stir does apart from the data
    assert stirred.extract(32) != control.extract(32)


def test_stir_takes_every_byte() -> None:
    outputs = set()
    for data in (b"a" * 1000, b"b" + b"a" * 999, b"a" * 999 + b"b"):
        pool = constant_pool()
        pool.stir(data)
        outputs.add(pool.extract(32))
    assert len(outputs) == 3


def test_what_was_stirred_is_not_kept(pool: Pool) -> None:
    pool.stir(b"secret")
    assert pool._pending == b""


def test_noted_times_go_into_the_next_output() -> None:
    outputs = set()
    for times in ((), (NOON,), (NOON + 1,), (NOON, NOON + 1), (NOON + 1, NOON)):
        pool = constant_pool()
        for now in times:
            pool.note_time(now)
        outputs.add(pool.extract(32))
    assert len(outputs) == 5


def test_any_time_can_be_noted(pool: Pool) -> None:
    for now in (0, -1, 1 << 70):
        pool.note_time(now)
    assert len(pool.extract(32)) == 32


# Forks


def test_forked_without_attach_does_not_repeat(pool: Pool) -> None:
    before = bytes(pool._area)
    outputs = {from_child(lambda: pool.extract(32)) for _ in range(5)}
    assert len(outputs) == 5
    assert bytes(pool._area) == before  # the slot is the parent's: hands off
    assert pool.extract(32) not in outputs


def test_forks_do_not_repeat(real_pool: Pool) -> None:
    def draw(slot: int) -> bytes:
        real_pool.attach(slot)
        return b"".join(real_pool.extract(32) for _ in range(1000))

    drawn = [from_child(lambda: draw(1)), from_child(lambda: draw(2)), draw(0)]
    seeds = [some[at : at + 32] for some in drawn for at in range(0, len(some), 32)]
    assert len(seeds) == len(set(seeds)) == 3000


def test_children_share_the_state(pool: Pool) -> None:
    def child() -> None:
        pool.attach(1)
        pool.extract(32)

    before = stored(pool)[2]
    run(child)
    assert stored(pool)[2] == before + 1
