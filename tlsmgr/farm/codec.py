"""codec - what a cache looks like in a shared engine: its keys there, and its values.

A worker encodes before it sends anything to the farm process, and decodes what it gets. There is
one codec for each cache that is shared: ``seal`` for tlsmgr_farm_store, ``memcache_table`` for
`memcache:`. All are pure; times are in seconds since 1970, and passed in.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

LARGEST_VALUE = 65536  # bytes; a session that takes more is not shared
MOST_KEYS = 3  # of one session: those of the days on which it may have been saved


class Found(NamedTuple):
    """A session that some host has saved, and when."""

    saved: int
    session: bytes

    def __repr__(self) -> str:
        return f"Found(saved={self.saved}, {len(self.session)} bytes)"


class Item(NamedTuple):
    """A value to store under a key, for ``life`` seconds."""

    key: bytes
    value: bytes
    life: int

    def __repr__(self) -> str:
        return f"Item({len(self.value)} bytes)"


class Codec(Protocol):
    """Keys and values of one cache."""

    def keys(self, cache_id: bytes, now: int) -> tuple[bytes, ...]:
        """Return the keys under which the session may be, MOST_KEYS at most; () if it can't be."""

    def encode(self, cache_id: bytes, session: bytes, now: int) -> Item | None:
        """Return what to store; None for a session that can't be shared."""

    def decode(self, key: bytes, value: bytes, now: int) -> Found | None:
        """Return the session; None for a value that is damaged, forged or expired."""
