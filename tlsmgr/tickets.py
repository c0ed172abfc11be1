"""tickets - session ticket keys: two slots in shared memory, one answer from all workers.

A smtpd(8) that issues a ticket asks for the key of the day, one that is shown a ticket for the key
of that name. Keys are made on demand, never stored on disk, and gone when the daemon ends. The
arithmetic is that of Postfix tls_scache.c (tls_scache_key) and tlsmgr.c (tlsmgr_key): with T the
sanitised smtpd_tls_session_cache_timeout, a key serves new tickets for T/2 seconds and old ones for
another T/2.

Any worker reads and rotates, under a lock of its own; the pool is drawn on before it is taken. If
the lock can't be had in time the answer is "no key", which costs the client a full handshake.
Whoever finds that a holder died in the middle of a rotation throws both keys away: a mixture of two
must never be handed out. Nothing is fatal and no key is ever logged.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from tlsmgr.shm import Lock, SharedMemory

NAME_BYTES = 16
RANDOM_BYTES = NAME_BYTES + 32 + 32  # name, cipher key, MAC key
KEY_BYTES = RANDOM_BYTES + 8  # and the time: struct TLS_TICKET_KEY of tls_scache.h on LP64
LOCK_TIMEOUT = 1.0  # seconds

_TOUT = struct.Struct("=q")


class TicketKeys:
    """The two keys of this daemon. ``lifetime`` is T in seconds; 0 means no tickets.

    ``extract`` returns that many random bytes of the pool.
    """

    def __init__(
        self, memory: SharedMemory, slots: int, lifetime: int, extract: Callable[[int], bytes]
    ) -> None:
        self._lock = Lock(memory, slots)
        self._slot = 0
        self._keys = memory.carve(2 * KEY_BYTES)
        self._dirty = memory.carve(1)
        self._half_life = lifetime // 2
        self._extract = extract

    def attach(self, slot: int) -> None:
        """Called by a worker after the fork: the slot that is its own."""
        self._slot = slot

    def recover(self, slot: int) -> bool:
        """Called by the parent when it reaped the process of ``slot``: frees what that one held."""
        return self._lock.recover(slot)

    def current(self, now: int) -> bytes | None:
        """The 88-byte key for new tickets, made if need be; None when there are no tickets."""
        if not self._half_life:
            return None
        found = self._read(lambda key: _tout(key) > now, first_only=True)
        return found if found is not None else self._rotate(now)

    def named(self, name: bytes, now: int) -> bytes | None:
        """The 88-byte key of this 16-byte name while it may decrypt tickets at ``now``."""
        if not self._half_life:
            return None
        key = self._read(lambda key: key.startswith(name))
        return key if key is not None and _tout(key) + self._half_life > now else None

    def _read(self, wanted: Callable[[bytes], bool], first_only: bool = False) -> bytes | None:
        """The first key that exists and is wanted."""
        if not self._lock.acquire(self._slot, LOCK_TIMEOUT):
            return None
        try:
            self._drop_half_written()
            keys = bytes(self._keys)
        finally:
            self._lock.release(self._slot)
        slots = (keys[:KEY_BYTES], keys[KEY_BYTES:])[: 1 if first_only else 2]
        return next((key for key in slots if any(key) and wanted(key)), None)

    def _rotate(self, now: int) -> bytes | None:
        """Make a key; another worker may have been faster, then it is that one's."""
        random = self._extract(RANDOM_BYTES)
        fresh = random + _TOUT.pack(now + self._half_life - 1)
        if not self._lock.acquire(self._slot, LOCK_TIMEOUT):
            return None
        try:
            self._drop_half_written()
            first = bytes(self._keys[:KEY_BYTES])
            if any(first) and _tout(first) > now:
                return first
            self._write(fresh + first)  # which expired, so the new one outlasts it
            return fresh
        finally:
            self._lock.release(self._slot)

    def _write(self, keys: bytes) -> None:
        self._dirty[0] = 1
        self._keys[:] = keys
        self._dirty[0] = 0

    def _drop_half_written(self) -> None:
        if self._dirty[0]:
            self._write(bytes(2 * KEY_BYTES))


def _tout(key: bytes) -> int:
    """The last second, and one more, in which the key may make tickets."""
    (tout,) = _TOUT.unpack_from(key, RANDOM_BYTES)
    return int(tout)
