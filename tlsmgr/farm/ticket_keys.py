"""ticket_keys - the ticket keys of a farm at any time, for TicketKeys.

The secrets lie in shared memory: see ``day_secrets``. Each process derives the known keys when it
is first asked in a slot, and keeps them in its own memory: three keys as a rule, 5 us each, once a
slot. All processes derive the same keys, so no lock is needed.

Secrets of days that no ticket needs any more are not kept, so the memory of the daemon opens
nothing that is older. When the clock is set back over midnight after the start, to a day whose
secret is gone, there is no key (None), until that day is over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tlsmgr.farm.day_secrets import DaySecrets
from tlsmgr.farm.secret import (
    CLOCK_SKEW,
    Secrets,
    advance,
    day_of,
    first_day,
    known_slots,
    secret_of,
    slot_length,
    ticket_key,
)
from tlsmgr.shm import SharedMemory

NAME_BYTES = 16

_NO_SLOT = -1


@dataclass(frozen=True)
class SlotKey:
    """A key, and the time from which no ticket is accepted under it."""

    key: bytes = field(repr=False)
    end: int


class FarmTicketKeys:
    """The keys by time and by name. `lifetime` is T, not 0."""

    def __init__(self, memory: SharedMemory, secrets: Secrets, lifetime: int, now: int) -> None:
        """Keep what is needed from `now` on; before the fork. Raises SharedMemoryError."""
        self._secrets = DaySecrets(memory, secrets, first_day(now - CLOCK_SKEW, lifetime))
        self._lifetime = lifetime
        self._length = slot_length(lifetime)
        self._slot = _NO_SLOT
        self._current: bytes | None = None
        self._known: dict[bytes, SlotKey] = {}

    def current(self, now: int) -> bytes | None:
        """Return the 88-byte key for new tickets; None if there is no secret for that day."""
        if now // self._length != self._slot:
            self._derive(now)
        return self._current

    def named(self, name: bytes, now: int) -> bytes | None:
        """Return the 88-byte key of this 16-byte name, if it is known at `now`."""
        if now // self._length != self._slot:
            self._derive(now)
        found = self._known.get(name)
        return found.key if found is not None and now < found.end else None

    def known(self, now: int) -> list[tuple[bytes, int, bool]]:
        """Return names and starts of the keys that are of use at `now`, the newest first.

        True stands for the one for new tickets. Keys of slots to come are left out.
        """
        current = self.current(now)
        old = self._lifetime // 2
        slots = [(known.end - old - self._length, known) for known in self._known.values()]
        return [
            (known.key[:NAME_BYTES], start, known.key == current)
            for start, known in sorted(slots, key=lambda slot: slot[0], reverse=True)
            if start <= now < known.end
        ]

    def next_rotation(self, now: int) -> int:
        """Return when the next slot begins."""
        return (now // self._length + 1) * self._length

    def _derive(self, now: int) -> None:
        """Derive the keys that are known at some time in the slot of `now`."""
        slot = now // self._length
        keys = dict(self._keys(known_slots(slot * self._length, self._lifetime)))
        self._slot = slot
        self._current = keys.get(slot)
        half = self._lifetime // 2
        self._known = {
            key[:NAME_BYTES]: SlotKey(key, (i + 1) * self._length + half) for i, key in keys.items()
        }

    def _keys(self, slots: range) -> Iterator[tuple[int, bytes]]:
        """Yield slots and their keys, without those that have no secret."""
        secrets = self._secrets.all()
        for slot in slots:
            day = day_of(slot, self._lifetime)
            secrets = advance(secrets, day)
            secret = secret_of(secrets, day)
            if secret is not None:
                yield slot, ticket_key(secret, slot, self._lifetime)
