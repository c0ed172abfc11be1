"""day_secrets - the secrets of a farm by day, in shared memory.

The memory is locked, kept out of core files, and wiped at an orderly stop. The parent makes the
object before it forks; each process may read it. Secrets of earlier days than the first one that
is needed are not kept, and cannot be derived. Nothing is logged here.
"""

from __future__ import annotations

import struct

from tlsmgr.farm.secret import SECRET_BYTES, Secret, Secrets, advance, secret_of
from tlsmgr.shm import SharedMemory

_RECORD = struct.Struct(f"=q{SECRET_BYTES}s")


class DaySecrets:
    """The secrets of ``first_day`` and later. Raises SharedMemoryError."""

    def __init__(self, memory: SharedMemory, secrets: Secrets, first_day: int) -> None:
        kept = advance(secrets, first_day)
        self._area = memory.carve(_RECORD.size * len(kept))
        self._area[:] = b"".join(_RECORD.pack(secret.day, secret.key) for secret in kept)

    def all(self) -> Secrets:
        """Return the secrets from which those of all later days follow."""
        return [Secret(*record) for record in _RECORD.iter_unpack(self._area)]

    def of(self, day: int) -> bytes | None:
        """Return the secret of a day; None for a day before the first one."""
        return secret_of(self.all(), day)
