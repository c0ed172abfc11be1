"""extent - how much of a session file the disk has granted: LMDB maps that, and no byte more.

LMDB writes through its memory map; where a full disk has no block behind a page, such a write would
kill the process by SIGBUS. So blocks are asked for before they are mapped, and LMDB, which never
leaves its map, says that it is full instead. What was granted is noted in shared memory, together
with the file it is true for.

The mark also says which file is ours at all: the one that ``own`` noted when the parent made it.
Another daemon's file has the same name, but its length, its keys and its limits are not ours.

Whenever LMDB maps the file it makes it as long as the map: with an old length it would cut off what
another process was granted meanwhile. Who grants, maps, opens or makes the file anew is ``locked``
therefore, by a record lock of the open file, which the kernel takes back from the dead; one of the
process would be gone as soon as LMDB closed a descriptor of its own. Who holds LMDB's writers' lock
never waits for it.

On a file system that grants nothing ahead (copy-on-write ones) a full disk still ends a worker, and
the parent makes the file anew. Raises OSError when the disk is full.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import struct
from collections.abc import Iterator

from tlsmgr.sessions.file import retry_lock

MARK_BYTES = 16  # of shared memory: inode number and bytes granted
STEP = 256 * 1024  # bytes granted at once, at least
GROWTH = 16  # and at least one part in so many of what there is: to map again costs page faults


def own(mark: memoryview, fd: int) -> None:
    """Note in ``mark`` that this file, which was written to its end, is ours from now on."""
    status = os.fstat(fd)
    mark[1] = status.st_size
    mark[0] = status.st_ino


@contextlib.contextmanager
def locked(fd: int, patience: float = math.inf) -> Iterator[None]:
    """Nobody else grants, maps or opens this file meanwhile. OSError when ``patience`` is over.

    ``patience`` is in seconds; without it waiting costs no CPU time.
    """
    command = fcntl.F_OFD_SETLKW if patience == math.inf else fcntl.F_OFD_SETLK
    retry_lock(lambda: fcntl.fcntl(fd, command, _record_lock(fcntl.F_WRLCK)), patience)
    try:
        yield
    finally:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _record_lock(fcntl.F_UNLCK))


def grant_lock_table(name: str, size: int) -> None:
    """Have the disk promise the lock table of a file, which LMDB maps as well, before it does."""
    fd = os.open(name + "-lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, size)
    finally:
        os.close(fd)


def _record_lock(kind: int) -> bytes:
    """A struct flock for the whole file."""
    return struct.pack("hhqqi0q", kind, os.SEEK_SET, 0, 0, 0)


class Extent:
    """The granted part of an open file. ``mark`` is two 64-bit words shared by all its users."""

    __slots__ = ("_fd", "_inode", "_mark")

    def __init__(self, fd: int, mark: memoryview | None) -> None:
        self._fd = fd
        self._inode = os.fstat(fd).st_ino
        if mark is None:  # one user, who has just made it
            mark = memoryview(bytearray(MARK_BYTES)).cast("Q")
            own(mark, fd)
        self._mark = mark

    def trouble(self) -> str | None:
        """Why the file must not be mapped, or None. For who is in ``locked``."""
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

    def grant(self, end: int, most: int) -> None:
        """Have the disk promise everything up to ``end``, or what it takes to get to ``most``.

        For who is in ``locked``. Raises OSError when the disk can't.
        """
        granted = self.granted()
        if min(end, most) <= granted:
            return
        end = -(-max(end, granted + granted // GROWTH) // STEP) * STEP
        end = min(end, most)
        os.posix_fallocate(self._fd, granted, end - granted)
        if self._mark[0] == self._inode:  # else it was replaced, and we are about to go
            self._mark[1] = end
