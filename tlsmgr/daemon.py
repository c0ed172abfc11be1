"""daemon - start-up from top to bottom, in the order in which an operator would tell it.

``serve`` is the whole story. The log is connected and the configuration frozen before it is called;
it goes to the queue directory, opens as root what only root may open, as mail_owner the files,
makes what the processes share, goes into the jail, and only then lets workers loose. A review of
security is reading this one function and ``processes.jail``.

What differs between a start by master(8) and one by hand comes in as ``StartMode``: ``main`` is
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
from functools import partial

from tlsmgr import log
from tlsmgr.config import accounts, maillog
from tlsmgr.config.caches import cache_settings
from tlsmgr.config.load import Configuration, directory_of, load
from tlsmgr.config.randomness import RandomSettings, random_settings
from tlsmgr.config.redirect import WritableDir
from tlsmgr.log import Fatal
from tlsmgr.prng.exchange import ExchangeFile
from tlsmgr.prng.pool import Pool
from tlsmgr.prng.reseed import Reseeder
from tlsmgr.processes import jail, master, once
from tlsmgr.processes.inherited import (
    Inherited,
    find_caches,
    make_inherited,
    make_pool,
    share_memory,
    worker_count,
)
from tlsmgr.processes.janitor import FileWatch, Janitor, StaleReaders, StatisticsLine, Sweeps
from tlsmgr.processes.parent import CannotServe, Parent
from tlsmgr.sessions.sweep import Sweep

PROCESS_NAME = "tlsmgr"  # in log lines, whatever the launcher's file is called


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
    maillog.connect_early(environment, PROCESS_NAME, also_stderr="-V" in arguments)
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
        serve(conf, StartMode((), identity, options.service_name, on_stdin=True))
        return
    listeners = master.take_descriptors(options.sockets)
    serve(
        conf,
        StartMode(
            listeners,
            identity,
            options.service_name,
            watched=(master.STATUS_FD,),
            on_ready=master.notifier(generation),
        ),
    )


@dataclass(frozen=True)
class StartMode:
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


def serve(conf: Configuration, mode: StartMode) -> None:
    """Be the parent until told to stop. Raises Fatal."""
    _set_limits()
    _change_directory(conf.text("queue_directory"))
    memory = share_memory(conf)
    pool = make_pool(conf, memory)
    reseeder = _make_reseeder(conf, pool)
    reseeder.open(time.monotonic())
    with jail.effective(mode.identity):
        writable = WritableDir(mode.identity.name, mode.identity.uid, conf.text("data_directory"))
        exchange = _make_exchange(random_settings(conf, writable, log.warning), pool)
        exchange.open(time.monotonic())
        caches = find_caches(cache_settings(conf, writable, log.warning), memory)
        jail.preload(next((file.directory for _, file in caches if file is not None), None))
    inherited = make_inherited(conf, mode.listeners, mode.service_name, memory, pool, caches)
    if memory.fallback:
        log.warning(memory.fallback)
    jail.enter(mode.identity, conf.text("queue_directory"))
    try:
        _run(conf, mode, inherited, (reseeder, exchange))
    except CannotServe as error:
        raise Fatal(str(error)) from None
    finally:
        with jail.effective(mode.identity):
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


def _make_reseeder(conf: Configuration, pool: Pool) -> Reseeder:
    return Reseeder(
        conf.text("tls_random_source"),
        conf.number("tls_random_bytes"),
        conf.seconds("tls_random_reseed_period"),
        pool,
    )


def _make_exchange(settings: RandomSettings, pool: Pool) -> ExchangeFile:
    return ExchangeFile(settings.exchange_path or "", settings.update_period, pool)


# In the jail.


def _run(
    conf: Configuration,
    mode: StartMode,
    inherited: Inherited,
    randomness: tuple[Reseeder, ExchangeFile],
) -> None:
    """Make the files, then serve: one request, or until the end."""
    janitor = Janitor()
    timeout = conf.seconds("daemon_timeout")
    parent = Parent(inherited, worker_count(conf), timeout, janitor, mode.on_ready)
    for descriptor in mode.watched:
        parent.watch(descriptor, parent.stop)
    watch = FileWatch(inherited.caches, parent.retire_workers, inherited.pool.extract)
    as_owner = jail.effective(mode.identity)
    as_owner(watch.make_all)()
    if mode.on_stdin:
        once.serve(inherited)
        return
    janitor.on_death(watch.child_died)
    janitor.on_death(lambda _: janitor.run_soon("stale readers"))
    janitor.add("file watch", as_owner(watch.run), delay=1.0)
    janitor.add("stale readers", StaleReaders(inherited.caches).run)
    reseeder, exchange = randomness
    janitor.add("reseed", lambda _: reseeder.run(time.monotonic()))
    janitor.add("exchange file", as_owner(lambda _: exchange.update(time.monotonic())))
    _add_sweeps(janitor, parent, inherited)
    interval = conf.seconds("tlsmgr_statistics_interval")
    if interval:
        line = StatisticsLine(inherited.stats, interval)
        janitor.add("statistics", line.run, delay=interval)
        parent.at_end(line.run)
    parent.run()


def _add_sweeps(janitor: Janitor, parent: Parent, inherited: Inherited) -> None:
    """One for each cache; in stock's order they come after reseed and exchange file."""
    for plan in inherited.caches:
        if plan.file is not None:
            cache_type = plan.rules.cache_type
            sweep = Sweep(plan.rules, plan.shared, plan.file, inherited.pool.stir)
            sweeps = Sweeps(partial(parent.sweep, cache_type, sweep), plan.rules.timeout)
            janitor.add(f"{cache_type} cache sweep", sweeps.run)


if __name__ == "__main__":
    sys.exit(main())
