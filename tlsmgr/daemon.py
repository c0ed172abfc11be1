"""daemon - start-up from top to bottom, in the order in which an operator would tell it.

``serve`` is the whole story. The log is connected and the configuration frozen before it is called;
it goes to the queue directory, opens as root what only root may open, as mail_owner the files,
makes what the processes share, goes into the jail, and only then lets workers loose. A review of
security is reading this one function and ``processes.jail``.

What differs between a start by master(8) and one by hand comes in as ``Surroundings``.

Fatal (log.Fatal, one line): no queue directory, no shared memory, a failed self-test of the random
generator, workers that cannot start. A cache that can't be kept is an error line and a cache that
answers "not found"; whatever is wrong with files, seeds and policies are served.
"""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from tlsmgr import log
from tlsmgr.config.caches import CacheSettings, cache_settings
from tlsmgr.config.load import Configuration
from tlsmgr.config.redirect import Haven
from tlsmgr.log import Fatal
from tlsmgr.prng.drbg import SelfTestError
from tlsmgr.prng.pool import Pool
from tlsmgr.processes import jail
from tlsmgr.processes.heritage import CachePlan, Heritage, Vital
from tlsmgr.processes.janitor import FileWatch, Janitor, StatisticsLine
from tlsmgr.processes.parent import CannotServe, Parent
from tlsmgr.sessions.cache import CacheRules
from tlsmgr.sessions.seal import KEY_BYTES
from tlsmgr.sessions.shared import SharedCache
from tlsmgr.sessions.store import StoreFile, map_size_for
from tlsmgr.sessions.sweep import Sweep
from tlsmgr.shm import SharedMemory, SharedMemoryError
from tlsmgr.stats import Stats
from tlsmgr.tickets import TicketKeys

LONGEST_HEARTBEAT = 10.0  # seconds between two turns of an idle worker
MEMORY_BASE, MEMORY_PER_SLOT = 65536, 1024  # bytes of shared memory; generous


@dataclass(frozen=True)
class Surroundings:
    """How this daemon was started.

    ``watched`` are descriptors whose becoming readable means the end: master's status channel.
    ``on_ready`` is called when all workers serve.
    """

    listeners: tuple[socket.socket, ...]
    identity: jail.Identity
    service_name: str = "tlsmgr"
    watched: tuple[int, ...] = ()
    on_ready: Callable[[], None] = field(default=lambda: None)


def serve(conf: Configuration, around: Surroundings) -> None:
    """Be the parent until told to stop. Raises Fatal."""
    _set_limits()
    _change_directory(conf.text("queue_directory"))
    with jail.effective(around.identity):
        caches = cache_settings(conf, _haven(conf, around.identity), log.warning)
        files = [_open_directory(cache) for cache in caches]
        jail.rehearse(next((file.directory for file in files if file is not None), None))
    memory = _shared_memory(conf)
    heritage = _make_heritage(conf, around, memory, list(zip(caches, files)))
    jail.enter(around.identity, conf.text("queue_directory"))
    parent = _make_parent(conf, around, heritage)
    try:
        parent.run()
    except CannotServe as error:
        raise Fatal(str(error)) from None
    finally:
        heritage.pool.wipe()
        memory.wipe()


# Before the jail.


def _set_limits() -> None:
    """No secret in a core file; as many connections as the system grants."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _change_directory(path: str) -> None:
    try:
        os.chdir(path)
    except OSError as error:
        raise Fatal(f'chdir("{path}"): {error.strerror}') from None


def _haven(conf: Configuration, identity: jail.Identity) -> Haven:
    return Haven(identity.name, identity.uid, conf.text("data_directory"))


def _open_directory(cache: CacheSettings) -> StoreFile | None:
    """Where the cache's file is; None, and one error line, when it can't be kept anywhere."""
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
    log.info(f"{cache.cache_type} TLS session cache {cache.database} is kept in {cache.path}")
    return StoreFile(descriptor, name, map_size_for(cache.size_limit))


def _workers(conf: Configuration) -> int:
    return conf.number("tlsmgr_worker_processes") or len(os.sched_getaffinity(0))


def _shared_memory(conf: Configuration) -> SharedMemory:
    try:
        return SharedMemory(MEMORY_BASE + MEMORY_PER_SLOT * (_workers(conf) + 1))
    except SharedMemoryError as error:
        raise Fatal(str(error)) from None


def _make_heritage(
    conf: Configuration,
    around: Surroundings,
    memory: SharedMemory,
    caches: list[tuple[CacheSettings, StoreFile | None]],
) -> Heritage:
    slots = _workers(conf) + 1
    try:
        pool = Pool(memory, slots)
    except (SelfTestError, SharedMemoryError) as error:
        raise Fatal(str(error)) from None
    encrypted = conf.flag("tlsmgr_session_encryption")
    timeouts = {cache.cache_type: cache.timeout for cache, _ in caches}
    return Heritage(
        memory=memory,
        pool=pool,
        ticket_keys=TicketKeys(memory, slots, timeouts["smtpd"], pool.extract),
        stats=Stats(memory, slots),
        vital=Vital(memory, slots),
        timeouts={name.encode(): timeout for name, timeout in timeouts.items()},
        caches=tuple(
            CachePlan(
                CacheRules(
                    cache.cache_type,
                    cache.timeout,
                    cache.size_limit,
                    cache.entry_limit,
                    cache.log_activity,
                ),
                SharedCache(memory, pool.extract(2 * KEY_BYTES), encrypted),
                file,
            )
            for cache, file in caches
            if cache.cachable
        ),
        listeners=around.listeners,
        source=f"{around.service_name} socket",
        client_timeout=conf.seconds("ipc_timeout"),
        heartbeat=min(LONGEST_HEARTBEAT, conf.seconds("daemon_timeout") / 3),
    )


# In the jail.


def _make_parent(conf: Configuration, around: Surroundings, heritage: Heritage) -> Parent:
    janitor = Janitor()
    parent = Parent(
        heritage, _workers(conf), conf.seconds("daemon_timeout"), janitor, around.on_ready
    )
    for descriptor in around.watched:
        parent.watch(descriptor, parent.stop)
    watch = FileWatch(heritage.caches, parent.retire_workers)
    watch.make_all()
    janitor.on_death(watch.worker_died)
    janitor.add("file watch", watch.run, delay=1.0)
    for plan in heritage.caches:
        if plan.file is not None:
            sweep = Sweep(plan.rules, plan.shared, plan.file, heritage.pool.stir)
            janitor.add(f"{plan.rules.cache_type} cache sweep", sweep.run)
    interval = conf.seconds("tlsmgr_statistics_interval")
    if interval:
        line = StatisticsLine(heritage.stats, interval)
        janitor.add("statistics", line.run, delay=interval)
        parent.at_end(line.run)
    return parent
