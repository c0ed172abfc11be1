"""inherited - everything that a worker inherits from the parent, in one frozen list.

The parent makes it before the first fork and hands the same one to every worker. What is not in it
a worker must not use, and closes: ``descriptors`` are the only ones that survive the fork, beside
those of the log and 0 to 2. The directories of the caches go as soon as the caches are open. How
the parts follow from the configuration is told at the end.

``Scoreboard`` is the part of shared memory that says how a worker is: heartbeat and load by slot.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tlsmgr import log
from tlsmgr.config.caches import CacheSettings
from tlsmgr.config.load import Configuration
from tlsmgr.log import Fatal
from tlsmgr.prng.drbg import SelfTestError
from tlsmgr.prng.pool import EntropyError, Pool
from tlsmgr.sessions.cache import CacheRules
from tlsmgr.sessions.extent import MARK_BYTES
from tlsmgr.sessions.record import KEY_BYTES
from tlsmgr.sessions.shared import SharedCache
from tlsmgr.sessions.store import StoreFile, map_size_for
from tlsmgr.shm import SharedMemory, SharedMemoryError
from tlsmgr.stats import Stats
from tlsmgr.tickets import TicketKeys

LONGEST_HEARTBEAT = 1.0  # seconds between two turns of an idle worker, as often as it checks
SPREAD_SLACK = 16  # clients that a worker may have beyond its share of another's
MEMORY_BASE, MEMORY_PER_SLOT = 65536, 1024  # bytes of shared memory; generous


class CachePlan(NamedTuple):
    """One cache: its rules, what of it is shared, and its file (None: unusable, all misses)."""

    rules: CacheRules
    shared: SharedCache
    file: StoreFile | None


class Scoreboard:
    """Signs of life: for each slot the time of its last turn (0 before it serves), and its load."""

    def __init__(self, memory: SharedMemory, slots: int, workers: int) -> None:
        self._workers = range(1, workers + 1)
        self._beats = memory.carve(8 * slots).cast("d")
        self._clients = memory.carve(8 * slots).cast("Q")

    def beat(self, slot: int, now: float, clients: int) -> None:
        """Say that the process of ``slot`` serves so many at ``now`` (time.monotonic())."""
        self._beats[slot] = now
        self._clients[slot] = clients

    def is_crowded(self, slot: int) -> bool:
        """Whether another worker has far fewer clients than the one of ``slot``."""
        loads = (self._clients[i] for i in self._workers if self._beats[i])
        least = min(loads, default=0)
        return self._clients[slot] > least + least // 2 + SPREAD_SLACK

    def last_beat(self, slot: int) -> float:
        """When it last said so."""
        return float(self._beats[slot])

    def clear(self, slot: int) -> None:
        """No process serves in this slot."""
        self._beats[slot] = 0.0
        self._clients[slot] = 0


@dataclass(frozen=True)
class Inherited:
    """What the parent made before it forked. Times in seconds."""

    memory: SharedMemory
    pool: Pool
    ticket_keys: TicketKeys
    stats: Stats
    scoreboard: Scoreboard
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


# What the daemon makes of the configuration, before it forks. Raises Fatal.


def worker_count(conf: Configuration) -> int:
    """How many workers serve."""
    return conf.number("tlsmgr_worker_processes") or len(os.sched_getaffinity(0))


def share_memory(conf: Configuration) -> SharedMemory:
    """The one piece of shared memory, from which all else is carved."""
    try:
        return SharedMemory(MEMORY_BASE + MEMORY_PER_SLOT * _slots(conf))
    except SharedMemoryError as error:
        raise Fatal(str(error)) from None


def make_pool(conf: Configuration, memory: SharedMemory) -> Pool:
    """The PRNG pool, seeded and tested."""
    try:
        return Pool(memory, _slots(conf))
    except (SelfTestError, EntropyError, SharedMemoryError) as error:
        raise Fatal(str(error)) from None


def find_caches(
    settings: Sequence[CacheSettings], memory: SharedMemory
) -> list[tuple[CacheSettings, StoreFile | None]]:
    """Each cache, and where its file is: None when it can't be kept, which is one error line."""
    return [(cache, _open_directory(cache, memory)) for cache in settings]


def _open_directory(cache: CacheSettings, memory: SharedMemory) -> StoreFile | None:
    if not cache.cachable:
        return None
    if cache.path is None:
        log.error(cache.error or f"{cache.table} is unavailable")
        return None
    directory, _, name = cache.path.rpartition("/")
    try:
        descriptor = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        log.error(f"open {cache.path}: {error.strerror}; sessions are not cached")
        return None
    if cache.log_activity:
        log.info(f"open {cache.cache_type} TLS cache {cache.database}")
    log.info(f"{cache.cache_type} TLS session cache {cache.database} is kept in {cache.path}")
    mark = memory.carve(MARK_BYTES).cast("Q")
    return StoreFile(descriptor, name, map_size_for(cache.size_limit), mark)


def make_inherited(
    conf: Configuration,
    listeners: tuple[socket.socket, ...],
    service_name: str,
    memory: SharedMemory,
    pool: Pool,
    caches: Sequence[tuple[CacheSettings, StoreFile | None]],
) -> Inherited:
    """All of it, in one frozen list."""
    slots = _slots(conf)
    encrypted = conf.flag("tlsmgr_session_encryption")
    timeouts = {cache.cache_type: cache.timeout for cache, _ in caches}
    client_timeout = conf.seconds("ipc_timeout")
    return Inherited(
        memory=memory,
        pool=pool,
        ticket_keys=TicketKeys(memory, slots, timeouts["smtpd"], pool.extract),
        stats=Stats(memory, slots),
        scoreboard=Scoreboard(memory, slots, worker_count(conf)),
        timeouts={name.encode(): timeout for name, timeout in timeouts.items()},
        caches=tuple(
            CachePlan(_rules(cache), SharedCache(memory, pool.extract(2 * KEY_BYTES), encrypted), f)
            for cache, f in caches
            if cache.cachable
        ),
        listeners=listeners,
        source=f"{service_name} socket",
        client_timeout=client_timeout,
        heartbeat=min(LONGEST_HEARTBEAT, conf.seconds("daemon_timeout") / 3, client_timeout),
    )


def _rules(cache: CacheSettings) -> CacheRules:
    return CacheRules(
        cache.cache_type,
        cache.timeout,
        cache.size_limit,
        cache.entry_limit,
        cache.log_activity,
    )


def _slots(conf: Configuration) -> int:
    return worker_count(conf) + 2  # the first is the parent's, the last the sweeper's
