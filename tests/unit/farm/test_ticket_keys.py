"""The keys of a farm by time and by name: all hosts agree, although their clocks differ."""

from __future__ import annotations

import os
import random

import pytest
from support.farm_secret import DAY, EXAMPLE, EXAMPLE_DATE, EXAMPLE_KEY, at, day, file_text

from tlsmgr.farm.secret import CLOCK_SKEW, Secrets, known_slots, parse, slot_length, ticket_key
from tlsmgr.farm.ticket_keys import FarmTicketKeys
from tlsmgr.shm import SharedMemory
from tlsmgr.tickets import NoRotation, TicketKeys

FIRST = day(EXAMPLE_DATE)
NOON = at(f"{EXAMPLE_DATE} 12:00:00")
T, S = 3600, 1800
SKEW = 5  # seconds by which a clock is off
CHANGE = day("2026-12-24")
PLANNED = {EXAMPLE_DATE: EXAMPLE_KEY, "2026-12-24": bytes(range(32))}


def secrets(text: str = EXAMPLE) -> Secrets:
    return parse(text.encode(), 10**6)


def schedule(now: int = NOON, text: str = EXAMPLE, lifetime: int = T) -> FarmTicketKeys:
    return FarmTicketKeys(SharedMemory(65536), secrets(text), lifetime, now)


def test_the_key_of_the_slot() -> None:
    keys = schedule()
    expected = ticket_key(EXAMPLE_KEY, NOON // S, T)
    for now in (NOON, NOON + 1, NOON + S - 1):
        assert keys.current(now) == expected
        assert keys.named(expected[:16], now) == expected
    assert keys.current(NOON + S) == ticket_key(EXAMPLE_KEY, NOON // S + 1, T)
    assert keys.current(NOON - 1) == ticket_key(EXAMPLE_KEY, NOON // S - 1, T), "clock set back"


@pytest.mark.parametrize("lifetime", [120, 140, 3600, 7199, 172800])
def test_which_names_are_known(lifetime: int) -> None:
    """At every second around a slot's edges: those of the slots that are known, and no others."""
    keys = schedule(NOON, EXAMPLE, lifetime)
    length, half = slot_length(lifetime), lifetime // 2
    slots = range(NOON // length - 5, NOON // length + 6)
    by_slot = {}
    for slot in slots:
        by_slot[slot] = keys.current(slot * length)
    for edge in (NOON // length * length, NOON // length * length + half % length):
        for now in range(edge - 2, edge + 3):
            known = {s for s, key in by_slot.items() if key and keys.named(key[:16], now) == key}
            possible = {slot for slot, key in by_slot.items() if key}
            assert known == possible & set(known_slots(now, lifetime))


def test_a_name_that_is_not_known() -> None:
    keys = schedule()
    assert keys.named(b"n" * 16, NOON) is None
    assert keys.named(bytes(16), NOON) is None


MOMENTS = {
    "slot edge": at("2026-11-27 12:30:00"),
    "midnight": at("2026-11-28 00:00:00"),
    "another secret": CHANGE * DAY,
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_no_ticket_is_refused_by_another_host(moment: str) -> None:
    """Eight hosts, clocks that differ by up to 10 s, tickets issued around the moment."""
    dice = random.Random(moment)
    hosts = [
        (schedule(MOMENTS[moment] - 2 * DAY, file_text(PLANNED)), skew)
        for skew in (-SKEW, SKEW, 0, *(dice.randint(-SKEW, SKEW) for _ in range(5)))
    ]
    refused = 0
    for _ in range(2000):
        issued = MOMENTS[moment] + dice.randint(-SKEW - 2, SKEW + 2)
        (one, ahead), (other, others_ahead) = dice.sample(hosts, 2)
        key = one.current(issued + ahead)
        assert key is not None
        life = dice.choice((0, 1, dice.randrange(T // 2 - 2 * SKEW)))
        refused += other.named(key[:16], issued + life + others_ahead) != key
    assert refused == 0


def test_a_lifetime_of_hosts_that_were_started_at_other_times() -> None:
    """One from the file as it was, one from a file that is advanced, weeks later."""
    old, new = schedule(NOON, file_text(PLANNED)), schedule(NOON + 20 * DAY, file_text(PLANNED))
    for now in range(NOON + 20 * DAY, NOON + 60 * DAY, 7777):
        assert old.current(now) == new.current(now) is not None


def test_hosts_that_differ_in_secret_or_lifetime_do_not_match() -> None:
    key = schedule().current(NOON)
    assert key is not None
    assert schedule(lifetime=3601).named(key[:16], NOON) is None
    other = file_text({EXAMPLE_DATE: bytes(range(32))})
    assert schedule(text=other).named(key[:16], NOON) is None


def test_the_longest_lifetime_has_52_keys() -> None:
    lifetime = 8_640_000
    keys = schedule(NOON + 100 * DAY, EXAMPLE, lifetime)
    names = {
        (keys.current(now) or b"")[:16] for now in range(NOON + 50 * DAY, NOON + 102 * DAY, DAY)
    }
    now = NOON + 100 * DAY
    assert sum(keys.named(name, now) is not None for name in names) == 52 == len(names)


# What is kept


def area_of(memory: SharedMemory) -> bytes:
    return bytes(memory._bytes)


def test_the_memory_has_no_secret_of_days_before_and_is_wiped() -> None:
    memory = SharedMemory(65536)
    keys = FarmTicketKeys(memory, secrets(file_text(PLANNED)), T, NOON + 3 * DAY)
    assert EXAMPLE_KEY not in area_of(memory)
    assert PLANNED["2026-12-24"] in area_of(memory)
    assert keys.current(NOON + 3 * DAY) == schedule(NOON).current(NOON + 3 * DAY)
    memory.wipe()
    assert not any(area_of(memory))


def test_tickets_of_yesterday_live_after_a_start_past_midnight() -> None:
    midnight = (FIRST + 2) * DAY
    before = schedule(NOON).current(midnight - 1)
    assert before is not None
    for late in (0, T // 2 - 1):
        assert schedule(midnight + late).named(before[:16], midnight + late) == before
    # A clock that is set back a little finds yesterday's keys, even if no ticket needs them now.
    assert schedule(midnight + T // 2 + CLOCK_SKEW - 1).current(midnight - 1) == before


def test_no_secret_no_key() -> None:
    """The clock is set back: to before the first date, or to a day whose secret is gone."""
    assert schedule().current(FIRST * DAY - 1) is None
    keys = schedule(NOON + 9 * DAY)
    assert keys.current(NOON + 8 * DAY) is None
    assert keys.named(bytes(16), NOON + 8 * DAY) is None
    assert keys.current(NOON + 9 * DAY) is not None


def test_a_file_that_starts_today() -> None:
    """Yesterday's slots have no keys; the others do."""
    midnight = FIRST * DAY
    keys = schedule(midnight)
    assert keys.current(midnight) == ticket_key(EXAMPLE_KEY, midnight // S, T)


def test_no_key_in_a_repr() -> None:
    keys = schedule()
    key = keys.current(NOON)
    assert key is not None
    assert {found.key for found in keys._known.values()} > {key}
    assert repr(keys._known[key[:16]]) == f"SlotKey(end={(NOON // S + 1) * S + T // 2})"
    assert repr(keys).endswith(f" at {hex(id(keys))}>")


# In the place of keys of this host alone


def ticket_keys(now: int = NOON) -> TicketKeys:
    memory = SharedMemory(65536)
    return TicketKeys(memory, 2, T, os.urandom, FarmTicketKeys(memory, secrets(), T, now))


def test_the_keys_of_a_farm_come_first() -> None:
    one, other = ticket_keys(), ticket_keys()
    key = one.current(NOON)
    assert key is not None
    assert key == other.current(NOON) == other.named(key[:16], NOON) == schedule().current(NOON)
    assert one.named(b"n" * 16, NOON) is None


def test_without_a_secret_for_that_day_a_host_has_keys_of_its_own() -> None:
    early = (FIRST - 1) * DAY + S
    one, other = ticket_keys(), ticket_keys()
    key = one.current(early)
    assert key is not None
    assert key == one.current(early) == one.named(key[:16], early)
    assert other.named(key[:16], early) is None


def test_known_keys() -> None:
    """The current one, and those that still open tickets; not those of slots to come."""
    keys = schedule()
    slot = NOON // S
    by_slot = {i: ticket_key(EXAMPLE_KEY, i, T)[:16] for i in range(slot - 3, slot + 2)}
    assert keys.known(NOON + 5) == [
        (by_slot[slot], NOON, True),
        (by_slot[slot - 1], NOON - S, False),
    ]
    assert keys.next_rotation(NOON + 5) == NOON + S
    for now in range(NOON - S, NOON + S, 60):
        for known, start, is_current in keys.known(now):
            assert keys.named(known, now) is not None
            assert is_current == (start <= now < start + S)


def test_the_keys_of_a_farm_are_shown_and_not_rotated() -> None:
    memory = SharedMemory(65536)
    keys = TicketKeys(memory, 2, T, os.urandom, schedule())
    assert [key.makes_tickets for key in keys.known(NOON)] == [True, False]
    assert keys.next_rotation(NOON) == NOON + S
    with pytest.raises(NoRotation, match="those of a farm"):
        keys.rotate(NOON)
