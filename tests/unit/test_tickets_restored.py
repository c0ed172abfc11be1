"""Ticket keys of an earlier daemon: taken over as they are, if they could have been made here."""

from __future__ import annotations

import os
import struct

import pytest

from tlsmgr.shm import SharedMemory
from tlsmgr.tickets import KEY_BYTES, NAME_BYTES, TicketKeys

T0 = 1_795_220_454


def make(lifetime: int) -> TicketKeys:
    return TicketKeys(SharedMemory(65536), 8, lifetime, os.urandom)


def restored(old: TicketKeys, lifetime: int, now: int) -> TicketKeys:
    """The keys of a daemon that starts at `now`."""
    new = make(lifetime)
    new.restore(old.dump(), now)
    return new


def test_both_keys_go_over() -> None:
    old = make(120)
    first = old.current(T0)
    second = old.current(T0 + 59)
    assert first is not None
    assert second is not None
    new = restored(old, 120, T0 + 60)
    assert new.name_of_current(T0 + 60) == second[:4].hex()
    assert new.current(T0 + 60) == second
    for key in (first, second):
        assert new.named(key[:NAME_BYTES], T0 + 60) == key
    third = new.current(T0 + 118)
    assert third not in (None, first, second)
    assert new.named(second[:NAME_BYTES], T0 + 118) == second
    assert new.named(first[:NAME_BYTES], T0 + 118) is None


def test_no_keys() -> None:
    old = make(120)
    assert old.dump() == b""
    new = restored(old, 120, T0)
    assert new.name_of_current(T0) == ""
    assert new.dump() == b""


@pytest.mark.parametrize(("lifetime", "kept"), [(3600, True), (7200, True), (3000, False)])
def test_a_key_that_lasts_too_long_does_not_go_over(lifetime: int, kept: bool) -> None:
    """It was made for a longer timeout, or by somebody else."""
    old = make(3600)
    key = old.current(T0)
    assert key is not None
    new = restored(old, lifetime, T0)
    assert (new.named(key[:NAME_BYTES], T0) == key) is kept
    assert (key in new.dump()) is kept
    assert (new.current(T0) == key) is kept
    assert restored(old, 0, T0).dump() == b""


@pytest.mark.parametrize("tout", [-(1 << 63), -1, 0, T0 + 61, (1 << 63) - 1])
def test_times_that_no_key_has(tout: int) -> None:
    forged = os.urandom(80) + struct.pack("=q", tout)
    good = os.urandom(80) + struct.pack("=q", T0 + 60)
    for keys in (forged + good, good + forged):
        new = make(120)
        new.restore(keys, T0)
        assert new.named(forged[:NAME_BYTES], T0) is None
        assert new.named(good[:NAME_BYTES], T0) == good
        assert len(new.dump()) == 2 * KEY_BYTES
        assert forged not in new.dump()


def test_workers_that_make_no_more_have_a_key_that_lasts() -> None:
    keys = make(120)
    keys.provide(T0, 20)
    first = keys.current(T0)
    assert first is not None
    keys.provide(T0 + 38, 20)
    assert keys.current(T0 + 38) == first
    keys.provide(T0 + 39, 20)
    keys.freeze()
    second = keys.current(T0 + 39)
    assert second not in (None, first)
    assert keys.named(first[:NAME_BYTES], T0 + 60) == first
    assert keys.current(T0 + 97) == second
    assert keys.current(T0 + 98) is None, "it makes none"


def test_no_key_is_provided_where_there_are_no_tickets() -> None:
    keys = make(0)
    keys.provide(T0, 20)
    assert keys.dump() == b""
