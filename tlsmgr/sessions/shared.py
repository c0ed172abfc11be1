"""shared - what all processes share of one session cache, beside its file.

Lives in shared memory and nowhere else: the two keys, the serial number given out last, and the
mark that some process found the file damaged. The parent makes it before it forks; when it ends,
the keys are gone and what is left on disk can't be read by anyone.

The serial is only touched inside a write transaction of the store, whose lock makes it safe without
one of its own; because it lies here and not in the file, a batch that is never committed does not
give its serials back, and no nonce is used twice.
"""

from __future__ import annotations

from tlsmgr.sessions.record import KEY_BYTES, Seal
from tlsmgr.sessions.store import SERIAL_BYTES
from tlsmgr.shm import SharedMemory

_DAMAGED = 0
_STATE_BYTES = 8


class SharedCache:
    """Keys, serial and damage mark of one cache. ``keys`` is 64 random bytes."""

    SIZE = 2 * KEY_BYTES + _STATE_BYTES + 64  # bytes it carves, padding included

    def __init__(self, memory: SharedMemory, keys: bytes, encrypted: bool) -> None:
        self._keys = memory.carve(2 * KEY_BYTES)
        self.renew(keys)
        self._serial = memory.carve(_STATE_BYTES).cast("Q")
        self._marks = memory.carve(_STATE_BYTES)
        self._encrypted = encrypted

    def renew(self, keys: bytes) -> None:
        """Other keys, for a file that is made anew; seals made before keep the old ones."""
        self._keys[:] = keys

    def seal(self) -> Seal:
        """The seal under this cache's keys, for the calling process."""
        seal_key = bytes(self._keys[:KEY_BYTES]) if self._encrypted else None
        return Seal(seal_key, bytes(self._keys[KEY_BYTES:]))

    def next_serial(self) -> bytes:
        """A serial that was never given out; call it inside a write transaction only."""
        self._serial[0] += 1
        return self._serial[0].to_bytes(SERIAL_BYTES, "big")

    def report_damage(self) -> None:
        """Ask the parent to make the file anew."""
        self._marks[_DAMAGED] = 1

    def take_damage(self) -> bool:
        """Whether damage was reported since the last call; for the parent."""
        damaged, self._marks[_DAMAGED] = self._marks[_DAMAGED], 0
        return bool(damaged)
