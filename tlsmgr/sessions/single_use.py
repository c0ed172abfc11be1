"""single_use - a session cache that forgets the TLS 1.3 sessions that it gives out.

A server's ticket that a client sends twice shows that both connections are its own (RFC 8446,
appendix C.4), and some servers take a ticket once only. So an id keeps up to MOST_SESSIONS sessions
of TLS 1.3, as a server sends several. A lookup gives out the newest, and deletes it in the same
transaction: no two get the same one. Of an id's last session, ``single_use = yes`` makes an
exception: it stays. With ``strict`` it does not. Other sessions are kept as ever, one for an id.

The sessions of an id are records of their own, in slots: the digest of slot 0 is that of the id,
so that with or without this the file is the same, and the others differ from it in the last bits.
The newest has the largest serial. A delete removes all of them.

A lookup first reads without the lock. It is a Take, for ``apply``, only if there is a session that
has to be forgotten. When the lock cannot be had in time it finds nothing. Runs in a worker.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from tlsmgr.sessions.cache import HITS, MISSES, Change, SessionCache, Take, remove
from tlsmgr.sessions.der import TLS_1_3, protocol_version
from tlsmgr.sessions.file import StoreFile
from tlsmgr.sessions.rules import CacheRules, log_delete
from tlsmgr.sessions.seal import Entry, Nonces
from tlsmgr.sessions.shared import SharedCache
from tlsmgr.sessions.store import Batch, Record

MOST_SESSIONS = 8  # of one id; a power of two
NO, STRICT = "no", "strict"  # of CacheRules.single_use


def make_cache(
    rules: CacheRules,
    shared: SharedCache,
    file: StoreFile | None,
    nonces: Nonces,
    counts: memoryview | None = None,
) -> SessionCache:
    """Return the cache that these rules ask for."""
    kind = SessionCache if rules.single_use == NO else SingleUseCache
    return kind(rules, shared, file, nonces, counts)


class SingleUseCache(SessionCache):
    """One such cache, in one process."""

    def may_share(self, session: bytes) -> bool:
        """Return whether other hosts may have this session: not one that is used once."""
        return protocol_version(session) != TLS_1_3

    def lookup(self, cache_id: bytes, now: int) -> bytes | Take | None:
        """Return a session that stays, a Take where one has to be forgotten, or None."""
        found = self._usable(self._read_records(cache_id), now)
        newest = next(found, None)
        if newest is not None and self._is_forgotten(newest[1], found):
            return Take(cache_id)
        entry = None if newest is None else newest[1]
        if self.rules.logging:
            self._log_lookup(cache_id, entry)
        self._counts[MISSES if entry is None else HITS] += 1
        return None if entry is None else entry.session

    def apply(self, changes: Sequence[Change | Take], now: int) -> list[bool]:
        """Carry out the changes, as in any cache."""
        takes = [change for change in changes if isinstance(change, Take)]
        self._count([change for change in changes if not isinstance(change, Take)])
        done = self._apply_all(changes, now)
        for take in takes:
            self._counts[MISSES if take.session is None else HITS] += 1
        return done

    def _read_records(self, cache_id: bytes) -> list[Record]:
        found = []
        for digest in self._digests(cache_id):
            if self._store is None:
                break
            record = self._read_record(self._store, digest)
            if record is not None:
                found.append(record)
        return found

    def _usable(self, records: Iterable[Record], now: int) -> Iterator[tuple[Record, Entry]]:
        """Yield the sessions that can be read and are not expired, the newest first."""
        for record in sorted(records, key=_serial, reverse=True):
            entry = self._seal.decrypt(*record)
            if entry is None:
                continue
            if self.rules.is_expired(entry.saved, now):
                self.expired.append(entry.cache_id)
            else:
                yield record, entry

    def _is_forgotten(self, entry: Entry, others: Iterator[object]) -> bool:
        """Return whether a session is deleted when it is given out."""
        if protocol_version(entry.session) != TLS_1_3:
            return False
        return self.rules.single_use == STRICT or next(others, None) is not None

    # In a transaction.

    def _change(self, batch: Batch, change: Change | Take, digest: bytes, now: int) -> bool:
        digests = _slots(digest)
        if isinstance(change, Take):
            return self._take(batch, change, digests, now)
        if change.session is None:
            log_delete(self.rules, change.cache_id)
            return sum(remove(batch, digest) for digest in digests) > 0
        if change.saved and _find_all(batch, digests):
            return True
        entry = Entry(change.saved or now, change.cache_id, change.session)
        self._put(batch, self._free_slot(batch, digests, entry), entry)
        return True

    def _take(self, batch: Batch, take: Take, digests: tuple[bytes, ...], now: int) -> bool:
        take.session = None  # of a transaction that was not committed
        found = self._usable(_find_all(batch, digests), now)
        newest = next(found, None)
        if self.rules.logging:
            self._log_lookup(take.cache_id, None if newest is None else newest[1])
        if newest is None:
            return False
        record, entry = newest
        if self._is_forgotten(entry, found):
            batch.remove(record)
            log_delete(self.rules, take.cache_id)
        take.session = entry.session
        return True

    def _free_slot(self, batch: Batch, digests: Sequence[bytes], entry: Entry) -> bytes:
        """Return where to put a session: in the place of the same one, in a free one, or in that of
        the oldest. Sessions of another protocol version are deleted."""
        records = _find_all(batch, digests)
        if self.may_share(entry.session):
            for record in records:
                if record.digest != digests[0]:
                    batch.remove(record)
            return digests[0]
        for record in records:
            stored = self._seal.decrypt(*record)
            if stored is not None and stored.session == entry.session:
                return record.digest  # Postfix sends an update again when its connection breaks
            if stored is not None and self.may_share(stored.session):
                batch.remove(record)
        taken = {record.digest for record in records}
        free = (digest for digest in digests if digest not in taken)
        return next(free, None) or min(records, key=_serial).digest

    def _digests(self, cache_id: bytes) -> tuple[bytes, ...]:
        return _slots(self._seal.digest(cache_id))

    def _not_stored(self, changes: Sequence[Change | Take]) -> list[bool]:
        for change in changes:
            if isinstance(change, Take):
                change.session = None
        return super()._not_stored(changes)


def _slots(digest: bytes) -> tuple[bytes, ...]:
    """Return the digests of all sessions of an id, whose own is that of slot 0."""
    head, last = digest[:-1], digest[-1]
    return tuple(head + bytes((last ^ slot,)) for slot in range(MOST_SESSIONS))


def _serial(record: Record) -> bytes:
    return record.serial


def _find_all(batch: Batch, digests: Iterable[bytes]) -> list[Record]:
    found = (batch.find(digest) for digest in digests)
    return [record for record in found if record is not None]
