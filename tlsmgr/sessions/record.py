"""seal - what a session looks like in the file: sealed under keys that no disk ever sees.

The data of a record is ``when saved (5 bytes) | body``; the body is ``length of the id (3 bytes) |
cache id | session``, with ``tlsmgr_session_encryption`` encrypted by AES-256-GCM, and 16 bytes of
tag behind it. So a copy of the file shows when sessions were stored, how long they are, and nothing
else. The serial number is the nonce: SharedCache gives each one out once in the life of a key, even
when the batch it was meant for is never committed. Digest and time are authenticated with the body,
so that no session can be passed off as another id's.

The digest that stands for a cache id in the file is keyed BLAKE2b, 16 bytes: ids of any length
become keys of one size, and no stranger can choose two ids that meet. The id itself is only there
to be logged; where nothing is, it is left out.

Keys come from SharedCache and live in the process's memory while it runs. Pure: no I/O, no lock.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
DIGEST_BYTES = 16
NONCE_BYTES = 12  # SP 800-38D, 8.2.1: deterministic construction, all of it invocation field
SAVED_BYTES = 5  # seconds since 1970, until the year 36812
LENGTH_BYTES = 3


class Entry(NamedTuple):
    """A stored session: when it was saved (seconds since 1970), its id or b"", and its bytes."""

    saved: int
    cache_id: bytes
    session: bytes

    def __repr__(self) -> str:
        return f"Entry(saved={self.saved}, {len(self.session)} bytes)"


class Seal:
    """Turns entries into records and back, and cache ids into digests.

    ``seal_key`` is 32 bytes, or None for records in the clear; ``digest_key`` is 32 bytes.
    """

    __slots__ = ("_aead", "_keyed_hash")

    def __init__(self, seal_key: bytes | None, digest_key: bytes) -> None:
        self._aead = AESGCM(seal_key) if seal_key is not None else None
        self._keyed_hash = blake2b(digest_size=DIGEST_BYTES, key=digest_key)

    def digest(self, cache_id: bytes) -> bytes:
        """The 16 bytes that stand for a cache id."""
        state = self._keyed_hash.copy()  # the key has gone in already
        state.update(cache_id)
        return state.digest()

    def close(self, digest: bytes, serial: bytes, entry: Entry) -> bytes:
        """The data of a record; ``serial`` must never have been used with this key before."""
        saved = entry.saved.to_bytes(SAVED_BYTES, "big")
        body = len(entry.cache_id).to_bytes(LENGTH_BYTES, "big") + entry.cache_id + entry.session
        if self._aead is not None:
            body = self._aead.encrypt(serial.rjust(NONCE_BYTES, b"\0"), body, digest + saved)
        return saved + body

    def open(self, digest: bytes, serial: bytes, data: bytes) -> Entry | None:
        """The entry of a record, or None when the record is damaged or of another key."""
        saved, body = data[:SAVED_BYTES], data[SAVED_BYTES:]
        if self._aead is not None:
            try:
                body = self._aead.decrypt(serial.rjust(NONCE_BYTES, b"\0"), body, digest + saved)
            except (InvalidTag, ValueError):
                return None
        end = LENGTH_BYTES + int.from_bytes(body[:LENGTH_BYTES], "big")
        if len(body) < end:
            return None
        return Entry(int.from_bytes(saved, "big"), body[LENGTH_BYTES:end], body[end:])


def saved_time(data: bytes) -> int:
    """When the entry of a record was saved, without opening it."""
    return int.from_bytes(data[:SAVED_BYTES], "big")
