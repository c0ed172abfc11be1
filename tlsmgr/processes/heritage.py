"""heritage - everything that a worker inherits from the parent, in one frozen list.

The parent makes it before the first fork and hands the same one to every worker. What is not in it
a worker must not use, and closes: ``descriptors`` are the only ones that survive the fork, beside
those of the log and 0 to 2. The directories of the caches go as soon as the caches are open.

``Vital`` is the part of shared memory that says how a worker is: one heartbeat a slot.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import NamedTuple

from tlsmgr import log
from tlsmgr.prng.pool import Pool
from tlsmgr.sessions.cache import CacheRules
from tlsmgr.sessions.shared import SharedCache
from tlsmgr.sessions.store import StoreFile
from tlsmgr.shm import SharedMemory
from tlsmgr.stats import Stats
from tlsmgr.tickets import TicketKeys

CACHE_TYPES = ("smtpd", "smtp", "lmtp")


class CachePlan(NamedTuple):
    """One cache: its rules, what of it is shared, and its file (None: unusable, all misses)."""

    rules: CacheRules
    shared: SharedCache
    file: StoreFile | None


class Vital:
    """Signs of life: for each slot the time of its last turn, 0 before it serves."""

    def __init__(self, memory: SharedMemory, slots: int) -> None:
        self._beats = memory.carve(8 * slots).cast("d")

    def beat(self, slot: int, now: float) -> None:
        """Say that the process of ``slot`` serves at ``now`` (time.monotonic())."""
        self._beats[slot] = now

    def last_beat(self, slot: int) -> float:
        """When it last said so."""
        return float(self._beats[slot])

    def clear(self, slot: int) -> None:
        """No process serves in this slot."""
        self._beats[slot] = 0.0


@dataclass(frozen=True)
class Heritage:
    """What the parent made before it forked. Times in seconds."""

    memory: SharedMemory
    pool: Pool
    ticket_keys: TicketKeys
    stats: Stats
    vital: Vital
    timeouts: dict[bytes, int]  # cache type: sanitised session timeout
    caches: tuple[CachePlan, ...]
    listeners: tuple[socket.socket, ...]
    source: str  # what warnings call a client: "tlsmgr socket"
    client_timeout: int  # for half requests and replies that nobody reads
    heartbeat: float  # the longest time between two turns of an idle worker

    def descriptors(self) -> set[int]:
        """What a worker keeps open for life, its pipes to the parent aside."""
        return {listener.fileno() for listener in self.listeners} | set(log.descriptors())

    def directories(self) -> set[int]:
        """What it keeps until its caches are open."""
        return {plan.file.directory for plan in self.caches if plan.file is not None}
