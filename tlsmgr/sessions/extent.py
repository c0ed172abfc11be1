"""extent - how much of a session file the disk has granted: only that is written to.

LMDB writes through its memory map and makes the file as long as the map, with nothing behind most
of it; on a full disk such a write would kill the process by SIGBUS. So blocks are asked for before
pages are used, and what was granted is noted in shared memory, together with the file it is true
for. The file is cut back to that length, which makes its size an honest one.

The mark also says which file is ours at all: the one that ``own`` noted when the parent made it.
Another daemon's file has the same name, but its length, its keys and its limits are not ours.

Everything here is done under the writers' lock of the store, which alone makes it safe: between
LMDB's lengthening of the file at open and our cutting back, readers and writers keep to pages
inside the granted part. On a file system that grants nothing ahead (copy-on-write ones) a full disk
still ends a worker, and the parent makes the file anew. Raises OSError when the disk is full.
"""

from __future__ import annotations

import os

MARK_BYTES = 16  # of shared memory: inode number and bytes granted
STEP = 256 * 1024  # bytes granted at once


def own(mark: memoryview, inode: int) -> None:
    """Note in ``mark`` that the file of this number is ours; nothing of it is granted yet."""
    mark[1] = 0
    mark[0] = inode


def grant_lock_table(name: str, size: int) -> None:
    """Have the disk promise the lock table of a file, which LMDB maps as well, before it does."""
    fd = os.open(name + "-lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, size)
    finally:
        os.close(fd)


class Extent:
    """The granted part of an open file. ``mark`` is two 64-bit words shared by all its users."""

    __slots__ = ("_fd", "_inode", "_mark")

    def __init__(self, fd: int, mark: memoryview | None) -> None:
        self._fd = fd
        self._inode = os.fstat(fd).st_ino
        if mark is None:  # one user, who has just made it
            mark = memoryview(bytearray(MARK_BYTES)).cast("Q")
            own(mark, self._inode)
        self._mark = mark

    def trouble(self) -> str | None:
        """Why the file must not be opened; None when it is ours and whole."""
        if self.is_replaced():
            return "is not the file that was made here"
        if os.fstat(self._fd).st_size < self.granted():  # LMDB would stumble over the hole
            return "was truncated"
        return None

    def is_replaced(self) -> bool:
        """Another file was made in place of this one."""
        return bool(self._mark[0] != self._inode)

    def granted(self) -> int:
        """Bytes from the start of the file that the disk has promised."""
        return int(self._mark[1]) if self._mark[0] == self._inode else 0

    def is_cut(self) -> bool:
        """Somebody made the file shorter: what was granted is not there any more."""
        return os.fstat(self._fd).st_size < self.granted()

    def grant(self, end: int) -> None:
        """Have the disk promise everything up to ``end``. Raises OSError when it can't."""
        granted = self.granted()
        if end <= granted:
            return
        end = -(-end // STEP) * STEP
        os.posix_fallocate(self._fd, granted, end - granted)
        if self._mark[0] == self._inode:  # else it was replaced, and we are about to go
            self._mark[1] = end

    def trim(self, used: int) -> None:
        """Cut the file back to what is granted, or used if that is more."""
        os.ftruncate(self._fd, max(self.granted(), used))
