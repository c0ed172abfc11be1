"""daemon - start-up from top to bottom, in the order in which an operator would tell it.

``serve`` is the whole story. The log is connected and the configuration frozen before it is called;
it goes to the queue directory, opens as root what only root may open, as mail_owner the files,
makes what the processes share, goes into the jail, and only then lets workers loose. A review of
security is reading this one function and ``processes.jail``.

What differs between a start by master(8) and one by hand comes in as ``Surroundings``: ``main`` is
the program that master(8) runs, ``standalone`` the one for people.

Fatal (log.Fatal, one line): no queue directory, no shared memory, a failed self-test of the random
generator, workers that cannot start. A cache that can't be kept is an error line and a cache that
answers "not found"; whatever is wrong with files, seeds and policies are served.
"""

from __future__ import annotations

import os
import resource
import socket
import sys
import time
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field

from tlsmgr import log
from tlsmgr.config import accounts, maillog
from tlsmgr.config.caches import CacheSettings, cache_settings
from tlsmgr.config.load import Configuration, directory_of, load
from tlsmgr.config.randomness import RandomSettings, random_settings
from tlsmgr.config.redirect import Haven
from tlsmgr.log import Fatal
from tlsmgr.prng.drbg import SelfTestError
from tlsmgr.prng.exchange import ExchangeFile
from tlsmgr.prng.pool import EntropyError, Pool
from tlsmgr.prng.reseed import Reseeder
from tlsmgr.processes import jail, master, once
from tlsmgr.processes.heritage import CachePlan, Heritage, Vital
from tlsmgr.processes.janitor import FileWatch, Janitor, StaleReaders, StatisticsLine
from tlsmgr.processes.parent import CannotServe, Parent
from tlsmgr.sessions.cache import CacheRules
from tlsmgr.sessions.extent import MARK_BYTES
from tlsmgr.sessions.seal import KEY_BYTES
from tlsmgr.sessions.shared import SharedCache
from tlsmgr.sessions.store import StoreFile, map_size_for
from tlsmgr.sessions.sweep import Sweep
from tlsmgr.shm import SharedMemory, SharedMemoryError
from tlsmgr.stats import Stats
from tlsmgr.tickets import TicketKeys

PROCESS_NAME = "tlsmgr"  # in log lines, whatever the launcher's file is called
LONGEST_HEARTBEAT = 10.0  # seconds between two turns of an idle worker
MEMORY_BASE, MEMORY_PER_SLOT = 65536, 1024  # bytes of shared memory; generous


def main() -> int:
    """The program that master(8) runs; returns the exit status."""
    try:
        run(sys.argv[1:], os.environ)
    except Fatal as error:
        log.fatal(error.text)
    except Exception as bug:
        log.traceback(bug)
    else:
        return 0
    time.sleep(1)  # msg_fatal(): master must not be driven into a tight loop
    return 1


def run(arguments: Sequence[str], environment: MutableMapping[str, str]) -> None:
    """From master's options to the end of service. Raises Fatal."""
    maillog.connect_early(environment, PROCESS_NAME)
    options = master.parse(arguments, environment)
    if options.to_stderr:
        maillog.connect_early(environment, PROCESS_NAME, also_stderr=True)
    conf = load(
        directory_of(environment),
        log.warning,
        overrides=options.overrides,
        process_name=PROCESS_NAME,
        service_name=options.service_name,
    )
    owner = accounts.check(conf, accounts.look_up(conf))
    maillog.connect(conf, PROCESS_NAME, also_stderr=options.to_stderr)
    master.refuse_terminal(options, PROCESS_NAME)
    master.check(options)
    generation = master.generation(environment)
    if options.debug:
        master.run_debugger(conf.text("debugger_command"))
    identity = jail.Identity(owner.name, owner.uid, owner.gid, options.unprivileged, options.chroot)
    if options.on_stdin:
        serve(conf, Surroundings((), identity, options.service_name, on_stdin=True))
        return
    listeners = master.take_descriptors(options.sockets)
    serve(
        conf,
        Surroundings(
            listeners,
            identity,
            options.service_name,
            watched=(master.STATUS_FD,),
            on_ready=master.notifier(generation),
        ),
    )


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
    on_stdin: bool = False


def serve(conf: Configuration, around: Surroundings) -> None:
    """Be the parent until told to stop. Raises Fatal."""
    _set_limits()
    _change_directory(conf.text("queue_directory"))
    memory = _shared_memory(conf)
    pool = _make_pool(memory, _workers(conf) + 1)
    reseeder = _make_reseeder(conf, pool)
    reseeder.open(time.monotonic())
    with jail.effective(around.identity):
        haven = Haven(around.identity.name, around.identity.uid, conf.text("data_directory"))
        exchange = _make_exchange(random_settings(conf, haven, log.warning), pool)
        exchange.open(time.monotonic())
        caches = [(c, _open_directory(c, memory)) for c in cache_settings(conf, haven, log.warning)]
        jail.rehearse(next((file.directory for _, file in caches if file is not None), None))
    heritage = _make_heritage(conf, around, memory, pool, caches)
    jail.enter(around.identity, conf.text("queue_directory"))
    try:
        _run(conf, around, heritage, (reseeder, exchange))
    except CannotServe as error:
        raise Fatal(str(error)) from None
    finally:
        exchange.save()
        pool.wipe()
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


def _open_directory(cache: CacheSettings, memory: SharedMemory) -> StoreFile | None:
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
    if cache.log_activity:
        log.info(f"open {cache.cache_type} TLS cache {cache.database}")
    log.info(f"{cache.cache_type} TLS session cache {cache.database} is kept in {cache.path}")
    mark = memory.carve(MARK_BYTES).cast("Q")
    return StoreFile(descriptor, name, map_size_for(cache.size_limit), mark)


def _workers(conf: Configuration) -> int:
    return conf.number("tlsmgr_worker_processes") or len(os.sched_getaffinity(0))


def _shared_memory(conf: Configuration) -> SharedMemory:
    try:
        return SharedMemory(MEMORY_BASE + MEMORY_PER_SLOT * (_workers(conf) + 1))
    except SharedMemoryError as error:
        raise Fatal(str(error)) from None


def _make_pool(memory: SharedMemory, slots: int) -> Pool:
    try:
        return Pool(memory, slots)
    except (SelfTestError, EntropyError, SharedMemoryError) as error:
        raise Fatal(str(error)) from None


def _make_reseeder(conf: Configuration, pool: Pool) -> Reseeder:
    return Reseeder(
        conf.text("tls_random_source"),
        conf.number("tls_random_bytes"),
        conf.seconds("tls_random_reseed_period"),
        pool,
    )


def _make_exchange(settings: RandomSettings, pool: Pool) -> ExchangeFile:
    return ExchangeFile(settings.exchange_path or "", settings.update_period, pool)


def _make_heritage(
    conf: Configuration,
    around: Surroundings,
    memory: SharedMemory,
    pool: Pool,
    caches: list[tuple[CacheSettings, StoreFile | None]],
) -> Heritage:
    slots = _workers(conf) + 1
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
        heartbeat=min(
            LONGEST_HEARTBEAT, conf.seconds("daemon_timeout") / 3, conf.seconds("ipc_timeout")
        ),
    )


# In the jail.


def _run(
    conf: Configuration,
    around: Surroundings,
    heritage: Heritage,
    randomness: tuple[Reseeder, ExchangeFile],
) -> None:
    """Make the files, then serve: one request, or until the end."""
    janitor = Janitor()
    timeout = conf.seconds("daemon_timeout")
    parent = Parent(heritage, _workers(conf), timeout, janitor, around.on_ready)
    for descriptor in around.watched:
        parent.watch(descriptor, parent.stop)
    watch = FileWatch(heritage.caches, parent.retire_workers)
    watch.make_all()
    if around.on_stdin:
        once.serve(heritage)
        return
    janitor.on_death(watch.worker_died)
    janitor.on_death(lambda _: janitor.hasten("stale readers"))
    janitor.add("file watch", watch.run, delay=1.0)
    janitor.add("stale readers", StaleReaders(heritage.caches).run)
    _add_jobs(janitor, heritage, randomness)
    interval = conf.seconds("tlsmgr_statistics_interval")
    if interval:
        line = StatisticsLine(heritage.stats, interval)
        janitor.add("statistics", line.run, delay=interval)
        parent.at_end(line.run)
    parent.run()


def _add_jobs(
    janitor: Janitor, heritage: Heritage, randomness: tuple[Reseeder, ExchangeFile]
) -> None:
    """In stock's order: reseed, exchange file, a sweep of each cache."""
    reseeder, exchange = randomness
    janitor.add("reseed", lambda _: reseeder.run(time.monotonic()))
    janitor.add("exchange file", lambda _: exchange.update(time.monotonic()))
    for plan in heritage.caches:
        if plan.file is not None:
            sweep = Sweep(plan.rules, plan.shared, plan.file, heritage.pool.stir)
            janitor.add(f"{plan.rules.cache_type} cache sweep", sweep.run)


if __name__ == "__main__":
    sys.exit(main())
