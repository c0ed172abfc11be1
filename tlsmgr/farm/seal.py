"""seal - sessions in a shared engine, sealed under keys that follow from the secret of the farm.

    key    `tlsmgr:1:TYPE:` and the hexadecimal digits of the BLAKE2b-128 of the cache id, keyed by
           HKDF-Expand(s, "tlsmgr farm v1 id", 32), s being the secret of the day
    value  version 1 (1 byte) | day (4) | salt (16) | nonce (12) | AES-256-GCM of (saved (8) |
           session) under HKDF-Expand(s, "tlsmgr farm v1 session" | salt, 32), with the key above
           as associated data

Neither the engine nor the farm process has the secret: they see how many sessions there are, of
which type, how long, and which are equal ones; no id, no host name, no session. No session can be
passed off as that of another id, type or farm. An old value can be passed off as the present one,
until it expires.

A nonce must never be used twice under one key. Each process draws a salt of 16 random bytes, hence
has keys of its own, and counts its nonces.

The day is that of the clock of the host that saves. A lookup asks for today's key; for yesterday's
too, while sessions of yesterday may live; and for tomorrow's in the last minutes of a day, because
the clock of another host may be ahead. Pure: no I/O, no lock. No repr shows a secret.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from hashlib import blake2b
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tlsmgr.farm.codec import LARGEST_VALUE, Found, Item
from tlsmgr.farm.secret import CLOCK_SKEW, DAY, SECRET_BYTES, expand

VERSION = 1
SALT_BYTES, NONCE_BYTES, DIGEST_BYTES, TAG_BYTES = 16, 12, 16, 16
DAYS_AT_ONCE = 4  # whose keys a process keeps
SALTS_AT_ONCE = 1024  # that of each process of the farm whose sessions were found lately

_ID, _SESSION = b"tlsmgr farm v1 id", b"tlsmgr farm v1 session"
_HEAD = struct.Struct(f">BI{SALT_BYTES}s{NONCE_BYTES}s")
_SAVED = struct.Struct(">q")
OVERHEAD = _HEAD.size + _SAVED.size + TAG_BYTES  # bytes of a value beyond the session

SecretOf = Callable[[int], bytes | None]
"""The secret of a day; None if it is not known."""


def first_day(now: int, timeout: int) -> int:
    """Return the first day whose secret a process that starts at `now` may need."""
    return (now - CLOCK_SKEW - min(timeout, DAY)) // DAY


class _Day(NamedTuple):
    """What a process has of one day: the keyed hash of ids, and its own key for sessions."""

    ids: blake2b
    own: AESGCM


class Keyring:
    """The keys of one process. ``salt`` is SALT_BYTES of randomness that no other process has."""

    def __init__(self, secret_of: SecretOf, salt: bytes) -> None:
        self._secret_of = secret_of
        self._salt = salt
        self._nonce = 0
        self._day = functools.lru_cache(DAYS_AT_ONCE)(self._derive_day)
        self._foreign = functools.lru_cache(SALTS_AT_ONCE)(self._derive_key)

    def digest(self, day: int, cache_id: bytes) -> str | None:
        """Return the hexadecimal digits for an id; None for a day without a secret."""
        keys = self._day(day)
        if keys is None:
            return None
        state = keys.ids.copy()
        state.update(cache_id)
        return state.hexdigest()

    def encrypt(self, day: int, key: bytes, text: bytes) -> bytes:
        """Return the value for a key, of a day that has a secret."""
        keys = self._day(day)
        assert keys is not None
        self._nonce += 1
        nonce = self._nonce.to_bytes(NONCE_BYTES, "big")
        return _HEAD.pack(VERSION, day, self._salt, nonce) + keys.own.encrypt(nonce, text, key)

    def decrypt(self, days: range, key: bytes, value: bytes) -> bytes | None:
        """Return what a value holds; None unless a host of the farm made it for this key.

        Another day than one of `days` is refused: to derive the secret of a far one takes long.
        """
        if len(value) < OVERHEAD:
            return None
        version, day, salt, nonce = _HEAD.unpack_from(value)
        cipher = self._foreign(day, salt) if version == VERSION and day in days else None
        if cipher is None:
            return None
        try:
            return cipher.decrypt(nonce, value[_HEAD.size :], key)
        except InvalidTag:
            return None

    def _derive_day(self, day: int) -> _Day | None:
        secret = self._secret_of(day)
        if secret is None:
            return None
        ids = blake2b(digest_size=DIGEST_BYTES, key=expand(secret, _ID, SECRET_BYTES))
        return _Day(ids, _session_key(secret, self._salt))

    def _derive_key(self, day: int, salt: bytes) -> AESGCM | None:
        secret = self._secret_of(day)
        return None if secret is None else _session_key(secret, salt)


class SealedTable:
    """The codec of one cache type; ``timeout`` is the lifetime of its sessions, not 0."""

    def __init__(self, cache_type: str, timeout: int, keyring: Keyring) -> None:
        self._prefix = f"tlsmgr:{VERSION}:{cache_type}:"
        self._timeout = timeout
        self._keyring = keyring

    def keys(self, cache_id: bytes, now: int) -> tuple[bytes, ...]:
        """Return today's key, and those of the days before and after where they matter."""
        days = [now // DAY]
        if now - self._timeout < days[0] * DAY:
            days.append(days[0] - 1)
        if (now + CLOCK_SKEW) // DAY > days[0]:
            days.append(days[0] + 1)
        keys = (self._key(day, cache_id) for day in days)
        return tuple(key for key in keys if key is not None)

    def encode(self, cache_id: bytes, session: bytes, now: int) -> Item | None:
        """Return what to store, for a session that is saved now."""
        key = self._key(now // DAY, cache_id)
        if key is None or len(session) + OVERHEAD > LARGEST_VALUE:
            return None
        value = self._keyring.encrypt(now // DAY, key, _SAVED.pack(now) + session)
        return Item(key, value, self._timeout)

    def decode(self, key: bytes, value: bytes, now: int) -> Found | None:
        """Return the session, with the time at which the host that saved it had it."""
        days = range(now // DAY - 1, now // DAY + 2)
        text = self._keyring.decrypt(days, key, value)
        if text is None:
            return None
        (saved,) = _SAVED.unpack_from(text)
        if not now - self._timeout <= saved <= now + CLOCK_SKEW:
            return None
        return Found(saved, text[_SAVED.size :])

    def _key(self, day: int, cache_id: bytes) -> bytes | None:
        digest = self._keyring.digest(day, cache_id)
        return None if digest is None else (self._prefix + digest).encode()


def _session_key(secret: bytes, salt: bytes) -> AESGCM:
    return AESGCM(expand(secret, _SESSION + salt, SECRET_BYTES))
