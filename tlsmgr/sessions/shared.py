"""shared - what all processes share of one session cache, beside its file.

``SharedCache`` is in shared memory and nowhere else: the two keys of a cache. The parent makes it
before it forks; when the daemon ends, the keys are gone, and nobody can read what is left on the
disk.

``ProcessNumber`` is not shared: each process inherits the value of its own fork. Pure, no lock.
"""

from __future__ import annotations

from tlsmgr.sessions.record import KEY_BYTES, Nonces, Seal
from tlsmgr.shm import SharedMemory


class ProcessNumber:
    """The number of this process among all that the parent has forked; see ``record.Nonces``.

    The parent calls ``advance`` before each fork. The child is the process with the new value; the
    parent itself must not encrypt once it has forked.
    """

    def __init__(self) -> None:
        self.value = 0

    def advance(self) -> None:
        """Give the process that is forked next a number of its own."""
        self.value += 1


class SharedCache:
    """The keys of one cache. ``keys`` is 64 random bytes."""

    def __init__(self, memory: SharedMemory, keys: bytes, encrypted: bool) -> None:
        self._keys = memory.carve(2 * KEY_BYTES)
        self.renew(keys)
        self._encrypted = encrypted

    def renew(self, keys: bytes) -> None:
        """Set other keys, for a file that is made new; seals made before keep the old ones."""
        self._keys[:] = keys

    def seal(self, nonces: Nonces | None = None) -> Seal:
        """Return the seal under this cache's keys; to encrypt it needs the process's nonces."""
        seal_key = bytes(self._keys[:KEY_BYTES]) if self._encrypted else None
        return Seal(seal_key, bytes(self._keys[KEY_BYTES:]), nonces)
