"""seal - what a session looks like in the file: sealed under keys that are never on a disk.

The data of a record is ``when saved (5 bytes) | nonce (12 bytes) | body``; the body is ``length of
the id (3 bytes) | cache id | session``, encrypted by AES-256-GCM, with a tag of 16 bytes behind it.
With ``tlsmgr_session_encryption = no`` there is no nonce and the body is in the clear. So a copy of
the file shows when sessions were stored and how long they are, and nothing else. Digest, serial and
time are authenticated with the body: no session can be passed off as that of another id.

A nonce must never be used twice under one key. It is unique by construction, without any lock
(SP 800-38D, 8.2.1): the number of the process, which the parent gives out once, and a counter of
that process. See ``Nonces``. Its first byte, the tag, names the key: a file that was taken over
from an earlier daemon holds records under that one's keys too, and each daemon writes under its
own. A record whose key is not at hand is not found, and is left alone.

The digest that stands for a cache id in the file is keyed BLAKE2b, 16 bytes: ids of any length
become keys of one size, and no client can choose two ids that have the same. The id itself is
stored with the session, for the log and for an operator who lists the cache.

Keys come from SharedCache and stay in the process's memory with the Seal. Pure: no I/O, no lock.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
DIGEST_BYTES = 16
SERIAL_BYTES = 8  # of a record in its file; see ``store``
TAG_BYTES, NUMBER_BYTES, COUNTER_BYTES = 1, 4, 7  # of a nonce
NONCE_BYTES = TAG_BYTES + NUMBER_BYTES + COUNTER_BYTES
SAVED_BYTES = 5  # seconds since 1970, until the year 36812
LENGTH_BYTES = 3
_make = tuple.__new__  # to call the class of a NamedTuple takes half as long again
_TAG_END, _BODY_AT = SAVED_BYTES + TAG_BYTES, SAVED_BYTES + NONCE_BYTES


class Entry(NamedTuple):
    """A stored session: when it was saved (seconds since 1970), its id, and its bytes."""

    saved: int
    cache_id: bytes
    session: bytes

    def __repr__(self) -> str:
        return f"Entry(saved={self.saved}, {len(self.session)} bytes)"


class SealKey(NamedTuple):
    """A key for records, and the tag that they carry."""

    tag: int
    key: bytes

    def __repr__(self) -> str:
        return f"SealKey({self.tag})"


class Nonces:
    """The nonces of one process, without the tag: one object for all its caches.

    ``number`` is that of the process (ProcessNumber); no other process may have the same one.
    """

    __slots__ = ("_last",)

    def __init__(self, number: int) -> None:
        self._last = number << 8 * COUNTER_BYTES

    def next(self) -> bytes:
        """Return a nonce that neither this process nor another one has ever used."""
        self._last += 1
        return self._last.to_bytes(NUMBER_BYTES + COUNTER_BYTES, "big")


class Seal:
    """Turns entries into records and back, and cache ids into digests.

    ``seal_key`` is None for records in the clear; ``older`` keys only decrypt. ``digest_key`` is 32
    bytes. Without ``nonces`` it can only decrypt.
    """

    __slots__ = ("_aead", "_by_tag", "_keyed_hash", "_nonces", "_tag")

    def __init__(
        self,
        seal_key: SealKey | None,
        digest_key: bytes,
        nonces: Nonces | None = None,
        older: Iterable[SealKey] = (),
    ) -> None:
        self._aead: AESGCM | None = None
        self._by_tag = {bytes([tag]): AESGCM(key) for tag, key in older}
        if seal_key is not None:
            self._tag = bytes([seal_key.tag])
            self._aead = self._by_tag[self._tag] = AESGCM(seal_key.key)
        self._keyed_hash = blake2b(digest_size=DIGEST_BYTES, key=digest_key)
        self._nonces = nonces

    @property
    def key_count(self) -> int:
        """The number of keys for records."""
        return len(self._by_tag)

    def digest(self, cache_id: bytes) -> bytes:
        """Return the 16 bytes that stand for a cache id."""
        state = self._keyed_hash.copy()  # it has processed the key already
        state.update(cache_id)
        return state.digest()

    def encrypt(self, digest: bytes, serial: bytes, entry: tuple[int, bytes, bytes]) -> bytes:
        """Return the data of the record that has this digest and this serial, for an Entry."""
        time, cache_id, session = entry
        saved = time.to_bytes(SAVED_BYTES, "big")
        body = len(cache_id).to_bytes(LENGTH_BYTES, "big") + cache_id + session
        if self._aead is None:
            return saved + body
        if self._nonces is None:
            raise ValueError("a seal without nonces can't encrypt")
        nonce = self._tag + self._nonces.next()
        return saved + nonce + self._aead.encrypt(nonce, body, digest + serial + saved)

    def decrypt(self, digest: bytes, serial: bytes, data: bytes) -> Entry | None:
        """Return the entry of a record, or None when it is damaged or under another key."""
        saved = data[:SAVED_BYTES]
        if self._aead is None:
            body = data[SAVED_BYTES:]
        else:
            aead = self._by_tag.get(data[SAVED_BYTES:_TAG_END])
            if aead is None:
                return None
            try:
                nonce = data[SAVED_BYTES:_BODY_AT]
                body = aead.decrypt(nonce, data[_BODY_AT:], digest + serial + saved)
            except (InvalidTag, ValueError):
                return None
        end = LENGTH_BYTES + int.from_bytes(body[:LENGTH_BYTES], "big")
        if len(body) < end:
            return None
        entry = int.from_bytes(saved, "big"), body[LENGTH_BYTES:end], body[end:]
        return _make(Entry, entry)


def saved_time(data: bytes) -> int:
    """Return when the entry of a record was saved, without decrypting it."""
    return int.from_bytes(data[:SAVED_BYTES], "big")
