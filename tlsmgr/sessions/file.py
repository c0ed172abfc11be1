"""file - where a session file is; how it gets its disk space, its claim and its identity.

Names are relative to a directory descriptor, which works in a jail as well. Links are not followed:
the directory belongs to mail_owner, but the files in it may be anything.

A session file has a lock table beside it, NAME-lock, and the two belong together: processes that
use one file with two lock tables write at the same time and destroy it. So ``FileMark`` records, in
shared memory, which two files were made; a process that opens a file checks both with
``check_identity``, and refuses a file whose lock table was removed or replaced. Who finds the file
damaged reports it there, and from then on nobody uses it: it is ``is_sound`` no more.

Three locks, all freed by the kernel when the holder dies:
- The claim: flock() on the session file. The process that makes the file holds it as long as the
  daemon runs, as stock does (tls_scache.c), so that no second daemon replaces the file.
- ``WriterLock``: flock() on the lock table, in front of LMDB's own mutex, which has no time-out.
- LMDB's own locks, see ``lmdb_file``.

Disk space is allocated when the file is made, because LMDB writes through its memory map: a write
to a page without a block behind it, on a full disk, ends the process by SIGBUS. Nothing here is
fatal; every failure is a StoreError, and StoreError.damaged says whether a new file would help.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock
from typing import NamedTuple

MIB = 1024 * 1024
CLOSED = -1  # for a descriptor: the directory could not be opened, or must not be used
SMALLEST_MAP = MIB  # bytes: with less disk space than that there is no file
MAP_UNIT = 65536  # bytes: a multiple of every page size

CLAIM_PATIENCE = 0.1  # seconds: a child forked a moment ago keeps our claim until it closes it
CLAIM_NAP = 0.005
WRITER_PATIENCE = 0.5  # seconds that a process waits for another one to finish writing
_TAKE, _FREE = LOCK_EX | LOCK_NB, LOCK_UN

# Failures of the system, not of the file: trying again later may work, a new file would not.
TEMPORARY = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EAGAIN}
)
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# File systems that write a changed block to another place: there allocating reserves nothing.
COPY_ON_WRITE = frozenset({0x9123683E, 0x2FC12FC1, 0xCA451A4E})  # btrfs, zfs, bcachefs


class StoreError(Exception):
    """The file can't be made, opened, read or written; the text says why.

    ``damaged``: the file must be made new. Otherwise the file may be sound, try again later.
    """

    def __init__(self, text: str, *, damaged: bool = False) -> None:
        super().__init__(text)
        self.damaged = damaged


class StoreFull(StoreError):
    """The file has no free page for this batch: evict some records, then try again."""


class StoreBusy(StoreError):
    """Another process did not finish writing in time."""


class StoreLost(StoreError):
    """The file was found damaged by another process, or another file is in its place."""

    def __init__(self) -> None:
        super().__init__("another file is in its place, or will be", damaged=True)


def store_error(error: OSError) -> StoreError:
    """Return the StoreError that stands for a failed system call."""
    return StoreError(error_text(error), damaged=error.errno not in TEMPORARY)


def error_text(error: Exception) -> str:
    """Return the text of an exception for a log line."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


class MarkValues(NamedTuple):
    """The inode numbers of a session file (0: none was made) and its lock table; see FileMark."""

    inode: int
    lock_inode: int
    size: int
    is_allocated: int


class FileMark:
    """Which session file and which lock table were made, in memory that all users share.

    ``area`` is ``SIZE`` bytes of shared memory; without it the file has one user, this process.
    Written by the process that makes the file, read by all; but all may report damage, which wakes
    that process through ``alarm``, an eventfd.
    """

    SIZE = 40
    __slots__ = ("_words", "alarm")

    def __init__(self, area: memoryview | None = None, alarm: int = CLOSED) -> None:
        self._words = (memoryview(bytearray(self.SIZE)) if area is None else area).cast("Q")
        self.alarm = alarm

    def record(self, inode: int, lock_inode: int, size: int, is_allocated: int) -> None:
        """Record the files that are in place from now on.

        In this order: who reads the new inode reads everything that belongs to it, and a report
        about an older file that had the same inode ends after that.
        """
        for i, value in ((1, lock_inode), (2, size), (3, is_allocated), (0, inode), (4, 0)):
            self._words[i] = value

    def report_damage(self, inode: int) -> None:
        """Have nobody use the file with this inode number any more, and the janitor make another.

        With the number, a process that has an older file open says nothing about the new one.
        """
        if self.is_sound(inode):
            self._words[4] = inode
            if self.alarm != CLOSED:
                os.eventfd_write(self.alarm, 1)

    def is_sound(self, inode: int) -> bool:
        """Return whether the file with this inode is in place, and nobody found it damaged."""
        return self._words[0] == inode != self._words[4]

    @property
    def is_damaged(self) -> bool:
        """Somebody found the file damaged that is in place."""
        return self._words[0] == self._words[4] != 0

    def values(self) -> MarkValues:
        """Return the arguments of the last ``record``; zeros when no sound file was made."""
        return MarkValues(0, 0, 0, 0) if self.is_damaged else MarkValues(*self._words[:4])

    @property
    def inode(self) -> int:
        """The inode number of the session file; 0: none was made."""
        return self._words[0]

    @property
    def lock_inode(self) -> int:
        """The inode number of its lock table."""
        return self._words[1]

    @property
    def size(self) -> int:
        """The length of the session file in bytes, which is that of the memory map."""
        return self._words[2]

    @property
    def is_allocated(self) -> bool:
        """Every byte of the file has a block on the disk, so that writing can't fail."""
        return bool(self._words[3])


class StoreFile(NamedTuple):
    """Where a store is: an open directory, a file name in it, and how long the file shall be."""

    directory: int
    name: str
    map_size: int
    mark: FileMark


def map_size_for(size_limit: int) -> int:
    """Return the length of a file whose records may take ``size_limit`` bytes.

    The rest is for changed copies of pages, and for pages that a reader keeps from being used.
    """
    return _whole_units(size_limit + size_limit // 4 + 16 * MIB + MAP_UNIT - 1)


def lock_name(name: str) -> str:
    """Return the name of a file's lock table; LMDB chose it."""
    return name + "-lock"


def inode_of(file: StoreFile) -> int | None:
    """Return the inode number of the file that has the name now, None when there is none."""
    try:
        return os.stat(file.name, dir_fd=file.directory, follow_symlinks=False).st_ino
    except OSError:
        return None


def check_identity(file: StoreFile) -> None:
    """Raise StoreError unless the two files that were made are in place, and undamaged."""
    mark = file.mark
    if mark.is_damaged or not mark.inode:  # the janitor has said why
        raise StoreLost
    try:
        status = os.stat(file.name, dir_fd=file.directory, follow_symlinks=False)
        lock = os.stat(lock_name(file.name), dir_fd=file.directory, follow_symlinks=False)
    except OSError as error:
        raise store_error(error) from error
    if status.st_ino != mark.inode:
        raise StoreError(f"{file.name} was replaced", damaged=True)
    if status.st_size != mark.size:
        raise StoreError(f"{file.name} was truncated", damaged=True)
    if lock.st_ino != mark.lock_inode:
        raise StoreError(f"{lock_name(file.name)} was replaced", damaged=True)


def is_lost(file: StoreFile) -> bool:
    """Return whether one of the two files was removed, replaced, truncated or found damaged."""
    try:
        check_identity(file)
    except StoreError as error:
        return error.damaged
    return False


def remove(file: StoreFile) -> None:
    """Delete the file and its lock table, if they exist."""
    for name in (file.name, lock_name(file.name)):
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=file.directory)


@contextlib.contextmanager
def in_directory(descriptor: int) -> Iterator[None]:
    """Work in the directory, then come back; OSError is raised as StoreError."""
    try:
        before = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fchdir(descriptor)
            try:
                yield
            finally:
                os.fchdir(before)
        finally:
            os.close(before)
    except OSError as error:
        raise store_error(error) from error


# Locks.


def claim(name: str) -> int:
    """Take the claim on a file; return the descriptor that holds it until it is closed."""
    descriptor = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    deadline = time.monotonic() + CLAIM_PATIENCE
    try:
        while not _try_lock(descriptor):
            if time.monotonic() >= deadline:
                raise StoreError(f"unable to get exclusive lock on {name}: another daemon uses it")
            time.sleep(CLAIM_NAP)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def is_claimed(file: StoreFile) -> bool:
    """Return whether another process has the claim now; False too when there is no such file."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(file.name, flags, dir_fd=file.directory)
    except OSError:
        return False
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)


class WriterLock:
    """The lock that a process holds while it writes; ``descriptor`` is its own of the lock table.

    Waits at most ``patience`` seconds. After a time-out the next tries give up at once, until the
    lock could be had again: one stopped process delays every other one once.

    flock() has no time-out, so a timer's signal ends the wait, with an exception of its handler. To
    poll instead took 9 % more CPU time an update with two workers, where this takes 3 %. For the
    main thread of a process that has no other use of SIGALRM.
    """

    __slots__ = ("_descriptor", "_patience")

    def __init__(self, descriptor: int, patience: float = WRITER_PATIENCE) -> None:
        self._descriptor = descriptor
        self._patience = patience
        signal.signal(signal.SIGALRM, _time_out)

    def acquire(self) -> None:
        """Take the lock, or raise StoreBusy."""
        if not _try_lock(self._descriptor):
            self._wait()
        self._patience = WRITER_PATIENCE

    def release(self) -> None:
        """Free the lock."""
        flock(self._descriptor, _FREE)

    def _wait(self) -> None:
        """Block until the lock is had or the timer is over; it is disarmed before the return."""
        try:
            if self._patience:
                signal.setitimer(signal.ITIMER_REAL, self._patience)
                flock(self._descriptor, LOCK_EX)
                signal.setitimer(signal.ITIMER_REAL, 0)
                return
        except _TimedOut:
            if _try_lock(self._descriptor):  # the signal came after the lock
                return
        self._patience = 0.0
        raise StoreBusy("another process did not finish writing in time")


class _TimedOut(Exception):
    """Raised by the handler of SIGALRM."""


def _time_out(*_: object) -> None:
    raise _TimedOut


def _try_lock(descriptor: int) -> bool:
    try:
        flock(descriptor, _TAKE)
    except BlockingIOError:
        return False
    return True


# Disk space.


def allocate(descriptor: int, wanted: int) -> tuple[int, bool]:
    """Give an open file its length; return that, and whether the disk space is allocated.

    Without enough space the length is halved until it fits. A file system that can't allocate
    gets a sparse file. Raises OSError.
    """
    before = os.fstat(descriptor).st_size
    size = wanted
    while True:
        try:
            if _is_copy_on_write(descriptor) or not _fallocate(descriptor, size):
                os.ftruncate(descriptor, size)
                return size, False
            return size, True
        except OSError as error:
            os.ftruncate(descriptor, before)  # give back what was allocated in part
            if error.errno not in NO_SPACE or size <= SMALLEST_MAP:
                raise
            size = max(_whole_units(size // 2), SMALLEST_MAP)


def _whole_units(size: int) -> int:
    return size // MAP_UNIT * MAP_UNIT


def _fallocate(descriptor: int, size: int) -> bool:
    """Call fallocate(2); return False where the file system has no such thing.

    Not os.posix_fallocate(): there the C library writes zeros instead, which reserves nothing on
    some of these file systems and takes long on all of them.
    """
    call: Callable[..., int] = _libc_function("fallocate64", "fallocate")
    if call(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(size)) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EOPNOTSUPP, errno.ENOSYS):
        return False
    raise OSError(number, os.strerror(number))


def _is_copy_on_write(descriptor: int) -> bool:
    """Return whether fstatfs(2) names a file system that has no use for allocated blocks."""
    buffer = ctypes.create_string_buffer(512)  # more than a struct statfs; f_type comes first
    if _libc_function("fstatfs64", "fstatfs")(descriptor, buffer) != 0:
        return False
    return int.from_bytes(buffer.raw[:4], sys.byteorder) in COPY_ON_WRITE


def _libc_function(*names: str) -> Callable[..., int]:
    """Return the first of these functions that the C library has."""
    libc = ctypes.CDLL(None, use_errno=True)
    functions: list[Callable[..., int]] = [getattr(libc, n) for n in names if hasattr(libc, n)]
    return functions[0]
