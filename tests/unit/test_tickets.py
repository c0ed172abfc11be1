"""Ticket keys: the arithmetic of Postfix's two slots, one answer from all processes."""

from __future__ import annotations

import os
import signal
import struct
import time
from collections.abc import Callable

import pytest
from support.cache_files import end_of_child, in_child

from tlsmgr.prng.pool import EntropyError
from tlsmgr.shm import SharedMemory
from tlsmgr.tickets import KEY_BYTES, NAME_BYTES, TicketKeys

T0 = 1_795_220_454


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


def test_clock_steps() -> None:
    keys = make(120)
    first = keys.current(T0)
    assert keys.current(T0 - 100_000) == first, "back: the key lasts longer"
    assert keys.named(name(first), T0 - 100_000) == first
    second = keys.current(T0 + 100_000)
    assert tout(second) == T0 + 100_059
    assert keys.named(name(first), T0 + 100_000) is None
    assert keys.current(T0) == second
    assert keys.named(name(first), T0) == first


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
    """They start together, race through 30 rotations, and agree on the key of every moment."""
    keys = make(120)
    gate = os.pipe()
    results = {}
    for slot in range(1, 5):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(gate[1])
                keys.attach(slot)
                os.read(gate[0], 1)
                said = b"".join(keys.current(now) or b"" for now in range(T0, T0 + 59 * 30))
                with open(writer, "wb") as pipe:
                    pipe.write(said)
            finally:
                os._exit(0)
        os.close(writer)
        results[pid] = reader
    os.close(gate[1])
    os.close(gate[0])
    answers = []
    for pid, reader in results.items():
        with open(reader, "rb") as pipe:
            answers.append(pipe.read())
        os.waitpid(pid, 0)
    for text in answers:
        assert len(text) == 88 * 59 * 30
        for at in range(0, len(text), 88):
            # One may be ahead of the others: then all get the key that serves longest.
            assert tout(text[at : at + 88]) > T0 + at // 88
    made = {one[at : at + 88] for one in answers for at in range(0, len(one), 88)}
    assert len(made) <= 31, "not one key more than rotations"
    assert len({tout(key) for key in made}) == len(made), "no two keys of one time"


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


def die_in_the_middle(keys: TicketKeys) -> None:
    """Take the lock, write half of the keys, and be killed."""
    keys.attach(1)
    area = keys._keys

    class Deadly:
        def __setitem__(self, where: slice, data: bytes) -> None:
            area[:100] = data[:100]
            os.kill(os.getpid(), signal.SIGKILL)

        def __getitem__(self, where: slice) -> memoryview:
            return area[where]

        def __bytes__(self) -> bytes:
            return bytes(area)

    keys._keys = Deadly()  # type: ignore[assignment]
    keys.current(T0 + 59)


def test_a_holder_killed_in_the_middle_of_a_rotation() -> None:
    """Nothing of the mixture is handed out, and nobody waits for the dead one's lock."""
    keys = make(120)
    first = keys.current(T0)
    assert end_of_child(lambda: die_in_the_middle(keys)) == (None, -signal.SIGKILL)
    assert keys.recover(1)
    assert keys.named(name(first), T0 + 59) is None, "both slots are thrown away"
    fresh = keys.current(T0 + 59)
    assert fresh != first
    assert tout(fresh) == T0 + 118
    assert in_child(lambda: keys.current(T0 + 59)) == fresh


def test_before_the_dead_holder_is_reaped_the_answer_is_no_key() -> None:
    keys = make(120)
    first = keys.current(T0)
    end_of_child(lambda: die_in_the_middle(keys))
    keys.attach(2)
    began = time.monotonic()
    assert keys.current(T0 + 59) is None
    assert keys.named(name(first), T0 + 59) is None
    assert time.monotonic() - began < 20, "bounded"
    keys.recover(1)
    assert tout(keys.current(T0 + 59)) == T0 + 118


def test_recover_of_one_who_held_nothing() -> None:
    keys = make(120)
    in_child(lambda: keys.attach(1))
    assert not keys.recover(1)
    assert tout(keys.current(T0)) == T0 + 59
