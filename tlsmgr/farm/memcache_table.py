"""memcache_table - the sessions of a `memcache:` table, in the form of Postfix's tlsmgr.

So hosts with Postfix's tlsmgr share them with ours. The key is the cache id as `key_format` says,
the value is in upper-case hexadecimal digits: the time of saving (8 bytes, native order) and the
session. Everybody who can reach the server can read and replace them: nothing is sealed here.

Rules: Postfix tls_scache.c, dict_memcache.c. Pure. Used by workers.
"""

from __future__ import annotations

import binascii
import re
import struct

from tlsmgr.farm.codec import LARGEST_VALUE, Found, Item

LONGEST_KEY = 250  # bytes; of the protocol
CLOCK_SLACK = 86400  # seconds that an entry may be saved in the future

_SAVED = struct.Struct("=q")
_BAD = re.compile(rb"[\x00-\x20\x7f]")
_EXPANSION = re.compile(rb"%([sS%])")


class MemcacheCodec:
    """The codec of one table.

    ``timeout`` is the lifetime of sessions, ``ttl`` that of items: 0 means that they do not expire.
    """

    def __init__(self, key_format: str, timeout: int, ttl: int, data_size_limit: int) -> None:
        self._format = key_format.encode("utf-8", "surrogateescape")
        self._timeout = timeout
        self._life = ttl or timeout
        self._limit = min(data_size_limit, LARGEST_VALUE)

    def keys(self, cache_id: bytes, now: int) -> tuple[bytes, ...]:
        """Return the key, unless the protocol does not allow it."""

        def expansion(match: re.Match[bytes]) -> bytes:
            return {b"s": cache_id, b"S": cache_id.upper(), b"%": b"%"}[match[1]]

        key = _EXPANSION.sub(expansion, self._format)
        return () if not key or len(key) > LONGEST_KEY or _BAD.search(key) else (key,)

    def encode(self, cache_id: bytes, session: bytes, now: int) -> Item | None:
        """Return what to store; None for a key or a size that Postfix refuses as well."""
        value = binascii.hexlify(_SAVED.pack(now) + session).upper()
        keys = self.keys(cache_id, now)
        return Item(keys[0], value, self._life) if keys and len(value) <= self._limit else None

    def decode(self, key: bytes, value: bytes, now: int) -> Found | None:
        """Return the session unless it is expired, or no hexadecimal digits."""
        try:
            data = binascii.unhexlify(value)
        except binascii.Error:
            return None
        if len(data) < _SAVED.size:
            return None
        (saved,) = _SAVED.unpack_from(data)
        if not now - self._timeout <= saved <= now + CLOCK_SLACK:
            return None
        return Found(saved, data[_SAVED.size :])
