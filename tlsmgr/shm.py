"""Memory that the parent and its workers share, and a lock for it that survives a killed holder.

The parent makes both before it forks; a child only inherits them. Names are random and unlinked at
once, so there is nothing to leak and nothing for another program to attach to. The mapping is kept
out of core dumps and is locked in memory where the limits allow; neither is ever fatal.

A POSIX semaphore is not robust: a process killed while it holds one leaves it taken for ever. So
each process has a slot with one mark, written before and after each step:

    IDLE -> WAITING -> (semaphore taken) -> HOLDING -> RELEASING -> (semaphore given back) -> IDLE

After the parent has reaped a process it calls recover() with its slot. HOLDING means that the dead
one had the semaphore. WAITING and RELEASING leave it open, and a timed acquire decides; where that
fails, the dead one had it only if no live process can have it, and the parent waits, for a bounded
time, until the marks of the live show that. In doubt nothing is freed: a lock that stays taken
costs its users a bounded wait, a semaphore of value 2 would let two of them in.

Failure to create is an exception at start. Nothing else here is fatal, and nothing is logged.
"""

import contextlib
import ctypes
import mmap
import os
import secrets
import signal
import time
from collections.abc import Callable
from typing import Any

import posix_ipc

ALIGNMENT = 64  # a cache line: what different processes write does not share one

IDLE, WAITING, STILL_WAITING, HOLDING, RELEASING = range(5)

SPIN_TRIES = 20  # about the time for which the pool is held; longer, and the holder is off its CPU
NAP = 0.0001  # seconds; the first sleep of a waiter that did not get the lock by trying again
LONGEST_NAP = 0.002
SETTLE_TIME = 0.1  # seconds for which recover() may look at the marks of the living


class SharedMemoryError(Exception):
    """Shared memory or its semaphore cannot be made, or is full; the text says which and why."""


class SharedMemory:
    """A zero-filled mapping, shared with every process forked after it was made."""

    def __init__(self, size: int) -> None:
        """Map `size` bytes. Raises SharedMemoryError, also when the file system has no room."""
        try:
            segment = _nameless(posix_ipc.SharedMemory)
            try:
                # Reserve the room now: a full file system would kill by SIGBUS at first use.
                os.posix_fallocate(segment.fd, 0, size)
                self._map = mmap.mmap(segment.fd, size)
            finally:
                segment.close_fd()
        except (OSError, ValueError, posix_ipc.Error) as error:
            raise SharedMemoryError(f"cannot create shared memory: {error}") from None
        self._bytes = memoryview(self._map)
        self._used = 0
        self.locked = _keep_private(self._map, size)

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

    def wipe(self) -> None:
        """Overwrite all of it with zeros: the parent at an orderly stop, when no worker is left."""
        self._bytes[:] = bytes(len(self._bytes))

    def close(self) -> None:
        """Unmap it in this process; with areas still in use that happens when they are dropped."""
        self._bytes.release()
        with contextlib.suppress(BufferError):
            self._map.close()


class Lock:
    """Mutual exclusion between the parent (slot 0) and its workers (slots 1 and up).

    Not recursive. A slot belongs to one single-threaded process at a time.
    """

    def __init__(self, memory: SharedMemory, slots: int) -> None:
        """Carve the marks of `slots` slots (the parent's included) from `memory`; before fork.

        Raises SharedMemoryError when `memory` is full or the semaphore cannot be made.
        """
        # `turns` counts how often the lock was had: proof that it was passed on.
        self._turns = memory.carve(8).cast("Q")
        self._marks = memory.carve(slots)
        semaphore = _new_semaphore()
        self._take: Any = semaphore.acquire
        self._give: Any = semaphore.release
        # Changed by every vain try: whose mark changes is running, and does not have the lock.
        self._mark_of_wait = WAITING
        # Parent only: one of the dead may have the semaphore, or may not.
        self._undecided = False

    def acquire(self, slot: int, timeout: float) -> bool:
        """Take the lock for the process of `slot`; False when `timeout` seconds did not suffice."""
        marks = self._marks
        marks[slot] = self._mark_of_wait
        try:
            self._take(0)
        except posix_ipc.BusyError:
            return self._acquire_slowly(slot, timeout)
        marks[slot] = HOLDING
        self._turns[0] += 1
        return True

    def release(self, slot: int) -> None:
        """Give back the lock that the process of `slot` has; it must have it."""
        marks = self._marks
        marks[slot] = RELEASING
        self._give()
        marks[slot] = IDLE

    def recover(self, slot: int) -> bool:
        """Free what the dead process of `slot` held and clear its mark; True if it was freed.

        For the parent, after it reaped that process and before the slot is used again, while it
        does not hold the lock itself. Takes up to 0.1 s, and only where the dead one was killed
        between two steps. When even that does not decide (a live process is stopped between two
        steps too), the question stays open until the next recover() of any slot, 0 included, or
        the parent's next acquire() that finds the lock taken.
        """
        mark = self._marks[slot]
        self._marks[slot] = IDLE
        if mark == HOLDING:
            self._undecided = False  # there is one semaphore: no other of the dead had it
            self._give()
            return True
        self._undecided = self._undecided or mark != IDLE
        return self._undecided and self._settle()

    def _acquire_slowly(self, slot: int, timeout: float) -> bool:
        """Try until `timeout`. Polling, as a waiter whose waker was killed would sleep on."""
        deadline = time.monotonic() + timeout
        tries = 0
        nap = NAP
        while not self._try():
            self._mark_of_wait = WAITING + STILL_WAITING - self._mark_of_wait
            now = time.monotonic()
            if now >= deadline:
                self._marks[slot] = IDLE
                return slot == 0 and self._undecided and self._settle() and self.acquire(0, 0)
            self._marks[slot] = self._mark_of_wait
            tries += 1
            if tries > SPIN_TRIES:
                time.sleep(min(nap, deadline - now))
                nap = min(2 * nap, LONGEST_NAP)
        self._marks[slot] = HOLDING
        self._turns[0] += 1
        return True

    def _try(self) -> bool:
        """Take the semaphore if it is free."""
        try:
            self._take(0)
        except posix_ipc.BusyError:
            return False
        return True

    def _settle(self) -> bool:
        """Find out whether one of the dead has the semaphore, and free it; True if it was freed.

        Once no slot is HOLDING or RELEASING, nobody gives the semaphore back without a new turn;
        so if then it cannot be had, its holder stays the same: one of the dead, or a live process
        between taking it and saying so. Every process seen in another state after that is not it.
        """
        deadline = time.monotonic() + SETTLE_TIME
        turns = self._turns[0]
        suspects: dict[int, int] | None = None
        while time.monotonic() < deadline:
            marks = bytes(self._marks)
            if HOLDING in marks or self._turns[0] != turns:
                self._undecided = False
                return False
            if self._try():
                self._undecided = False
                self._give()
                return False
            if suspects is None and RELEASING not in marks:
                suspects = {i: mark for i, mark in enumerate(bytes(self._marks)) if mark != IDLE}
            elif suspects is not None:
                suspects = {i: mark for i, mark in suspects.items() if marks[i] == mark}
            if suspects == {} and self._turns[0] == turns:
                self._undecided = False
                self._give()
                return True
            time.sleep(NAP)
        return False


def _new_semaphore() -> Any:
    """Return a semaphore of value 1 without a name."""
    try:
        return _nameless(posix_ipc.Semaphore, initial_value=1)
    except (OSError, posix_ipc.Error) as error:
        raise SharedMemoryError(f"cannot create a semaphore: {error}") from None


def _nameless(make: Callable[..., Any], **options: int) -> Any:
    """Make a POSIX object and take its name away; no signal ends the process in between."""
    held = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        made = make("/tlsmgr-" + secrets.token_hex(16), posix_ipc.O_CREX, mode=0o600, **options)
        made.unlink()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    return made


def _keep_private(area: mmap.mmap, size: int) -> bool:
    """Keep the mapping out of core files and off the swap device; True when it could be locked."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        area.madvise(mmap.MADV_DONTDUMP)
    first = ctypes.c_char.from_buffer(area)
    try:
        libc = ctypes.CDLL(None)
        status: int = libc.mlock(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size))
        return status == 0
    except (AttributeError, OSError):
        return False
    finally:
        del first
