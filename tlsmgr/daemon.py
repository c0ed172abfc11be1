"""daemon - start-up from top to bottom.

A review of security reads ``serve`` and ``processes.jail``. The order is: limits,
directory, shared memory, pool, secret of a farm (read as root), entropy source (opened as root, not
read); as mail_owner the control socket, and the janitor, which finds the directories of the files;
the jail; the workers.

``StartMode`` says how the daemon was started: ``main`` is the program that master(8) runs,
``standalone`` the one for people.

Fatal (log.Fatal, one line): no queue directory, no shared memory, a failed self-test of the random
generator, workers that cannot start. A cache that can't be kept is an error line and a cache that
answers "not found". Seeds and policies are served even if no file can be used.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from tlsmgr import __version__, log
from tlsmgr.config import accounts, maillog_client
from tlsmgr.config.caches import CacheSettings, cache_settings
from tlsmgr.config.load import Configuration, directory_of, load
from tlsmgr.log import Fatal
from tlsmgr.prng.reseed import Reseeder
from tlsmgr.processes import (
    control,
    control_socket,
    jail,
    janitor_duties,
    master,
    once,
    setup,
    signals,
    succession,
)
from tlsmgr.processes.auxiliaries import Auxiliary, Start
from tlsmgr.processes.bridge import Met
from tlsmgr.processes.control_status import Facts
from tlsmgr.processes.ending import CLOSE_TIME
from tlsmgr.processes.inherited import Inherited
from tlsmgr.processes.janitor import Duties
from tlsmgr.processes.jobs import HOUR, HitRateWatch, StatisticsLine
from tlsmgr.processes.parent import Parent
from tlsmgr.processes.restarts import CannotServe, Readiness
from tlsmgr.processes.succession import Arrivals

BRIDGE_TIME = 5.0  # seconds after which old workers accept no more although not all of ours serve
PROCESS_NAME = "tlsmgr"  # in log lines, where the launcher has another one


def main(
    on_serving: Callable[[], None] = lambda: None,
    on_failure: Callable[[str], bool] = lambda reason: False,
    early: Met | None = None,
) -> int:
    """Run for master(8); return the exit status. ``early`` is what waited at the socket.

    ``on_serving`` is called when a worker serves, and at an orderly end. ``on_failure`` is given
    the reason of a failure; it returns True when something else takes our place (see bootstrap).
    """
    setup.name_process(PROCESS_NAME)
    try:
        run(sys.argv[1:], os.environ, on_serving, early)
    except Fatal as error:
        if on_failure(error.text):
            return 0
        log.fatal(error.text)
    except Exception as bug:
        log.traceback(bug)
        if on_failure(f"{type(bug).__name__}: {bug}"):
            return 0
    else:
        on_serving()
        return 0
    time.sleep(1)  # msg_fatal(): master must not be driven into a tight loop
    return 1


def run(
    arguments: Sequence[str],
    environment: MutableMapping[str, str],
    on_serving: Callable[[], None] = lambda: None,
    early: Met | None = None,
) -> None:
    """From master's options to the end of service. Raises Fatal."""
    maillog_client.connect_early(environment, PROCESS_NAME, also_stderr="-V" in arguments)
    options = master.parse(arguments, environment)
    if options.to_stderr:
        maillog_client.connect_early(environment, PROCESS_NAME, also_stderr=True)
    conf = load(
        directory_of(environment),
        log.warning,
        overrides=options.overrides,
        process_name=PROCESS_NAME,
        service_name=options.service_name,
    )
    owner = accounts.check(conf, accounts.look_up(conf))
    maillog_client.connect(conf, PROCESS_NAME, also_stderr=options.to_stderr)
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
            on_serving=on_serving,
            on_ready=master.notifier(generation),
            is_supervised=True,
            early=early,
        ),
    )


@dataclass(frozen=True)
class StartMode:
    """How this daemon was started.

    ``watched`` are descriptors that become readable at a reload: master's status channel. A stop
    is a signal. ``on_serving`` is called when a worker serves, ``on_ready`` when all do. ``jobs``
    are more jobs of the parent, by name. ``is_supervised``: somebody else holds the listening
    sockets and starts a successor.

    ``on_hangup`` returns what SIGHUP does, a stop if it is None. ``older`` are processes of the
    daemon before, which are children of this one.
    """

    listeners: tuple[socket.socket, ...]
    identity: jail.Identity
    service_name: str = "tlsmgr"
    watched: tuple[int, ...] = ()
    on_serving: Callable[[], None] = field(default=lambda: None)
    on_ready: Callable[[], None] = field(default=lambda: None)
    on_stdin: bool = False
    jobs: Mapping[str, Callable[[float], float]] = field(default_factory=dict)
    is_supervised: bool = False
    early: Met | None = None
    on_hangup: Callable[[Parent], Callable[[], object]] | None = None
    older: tuple[int, ...] = ()


class Prepared(NamedTuple):
    """What is made before anything is taken over, opened or forked."""

    inherited: Inherited
    settings: Sequence[CacheSettings]
    reseeder: Reseeder


def serve(conf: Configuration, mode: StartMode) -> tuple[int, ...] | None:
    """Run the daemon until shutdown, in the order in which a review of security reads it.

    Return the processes that still run, for a successor; None at a stop. Raises Fatal.
    """
    _set_limits()
    _change_directory(conf.text("queue_directory"))
    inherited, settings, reseeder = _prepare(conf, mode)
    arrivals = Arrivals()
    if not mode.on_stdin:
        arrivals = _take_over(inherited, mode)
    reseeder.open(time.monotonic())
    setup.preload()
    duties = janitor_duties.duties(conf, mode.identity, settings, inherited, reseeder)
    left = None
    try:
        if mode.on_stdin:
            once.serve(inherited, duties)
        else:
            _log_start(conf, settings)
            left = _run(conf, mode, inherited, duties, arrivals)
    except CannotServe as error:
        raise Fatal(str(error)) from None
    finally:
        if left is None:
            inherited.pool.wipe()
            inherited.memory.wipe()
    return left


def check(conf: Configuration, mode: StartMode) -> None:
    """Make all that a start needs, but leave files and sockets alone. Raises Fatal.

    What is wrong is logged, as at a start.
    """
    _set_limits()
    with contextlib.suppress(OSError):  # a start by hand makes it
        os.chdir(conf.text("queue_directory"))
    inherited, settings, reseeder = _prepare(conf, mode)
    setup.preload()
    if os.path.isdir(conf.text("data_directory")):
        janitor_duties.duties(conf, mode.identity, settings, inherited, reseeder).locate()
    inherited.pool.wipe()
    inherited.memory.wipe()


def _prepare(conf: Configuration, mode: StartMode) -> Prepared:
    memory = setup.make_memory(conf)
    pool = setup.make_pool(conf, memory)
    settings = cache_settings(conf, log.warning)
    key_source = setup.make_key_source(conf, memory, mode.identity.uid)
    farm = setup.make_farm(conf, settings, memory, mode.identity.uid)
    inherited = setup.make_inherited(
        conf,
        mode.listeners,
        mode.service_name,
        memory,
        pool,
        settings,
        key_source,
        mode.is_supervised,
        farm,
    )
    if memory.fallback:
        log.warning(memory.fallback)
    reseeder = Reseeder(
        conf.text("tls_random_source"),
        conf.number("tls_random_bytes"),
        conf.seconds("tls_random_reseed_period"),
        pool,
    )
    return Prepared(inherited, settings, reseeder)


def _take_over(inherited: Inherited, mode: StartMode) -> Arrivals:
    """Take over what a predecessor left; return that, and the clients that wait at the socket."""
    now = int(time.time())
    arrivals = succession.receive(
        mode.listeners, mode.identity.uid, inherited.hands_over, now, mode.early
    )
    if arrivals.message is not None:
        succession.apply(inherited, arrivals.message, now)
        arrivals.message = None  # the keys in it are in shared memory now, and nowhere else
    return arrivals


def _run(
    conf: Configuration,
    mode: StartMode,
    inherited: Inherited,
    duties: Duties,
    arrivals: Arrivals,
) -> tuple[int, ...] | None:
    """Fork the janitor, enter the jail, and serve. Return what ``serve`` does.

    A signal to stop waits for the parent's loop, which ends the children before the memory goes.
    """
    signals.block()
    workers, timeout = setup.worker_count(conf), conf.seconds("daemon_timeout")

    def on_serving() -> None:
        parent.jobs.add("bridge", end_bridge, delay=BRIDGE_TIME)
        mode.on_serving()

    def end_bridge(_now: float) -> float:
        arrivals.end_bridge()
        return HOUR

    def on_ready() -> None:
        arrivals.end_bridge()
        mode.on_ready()

    readiness = Readiness(workers, on_serving, on_ready)
    parent = Parent(inherited, workers, timeout, duties, readiness)
    for descriptor in mode.watched:
        parent.watch(descriptor, parent.reload)
    if mode.on_hangup is not None:
        parent.on_hangup = mode.on_hangup(parent)
    for pid in mode.older:
        parent.children.adopt(pid)
    parent.at_end(lambda _: arrivals.end_bridge(CLOSE_TIME))  # if it ends before all serve
    parent.take_clients(arrivals.clients)
    if inherited.farm is not None:
        _start_farm(parent, mode.identity, inherited, setup.Slots(workers).farm)
    _add_control(conf, mode, parent, inherited)
    parent.start_janitor()
    duties.enter_jail()
    for name, run in mode.jobs.items():
        parent.jobs.add(name, run)
    interval = conf.seconds("tlsmgr_statistics_interval")
    if interval:
        line = StatisticsLine(inherited.stats, interval)
        parent.jobs.add("statistics", line.run, delay=interval)
        parent.at_end(line.run)
    hit_rates = HitRateWatch(inherited.stats, [plan.rules.cache_type for plan in inherited.caches])
    parent.jobs.add("hit rate", hit_rates.run, delay=HOUR)
    parent.run()
    return parent.children.pids if parent.is_reloading else None


def _add_control(
    conf: Configuration, mode: StartMode, parent: Parent, inherited: Inherited
) -> None:
    """Make the control socket, and have the process forked that answers it."""
    endpoint = control_socket.make(mode.listeners, mode.identity)
    if endpoint is None:
        return
    slots = setup.Slots(setup.worker_count(conf))
    facts = Facts(
        pid=os.getpid(),
        version=__version__,
        started=time.monotonic(),
        config_directory=conf.directory,
        workers=setup.worker_count(conf),
        entropy_source=conf.text("tls_random_source"),
        wants_farm_keys=setup.wants_farm_keys(conf),
        wants_farm_store=bool(conf.text("tlsmgr_farm_store")),
    )

    def start(slot: int) -> Start:
        uses_files = parent.access.located is not None and slot == slots.control
        record, alive = parent.access.record(uses_files), parent.parent_alive_fd
        entry = partial(
            control.main, record, slot, endpoint.listener, alive, mode.identity.uid, facts
        )
        return Start(uses_files, entry)

    parent.add_auxiliary(
        Auxiliary(
            "control process", slots.control, start, follows_files=True, spare=slots.spare_control
        )
    )
    parent.at_end(lambda _: endpoint.remove())


def _start_farm(parent: Parent, identity: jail.Identity, inherited: Inherited, slot: int) -> None:
    """Fork the process that keeps the farm process, outside of the jail."""
    from tlsmgr.processes import farm_keeper  # not loaded where sessions are not shared

    leave_root = partial(jail.enter, identity._replace(unprivileged=True, chroots=False), "")

    def start(slot: int) -> Start:
        outside = not (parent.is_jailed and identity.chroots)
        alive = parent.parent_alive_fd
        entry = partial(farm_keeper.main, inherited, slot, alive, leave_root if outside else None)
        return Start(False, entry)

    parent.start_before_jail(Auxiliary("farm keeper", slot, start))


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


def _log_start(conf: Configuration, settings: Sequence[CacheSettings]) -> None:
    """One line that tells which program this is, and which limits it has."""
    limits = ", ".join(
        f"{cache.cache_type} cache up to {cache.size_limit >> 20} MiB"
        for cache in settings
        if cache.cachable
    )
    log.info(
        f"tlsmgr {__version__} starts: {setup.worker_count(conf)} workers, {limits or 'no cache'};"
        f" Python {sys.version.split()[0]}, {os.path.dirname(__file__)},"
        f" configuration {conf.directory}"
    )


if __name__ == "__main__":
    sys.exit(main())
