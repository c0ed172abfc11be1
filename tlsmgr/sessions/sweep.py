"""sweep - the walk through a session cache: expired entries out, a digest into the pool.

One sweep at start and one every ``timeout`` seconds (Postfix tlsmgr.c, tlsmgr_cache_run_event), in
bounded slices, so that workers keep the file and the CPU: a slice opens the file, reads at most
``SLICE_RECORDS`` without a lock, deletes the expired among them in transactions of at most
``BATCH_RECORDS``, and closes the file. Runs in the janitor, as damaged pages may end a process.

Several processes write, so an entry is looked at again inside the transaction that deletes it: a
serial never names two entries, hence a record that still has its serial is still expired, and a
record that was replaced is left alone. The entries that the sweep passes are digested for the PRNG
pool, as tlsmgr(8) says. Damage is reported; a file that can't be opened or written for another
reason is left for the next sweep. Nothing is fatal.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

from tlsmgr import log
from tlsmgr.sessions.file import StoreError, StoreFile
from tlsmgr.sessions.rules import CacheRules, log_delete
from tlsmgr.sessions.seal import saved_time
from tlsmgr.sessions.shared import SharedCache
from tlsmgr.sessions.store import Record, Store
from tlsmgr.stats import CACHE_INDEX, private_cache_row

SLICE_RECORDS = 500
BATCH_RECORDS = 50
PAUSE = 0.02  # seconds between two slices of a sweep
STIR_BYTES = 64  # of each record that go into the digest


class Sweep:
    """The sweeps of one cache. ``stir`` takes bytes for the PRNG pool, ``counts`` what expired."""

    def __init__(
        self,
        rules: CacheRules,
        shared: SharedCache,
        file: StoreFile,
        stir: Callable[[bytes], None],
        counts: memoryview | None = None,
    ) -> None:
        self._rules = rules
        self._shared = shared
        self._file = file
        self._stir = stir
        self._counts = private_cache_row() if counts is None else counts
        self._position = b""  # place at which the next slice starts
        self._started = 0.0
        self.passed = 0  # records seen by all sweeps
        self.deleted = 0  # expired ones among them

    def run(self, now: float) -> float:
        """Do one slice; return the seconds until the next one is due."""
        if not self._position:
            self._started = now
            if self._rules.logging:
                log.info(
                    "tlsmgr_cache_run_event: start TLS"
                    f" {self._rules.cache_type} session cache cleanup"
                )
        inode = self._file.mark.inode
        try:
            finished = self._slice(int(now))
        except StoreError as error:
            if error.damaged:
                self._file.mark.report_damage(inode)
            finished = True
        if not finished:
            return PAUSE
        self._position = b""
        self._shared.forget_older(self._rules.timeout, int(now))
        passed = max(0.0, now - self._started)  # negative: the clock was set back
        return max(PAUSE, self._rules.timeout - passed)

    def _slice(self, now: int) -> bool:
        """Do one slice; return True when it reached the end."""
        store = Store(self._file)
        try:
            records, self._position = store.read_from(self._position, SLICE_RECORDS)
            self._stir_in(records)
            expired = [r for r in records if self._rules.is_expired(saved_time(r.data), now)]
            while expired:
                self._delete(store, expired)
        finally:
            store.close()
        self.passed += len(records)
        return not self._position

    def _stir_in(self, records: list[Record]) -> None:
        if records:
            digest = blake2b(digest_size=32)
            for record in records:
                digest.update(record.data[-STIR_BYTES:])
            self._stir(digest.digest())

    def _delete(self, store: Store, expired: list[Record]) -> None:
        """Delete the first records of the list, in one transaction, and take them from it."""
        removed = []
        with store.writing() as batch:
            for _ in range(min(len(expired), BATCH_RECORDS)):
                if batch.is_large():
                    break
                record = expired.pop(0)
                if batch.remove(record):
                    removed.append(record)
        self.deleted += len(removed)
        self._counts[CACHE_INDEX["expired"]] += len(removed)
        if self._rules.logging:
            seal = self._shared.seal()
            for record in removed:
                entry = seal.decrypt(*record)
                if entry is not None:
                    log_delete(self._rules, entry.cache_id)
