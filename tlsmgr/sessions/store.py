"""store - what is in a session file: records by digest, and in the order of their age.

Three tables in one file. ``records`` holds the records in places, the order in which their ids came
first; ``places`` maps the fixed-size digest of a cache id to its place and its age; ``ages`` maps
an age to a place. Appending fills the pages (three typical sessions each), and a session that is
stored again takes the place of the one before: nothing else is touched.

Each record has a serial number that only grows, and its age was its serial when it was last looked
at. So the first of all ages is that of the oldest record if the record still has that serial; else
it has been stored again since, and gets the age that it deserves before the next one is looked at.

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
from collections.abc import Sequence
from typing import NamedTuple

from tlsmgr.sessions.extent import locked, own
from tlsmgr.sessions.file import StoreError, StoreFile, claim, in_directory, inode_of, remove
from tlsmgr.sessions.lmdb_file import (
    ERRORS,
    DiskFull,
    MappedFile,
    Replaced,
    StoreFull,
    Transaction,
    store_error,
    store_errors,
)
from tlsmgr.sessions.record import DIGEST_BYTES

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

TABLES = (b"records", b"places", b"ages")
SERIAL_BYTES = 6  # of a serial, a place and an age; big-endian, so that they are in order
PAGES_A_BATCH, PAGES_A_CHANGE = 64, 10  # copied at most, for all practical purposes
AGES_A_BATCH = 16  # that are put right, at most, when the oldest record is looked for
PAGES_IN_RESERVE = 128  # so that a full disk does not keep us from evicting
PATIENCE = 0.5  # seconds to wait until nobody grants or maps the old file any more
_HEAD_BYTES = SERIAL_BYTES + DIGEST_BYTES
RESERVE = 64 << 20  # bytes of address space over twice the limit: copies, pinned pages


class Record(NamedTuple):
    """The digest that it is found by (16 bytes), its serial (6 bytes), and the sealed bytes."""

    digest: bytes
    serial: bytes
    data: bytes

    def __repr__(self) -> str:
        return f"Record({self.serial.hex()}, {len(self.data)} bytes)"


def _record(value: bytes) -> Record:
    """The record in a place: its serial comes first, then its digest."""
    return Record(value[SERIAL_BYTES:_HEAD_BYTES], value[:SERIAL_BYTES], value[_HEAD_BYTES:])


def _find(txn: Transaction, file: MappedFile, digest: bytes) -> tuple[bytes, bytes, Record] | None:
    """Place, age and record of ``digest``; None if there is none, or another digest's."""
    records, places, _ = file.tables
    way = txn.get(digest, None, places)
    value = None if way is None else txn.get(way[:SERIAL_BYTES], None, records)
    if way is None or value is None:
        return None
    record = _record(value)
    return (way[:SERIAL_BYTES], way[SERIAL_BYTES:], record) if record.digest == digest else None


def map_size_for(size_limit: int) -> int:
    """Bytes of address space for a store that eviction keeps below ``size_limit`` bytes."""
    return 2 * size_limit + RESERVE


def create(file: StoreFile) -> int:
    """Make the file afresh, empty, mode 0600, and rename it into place.

    Returns a descriptor that keeps the file ours while it is open: another daemon gets a StoreError
    here. Who has the old file open keeps it, and its lock table, until it is closed; nobody opens
    or maps it meanwhile, as that goes by the name.
    """
    fresh = file._replace(name=file.name + ".new", mark=None)
    with in_directory(file.directory), contextlib.ExitStack() as until_done:
        if inode_of(file) is not None:
            until_done.callback(os.close, old := claim(file.name))
            until_done.enter_context(locked(old, PATIENCE))
        for leftover in (fresh.name, fresh.name + "-lock", file.name + "-lock"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(leftover)
        Store(fresh, create=True).close()
        os.unlink(fresh.name + "-lock")
        descriptor = claim(fresh.name)
        os.rename(fresh.name, file.name)
        if file.mark is not None:
            own(file.mark, descriptor)
    return descriptor


class Store:
    """An open file, for one process. Raises StoreError."""

    def __init__(self, file: StoreFile, create: bool = False) -> None:
        self._reading: Transaction | None = None
        self._file = MappedFile(file, TABLES, create)

    def close(self) -> None:
        """Close the file. The Store must not be used afterwards."""
        self.end_reading()
        self._file.close()

    def read(self, digest: bytes) -> Record | None:
        """The record stored under ``digest``, or None. Takes no lock, unless the file has grown.

        All reads until ``end_reading`` or ``writing`` see the file as it was at the first of them.
        """
        try:
            txn = self._reading
            if txn is None:
                txn = self._reading = self._file.begin()
            found = _find(txn, self._file, digest)
        except ERRORS as error:
            self.end_reading()
            raise store_error(error) from error
        return found[2] if found is not None else None

    def end_reading(self) -> None:
        """Let go of what reads have pinned: its pages can't be used again meanwhile."""
        if self._reading is not None:
            self._reading.abort()
            self._reading = None

    def read_from(self, place: bytes, count: int) -> tuple[list[Record], bytes]:
        """At most ``count`` records from this place on, and the place to go on from. No lock.

        b"" is the first place of all, and behind the last one.
        """
        with store_errors(), self._file.begin() as txn:
            cursor = txn.cursor(self._file.tables[0])
            found: list[Record] = []
            more = cursor.set_range(place)
            while more and len(found) < count:
                found.append(_record(cursor.value()))
                more = cursor.next()
            return found, cursor.key()

    def writing(self, changes: int = 1, sizes: Sequence[int] = (), evicts: bool = False) -> Batch:
        """One transaction under the writers' lock, for a ``with`` statement.

        At most ``changes`` records are stored or removed; ``sizes`` are those of the stored ones in
        bytes. StoreFull or DiskFull when the disk has no room for that; a batch that ``evicts`` may
        use up what is kept in reserve.
        """
        self.end_reading()
        pages = PAGES_A_BATCH + PAGES_A_CHANGE * changes + (0 if evicts else PAGES_IN_RESERVE)
        wanted = pages * self._file.page_size + 2 * sum(sizes)
        return Batch(self._file.begin_with_room(wanted, max(sizes, default=0)), self._file)

    def clear_stale_readers(self) -> int:
        """Free the reader slots of dead processes; returns how many."""
        with store_errors():
            return self._file.env.reader_check()


class Batch:
    """Changes to a Store in one transaction: committed at the end, dropped if anything is raised.

    It is the context manager itself, as one of contextlib's takes longer than the transaction.
    """

    __slots__ = ("_ages", "_corrected", "_file", "_places", "_records", "_txn")

    def __init__(self, txn: Transaction, file: MappedFile) -> None:
        self._txn = txn
        self._file = file
        self._records, self._places, self._ages = file.tables
        # Age, place and digest of the records whose age was put right.
        self._corrected: list[tuple[bytes, bytes, bytes]] = []

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._file.end(self._txn, error)

    def put(self, record: Record) -> None:
        """Store a record, the latest of all, in place of what its digest stood for."""
        digest, serial, data = record
        way = self._txn.get(digest, None, self._places)
        if way is not None:
            self._txn.put(way[:SERIAL_BYTES], serial + digest + data, db=self._records)
            return
        self._txn.put(digest, serial + serial, db=self._places)
        for table, value in ((self._records, serial + digest + data), (self._ages, serial)):
            if not self._txn.put(serial, value, append=True, db=table):
                raise StoreError("records are out of order")

    def find(self, digest: bytes) -> Record | None:
        """The record stored under ``digest``, or None."""
        found = _find(self._txn, self._file, digest)
        return found[2] if found is not None else None

    def remove(self, record: Record) -> bool:
        """Delete a record; False when it was gone or replaced already."""
        found = _find(self._txn, self._file, record.digest)
        if found is None or found[2].serial != record.serial:
            return False
        place, age, _ = found
        return self._delete(age, place, record.digest)

    def evict(self) -> bool:
        """Let the oldest record go; False when there is none."""
        oldest = self._oldest()
        return oldest is not None and self._delete(*oldest)

    def _delete(self, age: bytes, place: bytes, digest: bytes) -> bool:
        if (age, place, digest) in self._corrected:
            self._corrected.remove((age, place, digest))
        self._txn.delete(age, b"", self._ages)
        if self._txn.get(digest, None, self._places) == place + age:  # always so in a sound file
            self._txn.delete(digest, b"", self._places)
        return self._txn.delete(place, b"", self._records)

    def _oldest(self) -> tuple[bytes, bytes, bytes] | None:
        """Age, place and digest of the oldest record; if too many ages are wrong, of those."""
        cursor = self._txn.cursor(self._ages)
        while cursor.first():
            age, place = cursor.item()
            value = self._txn.get(place, None, self._records)
            if value is None:
                self._txn.delete(age, b"", self._ages)
            elif value.startswith(age):
                return age, place, _record(value).digest
            elif len(self._corrected) == AGES_A_BATCH:
                return min(self._corrected)
            else:
                self._correct(age, place, _record(value))
        return None

    def _correct(self, age: bytes, place: bytes, record: Record) -> None:
        """Give a record that was stored again since the age that it deserves."""
        self._txn.delete(age, b"", self._ages)
        self._txn.put(record.serial, place, db=self._ages)
        self._txn.put(record.digest, place + record.serial, db=self._places)
        self._corrected.append((record.serial, place, record.digest))

    def entries(self) -> int:
        """How many records there are."""
        return self._txn.stat(self._records)["entries"]

    def uses_more_than(self, limit: int) -> bool:
        """Whether the pages in use by the tables take more bytes than that."""
        return self._file.uses_more_than(limit, self._txn)

    def used_bytes(self) -> int:
        """Bytes of the pages in use by the tables."""
        return self._file.used_bytes(self._txn)
