"""claim - where a session file is, and whose: found, claimed and removed by name.

Names are relative to a directory descriptor, which works in a jail as well. A daemon claims its
files with flock(), as stock does (tls_scache.c), so that a second one with the same configuration
does not take them away. Links are not followed: the directory is mail_owner's, but what lies in it
may be anything. Nothing here is fatal; trouble is a StoreError.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

PATIENCE = 0.1  # seconds: a process that we have just forked has our claim until it lets go of it
NAP = 0.005  # seconds between two tries


class StoreError(Exception):
    """The file can't be made, opened, read or written; the text says why."""


class StoreFile(NamedTuple):
    """Where a store is: an open directory, a file name in it, and the map's size in bytes.

    ``mark`` is the shared memory in which all users of the file note which one it is and what of it
    is granted; None for a file with one user.
    """

    directory: int
    name: str
    map_size: int
    mark: memoryview | None = None


def claim(name: str) -> int:
    """Take the file for this process and its children; LMDB's own locks are on another file."""
    descriptor = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        retry_lock(lambda: fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB), PATIENCE)
    except OSError as error:
        os.close(descriptor)
        raise StoreError(f"unable to get exclusive lock on {name}: {error.strerror}") from None
    return descriptor


def retry_lock(take: Callable[[], object], patience: float) -> None:
    """Try to take a lock for so many seconds; then BlockingIOError goes on to the caller."""
    deadline = time.monotonic() + patience
    while True:
        try:
            take()
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(NAP)


def remove(file: StoreFile) -> None:
    """Delete the file and its lock table, if they are there."""
    for name in (file.name, file.name + "-lock"):
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=file.directory)


def inode_of(file: StoreFile) -> int | None:
    """The inode number of the file that has the name now, None when there is none."""
    try:
        return os.stat(file.name, dir_fd=file.directory, follow_symlinks=False).st_ino
    except OSError:
        return None


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
        raise StoreError(error_text(error)) from error


def error_text(error: Exception) -> str:
    """What went wrong, as a log line says it."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
