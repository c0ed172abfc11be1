"""cache - a TLS session cache: lookup, update and delete by cache id, with expiry and limits.

Workers look up without a lock and hand in their updates and deletes together, once an iteration of
their loop, as one transaction of the store, or a few when they are many. An entry is expired when
``saved + timeout < now``, as in Postfix's tls_scache.c, and also when it seems to be saved more
than a day from now (the clock was set back). An expired entry answers "not found" and is deleted.
Over a limit (bytes of pages in use, or entries) the oldest entries are evicted, and an update never
fails for it.

An update answers "done", because a cache may forget. It is dropped when the file is missing, full
or damaged, and when another process does not finish writing within half a second, which is counted.
But a process that does not have the file of the others, because it had an older one or failed to
open it, answers "not done": others may find an older session there. A delete that can't be carried
out answers "not found": the session stays until it is stored again or expires, which costs a client
at most one refused resumption.

Failures are one warning in ten minutes and never fatal. Damage is reported in FileMark, so that
nobody uses the file any more and it is made new. ``reopen`` tries again to open a file.
Log lines at TLS log level 2 are stock's. Of an entry only id and size are ever logged.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import NamedTuple

from tlsmgr import log
from tlsmgr.sessions.file import (
    CLOSED,
    WRITER_PATIENCE,
    StoreBusy,
    StoreError,
    StoreFile,
    StoreFull,
    StoreLost,
)
from tlsmgr.sessions.rules import CLOCK_SLACK, CacheRules, id_text, log_delete
from tlsmgr.sessions.seal import Entry, Nonces, Seal, saved_time
from tlsmgr.sessions.shared import SharedCache, Usage
from tlsmgr.sessions.store import Batch, Record, Store, size_limit_in
from tlsmgr.stats import CACHE_INDEX, private_cache_row

WARNING_INTERVAL = 600.0  # seconds between two warnings about the same problem
EVICTED_WHEN_FULL = 4  # records, each time that there is no room for an update
TRIES = 20  # to make room for an update; a large session needs pages in a row

HITS, MISSES, _UPDATES = CACHE_INDEX["hits"], CACHE_INDEX["misses"], CACHE_INDEX["updates"]
_DELETES, _EXPIRED, _EVICTED = (CACHE_INDEX[name] for name in ("deletes", "expired", "evicted"))


class Change(NamedTuple):
    """Store ``session`` under ``cache_id``; with None for a session: delete the one there is.

    With ``saved`` it is the session of another host, which saved it then: stored if there is none.
    """

    cache_id: bytes
    session: bytes | None
    saved: int = 0

    def __repr__(self) -> str:
        return f"Change({'delete' if self.session is None else 'update'})"


class Take:
    """A lookup that has to write, because it forgets what it gives out; see ``single_use``.

    ``session`` is what it found, once it is done: None for nothing.
    """

    __slots__ = ("cache_id", "session")

    def __init__(self, cache_id: bytes) -> None:
        self.cache_id = cache_id
        self.session: bytes | None = None


class SessionCache:
    """One cache, in one process. ``file`` is None when the cache can have no file."""

    def __init__(
        self,
        rules: CacheRules,
        shared: SharedCache,
        file: StoreFile | None,
        nonces: Nonces,
        counts: memoryview | None = None,
    ) -> None:
        """Open the file. ``nonces`` are those of the process, and ``counts`` its counters."""
        self.rules = rules
        self._timeout = rules.timeout
        self.expired: list[bytes] = []  # ids that lookups found expired: ``apply`` is due for them
        self._dropped = 0
        self._shared = shared
        self._file = file
        self._mark = None if file is None else file.mark
        self._nonces = nonces
        self._counts = private_cache_row() if counts is None else counts
        self._limit = log.Limit(WARNING_INTERVAL)
        self._owns_directory = False
        self._is_waiting = False  # it could not open the file because another process writes
        self._store: Store | None = None
        self._seal: Seal
        self._size_limit = 0
        self._open(WRITER_PATIENCE)

    def own_directory(self) -> None:
        """Close the directory of the file as soon as it is not needed any more."""
        self._owns_directory = True
        if self._store is not None:
            self._close_directory()

    def end_reading(self) -> None:
        """End a worker's iteration: the next lookup sees what others stored meanwhile."""
        if self._store is not None:
            self._store.end_reading()

    def reopen(self) -> None:
        """Try again to open a file that could not be opened; without waiting for a writer."""
        if self._store is None:
            self._open(patience=0.0)

    def close(self) -> None:
        """Close the file, for good."""
        self._file = None
        self._close_store()

    def may_share(self, session: bytes) -> bool:
        """Return whether other hosts may have this session as well."""
        return True

    def lookup(self, cache_id: bytes, now: int) -> bytes | Take | None:
        """Return the session, or None when there is none or it is expired at ``now``.

        A cache whose sessions are used once may return a Take for ``apply`` instead.
        """
        store = self._store
        record = None if store is None else self._read_record(store, self._seal.digest(cache_id))
        entry = None if record is None else self._seal.decrypt(*record)
        if self.rules.logging:
            self._log_lookup(cache_id, entry)
        if entry is None:
            self._counts[MISSES] += 1
            return None
        if not now - self._timeout <= entry.saved <= now + CLOCK_SLACK:  # as in is_expired
            self.expired.append(cache_id)
            self._counts[MISSES] += 1
            return None
        self._counts[HITS] += 1
        return entry.session

    def apply(self, changes: Sequence[Change | Take], now: int) -> list[bool]:
        """Carry out the changes in order; they are visible to all on return.

        Return for each whether it was done: an update always is, a delete when there was an entry,
        a Take when it found a session.
        """
        self._count(changes)
        return self._apply_all(changes, now)

    def _count(self, changes: Sequence[Change | Take]) -> None:
        updates = len([True for change in changes if change.session is not None])
        self._counts[_UPDATES] += updates
        self._counts[_DELETES] += len(changes) - updates

    def _apply_all(self, changes: Sequence[Change | Take], now: int) -> list[bool]:
        done = self._apply(changes, now)
        most = 2 * len(done)
        while len(done) < len(changes):
            some = self._apply(changes[len(done) : len(done) + most], now)
            done, most = done + some, 2 * len(some)  # as many as went well, or more
        return done

    def _apply(self, changes: Sequence[Change | Take], now: int) -> list[bool]:
        """Carry out the first of the changes, or all; return whether each of those was done."""
        for _ in range(TRIES):
            try:
                return self._commit(changes, now)
            except StoreFull as error:
                if len(changes) > 1:
                    return self._apply(changes[: len(changes) // 2], now)
                if not self._make_room():
                    self._complain(error)
                    break
            except StoreError as error:
                if isinstance(error, StoreBusy):
                    self._dropped += sum(change.session is not None for change in changes)
                self._complain(error)
                break
        self.expired = []
        return self._not_stored(changes)

    def take_dropped(self) -> int:
        """Return how many updates were dropped, since the last call, while another one wrote."""
        dropped, self._dropped = self._dropped, 0
        return dropped

    def size(self) -> tuple[int, int]:
        """Return the number of entries, and the bytes of the pages they take."""
        return (0, 0) if self._store is None else self._store.usage()

    def note_usage(self) -> None:
        """Note in shared memory how full the cache is; and forget the keys that all forget."""
        if self._store is None:
            return
        if self._seal.key_count > self._shared.key_count:
            self._seal = self._shared.seal(self._nonces)
        try:
            entries, size = self._store.usage()
            oldest = self._store.oldest()
        except StoreError as error:
            self._complain(error)
            return
        saved = saved_time(oldest.data) if oldest is not None else 0
        now = time.monotonic()
        self._shared.note_usage(Usage(entries, size, self._size_limit, saved, now))

    # The file.

    def _open(self, patience: float) -> None:
        if self._file is None or self._file.directory == CLOSED:
            return
        inode = self._file.mark.inode
        try:
            self._store = Store(self._file, patience)
        except StoreError as error:
            self._is_waiting = isinstance(error, StoreBusy)
            self._complain(error, inode)
            return
        self._seal = self._shared.seal(self._nonces)
        self._size_limit = size_limit_in(self._store.size, self.rules.size_limit)
        if self._owns_directory:
            self._close_directory()

    def _close_store(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def _close_directory(self) -> None:
        if self._file is not None:
            os.close(self._file.directory)
            self._file = None

    def _read_record(self, store: Store, digest: bytes) -> Record | None:
        try:
            return store.read(digest)
        except StoreError as error:
            self._complain(error)
            return None

    def _not_stored(self, changes: Sequence[Change | Take]) -> list[bool]:
        """Return the answers when nothing could be done."""
        mark = self._mark
        is_behind = (
            self._store is None
            and not self._is_waiting
            and mark is not None
            and mark.is_sound(mark.inode)
        )
        return [change.session is not None and not is_behind for change in changes]

    def _commit(self, changes: Sequence[Change | Take], now: int) -> list[bool]:
        """Carry out the first of the changes, as many as may be in one transaction."""
        if self._store is None:
            self.expired = []
            return self._not_stored(changes)
        done: list[bool] = []
        digests = [self._seal.digest(change.cache_id) for change in changes]  # before it locks
        with self._store.writing() as batch:
            for cache_id in self.expired:
                self._delete_if_expired(batch, cache_id, now)
            for change, digest in zip(changes, digests):
                done.append(self._change(batch, change, digest, now))
                if batch.is_large():
                    break
            is_over = self._evict(batch)
        self.expired = []
        if is_over:
            self._evict_more(self._store)
        return done

    def _change(self, batch: Batch, change: Change | Take, digest: bytes, now: int) -> bool:
        assert isinstance(change, Change), "a Take is of ``single_use``"
        cache_id, session, saved = change
        if session is None:
            log_delete(self.rules, cache_id)
            return remove(batch, digest)
        if saved and batch.find(digest) is not None:
            return True
        self._put(batch, digest, (saved or now, cache_id, session))
        return True

    def _put(self, batch: Batch, digest: bytes, entry: tuple[int, bytes, bytes]) -> None:
        """Store an Entry; a plain tuple will do, and takes less time."""
        if self.rules.logging:
            self._log_update(Entry(*entry))
        if len(entry[2]) > self._size_limit:  # it would evict all others, then itself
            remove(batch, digest)
        else:
            serial = batch.next_serial()
            batch.put((digest, serial, self._seal.encrypt(digest, serial, entry)))

    def _digests(self, cache_id: bytes) -> tuple[bytes, ...]:
        """Return the digests under which there may be sessions of this id."""
        return (self._seal.digest(cache_id),)

    def _delete_if_expired(self, batch: Batch, cache_id: bytes, now: int) -> None:
        for digest in self._digests(cache_id):
            record = batch.find(digest)
            entry = None if record is None else self._seal.decrypt(*record)
            if record is None or entry is None or not self.rules.is_expired(entry.saved, now):
                continue
            batch.remove(record)
            self._counts[_EXPIRED] += 1
            log_delete(self.rules, cache_id)

    # Limits.

    def _evict(self, batch: Batch) -> bool:
        """Evict the oldest until both limits hold; return True when that takes another batch."""
        limit = self.rules.entry_limit
        while (limit and batch.entries() > limit) or batch.uses_more_than(self._size_limit):
            if batch.is_large():
                return True
            if not batch.evict():
                return False
            self._counts[_EVICTED] += 1
        return False

    def _evict_more(self, store: Store) -> None:
        """Evict in further batches. If that fails, what was stored counts: unless it is lost."""
        is_over = True
        try:
            while is_over:
                with store.writing() as batch:
                    is_over = self._evict(batch)
        except StoreLost:
            raise
        except StoreError as error:
            if not isinstance(error, (StoreFull, StoreBusy)):  # then the next update goes on
                self._complain(error)

    def _make_room(self) -> bool:
        """Evict some of the oldest in a batch of its own, so that their pages can be used again."""
        assert self._store is not None
        try:
            with self._store.writing() as batch:
                evicted = sum(batch.evict() for _ in range(EVICTED_WHEN_FULL))
        except StoreError:
            return False
        self._counts[_EVICTED] += evicted
        return evicted > 0

    # Log lines.

    def _complain(self, error: StoreError, inode: int = 0) -> None:
        """Log a warning; report damage of the open file, or of the one that has this inode.

        A file that is lost is closed without a word: that it is damaged was said already.
        """
        if isinstance(error, StoreLost):
            self._close_store()
            return
        effect = "sessions are not cached until this is fixed"
        if isinstance(error, StoreBusy):
            effect = "updates are dropped until it has"
        self._limit.warning(
            type(error).__name__,
            f"{self.rules.cache_type} TLS session cache: {error}; {effect}",
            time.monotonic(),
        )
        if error.damaged and self._mark is not None:
            self._mark.report_damage(inode if self._store is None else self._store.inode)

    def _log_lookup(self, cache_id: bytes, entry: Entry | None) -> None:
        log.info(f"lookup {self.rules.cache_type} session id={id_text(cache_id)}")
        if entry is not None:
            log.info(f"read {self._described(entry)}")

    def _log_update(self, entry: Entry) -> None:
        log.info(
            f"put {self.rules.cache_type} session id={id_text(entry.cache_id)}"
            f" [data {len(entry.session)} bytes]"
        )
        log.info(f"write {self._described(entry)}")

    def _described(self, entry: Entry) -> str:
        return (
            f"{self.rules.cache_type} TLS cache entry {id_text(entry.cache_id)}:"
            f" time={entry.saved} [data {len(entry.session)} bytes]"
        )


def remove(batch: Batch, digest: bytes) -> bool:
    """Delete the session that has this digest; return whether there was one."""
    record = batch.find(digest)
    return record is not None and batch.remove(record)
