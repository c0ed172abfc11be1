"""pool - the PRNG pool in shared memory: stir, extract, reseed.

One Hash_DRBG state (drbg.py) serves all processes. The parent makes the pool before it forks. Each
process draws on it under the pool's lock: read the state, generate, overwrite the state with the
next one, and only then hand out the output. The kernel's generator goes into each output, so the
pool is never weaker than the kernel, and clones of a machine and forks never repeat an output.

- No weak output: when the kernel's generator fails, extract() raises EntropyError.
- Otherwise always an answer, in bounded time: when the lock is out of reach (its holder is stopped,
  or died and is not reaped yet), a generator made from the kernel for that one call gives it.
- A holder that is killed while it writes leaves the state marked as unsound. The next process
  discards that state and makes a new one from fresh entropy.
- Old states are overwritten, and no output is generated before it is requested. Python leaves
  copies on the heap of a process, which may reach the swap device; the mapping itself is kept out
  of core files and, where limits allow, off the swap device (shm.py).

A failure of the known-answer test at start is fatal. Nothing else is, and nothing is logged here.
Do not call it from a signal handler or from two threads of a process.
"""

import hashlib
import os
import struct
import time
from collections.abc import Callable
from contextlib import suppress

from tlsmgr.prng.drbg import (
    LONGEST_REQUEST,
    State,
    generate,
    instantiate,
    reseed,
    self_test,
    step,
)
from tlsmgr.shm import Lock, SharedMemory

RESEED_GENERATES = 512  # far below the 2**48 of SP 800-90A table 2: reseeding is cheap
RESEED_TIME = 60 * 10**9  # nanoseconds
PATIENCE = 0.02  # seconds to wait for the lock; a holder needs some microseconds of CPU time
IMPATIENCE = 0.001  # the same, once the lock was out of reach, until it can be had again
KERNEL_BYTES = 32  # from the kernel's generator, in each additional input
NONCE_BYTES = 16  # SP 800-90A section 8.6.7: half the security strength

UNSOUND, SOUND = 0, 1  # so that zeroed memory is unsound
_MARK = 0
_STATE = struct.Struct("<55s55sQQ")  # V, C, reseed_counter, time of the last reseed
_STATE_AT = 8
_CIRCUMSTANCES = struct.Struct("<QQQQ")  # time of day, pid, a counter, times of earlier requests
_WORD = (1 << 64) - 1


class EntropyError(Exception):
    """The kernel's generator fails: no random bytes are available."""


class Pool:
    """The pool as one process sees it; the parent's copy is inherited by the workers."""

    def __init__(
        self,
        memory: SharedMemory,
        slots: int,
        kernel: Callable[[int], bytes] = os.getrandom,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """Test the mechanism, and seed a pool in `memory` for the parent and its workers.

        `slots` is their number, the parent included. `kernel(n)` returns `n` random bytes, at most
        256, or raises OSError; `clock` returns the time of day in nanoseconds. Raises
        SelfTestError, EntropyError, SharedMemoryError: all fatal at start.
        """
        self_test()
        self._kernel = kernel
        self._clock = clock
        self._area = memory.carve(_STATE_AT + _STATE.size)
        self.lock = Lock(memory, slots)
        self._slots = slots
        self._patience = PATIENCE
        self._counter = 0
        self._noted = 0
        self._pending = b""
        self.attach(0)
        self.extract(0)

    def attach(self, slot: int) -> None:
        """Say which slot this process has: each child after its fork. The parent has slot 0.

        A child that did not call it does not touch the shared state.
        """
        if not 0 <= slot < self._slots:
            raise ValueError(f"no slot {slot} in a pool of {self._slots} slots")
        self._slot = slot
        self._pid = os.getpid()

    def extract(self, n: int) -> bytes:
        """Return `n` random bytes, any number from 0.

        Raises EntropyError when the kernel's generator fails, and ValueError for a negative `n`.
        Waits at most 0.02 s for the lock. Without it, the bytes come from a generator that the
        kernel seeds for this call alone.
        """
        if n > LONGEST_REQUEST:
            pieces = range(0, n, LONGEST_REQUEST)
            return b"".join(self.extract(min(n - at, LONGEST_REQUEST)) for at in pieces)
        now = self._clock()
        pid = os.getpid()
        self._counter += 1
        circumstances = _CIRCUMSTANCES.pack(now, pid, self._counter, self._noted)
        additional_input = circumstances + self._fresh_from_kernel(KERNEL_BYTES) + self._pending
        if pid != self._pid or not self.lock.acquire(self._slot, self._patience):
            self._patience = IMPATIENCE
            return self._extract_alone(n, additional_input)
        try:
            v, c, reseed_counter, reseeded = self._read(now)
            output, v = step(v, c, reseed_counter, n, additional_input)
            self._write(v, c, reseed_counter + 1, reseeded)
        finally:
            self.lock.release(self._slot)
        self._patience = PATIENCE
        self._pending = b""
        return output

    def stir(self, data: bytes) -> None:
        """Mix `data`, of any length, into the pool; it counts as no entropy.

        Costs as much as an extract. If it cannot be done now, a digest is kept for the next
        extract or stir of this process. Never raises EntropyError.
        """
        self._pending = hashlib.sha256(self._pending + data).digest()
        with suppress(EntropyError):
            self.extract(0)

    def note_time(self, now_ns: int) -> None:
        """Note the time of a request, to be mixed in by the next extract of this process."""
        self._noted = (self._noted * 5 + now_ns) & _WORD

    def wipe(self) -> None:
        """Overwrite the state: the parent at an orderly stop. A later extract() seeds a new one."""
        locked = self.lock.acquire(self._slot, PATIENCE)
        self._area[:] = bytes(len(self._area))
        if locked:
            self.lock.release(self._slot)

    def _read(self, now: int) -> tuple[bytes, bytes, int, int]:
        """Return V, C, reseed_counter of a sound state, reseeded if due, and the reseed's time."""
        if self._area[_MARK] != SOUND:
            nonce = self._fresh_from_kernel(NONCE_BYTES)
            return *instantiate(self._fresh_from_kernel(KERNEL_BYTES), nonce, b"tlsmgr"), now
        v, c, reseed_counter, reseeded = _STATE.unpack_from(self._area, _STATE_AT)
        # Reseed after a clock was set back, or a machine resumed from a snapshot, as well.
        if reseed_counter > RESEED_GENERATES or not 0 <= now - reseeded < RESEED_TIME:
            old = State(v, c, reseed_counter)
            return *reseed(old, self._fresh_from_kernel(KERNEL_BYTES)), now
        return v, c, reseed_counter, reseeded

    def _write(self, v: bytes, c: bytes, reseed_counter: int, reseeded: int) -> None:
        """Overwrite the state with the next one; a kill meanwhile leaves it marked as unsound."""
        self._area[_MARK] = UNSOUND
        _STATE.pack_into(self._area, _STATE_AT, v, c, reseed_counter, reseeded)
        self._area[_MARK] = SOUND

    def _extract_alone(self, n: int, additional_input: bytes) -> bytes:
        """Return `n` bytes of a generator made for this call, without the shared state."""
        nonce = self._fresh_from_kernel(NONCE_BYTES)
        state = instantiate(self._fresh_from_kernel(KERNEL_BYTES), nonce, b"tlsmgr, alone")
        return generate(state, n, additional_input)[0]

    def _fresh_from_kernel(self, n: int) -> bytes:
        """Return `n` bytes of the kernel's generator, or raise EntropyError."""
        try:
            data = self._kernel(n)
        except OSError as error:
            reason = error.strerror or "no reason given"
            raise EntropyError(f"the kernel's random generator fails: {reason}") from None
        if len(data) != n:
            raise EntropyError(f"the kernel's random generator gave {len(data)} of {n} bytes")
        return data
