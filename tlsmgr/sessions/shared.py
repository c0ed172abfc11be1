"""shared - what all processes share of one session cache, beside its file.

``SharedCache`` is in shared memory and nowhere else: the keys of a cache, which file was made, and
how full it is, for processes that do not open it. The parent makes it before it forks; when the
daemon ends, the keys are gone, and nobody can read what is left on the disk.

At a reload keys and file go over (``CacheState``): the successor finds ids and opens records as
before, but what it writes is sealed under a key of its own. Older sealing keys are kept for as long
as there can be sessions under them, and MOST_OLDER of them at most.

``ProcessNumber`` is not shared: each process inherits the value of its own fork. Pure, no lock.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tlsmgr.sessions.file import FileMark, MarkValues
from tlsmgr.sessions.seal import KEY_BYTES, Nonces, Seal, SealKey
from tlsmgr.shm import SharedMemory

MOST_OLDER = 64
DRAIN_SLACK = 60  # seconds for which workers of the one before may still store sessions

_OLDER = struct.Struct(f"=?Bq{KEY_BYTES}s")  # used, tag, time of the reload, key
_USAGE = struct.Struct("=4Qd")


class Usage(NamedTuple):
    """How full a cache is: sessions, bytes of their pages, of how many, and the oldest session.

    ``oldest`` is when that was saved, in seconds since 1970, 0 when there is none; ``noted`` is the
    time of time.monotonic() at which a process saw all that, 0 for never.
    """

    entries: int
    size: int
    size_limit: int
    oldest: int
    noted: float


class ProcessNumber:
    """The number of this process among all that the parent has forked; see ``seal.Nonces``.

    The parent calls ``advance`` before each fork. The child is the process with the new value; the
    parent itself must not encrypt once it has forked.
    """

    def __init__(self) -> None:
        self.value = 0

    def advance(self) -> None:
        """Give the process that is forked next a number of its own."""
        self.value += 1


class OlderKey(NamedTuple):
    """A sealing key, and the time of the reload since when nothing is written under it."""

    tag: int
    until: int
    key: bytes

    def is_needed(self, timeout: int, now: int) -> bool:
        """Return whether there may be sessions under it that have not expired."""
        return self.until >= now - timeout - DRAIN_SLACK

    def __repr__(self) -> str:
        return f"OlderKey({self.tag}, {self.until})"


class CacheState(NamedTuple):
    """What goes over from one daemon to the next."""

    encrypted: bool
    digest_key: bytes
    older: tuple[OlderKey, ...]
    mark: MarkValues

    def __repr__(self) -> str:
        return f"CacheState({len(self.older)} keys)"


class SharedCache:
    """Keys and file mark of one cache. ``keys`` is 64 random bytes."""

    def __init__(self, memory: SharedMemory, keys: bytes, encrypted: bool) -> None:
        self.encrypted = encrypted
        self.mark = FileMark(memory.carve(FileMark.SIZE))
        self.is_inherited = memory.carve(1)
        """One byte; 1 while the file is another daemon's, which this one has not opened yet."""
        self._keys = memory.carve(2 * KEY_BYTES)
        self._tag = memory.carve(1)
        self._older = memory.carve(MOST_OLDER * _OLDER.size)
        self.renew(keys)
        self._usage = memory.carve(_USAGE.size)

    def renew(self, keys: bytes) -> None:
        """Set other keys, for a file that is made new; seals made before keep the old ones."""
        self._keys[:] = keys
        self._tag[0] = 0
        self._older[:] = bytes(len(self._older))

    def seal(self, nonces: Nonces | None = None) -> Seal:
        """Return the seal under this cache's keys; to encrypt it needs the process's nonces."""
        digest_key = bytes(self._keys[KEY_BYTES:])
        if not self.encrypted:
            return Seal(None, digest_key, nonces)
        older = [SealKey(key.tag, key.key) for key in self._older_keys()]
        return Seal(self._seal_key(), digest_key, nonces, older)

    def dump(self, now: int) -> CacheState:
        """Return what goes over to the next daemon."""
        older: tuple[OlderKey, ...] = ()
        if self.encrypted:
            tag, key = self._seal_key()
            older = (OlderKey(tag, now, key), *self._older_keys())
        return CacheState(
            self.encrypted, bytes(self._keys[KEY_BYTES:]), older[:MOST_OLDER], self.mark.values()
        )

    def inherit(self, state: CacheState, timeout: int, now: int) -> None:
        """Go on with the file of an earlier daemon, under a new key of our own; before the fork.

        Keys under which all sessions have expired are left out.
        """
        older = [key for key in state.older[:MOST_OLDER] if key.is_needed(timeout, now)]
        self._keys[KEY_BYTES:] = state.digest_key
        self._tag[0] = _free_tag(older)
        for i, (tag, until, key) in enumerate(older):
            _OLDER.pack_into(self._older, i * _OLDER.size, True, tag, until, key)
        self.mark.record(*state.mark)
        self.is_inherited[0] = 1

    def forget_older(self, timeout: int, now: int) -> None:
        """Forget older keys under which all sessions have expired: the janitor, after a sweep."""
        for i, (used, *key) in enumerate(_OLDER.iter_unpack(self._older)):
            if used and not OlderKey(*key).is_needed(timeout, now):
                start = i * _OLDER.size
                self._older[start : start + _OLDER.size] = bytes(_OLDER.size)

    @property
    def key_count(self) -> int:
        """The number of keys for records."""
        used = sum(self._older[:: _OLDER.size])  # the first byte of each
        return 1 + used if self.encrypted else 0

    def note_usage(self, usage: Usage) -> None:
        """Note how full the cache is: a process that has the file open."""
        _USAGE.pack_into(self._usage, 0, *usage)

    def usage(self) -> Usage:
        """Return what was noted last."""
        return Usage(*_USAGE.unpack_from(self._usage, 0))

    def _seal_key(self) -> SealKey:
        return SealKey(self._tag[0], bytes(self._keys[:KEY_BYTES]))

    def _older_keys(self) -> Iterator[OlderKey]:
        for used, tag, until, key in _OLDER.iter_unpack(self._older):
            if used:
                yield OlderKey(tag, until, key)


def _free_tag(older: Sequence[OlderKey]) -> int:
    """Return a tag that none of these keys has, the one behind the latest if possible."""
    taken = {key.tag for key in older}
    start = older[0].tag + 1 if older else 0
    return next(tag % 256 for tag in range(start, start + 256) if tag % 256 not in taken)
