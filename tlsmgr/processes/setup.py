"""setup - what is made before a process serves: the parent's parts, then a child's own.

First part, called once by the parent before it forks: the objects in shared memory, in the record
``Inherited``. Fatal: no shared memory, a failed self-test of the random generator, no entropy.

Second part, called by each process after its fork: close what it must not have, attach to the
shared objects, open the caches. A cache that can't be opened is a warning and a cache that answers
"not found"; the janitor makes the file new.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections.abc import Iterable, Sequence

from tlsmgr import log
from tlsmgr.config.caches import CacheSettings
from tlsmgr.config.load import Configuration
from tlsmgr.log import Fatal
from tlsmgr.prng.drbg import SelfTestError
from tlsmgr.prng.pool import EntropyError, Pool
from tlsmgr.processes.inherited import CachePlan, Inherited, Scoreboard
from tlsmgr.service import CacheType, Context
from tlsmgr.sessions.cache import CacheRules, SessionCache
from tlsmgr.sessions.lmdb_file import preload as preload_lmdb
from tlsmgr.sessions.record import DIGEST_BYTES, KEY_BYTES, Entry, Seal
from tlsmgr.sessions.shared import SharedCache
from tlsmgr.sessions.store import SERIAL_BYTES, Store, StoreError
from tlsmgr.shm import SharedMemory, SharedMemoryError
from tlsmgr.stats import Stats
from tlsmgr.tickets import TicketKeys

MEMORY_BASE, MEMORY_PER_SLOT = 65536, 1024  # bytes of shared memory; generous
PR_SET_NAME = 15  # prctl(2)


class Slots:
    """Who has which slot: 0 the parent, then workers, and the janitor last.

    There are twice as many slots for workers as workers, so that a worker that is blocked in the
    kernel, or serves its last connections, does not keep its successor from starting.
    """

    def __init__(self, workers: int) -> None:
        self.workers = range(1, 2 * workers + 1)
        self.janitor = 2 * workers + 1
        self.count = self.janitor + 1


# Before the fork. Raises Fatal.


def worker_count(conf: Configuration) -> int:
    """Return how many workers serve."""
    return conf.number("tlsmgr_worker_processes") or len(os.sched_getaffinity(0))


def make_memory(conf: Configuration) -> SharedMemory:
    """Return the one piece of shared memory from which all else is carved."""
    try:
        return SharedMemory(MEMORY_BASE + MEMORY_PER_SLOT * Slots(worker_count(conf)).count)
    except SharedMemoryError as error:
        raise Fatal(str(error)) from None


def make_pool(conf: Configuration, memory: SharedMemory) -> Pool:
    """Return the PRNG pool, tested and seeded."""
    try:
        return Pool(memory, Slots(worker_count(conf)).count)
    except (SelfTestError, EntropyError, SharedMemoryError) as error:
        raise Fatal(str(error)) from None


def make_inherited(
    conf: Configuration,
    listeners: tuple[socket.socket, ...],
    service_name: str,
    memory: SharedMemory,
    pool: Pool,
    settings: Sequence[CacheSettings],
) -> Inherited:
    """Return the record, whose caches have no files yet."""
    slots = Slots(worker_count(conf))
    encrypted = conf.flag("tlsmgr_session_encryption")
    timeouts = {cache.cache_type: cache.timeout for cache in settings}
    return Inherited(
        memory=memory,
        pool=pool,
        ticket_keys=TicketKeys(memory, slots.count, timeouts["smtpd"], pool.extract),
        stats=Stats(memory, slots.count),
        scoreboard=Scoreboard(memory, slots.count, slots.workers),
        timeouts={name.encode(): timeout for name, timeout in timeouts.items()},
        caches=tuple(
            CachePlan(
                _rules(cache), SharedCache(memory, pool.extract(2 * KEY_BYTES), encrypted), None
            )
            for cache in settings
            if cache.cachable
        ),
        listeners=listeners,
        source=f"{service_name} socket",
        client_timeout=conf.seconds("ipc_timeout"),
    )


def preload() -> None:
    """Use once everything that Python loads late; after chroot, modules cannot be imported."""
    seal = Seal(bytes(KEY_BYTES), bytes(KEY_BYTES))
    digest, serial = bytes(DIGEST_BYTES), bytes(SERIAL_BYTES)
    data = seal.close(digest, serial, Entry(0, b"\xff".decode("utf-8", "replace").encode(), b""))
    assert seal.open(digest, serial, data) is not None
    assert seal.open(digest, serial, data[:-1]) is None
    preload_lmdb()


def _rules(cache: CacheSettings) -> CacheRules:
    return CacheRules(
        cache.cache_type,
        cache.timeout,
        cache.size_limit,
        cache.entry_limit,
        cache.log_activity,
    )


# After the fork.


def make_context(inherited: Inherited, slot: int) -> Context:
    """Attach to what is shared and open the caches, for the process of this slot."""
    inherited.pool.attach(slot)
    inherited.ticket_keys.attach(slot)
    caches = {plan.rules.cache_type.encode(): _open_cache(plan) for plan in inherited.caches}
    return Context(
        {name: CacheType(t, caches.get(name)) for name, t in inherited.timeouts.items()},
        tuple(caches.values()),
        inherited.ticket_keys,
        inherited.pool,
        inherited.stats.row(slot),
        inherited.scoreboard.files_blocked,
    )


def name_process(name: str) -> None:
    """Set the name that ps(1) and top(1) show, 15 bytes at most."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode(), 0, 0, 0)


def close_all_but(kept: Iterable[int]) -> None:
    """Close every descriptor from 3 on that is not among these."""
    start = 3
    for descriptor in sorted(d for d in set(kept) if d >= start):
        os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, _last_descriptor() + 1)


def _last_descriptor() -> int:
    """Return a bound of the open descriptors; a limit that was lowered leaves larger ones open."""
    try:
        return max(map(int, os.listdir("/proc/self/fd")))
    except (OSError, ValueError):  # in a jail
        return 1 << 20


def _open_cache(plan: CachePlan) -> SessionCache:
    store = None
    if plan.file is not None:
        try:
            store = Store(plan.file)
        except StoreError as error:
            log.warning(f"{plan.rules.cache_type} TLS session cache: {error}")
            plan.shared.report_damage()
    return SessionCache(plan.rules, plan.shared, store)
