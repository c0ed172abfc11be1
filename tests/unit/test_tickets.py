"""Ticket keys: the arithmetic of Postfix's two slots, one answer from all processes."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import struct
import time
from collections.abc import Callable

import pytest
from support.cache_files import end_of_child, in_child
from support.lock_steps import BY_NAME
from support.memory_kinds import kind as kind
from support.prng_children import fork, kill, reap, run, stop, wait_until_stopped
from support.prng_children import no_child_is_left as no_child_is_left

from tlsmgr.prng.pool import EntropyError
from tlsmgr.shm import Recovery, SharedMemory
from tlsmgr.tickets import (
    DIGEST_BYTES,
    IMPATIENCE,
    KEY_BYTES,
    NAME_BYTES,
    PATIENCE,
    KnownKey,
    NoRotation,
    TicketKeys,
)

T0 = 1_795_220_454
YEAR = 365 * 86400

pytestmark = pytest.mark.usefixtures("kind")


def make(lifetime: int, extract: Callable[[int], bytes] = os.urandom) -> TicketKeys:
    return TicketKeys(SharedMemory(65536), 8, lifetime, extract)


def tout(key: bytes | None) -> int:
    assert key is not None
    assert len(key) == KEY_BYTES == 88
    (value,) = struct.unpack("=q", key[80:])
    return int(value)


def name(key: bytes | None) -> bytes:
    assert key is not None
    return key[:NAME_BYTES]


def test_the_first_key() -> None:
    keys = make(120)
    key = keys.current(T0)
    assert tout(key) == T0 + 59
    assert keys.current(T0) == key
    assert keys.named(name(key), T0) == key
    assert tout(make(3600).current(T0)) == T0 + 1799


def test_rotation_as_observed() -> None:
    """T = 120: keys at t0, t0 + 59 and t0 + 118, when the first one's slot is used again."""
    keys = make(120)
    first = keys.current(T0)
    assert keys.current(T0 + 58) == first
    second = keys.current(T0 + 59)
    assert second != first
    assert tout(second) == T0 + 118
    assert keys.named(name(first), T0 + 117) == first
    assert keys.current(T0 + 117) == second
    third = keys.current(T0 + 118)
    assert tout(third) == T0 + 177
    assert len({name(key) for key in (first, second, third)}) == 3
    assert keys.named(name(first), T0 + 118) is None
    assert keys.named(name(second), T0 + 118) == second
    assert keys.named(name(third), T0 + 118) == third


@pytest.mark.parametrize("lifetime", [120, 121, 3600, 8_640_000])
def test_a_name_is_known_for_half_a_lifetime_more(lifetime: int) -> None:
    half = lifetime // 2
    keys = make(lifetime)
    key = keys.current(T0)
    assert tout(key) == T0 + half - 1
    last = tout(key) + half - 1
    assert keys.named(name(key), last) == key
    assert keys.named(name(key), last + 1) is None
    assert keys.named(name(key), last) == key, "it is only hidden, should the clock go back"


def test_asking_by_name_makes_no_key() -> None:
    asked: list[int] = []

    def extract(count: int) -> bytes:
        asked.append(count)
        return os.urandom(count)

    keys = make(3600, extract)
    assert keys.named(b"n" * 16, T0) is None
    assert keys.named(bytes(16), T0) is None, "an empty slot has no name"
    assert asked == []
    key = keys.current(T0)
    assert keys.named(b"n" * 16, T0) is None
    assert keys.current(T0) == key
    assert asked == [80]


def test_a_lifetime_of_nothing() -> None:
    keys = make(0)
    assert keys.current(T0) is None
    assert keys.named(bytes(16), T0) is None


def test_the_clock_is_set_ahead() -> None:
    keys = make(120)
    first = keys.current(T0)
    second = keys.current(T0 + YEAR)
    assert tout(second) == T0 + YEAR + 59
    assert keys.named(name(first), T0 + YEAR) is None


def test_the_clock_is_set_back_a_year() -> None:
    """A key from the future is in use neither now nor until that time comes."""
    keys = make(120)
    future = keys.current(T0 + YEAR)
    second = keys.current(T0)
    assert second != future
    assert tout(second) == T0 + 59
    assert keys.named(name(future), T0) is None
    assert keys.named(name(second), T0) == second
    third = keys.current(T0 + 59)
    assert tout(third) == T0 + 118
    assert keys.named(name(second), T0 + 59) == second
    assert keys.named(name(future), T0 + YEAR) is None, "its place was taken"


def test_a_key_is_plausible_if_it_could_be_made_now() -> None:
    keys = make(120)
    key = keys.current(T0)
    assert keys.current(T0 - 1) == key
    assert keys.named(name(key), T0 - 1) == key
    assert keys.named(name(key), T0 - 2) is None
    assert keys.current(T0 - 2) != key
    assert keys.named(name(key), T0 - 1) == key, "it was only moved to the other place"


def test_an_empty_place_is_no_key_at_any_time() -> None:
    for now in (0, 1, 59, 60, 61):
        keys = make(120)
        assert keys.named(bytes(16), now) is None
        assert any(keys.current(now)[:80])  # type: ignore[index]


def test_what_a_key_is_made_of() -> None:
    keys = make(3600, lambda count: bytes(range(count)))
    key = keys.current(T0)
    assert key == bytes(range(80)) + struct.pack("=q", T0 + 1799)


def test_no_random_bytes_no_key() -> None:
    def fail(_: int) -> bytes:
        raise EntropyError("none")

    keys = make(120, fail)
    with pytest.raises(EntropyError):
        keys.current(T0)
    assert keys.named(b"n" * 16, T0) is None


# ---------------------------------------------------------------------------------------- processes


def test_four_processes_have_one_answer() -> None:
    """They go through 30 rotations in step, and race for the new key at each."""
    keys = make(120)
    moments = range(T0, T0 + 30 * 59, 59)
    barrier = multiprocessing.get_context("fork").Barrier(4)
    reader, writer = os.pipe()

    def work(slot: int) -> None:
        keys.attach(slot)
        said = []
        for now in moments:
            barrier.wait(30)
            said.append(keys.current(now) or b"")
        os.write(writer, b"".join(said))

    children = [fork(lambda slot=slot: work(slot)) for slot in range(1, 5)]  # type: ignore[misc]
    assert [reap(pid) for pid in children] == [0] * 4
    os.close(writer)
    with open(reader, "rb") as pipe:
        said = pipe.read()
    answer = said[: len(said) // 4]
    assert said == answer * 4
    touts = [tout(answer[at : at + KEY_BYTES]) for at in range(0, len(answer), KEY_BYTES)]
    assert touts == [now + 59 for now in moments]


def test_a_race_for_the_first_key_has_one_winner() -> None:
    for _ in range(20):
        keys = make(3600)
        gate, out = os.pipe(), os.pipe()
        pids = []
        for slot in range(1, 5):
            pid = os.fork()
            if pid == 0:
                try:
                    os.close(gate[1])
                    keys.attach(slot)
                    os.read(gate[0], 1)
                    os.write(out[1], keys.current(T0) or b"")
                finally:
                    os._exit(0)
            pids.append(pid)
        for end in (*gate, out[1]):
            os.close(end)
        for pid in pids:
            os.waitpid(pid, 0)
        with open(out[0], "rb") as pipe:
            said = pipe.read()
        assert len(said) == 4 * 88
        assert said == said[:88] * 4


class HalfWritten:
    """In the place of the area with the keys: a write of it gets no further than `length`."""

    def __init__(self, area: memoryview, length: int, act: Callable[[], None]) -> None:
        self._area, self._length, self._act = area, length, act

    def __setitem__(self, _: slice, data: bytes) -> None:
        self._area[: self._length] = data[: self._length]
        self._act()
        self._area[self._length :] = data[self._length :]

    def __bytes__(self) -> bytes:
        return bytes(self._area)


def rotate_half(keys: TicketKeys, length: int, act: Callable[[], None]) -> None:
    """Do a rotation as slot 1, and `act` when `length` bytes are written."""
    keys.attach(1)
    keys._area = HalfWritten(keys._area, length, act)  # type: ignore[assignment]
    keys.current(T0 + 59)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("length", [1, DIGEST_BYTES, DIGEST_BYTES + 40, DIGEST_BYTES + KEY_BYTES])
def test_a_holder_killed_in_the_middle_of_a_rotation(length: int) -> None:
    """Nothing of the mixture is handed out, and nobody waits for the dead one's lock."""
    keys = make(120)
    first = keys.current(T0)
    killed = end_of_child(lambda: rotate_half(keys, length, die))
    assert killed == (None, -signal.SIGKILL)
    assert keys.lock.recover(1, 0.0) is Recovery.FREED
    assert keys.named(name(first), T0 + 59) is None, "both slots are thrown away"
    fresh = keys.current(T0 + 59)
    assert fresh != first
    assert tout(fresh) == T0 + 118
    assert in_child(lambda: keys.current(T0 + 59)) == fresh


@pytest.mark.parametrize("at", [0, DIGEST_BYTES, DIGEST_BYTES + 40, DIGEST_BYTES + 170])
def test_one_byte_that_is_not_as_written_makes_both_keys_void(at: int) -> None:
    keys = make(120)
    first = keys.current(T0)
    keys._area[at] ^= 1
    assert keys.named(name(first), T0) is None
    second = keys.current(T0)
    assert name(second) != name(first)
    assert keys.named(name(first), T0) is None
    assert keys.named(name(second), T0) == second


def test_before_the_dead_holder_is_reaped_the_answer_is_no_key() -> None:
    keys = make(120)
    first = keys.current(T0)
    end_of_child(lambda: rotate_half(keys, 100, die))
    keys.attach(2)
    assert keys.current(T0 + 59) is None
    assert keys.named(name(first), T0 + 59) is None
    keys.lock.recover(1, 0.0)
    assert tout(keys.current(T0 + 59)) == T0 + 118


def test_a_reader_that_comes_in_the_middle_of_a_rotation_waits_for_its_end() -> None:
    keys = make(120)
    first = keys.current(T0)
    writer = fork(lambda: rotate_half(keys, 100, stop))
    wait_until_stopped(writer)
    assert keys.named(name(first), T0 + 59) is None, "not before it is over"
    os.kill(writer, signal.SIGCONT)
    keys._patience = 30.0
    assert keys.named(name(first), T0 + 59) == first
    assert tout(keys.current(T0 + 59)) == T0 + 118


# The lock is out of reach


def hold_the_lock(keys: TicketKeys) -> int:
    """Stop a child that has the lock and has written nothing; return its pid."""

    def work() -> None:
        keys.attach(1)
        BY_NAME["marked as holding"].arrange(keys.lock, stop)
        keys.current(T0 + 59)

    pid = fork(work)
    wait_until_stopped(pid)
    return pid


def test_readers_need_no_lock() -> None:
    keys = make(120)
    first = keys.current(T0)
    holder = hold_the_lock(keys)
    assert keys.current(T0 + 58) == first
    assert keys.named(name(first), T0 + 59) == first
    assert keys.named(b"n" * 16, T0 + 59) is None
    assert keys._patience == PATIENCE, "it was not tried for"
    kill(holder)


def test_the_wait_for_the_lock_is_long_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = make(120)
    keys.current(T0)
    holder = hold_the_lock(keys)
    waits: list[float] = []
    acquire = keys.lock.acquire

    def noting(slot: int, timeout: float) -> bool:
        waits.append(timeout)
        return acquire(slot, timeout)

    monkeypatch.setattr(keys.lock, "acquire", noting)
    for _ in range(3):
        assert keys.current(T0 + 59) is None
    kill(holder)
    assert keys.lock.recover(1, 0.0) is Recovery.FREED
    second = keys.current(T0 + 59)
    assert tout(second) == T0 + 118
    assert tout(keys.current(T0 + 118)) == T0 + 177
    assert waits == [PATIENCE, IMPATIENCE, IMPATIENCE, IMPATIENCE, PATIENCE]


def test_recovery_of_one_who_held_nothing() -> None:
    keys = make(120)
    run(lambda: keys.attach(1))
    assert keys.lock.recover(1, 0.0) is Recovery.CLEAN
    assert tout(keys.current(T0)) == T0 + 59


def test_readers_of_keys_that_change_all_the_time_see_no_mixture() -> None:
    """Each key is made of one byte, another than the one before; a mixture would have two."""
    byte = itertools.cycle(range(1, 256))
    keys = make(120, lambda count: bytes([next(byte)]) * count)

    def rotate() -> None:
        keys.attach(1)
        for now in itertools.count(T0, 59):
            keys.current(now)

    writer = fork(rotate)
    seen: set[bytes] = set()
    readings, deadline = 0, time.monotonic() + 30.0
    while readings < 30_000 or (len(seen) <= 10 and time.monotonic() < deadline):
        readings += 1
        area = keys._read()
        if area is not None:
            for key in (area[:KEY_BYTES], area[KEY_BYTES:]):
                assert len(set(key[:80])) == 1
                seen.add(key)
    kill(writer)
    assert len(seen) > 10


# ------------------------------------------------------------------------------ what operators see


def test_known_keys() -> None:
    """Without any secret; the old one as long as it opens tickets."""
    keys = make(120)
    assert (list(keys.known(T0)), keys.next_rotation(T0)) == ([], None)
    first = keys.current(T0)
    assert list(keys.known(T0 + 5)) == [KnownKey(name(first), T0, True)]
    assert keys.next_rotation(T0 + 5) == T0 + 59
    assert list(keys.known(T0 + 59)) == [KnownKey(name(first), T0, False)]
    assert keys.next_rotation(T0 + 59) is None, "with the next request"
    second = keys.current(T0 + 59)
    old, new = KnownKey(name(first), T0, False), KnownKey(name(second), T0 + 59, True)
    assert list(keys.known(T0 + 59)) == [new, old]
    assert keys.next_rotation(T0 + 59) == T0 + 118
    assert list(keys.known(T0 + 117)) == [new, old]
    assert list(keys.known(T0 + 119)) == [new._replace(makes_tickets=False)]
    assert list(keys.known(T0 + 178)) == []


def test_rotation_ahead_of_time() -> None:
    """The key before opens its tickets, for its time; the one before that is forgotten."""
    keys = make(120)
    first = keys.current(T0)
    assert keys.rotate(T0 + 10)
    second = keys.current(T0 + 10)
    assert second != first
    assert tout(second) == T0 + 69
    assert keys.named(name(first), T0 + 10) == first
    assert keys.named(name(first), T0 + 119) is None
    assert keys.rotate(T0 + 20)
    assert keys.named(name(second), T0 + 20) == second
    assert keys.named(name(first), T0 + 20) is None


def test_rotation_before_the_first_key() -> None:
    keys = make(120)
    assert keys.rotate(T0)
    assert [key.made for key in keys.known(T0)] == [T0]


def test_no_rotation() -> None:
    with pytest.raises(NoRotation, match="tickets are off"):
        make(0).rotate(T0)
    keys = make(120)
    assert keys.lock.acquire(1, 0)
    assert not keys.rotate(T0)
    keys.lock.release(1)
    assert keys.rotate(T0)
