"""lmdb_file - the only file that knows LMDB: one open session file of one process.

Lookups take no lock. A writing transaction takes the ``WriterLock`` first, so that nobody waits for
long, and then LMDB's own robust mutex, which undoes the transaction of a process that was killed.
Opening takes the WriterLock as well, because LMDB then takes all its locks: the file's tables, the
process's slot in the table of readers, and the slots of dead readers, which are freed.

The map is as long as the file and never changes. When it is full LMDB says so, and that is a
StoreFull. With disk space allocated the file is written through the map (MDB_WRITEMAP), which takes
a third of the time; without, LMDB calls pwrite(), and a full disk is an error of one transaction.

An open file must not cross a fork(). Each error of LMDB or the system is raised as StoreError;
nothing here is fatal, and nothing is logged.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import lmdb

from tlsmgr.sessions import file as files
from tlsmgr.sessions.file import (
    WRITER_PATIENCE,
    StoreError,
    StoreFile,
    StoreFull,
    StoreLost,
    WriterLock,
    check_identity,
    in_directory,
    lock_name,
)

MAX_READERS = 1024  # slots of the reader table: workers, and dead ones not cleared yet
LOCK_TABLE_BYTES = 64 * (MAX_READERS + 64)  # a cache line a reader, and LMDB's head

Transaction: TypeAlias = "lmdb.Transaction[bytes]"
Table: TypeAlias = "lmdb._Database"
ERRORS = (lmdb.Error, OSError)  # what LMDB or the system says

_FULL = (lmdb.MapFullError, lmdb.TxnFullError)
# LMDB passes errors of the system on as texts.
_NO_SPACE = tuple(os.strerror(number) for number in files.NO_SPACE)
_TEMPORARY = tuple(os.strerror(number) for number in files.TEMPORARY)
_SHORT_WRITE = os.strerror(errno.EIO)  # how LMDB reports that pwrite() wrote a part


def store_error(error: Exception) -> StoreError:
    """Return the StoreError that stands for one of ERRORS."""
    text = str(error)
    if isinstance(error, OSError):
        return files.store_error(error)
    if isinstance(error, _FULL) or text.endswith(_NO_SPACE):
        return StoreFull("no unused page is left" if isinstance(error, _FULL) else text)
    temporary = isinstance(error, lmdb.ReadersFullError) or text.endswith(_TEMPORARY)
    return StoreError(text, damaged=not temporary)


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """Raise ERRORS as StoreError."""
    try:
        yield
    except ERRORS as error:
        raise store_error(error) from error


def make_tables(name: str, tables: Sequence[bytes]) -> None:
    """Make a short file with these empty tables, and its lock table, in the working directory.

    LMDB maps the lock table: it gets its blocks by being written before that.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with store_errors():
        with open(os.open(lock_name(name), flags, 0o600), "wb") as lock_table:
            lock_table.write(bytes(LOCK_TABLE_BYTES))
        with _open_environment(name, files.SMALLEST_MAP, len(tables), writemap=False) as env:
            for table in tables:
                env.open_db(table)


def _open_environment(name: str, map_size: int, tables: int, writemap: bool) -> lmdb.Environment:
    return lmdb.open(
        name,
        subdir=False,
        mode=0o600,
        map_size=map_size,
        max_dbs=tables,
        max_readers=MAX_READERS,
        max_spare_txns=1,
        writemap=writemap,
        sync=False,
        metasync=False,
        readahead=False,
    )


class LmdbFile:
    """One open file with the tables of these names. Raises StoreError."""

    def __init__(
        self, file: StoreFile, tables: Sequence[bytes], patience: float = WRITER_PATIENCE
    ) -> None:
        """Open it, after at most ``patience`` seconds of waiting for another process."""
        with in_directory(file.directory), contextlib.ExitStack() as on_failure:
            # Closed after LMDB's: a closed descriptor takes the locks of the process with it.
            flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
            self._lock_fd = os.open(lock_name(file.name), flags)
            on_failure.callback(os.close, self._lock_fd)
            self._lock = WriterLock(self._lock_fd, patience)
            self._lock.acquire()
            on_failure.callback(self._lock.release)
            with store_errors():
                self._open(file, tables, on_failure)
            self._lock.release()
            on_failure.pop_all()

    def _open(
        self, file: StoreFile, tables: Sequence[bytes], on_failure: contextlib.ExitStack
    ) -> None:
        mark = self._mark = file.mark
        self.inode, self.size, self._is_allocated = mark.inode, mark.size, mark.is_allocated
        check_identity(file)
        self.env = _open_environment(file.name, self.size, len(tables), self._is_allocated)
        on_failure.callback(self.env.close)
        check_identity(file)
        if os.fstat(self._lock_fd).st_ino != mark.lock_inode:
            raise StoreError(f"{lock_name(file.name)} was replaced", damaged=True)
        self.tables = tuple(self.env.open_db(name, create=False) for name in tables)
        self.page_size = self.env.stat()["psize"]
        self.env.reader_check()
        self.env.begin().abort()  # from now on this process has its slot among the readers

    def close(self) -> None:
        """Close the file."""
        self.env.close()
        os.close(self._lock_fd)

    def begin(self) -> Transaction:
        """Return a reading transaction, this process's only one; StoreLost when the file is.

        A call without a table means the first one, which takes less time than to name it.
        """
        if not self._mark.is_sound(self.inode):
            raise StoreLost
        return self.env.begin(self.tables[0])

    def begin_writing(self) -> Transaction:
        """Return a writing transaction, for ``end``; a call without a table means the first one.

        Raises StoreBusy when another process has one, and StoreLost.
        """
        self._lock.acquire()
        try:
            if self._mark.is_sound(self.inode):
                return self.env.begin(self.tables[0], write=True)
        except ERRORS as error:
            self._lock.release()
            raise store_error(error) from error
        self._lock.release()
        raise StoreLost

    def end(self, txn: Transaction, error: BaseException | None) -> None:
        """Commit; after an error drop it all. One of ERRORS, before or now, becomes StoreError."""
        try:
            if error is None:
                txn.commit()
                return
            txn.abort()
        except ERRORS as failure:
            if not self._is_allocated and str(failure).endswith(_SHORT_WRITE):
                raise StoreFull(os.strerror(errno.ENOSPC)) from failure
            error = failure
        finally:
            self._lock.release()
        if isinstance(error, ERRORS):
            raise store_error(error) from error

    def reach(self) -> int:
        """Return where the last page ends that any transaction so far has used, in bytes."""
        return (self.env.info()["last_pgno"] + 1) * self.page_size

    def used_bytes(self, txn: Transaction) -> int:
        """Return how many bytes the pages take that the tables use."""
        return sum(
            stat["psize"] * (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"])
            for stat in map(txn.stat, self.tables)
        )


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
