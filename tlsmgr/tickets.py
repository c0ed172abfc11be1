"""tickets - session ticket keys: two of them in shared memory, one answer from all workers.

A smtpd(8) that issues a ticket asks for the current key; one that receives a ticket asks for the
key that it names. Keys are made on demand, never stored on disk, and gone when the daemon ends. The
arithmetic is that of Postfix tls_scache.c (tls_scache_key) and tlsmgr.c (tlsmgr_key): with T the
sanitised smtpd_tls_session_cache_timeout, a key serves new tickets for T/2 seconds and old ones for
another T/2. Beyond stock, a key that lasts longer than one made now could does not count: a clock
that was set back must not keep a key in use for long.

On a host of a farm the keys come from a TicketKeySource, which derives them from a secret; the
keys of this daemon alone are used while that source has none.

Any worker reads and rotates. The keys lie behind a digest of both, so a reader needs no lock: where
the digest does not match, a writer is at work or died at work, and the reader looks again with the
lock. If it still does not match, there are no keys: a mixture is never handed out, and the next
rotation overwrites it.

A rotation takes the lock, after the pool was drawn on. If the lock is out of reach, the answer is
"no key", which costs the client a full handshake; further requests then wait for almost nothing
until the lock can be had again. Nothing is fatal and no key is ever logged.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from tlsmgr.shm import Lock, SharedMemory

NAME_BYTES = 16
RANDOM_BYTES = NAME_BYTES + 32 + 32  # name, cipher key, MAC key
KEY_BYTES = RANDOM_BYTES + 8  # and the time: struct TLS_TICKET_KEY of tls_scache.h on LP64
DIGEST_BYTES = 32
PATIENCE = 0.1  # seconds to wait for the lock; a holder needs some microseconds
IMPATIENCE = 0.001  # the same, once the lock was out of reach, until it can be had again

_TOUT = struct.Struct("=q")
_NO_KEYS = bytes(2 * KEY_BYTES)


class NoRotation(Exception):
    """There is no key of this daemon to replace; the text says why."""


class KnownKey(NamedTuple):
    """What is known of a key beside its secrets: its name, and when it was made (since 1970)."""

    name: bytes
    made: int
    makes_tickets: bool  # now; if not, it only decrypts


class TicketKeySource(Protocol):
    """Keys that a farm of hosts shares, each of 88 bytes; None where it has none."""

    def current(self, now: int) -> bytes | None:
        """Return the key for new tickets."""

    def named(self, name: bytes, now: int) -> bytes | None:
        """Return the key of this name while it may decrypt tickets at `now`."""

    def known(self, now: int) -> Sequence[tuple[bytes, int, bool]]:
        """Return the fields of KnownKey of the keys that are of use at `now`, newest first."""

    def next_rotation(self, now: int) -> int:
        """Return when the next key comes, in seconds since 1970."""


class TicketKeys:
    """The two keys of this daemon: first the one for new tickets, then the one before it.

    `lifetime` is T in seconds; 0 means no tickets. `extract` returns random bytes of the pool. The
    keys of `source` come before them.
    """

    def __init__(
        self,
        memory: SharedMemory,
        slots: int,
        lifetime: int,
        extract: Callable[[int], bytes],
        source: TicketKeySource | None = None,
    ) -> None:
        self.lock = Lock(memory, slots)
        self._slot = 0
        self._patience = PATIENCE
        self._area = memory.carve(DIGEST_BYTES + 2 * KEY_BYTES)
        self._half_life = lifetime // 2
        self._extract = extract
        self._source = source
        self._is_frozen = False

    def attach(self, slot: int) -> None:
        """Say which slot this process has: a worker after the fork. The parent is at slot 0."""
        self._slot = slot

    def current(self, now: int) -> bytes | None:
        """Return the 88-byte key for new tickets, made if need be; None if there is none."""
        if not self._half_life:
            return None
        if self._source is not None:
            key = self._source.current(now)
            if key is not None:
                return key
        keys = self._read()
        if keys is not None and self._makes_tickets(keys[:KEY_BYTES], now):
            return keys[:KEY_BYTES]
        return None if self._is_frozen else self._rotate(now)

    def freeze(self) -> None:
        """Make no more keys: a worker whose daemon has a successor, which does not know them."""
        self._is_frozen = True

    def provide(self, now: int, seconds: int) -> None:
        """Have a key for new tickets that lasts for so long, for workers that make no more.

        A smtpd(8) that gets none fails the handshake.
        """
        if self._half_life <= seconds or self.uses_source(now):
            return
        first = (self._read() or _NO_KEYS)[:KEY_BYTES]
        if not self._lasts(first, now + seconds, now):
            self._rotate(now, seconds)

    def named(self, name: bytes, now: int) -> bytes | None:
        """Return the 88-byte key of this 16-byte name while it may decrypt tickets at `now`."""
        if not self._half_life:
            return None
        if self._source is not None:
            key = self._source.named(name, now)
            if key is not None:
                return key
        keys = self._read() or self._read_with_lock()
        if keys is not None:
            for key in (keys[:KEY_BYTES], keys[KEY_BYTES:]):
                if key.startswith(name) and self._lasts(key, now - self._half_life, now):
                    return key
        return None

    def dump(self) -> bytes:
        """Return both keys, for a successor of this daemon; b"" when there are none."""
        return self._read() or b""

    def restore(self, keys: bytes, now: int) -> None:
        """Take over the result of ``dump``, before the fork; without a key that lasts too long."""
        if not keys or not self._half_life:
            return
        first, second = keys[:KEY_BYTES], keys[KEY_BYTES:]
        self._write(
            *(key if self._lasts(key, 0, now) else bytes(KEY_BYTES) for key in (first, second))
        )

    def name_of_current(self, now: int) -> str:
        """Return the first 8 hex digits of the name of the key for new tickets; "" for none."""
        keys = self._read() or _NO_KEYS
        return keys[:4].hex() if self._makes_tickets(keys[:KEY_BYTES], now) else ""

    def known(self, now: int) -> Sequence[KnownKey]:
        """Return what is known of the keys that are of use at `now`, the newest first."""
        if self.uses_source(now):
            assert self._source is not None
            return [KnownKey(*key) for key in self._source.known(now)]
        keys = self._read() or _NO_KEYS
        return tuple(
            KnownKey(key[:NAME_BYTES], tout - self._half_life + 1, i == 0 and now < tout)
            for i, key in enumerate((keys[:KEY_BYTES], keys[KEY_BYTES:]))
            for (tout,) in [_TOUT.unpack_from(key, RANDOM_BYTES)]
            if self._lasts(key, now - self._half_life, now)
        )

    def next_rotation(self, now: int) -> int | None:
        """Return when the key for new tickets is replaced; None: at the next request for one."""
        if self.uses_source(now):
            assert self._source is not None
            return self._source.next_rotation(now)
        keys = self._read() or _NO_KEYS
        (tout,) = _TOUT.unpack_from(keys, RANDOM_BYTES)
        return tout if self._makes_tickets(keys[:KEY_BYTES], now) else None

    def rotate(self, now: int) -> bool:
        """Make a key for new tickets ahead of its time; return False if that is not possible now.

        The one before it opens tickets for its time; the one before that is forgotten. Raises
        NoRotation where there are no keys of this daemon.
        """
        if not self._half_life:
            raise NoRotation("session tickets are off: smtpd_tls_session_cache_timeout is 0")
        if self.uses_source(now):
            raise NoRotation("the ticket keys are those of a farm, and follow from its secret")
        return self._rotate(now, early=True) is not None

    def uses_source(self, now: int) -> bool:
        """Return whether the keys of the farm are in use."""
        return self._source is not None and self._source.current(now) is not None

    def _makes_tickets(self, key: bytes, now: int) -> bool:
        """Return whether `key` may encrypt tickets at `now`."""
        return self._lasts(key, now, now)

    def _lasts(self, key: bytes, after: int, now: int) -> bool:
        """Return whether `key` exists, ends after `after`, and could have been made by `now`."""
        (tout,) = _TOUT.unpack_from(key, RANDOM_BYTES)
        return after < tout <= now + self._half_life and any(key)

    def _rotate(self, now: int, seconds: int = 0, early: bool = False) -> bytes | None:
        """Make a key, or return the one that another worker made a moment ago, unless ``early``.

        It lasts for that many seconds, at least.
        """
        made = self._extract(RANDOM_BYTES) + _TOUT.pack(now + self._half_life - 1)
        if not self._acquire():
            return None
        try:
            first = (self._read() or _NO_KEYS)[:KEY_BYTES]
            if not early and self._lasts(first, now + seconds, now):
                return first
            self._write(made, first)
            return made
        finally:
            self.lock.release(self._slot)

    def _write(self, first: bytes, second: bytes) -> None:
        self._area[:] = hashlib.sha256(first + second).digest() + first + second

    def _read(self) -> bytes | None:
        """Return both keys; None if they were never written, or are written only in part."""
        area = bytes(self._area)
        keys = area[DIGEST_BYTES:]
        return keys if hashlib.sha256(keys).digest() == area[:DIGEST_BYTES] else None

    def _read_with_lock(self) -> bytes | None:
        """Return both keys when no process is writing them; None without the lock as well."""
        if not self._acquire():
            return None
        try:
            return self._read()
        finally:
            self.lock.release(self._slot)

    def _acquire(self) -> bool:
        """Take the lock if it can be had in time."""
        acquired = self.lock.acquire(self._slot, self._patience)
        self._patience = PATIENCE if acquired else IMPATIENCE
        return acquired
