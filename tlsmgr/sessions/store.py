"""store - what is in a session file: records by digest, and in the order of their age.

Three tables in one file. ``records`` holds the records in places, the order in which their ids came
first; ``places`` maps the fixed-size digest of a cache id to its place and its age; ``ages`` maps
an age to a place. Appending fills the pages (three typical sessions each), and a session that is
stored again takes the place of the one before: nothing else is touched.

Each record has a serial number, made of LMDB's transaction number and its own in the batch. Both
come from the file, under the lock that a writer holds, so a serial is larger than all before it and
is never used twice in a file, whichever process writes. The age of a record was its serial when it
was last looked at. So the first of all ages is that of the oldest record if the record still has
that serial; else it was stored again since: its age is updated, and the next one is looked at.

The file is expendable: nothing is ever synced to disk. ``create`` makes it beside its name, with
all its disk space, and renames it into place; a file in use is never truncated. An open Store ends
with its file: when another one is made, or this one is found damaged, all calls are StoreLost. It
must not cross a fork(): a worker opens it after its fork. Lookups take no lock, a batch takes the
writers' lock (see ``lmdb_file``). Every failure is a StoreError; nothing here is fatal, and only
``create`` logs: a warning when the disk has less space than wanted.
"""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

from tlsmgr import log
from tlsmgr.sessions.file import (
    MIB,
    WRITER_PATIENCE,
    StoreError,
    StoreFile,
    allocate,
    claim,
    in_directory,
    inode_of,
    lock_name,
    map_size_for,
)
from tlsmgr.sessions.lmdb_file import (
    ERRORS,
    LmdbFile,
    Transaction,
    make_tables,
    store_error,
    store_errors,
)
from tlsmgr.sessions.seal import DIGEST_BYTES, SERIAL_BYTES

TABLES = (b"records", b"places", b"ages")
NUMBER_BITS = 20  # of a serial: the record's number in its batch; the others are the transaction's
AGES_READ = 200  # at most, when the oldest record is only shown
AGES_A_BATCH = 16  # that are updated, at most, when the oldest record is looked for
PAGES_A_CHANGE = 8  # copied or added, at most, beside twice the bytes of a record
BATCH_PART = 16  # a batch that changes one 16th of the pages of the file is large
_make = tuple.__new__  # to call the class of a NamedTuple takes half as long again
_HEAD_BYTES = SERIAL_BYTES + DIGEST_BYTES


class Record(NamedTuple):
    """The digest that it is found by (16 bytes), its serial (8 bytes), and the sealed bytes."""

    digest: bytes
    serial: bytes
    data: bytes

    def __repr__(self) -> str:
        return f"Record({self.serial.hex()}, {len(self.data)} bytes)"


def create(file: StoreFile) -> int:
    """Make the file and its lock table, empty, mode 0600, and rename them into place.

    Return a descriptor that keeps the file ours while it is open: another daemon gets a StoreError
    here. A process that has the old file open gets StoreLost from now on.
    """
    fresh = file.name + ".new"
    with in_directory(file.directory), contextlib.ExitStack() as until_done:
        if inode_of(file) is not None:
            until_done.callback(os.close, claim(file.name))
        _remove_leftovers(fresh)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(_remove_leftovers, fresh)
            make_tables(fresh, TABLES)
            descriptor = claim(fresh)
            on_failure.callback(os.close, descriptor)
            size, is_allocated = allocate(descriptor, file.map_size)
            lock_inode = os.stat(lock_name(fresh)).st_ino
            os.rename(lock_name(fresh), lock_name(file.name))
            os.rename(fresh, file.name)
            file.mark.record(os.fstat(descriptor).st_ino, lock_inode, size, is_allocated)
            on_failure.pop_all()
    if size < file.map_size:
        log.warning(
            f"{file.name}: wanted {file.map_size // MIB} MiB of disk space,"
            f" got {size // MIB} MiB; the cache holds fewer sessions"
        )
    return descriptor


def _remove_leftovers(name: str) -> None:
    for leftover in (name, lock_name(name)):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(leftover)


def size_limit_in(size: int, size_limit: int) -> int:
    """Return the limit that holds in a file of ``size`` bytes: less where the disk had less."""
    wanted = map_size_for(size_limit)
    return size_limit * min(size, wanted) // wanted


def _record(value: bytes) -> Record:
    """Return the record in a place: its serial comes first, then its digest."""
    return Record(value[SERIAL_BYTES:_HEAD_BYTES], value[:SERIAL_BYTES], value[_HEAD_BYTES:])


def _find(txn: Transaction, file: LmdbFile, digest: bytes) -> Record | None:
    """Return the record of ``digest``; None if there is none, or another digest's."""
    way = txn.get(digest, None, file.tables[1])
    value = None if way is None else txn.get(way[:SERIAL_BYTES])
    if value is None or not value.startswith(digest, SERIAL_BYTES):
        return None
    return _make(Record, (digest, value[:SERIAL_BYTES], value[_HEAD_BYTES:]))


class Store:
    """An open file, for one process. Raises StoreError.

    ``inode`` and ``size`` are those of the file that was opened.
    """

    def __init__(self, file: StoreFile, patience: float = WRITER_PATIENCE) -> None:
        """Open the file; wait at most ``patience`` seconds for another process that writes."""
        self._reading: Transaction | None = None
        self._file = LmdbFile(file, TABLES, patience)
        self.inode, self.size = self._file.inode, self._file.size

    def close(self) -> None:
        """Close the file. The Store must not be used afterwards."""
        self.end_reading()
        self._file.close()

    def read(self, digest: bytes) -> Record | None:
        """Return the record stored under ``digest``, or None. Takes no lock.

        All reads until ``end_reading`` or ``writing`` see the file as it was at the first of them.
        """
        try:
            txn = self._reading
            if txn is None:
                txn = self._reading = self._file.begin()
            return _find(txn, self._file, digest)
        except ERRORS as error:
            self.end_reading()
            raise store_error(error) from error

    def end_reading(self) -> None:
        """Let go of the pages that reads have pinned: they can't be used again meanwhile."""
        if self._reading is not None:
            self._reading.abort()
            self._reading = None

    def read_from(self, place: bytes, count: int) -> tuple[list[Record], bytes]:
        """Return at most ``count`` records from this place on, and the place to go on from.

        b"" is the first place of all, and behind the last one. Takes no lock.
        """
        with store_errors(), self._file.begin() as txn:
            cursor = txn.cursor(self._file.tables[0])
            found: list[Record] = []
            more = cursor.set_range(place)
            while more and len(found) < count:
                found.append(_record(cursor.value()))
                more = cursor.next()
            return found, cursor.key()

    def last_place(self) -> bytes:
        """Return the place of the record whose id came last; b"" when there is none."""
        with store_errors(), self._file.begin() as txn:
            cursor = txn.cursor(self._file.tables[0])
            return cursor.key() if cursor.last() else b""

    def oldest(self) -> Record | None:
        """Return the oldest record, None when there is none. Takes no lock.

        The oldest of the first AGES_READ when all of these were stored again since their ages were
        looked at; one of the others may then be older.
        """
        self.end_reading()
        with store_errors(), self._file.begin() as txn:
            cursor = txn.cursor(self._file.tables[2])
            found, more = b"", cursor.first()
            for _ in range(AGES_READ):
                if not more:
                    break
                age, place = cursor.item()
                value = txn.get(place, b"")
                if (value and not found) or value < found:  # the serial comes first
                    found = value or found
                if value.startswith(age):
                    break
                more = cursor.next()
            return _record(found) if found else None

    def usage(self) -> tuple[int, int]:
        """Return the number of records, and the bytes of the pages they take. Takes no lock."""
        self.end_reading()
        with store_errors(), self._file.begin() as txn:
            return txn.stat(self._file.tables[0])["entries"], self._file.used_bytes(txn)

    def writing(self) -> Batch:
        """Return one transaction under the writers' lock, for a ``with`` statement."""
        self.end_reading()
        return Batch(self._file)


class Batch:
    """Changes to a Store in one transaction: committed at the end, dropped if anything is raised.

    It is the context manager itself, as one of contextlib's takes longer than the transaction.
    """

    __slots__ = (
        "_ages",
        "_changed",
        "_corrected",
        "_file",
        "_most_changed",
        "_places",
        "_records",
        "_serial",
        "_txn",
    )

    def __init__(self, file: LmdbFile) -> None:
        self._txn = file.begin_writing()
        self._file = file
        self._records, self._places, self._ages = file.tables
        self._serial = self._txn.id() << NUMBER_BITS
        self._changed = 0  # bytes of pages that this batch may have copied or added, at most
        self._most_changed = file.size // BATCH_PART
        # Age, place and digest of the records whose age was updated.
        self._corrected: list[tuple[bytes, bytes, bytes]] = []

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._file.end(self._txn, error)

    def next_serial(self) -> bytes:
        """Return a serial that no record of this file has had, larger than all before."""
        self._serial += 1
        return self._serial.to_bytes(SERIAL_BYTES, "big")

    def put(self, record: tuple[bytes, bytes, bytes]) -> None:
        """Store a Record, the latest of all, in place of an older one with its digest."""
        digest, serial, data = record
        self._changed += 2 * len(data) + PAGES_A_CHANGE * self._file.page_size
        way = self._txn.get(digest, None, self._places)
        if way is not None:
            self._txn.put(way[:SERIAL_BYTES], serial + digest + data)
            return
        self._txn.put(digest, serial + serial, db=self._places)
        for table, value in ((self._records, serial + digest + data), (self._ages, serial)):
            if not self._txn.put(serial, value, append=True, db=table):
                raise StoreError("records are out of order", damaged=True)

    def find(self, digest: bytes) -> Record | None:
        """Return the record stored under ``digest``, or None."""
        return _find(self._txn, self._file, digest)

    def remove(self, record: Record) -> bool:
        """Delete a record; return False when it was gone or replaced already."""
        way = self._txn.get(record.digest, None, self._places)
        value = None if way is None else self._txn.get(way[:SERIAL_BYTES])
        if way is None or value is None or not value.startswith(record.serial + record.digest):
            return False
        return self._delete(way[SERIAL_BYTES:], way[:SERIAL_BYTES], record.digest)

    def evict(self) -> bool:
        """Delete the oldest record; return False when there is none."""
        oldest = self._oldest()
        return oldest is not None and self._delete(*oldest)

    def _delete(self, age: bytes, place: bytes, digest: bytes) -> bool:
        self._changed += PAGES_A_CHANGE * self._file.page_size
        if (age, place, digest) in self._corrected:
            self._corrected.remove((age, place, digest))
        self._txn.delete(age, b"", self._ages)
        if self._txn.get(digest, None, self._places) == place + age:  # always so in a sound file
            self._txn.delete(digest, b"", self._places)
        return self._txn.delete(place)

    def _oldest(self) -> tuple[bytes, bytes, bytes] | None:
        """Return age, place and digest of the oldest record; if too many ages are old, of those."""
        cursor = self._txn.cursor(self._ages)
        while cursor.first():
            age, place = cursor.item()
            value = self._txn.get(place)
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
        """Update the age of a record that was stored again since."""
        self._txn.delete(age, b"", self._ages)
        self._txn.put(record.serial, place, db=self._ages)
        self._txn.put(record.digest, place + record.serial, db=self._places)
        self._corrected.append((record.serial, place, record.digest))

    def is_large(self) -> bool:
        """Return whether this batch has changed so much that another one should go on.

        LMDB writes a changed page to an unused one, and can use the old one again only after the
        next transaction. A transaction that takes almost all unused pages is the last one: none is
        left to evict a record.
        """
        return self._changed > self._most_changed

    def entries(self) -> int:
        """Return how many records there are."""
        return self._txn.stat(self._records)["entries"]

    def uses_more_than(self, limit: int) -> bool:
        """Return whether the pages in use by the tables take more bytes than that.

        To count them takes as long as to store a session, so the cheap upper bound comes first.
        """
        if self._file.reach() + self._changed <= limit:
            return False
        return self.used_bytes() > limit

    def used_bytes(self) -> int:
        """Return how many bytes the pages take that the tables use."""
        return self._file.used_bytes(self._txn)
