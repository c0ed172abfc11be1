"""The pool with workers that are killed: at each step of the section it guards, and at random."""

import mmap
import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.lock_steps import STEPS, Act, Step, value
from support.memory_kinds import kind as kind
from support.prng_children import die, fork, reap, wait_for
from support.prng_children import no_child_is_left as no_child_is_left

from tlsmgr.prng import drbg
from tlsmgr.prng import pool as pool_module
from tlsmgr.prng.pool import _STATE, _STATE_AT, SOUND, UNSOUND, Pool
from tlsmgr.shm import LOST_AFTER, Recovery, SharedMemory

SEED = 32  # bytes
WORKERS = 8

pytestmark = pytest.mark.usefixtures("kind")


# Killed at each step


class Overwrite:
    """In the place of the structure of the state: `act` in the middle of overwriting it."""

    size = _STATE.size
    unpack_from = _STATE.unpack_from

    def __init__(self, act: Act) -> None:
        self._act = act

    def pack_into(self, area: memoryview, at: int, *values: Any) -> None:
        area[at : at + 60] = _STATE.pack(*values)[:60]
        self._act()
        raise AssertionError("the child outlived its step")


def around(name: str, before: bool) -> Callable[[Pool, Act], None]:
    """Act before or after a method of the pool."""

    def arrange(pool: Pool, act: Act) -> None:
        method = getattr(pool, name)

        def wrapped(*arguments: Any) -> Any:
            if before:
                act()
            result = method(*arguments)
            if not before:
                act()
            return result

        setattr(pool, name, wrapped)

    return arrange


def after_generate(_: Pool, act: Act) -> None:
    def step(*arguments: Any) -> None:
        drbg.step(*arguments)
        act()

    vars(pool_module)["step"] = step


def while_overwriting(_: Pool, act: Act) -> None:
    pool_module._STATE = Overwrite(act)  # type: ignore[assignment]


def of_lock(step: Step) -> Callable[[Pool, Act], None]:
    return lambda pool, act: step.arrange(pool.lock, act)


SECTION: dict[str, tuple[Callable[[Pool, Act], None], int]] = {
    **{f"lock: {step.name}": (of_lock(step), SOUND) for step in STEPS},
    "about to read the state": (around("_read", before=True), SOUND),
    "state read": (around("_read", before=False), SOUND),
    "output generated": (after_generate, SOUND),
    "state half overwritten": (while_overwriting, UNSOUND),
    "state overwritten": (around("_write", before=False), SOUND),
}
"""Each step of the section, and whether the state is sound after a kill there."""


@pytest.mark.parametrize("name", SECTION)
def test_killed_at_each_step_of_the_section(name: str) -> None:
    asked: list[int] = []

    def kernel(n: int) -> bytes:
        asked.append(n)
        return os.getrandom(n)

    pool = Pool(SharedMemory(4096), 3, kernel)
    arrange, mark = SECTION[name]
    before = bytes(pool._area)

    def work() -> None:
        pool.attach(1)
        arrange(pool, die)
        pool.extract(SEED)

    assert reap(fork(work)) == -signal.SIGKILL
    assert pool._area[0] == mark
    if pool.lock.recover(1, 0.0) is Recovery.IN_DOUBT:
        assert pool.lock.settle(LOST_AFTER) is Recovery.LOST
        assert len(pool.extract(SEED)) == SEED, "it needs no lock"
        pool.lock.reset()
    assert value(pool.lock) == 1
    asked.clear()
    seeds = {pool.extract(SEED) for _ in range(10)}
    assert len(seeds) == 10
    assert asked == ([32] * 10 if mark == SOUND else [32, 16, 32] + [32] * 9)
    assert pool._area[0] == SOUND
    old_v, old_c, *_ = _STATE.unpack_from(before, _STATE_AT)
    v, c, reseed_counter, _ = _STATE.unpack_from(pool._area, _STATE_AT)
    assert v != old_v
    assert (c == old_c) == (mark == SOUND)
    assert reseed_counter == (11 if mark == UNSOUND else reseed_counter)


# Killed at random


class Crowd:
    """Eight workers that draw seeds into files of their own, and are started again when killed.

    They draw until ``end`` is called and each has its share of ``total``: all are at work when one
    is killed, however long that takes.
    """

    def __init__(self, pool: Pool, directory: Path, total: int) -> None:
        self._pool = pool
        self._quota = total // WORKERS
        self._may_end = mmap.mmap(-1, 1)  # shared
        self._paths = {slot: directory / f"seeds{slot}" for slot in range(1, WORKERS + 1)}
        self._pids = {slot: self._start(slot) for slot in self._paths}
        self.lost = 0

    def _start(self, slot: int) -> int:
        return fork(partial(self._draw, slot))

    def _draw(self, slot: int) -> None:
        """Draw seeds into the file; a kill may cut the last one short."""
        self._pool.attach(slot)
        with open(self._paths[slot], "ab", buffering=0) as file:
            file.truncate(file.tell() // SEED * SEED)
            while not self._may_end[0] or file.tell() // SEED < self._quota:
                file.write(b"".join([self._pool.extract(SEED) for _ in range(50)]))

    def has_drawn(self, aim: float) -> bool:
        """Return whether `aim` seeds are in the files; do the parent's work meanwhile."""
        self.settle()
        sizes = (path.stat().st_size for path in self._paths.values() if path.exists())
        return sum(sizes) // SEED >= aim

    def _is_settled(self) -> bool:
        self.settle()
        return self._pool.lock.settle(time.monotonic()) is Recovery.CLEAN

    def kill_one(self, dice: random.Random) -> None:
        """Kill one at its work, recover as the parent does, and start it again."""
        slot = dice.choice(list(self._pids))
        os.kill(self._pids[slot], signal.SIGKILL)
        assert reap(self._pids[slot]) == -signal.SIGKILL
        self._pool.lock.recover(slot, time.monotonic())
        self._pids[slot] = self._start(slot)

    def settle(self) -> None:
        """Do what the parent does at each turn of its loop."""
        if self._pool.lock.settle(time.monotonic()) is Recovery.LOST:
            self.lost += 1
            for pid in self._pids.values():
                os.kill(pid, signal.SIGKILL)
                reap(pid)
            self._pool.lock.reset()
            self._pids = {slot: self._start(slot) for slot in self._pids}

    def end(self) -> list[int]:
        """Let all end, and wait; return the first 8 bytes of each seed as a number."""
        self._may_end[0] = 1
        wait_for(self._is_settled, "no doubt about the lock")
        assert [reap(pid, 600) for pid in self._pids.values()] == [0] * WORKERS
        drawn = b"".join(path.read_bytes() for path in self._paths.values())
        return memoryview(drawn).cast("Q")[:: SEED // 8].tolist()


def draw_with_kills(pool: Pool, directory: Path, total: int, kills: int) -> None:
    """Draw at least `total` seeds with `kills` kills spread over the work.

    No two may be the same in their first 8 bytes, which happens by chance in one of 10**6 runs
    with 5,000,000 seeds.
    """
    dice = random.Random(total)
    crowd = Crowd(pool, directory, total)
    for number in range(kills):
        aim = total * (number + dice.random()) / kills
        wait_for(lambda aim=aim: crowd.has_drawn(aim), f"{aim:.0f} seeds", 600)  # type: ignore[misc]
        crowd.kill_one(dice)
    seeds = crowd.end()
    assert len(seeds) >= total
    assert len(set(seeds)) == len(seeds)
    assert value(pool.lock) == 1


def test_no_seed_twice(tmp_path: Path) -> None:
    pool = Pool(SharedMemory(4096), WORKERS + 1)
    draw_with_kills(pool, tmp_path, 200_000, 40)


def test_no_seed_twice_with_a_constant_kernel(tmp_path: Path) -> None:
    """State, time, pid and counter are enough, should the kernel's generator ever repeat."""
    pool = Pool(SharedMemory(4096), WORKERS + 1, bytes)
    draw_with_kills(pool, tmp_path, 40_000, 20)


@pytest.mark.long
def test_no_seed_twice_of_many(tmp_path: Path) -> None:
    pool = Pool(SharedMemory(4096), WORKERS + 1)
    draw_with_kills(pool, tmp_path, 5_000_000, 500)
