"""mapped - the one file that knows LMDB: its memory map ends where the disk's promise ends.

One open file of one process: it maps what ``extent`` was granted, asks for more when a batch may
need it, and follows when another process has done so. LMDB never leaves its map, so the worst that
a full disk does is an error of one batch: StoreFull, when evicting others makes room, DiskFull when
it would not.

Locks: ``begin_with_room`` holds LMDB's writers' lock from its return until the transaction ends
(robust: a holder that is killed is undone); the lock of ``extent`` is held while mapping. Whatever
LMDB or the system says is raised as StoreError; nothing here is fatal, and nothing is logged.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TypeAlias

import lmdb

from tlsmgr.sessions.extent import STEP, Extent, grant_lock_table, locked
from tlsmgr.sessions.file import StoreError, StoreFile, error_text, in_directory

MAX_READERS = 1024  # slots of the reader table: workers, and dead ones not cleared yet
LOCK_TABLE = 64 * (MAX_READERS + 64)  # bytes: a cache line a reader, and LMDB's head
NODE_BYTES = 70  # of half a page, beside id and session: LMDB's head, key, our head and seal
REPLACED = "another file was made in place of this one"
NO_PAGE = "no unused page is left"

Transaction: TypeAlias = "lmdb.Transaction[bytes]"
ERRORS = (lmdb.Error, OSError)  # what LMDB or the system says


class StoreFull(StoreError):
    """There is no free page left for this batch: evict, then try again."""


class Replaced(StoreError):
    """The parent made the file anew, and this process is about to go: it must store nothing."""


class DiskFull(StoreError):
    """The disk has no room for a large record, which evicting others would not make."""


def store_error(error: Exception) -> StoreError:
    """One of ERRORS, as what is raised here."""
    full = isinstance(error, lmdb.MapFullError)
    return StoreFull(NO_PAGE) if full else StoreError(error_text(error))


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """Raise them as StoreError."""
    try:
        yield
    except ERRORS as error:
        raise store_error(error) from error


def _open_environment(name: str, map_size: int, tables: int, create: bool) -> lmdb.Environment:
    """While it is being made it is written with pwrite(): nothing is granted yet."""
    return lmdb.open(
        name,
        subdir=False,
        mode=0o600,
        map_size=map_size,
        max_dbs=tables,
        max_readers=MAX_READERS,
        max_spare_txns=1,
        writemap=not create,
        sync=False,
        metasync=False,
        readahead=False,
    )


class MappedFile:
    """One open file with the tables of these names. Raises StoreError."""

    def __init__(self, file: StoreFile, tables: tuple[bytes, ...], create: bool = False) -> None:
        self._most = file.map_size
        self._reach = 0  # the end of the last page, and what the batch at hand asked for beyond it
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        with in_directory(file.directory), store_errors(), contextlib.ExitStack() as on_failure:
            self._fd = os.open(file.name, flags, 0o600)
            on_failure.callback(os.close, self._fd)
            self._extent = Extent(self._fd, file.mark)
            with locked(self._fd):  # until the tables are open: they must be within the map
                if trouble := self._extent.trouble():
                    raise StoreError(f"{file.name} {trouble}")
                grant_lock_table(file.name, LOCK_TABLE)
                map_size = STEP if create else self._extent.granted()
                self.env = _open_environment(file.name, map_size, len(tables), create)
                on_failure.callback(self.env.close)
                self.tables = tuple(self.env.open_db(name, create=create) for name in tables)
            if os.stat(file.name).st_ino != os.fstat(self._fd).st_ino:
                raise StoreError(f"{file.name} was replaced while it was opened")
            self.page_size = self.env.stat()["psize"]
            self._mapped = self.env.info()["map_size"]
            on_failure.pop_all()

    def close(self) -> None:
        """Close the file."""
        self.env.close()
        os.close(self._fd)

    def begin(self, write: bool = False) -> Transaction:
        """A transaction, this process's only one; under the writers' lock if it is to write."""
        while True:
            try:
                return self.env.begin(write=write)
            except lmdb.MapResizedError:  # another process stored something behind our map's end
                self._map(0)

    def begin_with_room(self, wanted: int, largest: int) -> Transaction:
        """A writing transaction with so many bytes behind the last page, or in unused ones.

        ``largest`` are the bytes of the largest record to store. Raises StoreError; StoreFull,
        DiskFull and Replaced among others.
        """
        refusal = None
        try:
            while True:
                txn, missing = self._begin_writing(wanted)
                if missing <= 0:
                    return txn
                if refusal or self._mapped >= self._most:
                    break
                txn.abort()
                refusal = self._grow(missing)
        except ERRORS as error:
            raise store_error(error) from error
        try:
            self._check_free_pages(txn, wanted, largest, refusal)
        except (StoreError, *ERRORS) as error:
            self.end(txn, error)
            raise
        return txn

    def end(self, txn: Transaction, error: BaseException | None) -> None:
        """Commit; after an error drop it all. One of ERRORS, before or now, becomes StoreError."""
        try:
            if error is None:
                txn.commit()
                return
            txn.abort()
        except ERRORS as failure:
            error = failure
        if isinstance(error, ERRORS):
            raise store_error(error) from error

    def uses_more_than(self, limit: int, txn: Transaction) -> bool:
        """Whether ``used_bytes`` of a writing transaction is above the limit.

        To count them takes as long as to store a session: not while the file can't be so long.
        """
        return self._reach > limit and self.used_bytes(txn) > limit

    def used_bytes(self, txn: Transaction) -> int:
        """Bytes of the pages in use by the tables."""
        return sum(
            stat["psize"] * (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"])
            for stat in map(txn.stat, self.tables)
        )

    def _begin_writing(self, wanted: int) -> tuple[Transaction, int]:
        """A writing transaction, and by how many bytes the map is too short for so many more."""
        txn = self.begin(write=True)
        if self._extent.is_replaced():
            txn.abort()
            raise Replaced(REPLACED)
        self._reach = (self.env.info()["last_pgno"] + 1) * self.page_size + wanted
        return txn, self._reach - self._mapped

    def _check_free_pages(
        self, txn: Transaction, wanted: int, largest: int, refusal: str | None
    ) -> None:
        """Check that there are enough unused pages, as far as one can tell.

        A large record needs pages in a row, and nobody knows whether the unused ones are; nor
        whether a reader still sees them. LMDB will say so, if not.
        """
        if refusal and largest > self.page_size // 2 - NODE_BYTES:
            raise DiskFull(refusal)
        if self._mapped - self.used_bytes(txn) < wanted:
            raise StoreFull(refusal or NO_PAGE)

    def _grow(self, missing: int) -> str | None:
        """Have the map end so many bytes later, if it may; why the disk refused, or None."""
        try:
            self._map(self._mapped + missing)
        except OSError as error:
            return error_text(error)
        return None

    def _map(self, end: int) -> None:
        """Map what is granted; before that, ask for all up to ``end``. Raises OSError."""
        with locked(self._fd):
            if trouble := self._extent.trouble():
                raise Replaced(REPLACED) if self._extent.is_replaced() else StoreError(trouble)
            try:
                self._extent.grant(end, self._most)
            finally:
                self.env.set_mapsize(self._extent.granted())
                self._mapped = self.env.info()["map_size"]


def preload() -> None:
    """Use LMDB once in memory, as it imports modules late; after chroot that is not possible."""
    memory = os.memfd_create("tlsmgr-preload", os.MFD_CLOEXEC)
    try:
        path = f"/proc/self/fd/{memory}"
        with lmdb.open(path, subdir=False, lock=False, map_size=1 << 20, max_dbs=1) as env:
            table = env.open_db(b"preload")
            with env.begin(write=True) as txn:
                txn.put(b"key", b"value", db=table)
            with contextlib.suppress(lmdb.Error):
                lmdb.open("/proc/self/fd/none", subdir=False, lock=False, create=False)
    except ERRORS:
        pass  # no /proc; then there is no jail that has none either
    finally:
        os.close(memory)
