"""cache - a TLS session cache: lookup, update and delete by cache id, with expiry and limits.

Workers look up without a lock and hand in their updates and deletes together, once a turn of their
loop, as one transaction of the store. What Postfix's tls_scache.c promises holds: an entry is
expired when ``saved + timeout < now`` and not a second earlier, whatever the clock did; an expired
entry answers "not found" and goes. Over a limit (bytes of pages in use, or entries) the oldest go
first, and an update never fails for it.

A cache whose file is missing, full or damaged answers misses and accepts updates; that is one
warning in ten minutes and never fatal. Damage is reported to the parent, which makes the file anew.
Log lines at TLS log level 2 are stock's. Nothing else is ever logged of an entry than id and size.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import NamedTuple

from tlsmgr import log
from tlsmgr.sessions.record import Entry
from tlsmgr.sessions.shared import SharedCache
from tlsmgr.sessions.store import Batch, DiskFull, Record, Replaced, Store, StoreError, StoreFull

WARNING_INTERVAL = 600.0  # seconds between two warnings about the same trouble
EVICTED_AT_ONCE = 8  # records that a batch may evict, beyond one for each that it stores
EVICTED_WHEN_FULL = 4  # records, each time that there is no room for a batch
TRIES = 100  # to make room for a batch


class CacheRules(NamedTuple):
    """What the configuration says of one cache. Times in seconds, 0 entries: no such limit."""

    cache_type: str
    timeout: int
    size_limit: int
    entry_limit: int
    logging: bool


class Change(NamedTuple):
    """Store ``session`` under ``cache_id``; with None for a session: forget what is there."""

    cache_id: bytes
    session: bytes | None

    def __repr__(self) -> str:
        return f"Change({'delete' if self.session is None else 'update'})"


class SessionCache:
    """One cache, in one process. ``store`` is None when there is no usable file."""

    def __init__(self, rules: CacheRules, shared: SharedCache, store: Store | None) -> None:
        self.rules = rules
        self._shared = shared
        self._seal = shared.seal()
        self._store = store
        self.expired: list[bytes] = []  # ids that lookups found expired: ``apply`` is due for them
        self._limit = log.Limit(WARNING_INTERVAL)

    def end_reading(self) -> None:
        """End of a worker's turn: the next lookup sees what others stored meanwhile."""
        if self._store is not None:
            self._store.end_reading()

    def close(self) -> None:
        """Close the file."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def lookup(self, cache_id: bytes, now: int) -> bytes | None:
        """The session, or None when there is none or it is expired at ``now``."""
        entry = self._read(cache_id)
        if self.rules.logging:
            self._log_lookup(cache_id, entry)
        if entry is None:
            return None
        if entry.saved + self.rules.timeout < now:
            self.expired.append(cache_id)
            return None
        return entry.session

    def apply(self, changes: Sequence[Change], now: int) -> list[bool]:
        """Carry out the changes in order, as one transaction that is visible to all on return.

        For each says whether it was done: an update always is, a delete when there was an entry.
        """
        for _ in range(TRIES):
            try:
                return self._apply(changes, now)
            except StoreFull as error:
                if not self._make_room():
                    self._complain(error)
                    break
            except StoreError as error:
                if isinstance(error, DiskFull) and len(changes) > 1:  # for a large one among them
                    return [self.apply([change], now)[0] for change in changes]
                self._complain(error)
                break
        self.expired = []
        return [change.session is not None for change in changes]

    def size(self) -> tuple[int, int]:
        """Entries, and bytes of the pages they take."""
        if self._store is None:
            return 0, 0
        with self._store.writing() as batch:
            return batch.entries(), batch.used_bytes()

    # The file.

    def _read(self, cache_id: bytes) -> Entry | None:
        if self._store is None:
            return None
        try:
            record = self._store.read(self._seal.digest(cache_id))
        except StoreError as error:
            self._complain(error)
            return None
        return None if record is None else self._seal.open(*record)

    def _apply(self, changes: Sequence[Change], now: int) -> list[bool]:
        if self._store is None:
            return [change.session is not None for change in changes]
        sizes = [len(c.cache_id) + len(c.session) for c in changes if c.session is not None]
        evictions = len(sizes) + EVICTED_AT_ONCE
        copies = len(changes) + len(self.expired) + evictions // 2  # they often lie side by side
        with self._store.writing(copies, sizes) as batch:
            for cache_id in self.expired:
                self._delete_if_expired(batch, cache_id, now)
            done = [self._change(batch, change, now) for change in changes]
            goes_on = self._evict(batch, evictions)
        self.expired = []
        with contextlib.suppress(StoreFull):  # then the next batch goes on
            while goes_on:
                with self._store.writing(EVICTED_AT_ONCE, evicts=True) as batch:
                    goes_on = self._evict(batch, EVICTED_AT_ONCE)
        return done

    def _change(self, batch: Batch, change: Change, now: int) -> bool:
        digest = self._seal.digest(change.cache_id)
        if change.session is None:
            record = batch.find(digest)
            log_delete(self.rules, change.cache_id)
            return record is not None and batch.remove(record)
        serial = self._shared.next_serial()
        entry = Entry(now, change.cache_id if self.rules.logging else b"", change.session)
        batch.put(Record(digest, serial, self._seal.close(digest, serial, entry)))
        self._log_update(entry)
        return True

    def _delete_if_expired(self, batch: Batch, cache_id: bytes, now: int) -> None:
        digest = self._seal.digest(cache_id)
        record = batch.find(digest)
        entry = None if record is None else self._seal.open(*record)
        if record is None or entry is None or entry.saved + self.rules.timeout >= now:
            return
        batch.remove(record)
        log_delete(self.rules, cache_id)

    # Limits.

    def _evict(self, batch: Batch, most: int) -> bool:
        """Let the oldest go until both limits hold; True when ``most`` were not enough."""
        limit = self.rules.entry_limit
        size_limit = self.rules.size_limit
        while (limit and batch.entries() > limit) or batch.uses_more_than(size_limit):
            if not most:
                return True
            if not batch.evict():
                return False
            most -= 1
        return False

    def _make_room(self) -> bool:
        """The disk or the map is full: let some of the oldest go, so that their pages serve."""
        assert self._store is not None
        try:
            with self._store.writing(EVICTED_WHEN_FULL, evicts=True) as batch:
                return sum(batch.evict() for _ in range(EVICTED_WHEN_FULL)) > 0
        except StoreError as error:
            self._complain(error)
            return False

    # Words.

    def _complain(self, error: StoreError) -> None:
        if isinstance(error, Replaced):
            return
        self._limit.warning(
            "store",
            f"{self.rules.cache_type} TLS session cache: {error};"
            " sessions are not kept until this is over",
            time.monotonic(),
        )
        if not isinstance(error, StoreFull | DiskFull):
            self._shared.report_damage()

    def _log_lookup(self, cache_id: bytes, entry: Entry | None) -> None:
        log.info(f"lookup {self.rules.cache_type} session id={_text(cache_id)}")
        if entry is not None:
            log.info(f"read {self._described(entry)}")

    def _log_update(self, entry: Entry) -> None:
        if self.rules.logging:
            log.info(
                f"put {self.rules.cache_type} session id={_text(entry.cache_id)}"
                f" [data {len(entry.session)} bytes]"
            )
            log.info(f"write {self._described(entry)}")

    def _described(self, entry: Entry) -> str:
        return (
            f"{self.rules.cache_type} TLS cache entry {_text(entry.cache_id)}:"
            f" time={entry.saved} [data {len(entry.session)} bytes]"
        )


def log_delete(rules: CacheRules, cache_id: bytes) -> None:
    """Say that a session goes, at the log level of that."""
    if rules.logging:
        log.info(f"delete {rules.cache_type} session id={_text(cache_id)}")


def _text(cache_id: bytes) -> str:
    return cache_id.decode("utf-8", "surrogateescape")
