"""The pool: lengths, reseeding, failures, and secrets."""

from pathlib import Path

import pytest
from support.lock_steps import value
from support.prng_children import no_child_is_left as no_child_is_left
from support.prng_children import run
from support.prng_fixtures import NOON, SECOND, Clock, Kernel, stored
from support.prng_fixtures import clock as clock
from support.prng_fixtures import kernel as kernel
from support.prng_fixtures import pool as pool
from support.prng_fixtures import real_pool as real_pool

from tlsmgr.prng import drbg
from tlsmgr.prng.drbg import DrbgError, SelfTestError
from tlsmgr.prng.pool import RESEED_GENERATES, SOUND, EntropyError, Pool
from tlsmgr.shm import SharedMemory


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 255, 1024, 65536, 65537, 200_000])
def test_any_length(real_pool: Pool, n: int) -> None:
    output = real_pool.extract(n)
    assert len(output) == n
    assert n < 32 or real_pool.extract(n) != output
    assert n < 65537 or output[:32] != output[65536 : 65536 + 32]


def test_no_negative_length(real_pool: Pool) -> None:
    with pytest.raises(DrbgError, match="request for -1 bytes"):
        real_pool.extract(-1)
    assert len(real_pool.extract(8)) == 8  # the lock was given back


def test_no_such_slot(real_pool: Pool) -> None:
    for slot in (-1, 3):
        with pytest.raises(ValueError, match="no slot"):
            real_pool.attach(slot)


def test_failing_self_test_is_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(drbg._KNOWN_ANSWERS, "sha256", "0" * 64)
    with pytest.raises(SelfTestError, match="sha256"):
        Pool(SharedMemory(4096), 2)


# Reseeding


def test_reseeded_after_so_many_generates(pool: Pool, kernel: Kernel) -> None:
    for _ in range(RESEED_GENERATES - 1):  # making the pool took one
        pool.extract(32)
    assert set(kernel.asked) == {32}
    assert len(kernel.asked) == RESEED_GENERATES - 1
    constant = stored(pool)[1]
    kernel.asked.clear()
    pool.extract(32)
    assert kernel.asked == [32, 32]
    _, c, reseed_counter, reseeded = stored(pool)
    assert c != constant
    assert (reseed_counter, reseeded) == (2, NOON)


@pytest.mark.parametrize(("step", "due"), [(59, False), (60, True), (86400, True), (-1, True)])
def test_reseeded_by_time(pool: Pool, kernel: Kernel, clock: Clock, step: int, due: bool) -> None:
    clock.now += step * SECOND
    pool.extract(32)
    assert kernel.asked == ([32, 32] if due else [32])
    assert stored(pool)[3] == (clock.now if due else NOON)


# The kernel's generator fails


def test_no_weak_bytes(pool: Pool, kernel: Kernel) -> None:
    kernel.fails = lambda: True
    for n in (0, 1, 32, 100_000):
        with pytest.raises(EntropyError, match="Function not implemented"):
            pool.extract(n)
    kernel.fails = lambda: False
    assert len(pool.extract(32)) == 32


def test_a_short_answer_is_a_failure(pool: Pool, kernel: Kernel) -> None:
    kernel.short = 1
    with pytest.raises(EntropyError, match="gave 31 of 32 bytes"):
        pool.extract(32)


def test_failure_within_a_reseed(pool: Pool, kernel: Kernel, clock: Clock) -> None:
    clock.now += 3600 * SECOND
    kernel.fails = lambda: len(kernel.asked) == 2
    with pytest.raises(EntropyError):
        pool.extract(32)
    assert value(pool.lock) == 1
    assert len(pool.extract(32)) == 32


def test_failure_at_the_start_is_fatal(kernel: Kernel) -> None:
    kernel.fails = lambda: True
    with pytest.raises(EntropyError):
        Pool(SharedMemory(4096), 2, kernel)


def test_stir_outlives_a_failure() -> None:
    outputs = set()
    for stirred in ([], [b"one"], [b"two"], [b"one", b"two"], [b"two", b"one"]):
        kernel = Kernel()
        pool = Pool(SharedMemory(4096), 3, kernel, Clock())
        counter = pool._counter
        kernel.fails = lambda: True
        for data in stirred:
            pool.stir(data)
        kernel.fails = lambda: False
        pool._counter = counter
        outputs.add(pool.extract(32))
        assert pool._pending == b""
    assert len(outputs) == 5


# Secrets


def test_the_state_changes_with_each_output(pool: Pool) -> None:
    seen = set()
    for _ in range(100):
        output = pool.extract(32)
        state = bytes(pool._area)
        assert output not in state
        assert state not in seen
        seen.add(state)


def test_no_output_before_the_new_state_is_written(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: object) -> None:
        raise RuntimeError("not written")

    monkeypatch.setattr(pool, "_write", write)
    with pytest.raises(RuntimeError, match="not written"):
        pool.extract(32)


def test_wipe(pool: Pool, kernel: Kernel) -> None:
    v = stored(pool)[0]
    assert v in bytes(pool._area)
    pool.wipe()
    assert bytes(pool._area) == bytes(len(pool._area))
    kernel.asked.clear()
    assert len(pool.extract(32)) == 32  # of a new state
    assert sorted(kernel.asked) == [16, 32, 32]
    assert pool._area[0] == SOUND
    assert v not in bytes(pool._area)


def test_no_secret_in_a_repr(pool: Pool) -> None:
    v, c, _, _ = stored(pool)
    for secret in (v, c):
        assert secret.hex() not in repr(pool)
        assert repr(secret) not in repr(pool)


def test_the_mapping_is_no_part_of_a_core_file(real_pool: Pool) -> None:
    def check() -> None:
        memory = SharedMemory(4096)
        Pool(memory, 2)
        text = Path("/proc/self/smaps").read_text().rpartition("/dev/shm/tlsmgr-")[2]
        assert " dd" in text.partition("VmFlags:")[2].splitlines()[0]

    run(check)
