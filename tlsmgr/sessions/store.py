"""store - what is in a session file: records by digest, in the order in which they came.

Two tables in one file. ``records`` holds the records under a serial number that only grows;
``serials`` maps the fixed-size digest of a cache id to its serial. Appending keeps the pages full
(three typical sessions each), makes age the order of the keys, and lets the oldest be found at
once. A replaced record is deleted, never overwritten.

The file is expendable: nothing is ever synced to disk, and it is made afresh at each start, beside
its name, and renamed into place; never truncated under a reader. It is written through the memory
map (MDB_WRITEMAP), which halves the cost of an update; ``mapped`` sees to it that a full disk is an
error of one batch all the same.

An open Store must not cross a fork(): the parent opens one for a slice of maintenance, a worker for
life after its fork. Paths are relative to a directory descriptor, which works in a jail as well. A
process killed inside a batch leaves the file as it was before (robust mutex). Whatever LMDB says is
raised as StoreError; nothing here is fatal, and nothing is logged.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tlsmgr.sessions.extent import own
from tlsmgr.sessions.mapped import (
    ERRORS,
    DiskFull,
    MappedFile,
    Replaced,
    StoreFull,
    Transaction,
    store_errors,
)
from tlsmgr.sessions.place import StoreError, StoreFile, claim, in_directory, inode_of, remove

__all__ = [
    "Batch",
    "DiskFull",
    "Record",
    "Replaced",
    "Store",
    "StoreError",
    "StoreFile",
    "StoreFull",
    "create",
    "inode_of",
    "map_size_for",
    "remove",
]

TABLES = (b"records", b"serials")
SERIAL_BYTES = 6  # of a key in ``records``; big-endian, so that its order is that of age
PAGES_A_BATCH, PAGES_A_CHANGE = 16, 8  # copied at most, for all practical purposes
PAGES_IN_RESERVE = 64  # so that a full disk does not keep us from evicting
RESERVE = 64 << 20  # bytes of address space over twice the limit: copies, pinned pages


class Record(NamedTuple):
    """A serial number as its key in the file, and the sealed bytes stored there."""

    serial: bytes
    data: bytes

    def __repr__(self) -> str:
        return f"Record({self.serial.hex()}, {len(self.data)} bytes)"


def map_size_for(size_limit: int) -> int:
    """Bytes of address space for a store that eviction keeps below ``size_limit`` bytes."""
    return 2 * size_limit + RESERVE


def create(file: StoreFile) -> int:
    """Make the file afresh, empty, mode 0600, and rename it into place.

    Returns a descriptor that keeps the file ours while it is open: another daemon gets a StoreError
    here. Who has the old file open keeps it, and its lock table, until it is closed.
    """
    fresh = file._replace(name=file.name + ".new", mark=None)
    with in_directory(file.directory):
        if inode_of(file) is not None:
            os.close(claim(file.name))
        for leftover in (fresh.name, fresh.name + "-lock", file.name + "-lock"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(leftover)
        Store(fresh, create=True).close()
        os.unlink(fresh.name + "-lock")
        descriptor = claim(fresh.name)
        os.rename(fresh.name, file.name)
        if file.mark is not None:
            own(file.mark, os.fstat(descriptor).st_ino)
    return descriptor


class Store:
    """An open file, for one process. Raises StoreError."""

    def __init__(self, file: StoreFile, create: bool = False) -> None:
        self._reading: Transaction | None = None
        self._file = MappedFile(file, TABLES, create)
        self._records, self._serials = self._file.tables

    def close(self) -> None:
        """Close the file. The Store must not be used afterwards."""
        self.end_reading()
        self._file.close()

    def read(self, digest: bytes) -> Record | None:
        """The record stored under ``digest``, or None. Takes no lock.

        All reads until ``end_reading`` or ``writing`` see the file as it was at the first of them.
        """
        try:
            txn = self._reading
            if txn is None:
                txn = self._reading = self._file.begin()
            serial = txn.get(digest, None, self._serials)
            data = None if serial is None else txn.get(serial, None, self._records)
        except ERRORS as error:
            self.end_reading()
            raise StoreError(str(error)) from error
        return None if serial is None or data is None else Record(serial, data)

    def end_reading(self) -> None:
        """Let go of what reads have pinned: its pages can't be used again meanwhile."""
        if self._reading is not None:
            self._reading.abort()
            self._reading = None

    def read_from(self, serial: bytes, count: int) -> list[Record]:
        """At most ``count`` records with this serial or a later one, oldest first. No lock."""
        with store_errors(), self._file.begin() as txn:
            cursor = txn.cursor(self._records)
            found: list[Record] = []
            more = cursor.set_range(serial)
            while more and len(found) < count:
                found.append(Record(*cursor.item()))
                more = cursor.next()
            return found

    @contextlib.contextmanager
    def writing(
        self, changes: int = 1, sizes: Sequence[int] = (), evicts: bool = False
    ) -> Iterator[Batch]:
        """One transaction under the writers' lock: committed at the end, dropped if it raises.

        At most ``changes`` records are stored or removed; ``sizes`` are those of the stored ones in
        bytes. StoreFull or DiskFull when the disk has no room for that; a batch that ``evicts`` may
        use up what is kept in reserve.
        """
        self.end_reading()
        pages = PAGES_A_BATCH + PAGES_A_CHANGE * changes + (0 if evicts else PAGES_IN_RESERVE)
        wanted = pages * self._file.page_size + 2 * sum(sizes)
        with store_errors(), self._file.begin_with_room(wanted, max(sizes, default=0)) as txn:
            yield Batch(txn, self._file)

    def clear_stale_readers(self) -> int:
        """Free the reader slots of dead processes; returns how many."""
        with store_errors():
            return self._file.env.reader_check()


class Batch:
    """Changes to a Store inside one transaction."""

    __slots__ = ("_file", "_records", "_serials", "_txn")

    def __init__(self, txn: Transaction, file: MappedFile) -> None:
        self._txn = txn
        self._file = file
        self._records, self._serials = file.tables

    def append(self, digest: bytes, record: Record) -> None:
        """Store a record, the latest of all, in place of what ``digest`` stood for."""
        txn = self._txn
        old = txn.get(digest, None, self._serials)
        if old is not None:
            txn.delete(old, b"", self._records)
        txn.put(record.serial, record.data, append=True, db=self._records)
        txn.put(digest, record.serial, db=self._serials)

    def find(self, digest: bytes) -> Record | None:
        """The record stored under ``digest``, or None."""
        serial = self._txn.get(digest, None, self._serials)
        data = None if serial is None else self._txn.get(serial, None, self._records)
        return None if serial is None or data is None else Record(serial, data)

    def oldest(self) -> Record | None:
        """The record that was stored first, or None when there is none."""
        cursor = self._txn.cursor(self._records)
        return Record(*cursor.item()) if cursor.first() else None

    def remove(self, serial: bytes, digest: bytes | None) -> bool:
        """Delete a record, and what led to it; False when it was gone already.

        ``digest`` is None for a record that can't be read: its way in is left to lead nowhere.
        """
        if digest is not None and self._txn.get(digest, None, self._serials) == serial:
            self._txn.delete(digest, b"", self._serials)
        return self._txn.delete(serial, b"", self._records)

    def entries(self) -> int:
        """How many records there are."""
        return self._txn.stat(self._records)["entries"]

    def used_bytes(self) -> int:
        """Bytes of the pages in use by both tables."""
        return self._file.used_bytes(self._txn)
