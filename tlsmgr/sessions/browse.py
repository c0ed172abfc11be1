"""browse - what an operator does with a session cache: list its sessions, and forget some.

A walk goes through the cache in the order in which ids came first, in slices, and ends at the
record that was the last one when it began. Each slice reads the file as it is at that moment: a
session that is stored again meanwhile is met once, as it is then. Reading takes no lock; a slice
that deletes is one transaction of a few records.

Run by the control process. A process may open a file once, so all its walks share one Store, which
is closed with the last of them. Damage is reported in the file's mark, and raised as StoreError.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tlsmgr.sessions.file import StoreError, StoreFile
from tlsmgr.sessions.rules import CacheRules, log_delete
from tlsmgr.sessions.seal import Entry, Seal
from tlsmgr.sessions.shared import SharedCache
from tlsmgr.sessions.store import Record, Store

SLICE_RECORDS = 200  # read at a time: less than a millisecond
BATCH_RECORDS = 50  # deleted in a transaction


class BrowsedCache:
    """One cache, for the walks of one process."""

    def __init__(self, rules: CacheRules, shared: SharedCache, file: StoreFile) -> None:
        self.rules = rules
        self._shared = shared
        self._file = file
        self._seal: Seal  # while the file is open: a process must not keep keys for longer
        self._store: Store | None = None
        self._users = 0

    @contextlib.contextmanager
    def opened(self) -> Iterator[Store]:
        """Return the open file, for a ``with`` statement."""
        with self._damage_reported():
            if self._store is None:
                self._store = Store(self._file)
                self._seal = self._shared.seal()
        self._users += 1
        try:
            yield self._store
        finally:
            self._users -= 1
            if not self._users:
                self._store.close()
                self._store = None
                del self._seal

    def entries(self, match: bytes | None, now: int) -> Iterator[list[Entry]]:
        """Yield the sessions whose ids have this part, a slice at a time; none is expired."""
        with self.opened() as store:
            for records in self._slices(store, SLICE_RECORDS):
                found = [entry for _, entry in self._matching(records, match)]
                yield [each for each in found if not self.rules.is_expired(each.saved, now)]

    def drop(self, match: bytes | None) -> Iterator[int]:
        """Delete the sessions whose ids have this part; yield how many, a slice at a time."""
        with self.opened() as store:
            for records in self._slices(store, SLICE_RECORDS):
                if match is not None:
                    records = [record for record, _ in self._matching(records, match)]
                while records:
                    with self._damage_reported():
                        dropped = self._drop_some(store, records)
                    yield dropped
                yield 0

    def _slices(self, store: Store, count: int) -> Iterator[list[Record]]:
        with self._damage_reported():
            last = store.last_place()
        place = b""
        while place <= last:
            with self._damage_reported():
                records, place = store.read_from(place, count)
            yield records
            if not place:
                return

    def _matching(
        self, records: list[Record], match: bytes | None
    ) -> Iterator[tuple[Record, Entry]]:
        decrypt = self._seal.decrypt
        for record in records:
            entry = decrypt(*record)
            if entry is not None and (match is None or match in entry.cache_id):
                yield record, entry

    def _drop_some(self, store: Store, records: list[Record]) -> int:
        """Delete the first records of the list in one transaction, and take them from it.

        A record that was stored again since it was read has the same id, and is deleted as well.
        """
        dropped = []
        with store.writing() as batch:
            for _ in range(min(len(records), BATCH_RECORDS)):
                if batch.is_large():
                    break
                current = batch.find(records.pop(0).digest)
                if current is not None and batch.remove(current):
                    dropped.append(current)
        for record in dropped if self.rules.logging else ():
            entry = self._seal.decrypt(*record)
            if entry is not None:
                log_delete(self.rules, entry.cache_id)
        return len(dropped)

    @contextlib.contextmanager
    def _damage_reported(self) -> Iterator[None]:
        mark = self._file.mark
        inode = mark.inode
        try:
            yield
        except StoreError as error:
            if error.damaged:
                mark.report_damage(inode if self._store is None else self._store.inode)
            raise
