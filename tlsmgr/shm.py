"""shm - memory that the parent and its children share, and a lock that survives a killed holder.

The parent makes both before it forks; children only inherit them. POSIX shared memory and POSIX
semaphores get random names that are removed at once, so nothing can leak and no other program can
attach. Where the system refuses them (a full or missing /dev/shm, a security policy), an anonymous
mapping and an unnamed semaphore inside it do the same work; `fallback` then says why. The mapping
is kept out of core files, and is locked in memory where the limits allow.

A POSIX semaphore stays taken when its holder is killed. So each process has a slot with one mark:

    IDLE -> WAITING -> (take the semaphore) -> HOLDING -> WAITING -> (give it back) -> IDLE

The parent calls recover() with the slot of each process that it reaped. HOLDING: the dead process
had the semaphore, and the parent gives it back. WAITING: it may have had it. That question is
closed as soon as the semaphore can be taken, or a live process is seen HOLDING. Until then the lock
is in doubt, and the parent calls settle() from its loop; after LOST_AFTER seconds the semaphore
counts as lost. Nothing is given back on a guess: with a value of 2, two processes would get in.

Not to get shared memory at all is an exception at start. Nothing else is fatal or logged here.
"""

import contextlib
import ctypes
import errno
import mmap
import os
import secrets
import signal
import time
from collections.abc import Callable
from enum import Enum
from typing import Any, Protocol

import posix_ipc

ALIGNMENT = 64  # a cache line: areas that different processes write do not share one
SEMAPHORE_BYTES = 64  # more than any sem_t

IDLE, WAITING, HOLDING = range(3)

SPIN_TRIES = 20  # about the time for which the pool is held; after that, the holder is off its CPU
NAP = 0.0001  # seconds; the first pause of a waiter that did not get the lock by trying again
LONGEST_NAP = 0.002
LOST_AFTER = 1.0  # seconds in doubt after which the semaphore counts as lost

_ERRNO_OF = {posix_ipc.ExistentialError: errno.ENOENT, posix_ipc.PermissionsError: errno.EACCES}


class SharedMemoryError(Exception):
    """Shared memory cannot be made, or is full; the text says which and why."""


class Semaphore(Protocol):
    """A process-shared semaphore: posix_ipc.Semaphore, or the unnamed one below."""

    def acquire(self, timeout: float) -> None:
        """Take it, or raise posix_ipc.BusyError; `timeout` is always 0 here."""

    def release(self) -> None:
        """Give it back."""


class SharedMemory:
    """A zero-filled mapping, shared with every process forked after it was made."""

    def __init__(self, size: int) -> None:
        """Map `size` bytes. Raises SharedMemoryError when no kind of memory can be had."""
        self.fallback = ""
        """Why POSIX shared memory or semaphores are not used, for one warning; or empty."""
        try:
            self._map = _map_posix(size)
        except (OSError, posix_ipc.Error) as error:
            self._note_fallback("shared memory", error)
            self._map = _map_anonymous(size)
        self._bytes = memoryview(self._map)
        self._used = 0
        _keep_private(self._map, size)

    def carve(self, size: int) -> memoryview:
        """Return the next unused `size` bytes, zero-filled and 64-byte aligned; before fork only.

        Raises SharedMemoryError when the mapping has no room left.
        """
        end = self._used + size
        if size < 0 or end > len(self._bytes):
            left = len(self._bytes) - self._used
            raise SharedMemoryError(f"shared memory is full: {size} bytes wanted, {left} left")
        area = self._bytes[self._used : end]
        self._used = min(-(-end // ALIGNMENT) * ALIGNMENT, len(self._bytes))
        return area

    def make_semaphore(self) -> Semaphore:
        """Return a new semaphore of value 1; before fork only. Raises SharedMemoryError."""
        try:
            made: Semaphore = _without_name(posix_ipc.Semaphore, initial_value=1)
        except (OSError, posix_ipc.Error) as error:
            self._note_fallback("semaphores", error)
            made = UnnamedSemaphore(self.carve(SEMAPHORE_BYTES))
        return made

    def wipe(self) -> None:
        """Overwrite it with zeros: the parent at an orderly stop. Its locks are unusable then."""
        self._bytes[:] = bytes(len(self._bytes))

    def _note_fallback(self, what: str, error: Exception) -> None:
        """Remember the first reason; a second one has the same cause."""
        self.fallback = self.fallback or (
            f"cannot use POSIX {what} in /dev/shm: {_reason(error)};"
            f" using unnamed {what} instead, service is not affected"
        )


class UnnamedSemaphore:
    """sem_init(3) in shared memory: as a pipe with one byte, but faster and without descriptors.

    Take and give cost 0.3 us, against 0.1 us of posix_ipc and 0.6 us of a pipe.
    """

    def __init__(self, area: memoryview) -> None:
        """Make a semaphore of value 1 in `area`. Raises SharedMemoryError."""
        libc = ctypes.CDLL(None, use_errno=True)
        self._area = ctypes.c_char.from_buffer(area)  # keeps the mapping
        self._address = ctypes.addressof(self._area)
        self._try, self._post = libc.sem_trywait, libc.sem_post
        self._try.argtypes = self._post.argtypes = [ctypes.c_void_p]
        if libc.sem_init(ctypes.c_void_p(self._address), 1, 1):
            reason = os.strerror(ctypes.get_errno())
            raise SharedMemoryError(f"cannot create a semaphore: {reason}")

    def acquire(self, timeout: float) -> None:
        """Take it, or raise posix_ipc.BusyError; it does not wait."""
        if self._try(self._address):
            raise posix_ipc.BusyError

    def release(self) -> None:
        """Give it back."""
        self._post(self._address)


class Recovery(Enum):
    """The parent's finding about a lock, after processes died."""

    CLEAN = "no dead process has it"
    FREED = "a dead process had it; it was given back"
    IN_DOUBT = "a dead process may have it: call settle() again soon"
    LOST = "in doubt for too long: end all processes that use it, then call reset()"


class Lock:
    """Mutual exclusion between the parent (slot 0) and its children (slots 1 and up).

    Not recursive. A slot belongs to one single-threaded process at a time. recover(), settle() and
    reset() are for the parent, while it does not hold the lock itself.
    """

    def __init__(self, memory: SharedMemory, slots: int) -> None:
        """Carve the marks of `slots` slots (the parent's included) from `memory`; before fork.

        Raises SharedMemoryError when `memory` is full.
        """
        self._marks = memory.carve(slots)
        semaphore = memory.make_semaphore()
        self._take, self._give = semaphore.acquire, semaphore.release
        self._in_doubt_since: float | None = None  # parent only

    def acquire(self, slot: int, timeout: float) -> bool:
        """Take the lock for the process of `slot`; return False after `timeout` seconds.

        Polls, because the waker of a sleeping waiter may be killed before it wakes it.
        """
        if self._try(slot):
            return True
        deadline = time.monotonic() + timeout
        tries = 1
        nap = NAP
        while (left := deadline - time.monotonic()) > 0:
            if tries > SPIN_TRIES:
                time.sleep(min(nap, left))
                nap = min(2 * nap, LONGEST_NAP)
            if self._try(slot):
                return True
            tries += 1
        return False

    def release(self, slot: int) -> None:
        """Give back the lock that the process of `slot` has; it must have it."""
        marks = self._marks
        marks[slot] = WAITING
        self._give()
        marks[slot] = IDLE

    def recover(self, slot: int, now: float) -> Recovery:
        """Free the lock if the dead process of `slot` had it, and clear its mark.

        Call it after that process was reaped and before the slot is used again. `now` is the
        monotonic time in seconds. Never waits.
        """
        mark, self._marks[slot] = self._marks[slot], IDLE
        if mark == HOLDING:
            self._in_doubt_since = None  # there is one semaphore: no other dead process had it
            self._give()
            return Recovery.FREED
        if mark == WAITING and self._in_doubt_since is None:
            self._in_doubt_since = now
        return self.settle(now)

    def settle(self, now: float) -> Recovery:
        """Look again at a lock in doubt; never waits, and costs nothing when there is no doubt.

        The mark of a process that was killed but is not reaped yet counts as a live one's.
        """
        if self._in_doubt_since is None:
            return Recovery.CLEAN
        if HOLDING in bytes(self._marks) or self._is_free():
            self._in_doubt_since = None
            return Recovery.CLEAN
        lost = now - self._in_doubt_since >= LOST_AFTER
        return Recovery.LOST if lost else Recovery.IN_DOUBT

    def reset(self) -> None:
        """Make the lock free, when no other process that uses it is left.

        A process may be left that was sent SIGKILL and is stuck in the kernel: it never runs again.
        """
        self._marks[:] = bytes(len(self._marks))
        self._in_doubt_since = None
        with contextlib.suppress(posix_ipc.BusyError):
            self._take(0)
        self._give()

    def _try(self, slot: int) -> bool:
        """Take the lock if it is free."""
        marks = self._marks
        marks[slot] = WAITING
        try:
            self._take(0)
        except posix_ipc.BusyError:
            marks[slot] = IDLE
            return False
        marks[slot] = HOLDING
        return True

    def _is_free(self) -> bool:
        """Return whether the semaphore can be taken, and give it back."""
        try:
            self._take(0)
        except posix_ipc.BusyError:
            return False
        self._give()
        return True


def _map_posix(size: int) -> mmap.mmap:
    """Map POSIX shared memory without a name."""
    segment = _without_name(posix_ipc.SharedMemory)
    try:
        # Reserve the room now: on a full file system the first use would end us with SIGBUS.
        os.posix_fallocate(segment.fd, 0, size)
        return mmap.mmap(segment.fd, size)
    finally:
        segment.close_fd()


def _map_anonymous(size: int) -> mmap.mmap:
    """Map memory that has no name and is in no file system. Raises SharedMemoryError."""
    try:
        return mmap.mmap(-1, size)
    except OSError as error:
        raise SharedMemoryError(f"cannot create shared memory: {_reason(error)}") from None


def _without_name(make: Callable[..., Any], **options: int) -> Any:
    """Make a POSIX object and remove its name; no signal ends the process in between."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        made = make("/tlsmgr-" + secrets.token_hex(16), posix_ipc.O_CREX, mode=0o600, **options)
        made.unlink()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return made


def _keep_private(area: mmap.mmap, size: int) -> None:
    """Keep the mapping out of core files, and off the swap device where the limits allow it.

    Children share the locked pages for as long as the parent, which locked them, lives.
    """
    with contextlib.suppress(AttributeError, OSError, ValueError):
        area.madvise(mmap.MADV_DONTDUMP)
    first = ctypes.c_char.from_buffer(area)
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mlock(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size))


def _reason(error: Exception) -> str:
    """Return the system's text for an error; posix_ipc has texts of its own for two of them."""
    number = _ERRNO_OF.get(type(error)) or getattr(error, "errno", None)
    return os.strerror(number) if number else str(error)
