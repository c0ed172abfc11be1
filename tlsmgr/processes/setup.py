"""setup - what is made before a process serves: the parent's parts, then a child's own.

First part, called once by the parent before it forks: the objects in shared memory, in the record
``Inherited``. Fatal: no shared memory, a failed self-test of the random generator, no entropy.

Second part, called by each process after its fork: close what it must not have, attach to the
shared objects, open the caches. A cache that can't be opened is a warning and a cache that answers
"not found" until it can be; if the file is damaged the janitor makes it new.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tlsmgr import log
from tlsmgr.config import policy_digest
from tlsmgr.config.caches import CacheSettings, session_timeout
from tlsmgr.config.load import Configuration
from tlsmgr.latency import LatencyTable
from tlsmgr.log import Fatal
from tlsmgr.prng.drbg import SelfTestError
from tlsmgr.prng.pool import EntropyError, Pool
from tlsmgr.processes import bridge
from tlsmgr.processes.inherited import CachePlan, Inherited
from tlsmgr.processes.names import name_process as name_process
from tlsmgr.processes.scoreboard import Scoreboard
from tlsmgr.service import CacheType, Context
from tlsmgr.sessions.lmdb_file import preload as preload_lmdb
from tlsmgr.sessions.rules import CacheRules
from tlsmgr.sessions.seal import (
    DIGEST_BYTES,
    KEY_BYTES,
    SERIAL_BYTES,
    Entry,
    Nonces,
    Seal,
    SealKey,
)
from tlsmgr.sessions.shared import ProcessNumber, SharedCache
from tlsmgr.sessions.single_use import make_cache
from tlsmgr.shm import SharedMemory, SharedMemoryError
from tlsmgr.stats import Stats
from tlsmgr.tickets import NAME_BYTES, TicketKeys, TicketKeySource

if TYPE_CHECKING:
    from tlsmgr.processes.farm_link import FarmLink
    from tlsmgr.processes.farm_plan import FarmPlan

SALT_BYTES = 16  # of a worker, for the sessions that it shares
MEMORY_BASE, MEMORY_PER_SLOT = 65536, 3072  # bytes of shared memory; generous


class Slots:
    """The slots of the processes: 0 is the parent's, then workers, then auxiliary processes.

    There are twice as many slots for workers as workers, so that a worker that is blocked in the
    kernel, or serves its last connections, does not keep its successor from starting.
    """

    def __init__(self, workers: int) -> None:
        self.workers = range(1, 2 * workers + 1)
        first = 2 * workers + 1
        self.janitor, self.control, self.farm, self.spare_control = range(first, first + 4)
        self.count = first + 4


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


def wants_farm_keys(conf: Configuration) -> bool:
    """Return whether this host is to share its ticket keys."""
    lifetime = session_timeout(conf.seconds("smtpd_tls_session_cache_timeout"))
    return bool(conf.text("tlsmgr_farm_secret_file") and lifetime)


def make_key_source(
    conf: Configuration, memory: SharedMemory, owner: int
) -> TicketKeySource | None:
    """Return the ticket keys that this host shares with its farm; None: it has keys of its own.

    Reads the secret file; `owner` is a user ID that may own it. A file that cannot be used is an
    error line. The modules are imported here, so that a host without a farm does not load them.
    """
    path = conf.text("tlsmgr_farm_secret_file")
    lifetime = session_timeout(conf.seconds("smtpd_tls_session_cache_timeout"))
    if not wants_farm_keys(conf):
        return None
    from tlsmgr.farm import secret, secret_file, ticket_keys

    now = int(time.time())
    try:
        secrets = secret_file.read(path, now // secret.DAY, (owner,))
        made = ticket_keys.FarmTicketKeys(memory, secrets, lifetime, now)
    except (secret.BadSecret, SharedMemoryError) as error:
        log.error(f"farm secret file {path}: {error}; this host uses ticket keys of its own")
        return None
    name = (made.current(now) or b"")[: NAME_BYTES // 4].hex()
    log.info(f"session ticket keys are derived from {path}; the key for new tickets is {name}")
    return made


def make_farm(
    conf: Configuration, settings: Sequence[CacheSettings], memory: SharedMemory, owner: int
) -> FarmPlan | None:
    """Return how sessions are shared with other hosts; None: they are not.

    The modules are imported here, before the jail, so that a host without a farm does not load
    them.
    """
    if not conf.text("tlsmgr_farm_store") and not any(cache.is_remote for cache in settings):
        return None
    from tlsmgr.processes import farm_link, farm_plan

    assert farm_link, "workers need it in the jail"
    maker = farm_plan.Maker(conf, settings, memory, owner)
    return maker.make(Slots(worker_count(conf)).workers)


def make_inherited(
    conf: Configuration,
    listeners: tuple[socket.socket, ...],
    service_name: str,
    memory: SharedMemory,
    pool: Pool,
    settings: Sequence[CacheSettings],
    key_source: TicketKeySource | None,
    is_supervised: bool,
    farm: FarmPlan | None,
) -> Inherited:
    """Return the record, whose caches have no files yet."""
    slots = Slots(worker_count(conf))
    encrypted = conf.flag("tlsmgr_session_encryption")
    timeouts = {cache.cache_type: cache.timeout for cache in settings}
    policy = policy_digest.read(conf)
    return Inherited(
        memory=memory,
        pool=pool,
        ticket_keys=TicketKeys(memory, slots.count, timeouts["smtpd"], pool.extract, key_source),
        stats=Stats(memory, slots.count, sum(cache.cachable for cache in settings)),
        latency=LatencyTable(memory, slots.count),
        scoreboard=Scoreboard(memory, slots.count, slots.workers),
        timeouts={name.encode(): timeout for name, timeout in timeouts.items()},
        caches=tuple(
            CachePlan(
                _rules(cache),
                SharedCache(memory, pool.extract(2 * KEY_BYTES), encrypted),
                None,
                cache.table,
            )
            for cache in settings
            if cache.cachable
        ),
        process_number=ProcessNumber(),
        listeners=listeners,
        source=f"{service_name} socket",
        client_timeout=conf.seconds("ipc_timeout"),
        hands_over=conf.flag("tlsmgr_handover"),
        policy=policy.digests,
        policy_files=bridge.state_of(
            policy.files, policy_digest.summary(policy.digests), conf.began
        ),
        is_supervised=is_supervised,
        farm=farm,
    )


def preload() -> None:
    """Use once everything that Python loads late; after chroot, modules cannot be imported."""
    seal = Seal(SealKey(0, bytes(KEY_BYTES)), bytes(KEY_BYTES), Nonces(0))
    digest, serial = bytes(DIGEST_BYTES), bytes(SERIAL_BYTES)
    data = seal.encrypt(digest, serial, Entry(0, b"\xff".decode("utf-8", "replace").encode(), b""))
    assert seal.decrypt(digest, serial, data) is not None
    assert seal.decrypt(digest, serial, data[:-1]) is None
    preload_lmdb()


def _rules(cache: CacheSettings) -> CacheRules:
    return CacheRules(
        cache.cache_type,
        cache.timeout,
        cache.size_limit,
        cache.entry_limit,
        cache.log_activity,
        cache.single_use,
    )


# After the fork.


def make_farm_link(inherited: Inherited, slot: int) -> FarmLink | None:
    """Return a worker's link to the farm process; None where sessions are not shared."""
    plan = inherited.farm
    if plan is None:
        return None
    from tlsmgr.processes.farm_link import FarmLink

    codecs = plan.make_codecs(os.urandom(SALT_BYTES))
    serial, counts = inherited.process_number.value, inherited.stats.row(slot)
    return FarmLink(plan, plan.pairs[slot][0], serial, codecs, counts)


def make_context(inherited: Inherited, slot: int, farm: FarmLink | None = None) -> Context:
    """Attach to what is shared and open the caches, for the process of this slot."""
    inherited.pool.attach(slot)
    inherited.ticket_keys.attach(slot)
    nonces = Nonces(inherited.process_number.value)
    caches = {
        plan.rules.cache_type.encode(): make_cache(
            plan.rules, plan.shared, plan.file, nonces, inherited.stats.cache_row(slot, i)
        )
        for i, plan in enumerate(inherited.caches)
    }
    return Context(
        {name: CacheType(t, caches.get(name)) for name, t in inherited.timeouts.items()},
        tuple(caches.values()),
        inherited.ticket_keys,
        inherited.pool,
        inherited.stats.row(slot),
        inherited.scoreboard.files_blocked,
        farm,
    )


def close_all_but(kept: Iterable[int]) -> None:
    """Close every descriptor from 3 on that is not among these."""
    start = 3
    for descriptor in sorted(d for d in set(kept) if d >= start):
        if start < descriptor:  # Python 3.13 takes an empty range above a lowered limit for all
            os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, _last_descriptor() + 1)


def _last_descriptor() -> int:
    """Return a bound of the open descriptors; a limit that was lowered leaves larger ones open."""
    try:
        return max(map(int, os.listdir("/proc/self/fd")))
    except (OSError, ValueError):  # in a jail
        return 1 << 20
