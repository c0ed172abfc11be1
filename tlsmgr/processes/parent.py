"""parent - forks workers and auxiliary processes, replaces them, and touches no file and no client.

The loop waits for the earliest thing due. Then it handles queued signals, reaps children (frees
the locks of a dead one, keeps its counts, clears its slot), ends the ones that hang, spawns what is
missing, and runs due jobs. It never waits for a file, nor for a child without a deadline.

Workers: one that dies is replaced, as ``restarts`` says when. One that is stalled is replaced as
well and comes back into the count when it responds; without a heartbeat for HUNG_TIME it is killed.
A retired one has up to 10 s for its last connections, or until its slot is needed.

Files: ``file_access`` says whether a new worker may use them. Workers without caches are replaced
one by one when files can be used, and those that have an old file open when one was made new.

At the end it ends its children, as ``ending`` says. At a reload it then leaves what goes over to a
successor, see ``succession``, and goes at once, while the workers drain.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from functools import partial

from tlsmgr import log
from tlsmgr.processes import bridge, janitor, signals, succession, worker, worker_start
from tlsmgr.processes.auxiliaries import Auxiliaries, Auxiliary, Start
from tlsmgr.processes.children import HUNG_TIME, Child, Children, describe_end
from tlsmgr.processes.ending import Ending
from tlsmgr.processes.file_access import FileAccess
from tlsmgr.processes.inherited import Inherited, Pipes
from tlsmgr.processes.janitor import Duties
from tlsmgr.processes.jobs import Jobs
from tlsmgr.processes.restarts import Readiness, Restarts
from tlsmgr.processes.setup import Slots
from tlsmgr.shm import Recovery

WARNING_INTERVAL = 60.0  # seconds between two warnings about the same condition
LOOK_INTERVAL = 0.5  # seconds between two looks at heartbeats
LOCATE_TIME = 1.0  # seconds that a start waits for the janitor to find directories
LOCK_POLL = 0.05  # seconds between two looks at a lock that a dead child may have
DAMAGE = (-signal.SIGBUS, -signal.SIGSEGV, -signal.SIGABRT)  # how LMDB meets damaged pages


class Parent:
    """The parent process. It notes in ``readiness`` how many workers serve."""

    def __init__(
        self,
        inherited: Inherited,
        workers: int,
        daemon_timeout: float,
        duties: Duties,
        readiness: Readiness,
    ) -> None:
        self.access = FileAccess(inherited, duties)
        self._locks = (inherited.pool.lock, inherited.ticket_keys.lock)
        self._scoreboard, self._inherited = inherited.scoreboard, inherited
        self._stats, self._latency = inherited.stats, inherited.latency
        self._process_number = inherited.process_number
        self._workers, self._slots = workers, Slots(workers)
        self._hung_time = min(HUNG_TIME, daemon_timeout)
        self._watchdog = signals.Watchdog(daemon_timeout)
        self._readiness = readiness
        self.children = Children(inherited.scoreboard)
        self._restarts = Restarts()
        self.is_stopping = False
        self.is_reloading = False
        """The end is a reload: workers still serve, after ``run``, and use the shared memory."""
        self.on_hangup: Callable[[], object] = self.stop
        self.is_jailed = False  # whether children are forked in the jail by now
        self.jobs = Jobs()
        self._clients: list[int] = []  # connections that were accepted before there were workers
        self._last_acts: list[Callable[[float], object]] = []
        self._limit = log.Limit(WARNING_INTERVAL)
        self._watched: dict[int, Callable[[], object]] = {}
        self._poll = select.poll()
        self._open_pipes()
        self._janitor = Auxiliary("janitor", self._slots.janitor, self._start_of_janitor)
        self._auxiliaries = Auxiliaries()
        self._auxiliaries.add(self._janitor)

    @property
    def parent_alive_fd(self) -> int:
        """The pipe that an auxiliary process watches."""
        return self._pipes.parent_alive_fd

    def watch(self, descriptor: int, act: Callable[[], object]) -> None:
        """Have ``act`` called when the descriptor becomes readable or closes."""
        self._watched[descriptor] = act
        self._poll.register(descriptor, select.POLLIN)

    def at_end(self, act: Callable[[float], object]) -> None:
        """Have ``act`` called with the time of day when no worker is left."""
        self._last_acts.append(act)

    def add_auxiliary(self, auxiliary: Auxiliary) -> None:
        """Have this process forked beside the workers."""
        self._auxiliaries.add(auxiliary)

    def take_clients(self, connections: list[int]) -> None:
        """Have the first workers serve these connections, which were accepted already."""
        self._clients += connections

    def start_before_jail(self, auxiliary: Auxiliary) -> None:
        """Have this process forked, for the first time now."""
        self._auxiliaries.add(auxiliary)
        self._spawn_auxiliary(auxiliary, auxiliary.slot, time.monotonic())

    def stop(self) -> None:
        """End the loop after this iteration."""
        self.is_stopping = True
        self.is_reloading = False

    def reload(self) -> None:
        """End the loop, unless it ends already, and leave to a successor what shall go over."""
        if not self.is_stopping:
            self.is_stopping = self.is_reloading = True

    def start_janitor(self) -> None:
        """Fork the first janitor, before the jail, and wait a moment for its directories.

        Raises Fatal for bad configuration that only the disk shows.
        """
        deadline = time.monotonic() + LOCATE_TIME
        self._spawn_auxiliary(self._janitor, self._janitor.slot, time.monotonic())
        while self.access.located is None and (left := deadline - time.monotonic()) > 0:
            self._take_message(min(left, LOOK_INTERVAL))
            if self._reap():
                self._spawn_auxiliary(self._janitor, self._janitor.slot, time.monotonic())
        self.access.wait_for_files(time.monotonic())

    def run(self) -> None:
        """Run the parent process until shutdown. Raises CannotServe; leaves no child that runs."""
        self.is_jailed = True
        with signals.queue() as self._signal_fd:
            self.watch(self._signal_fd, self._take_signals)
            self.watch(self.access.link.fileno(), lambda: self._take_message(0.0))
            try:
                while not self.is_stopping:
                    self._iterate()
            finally:
                self._watchdog.stop()
                self.is_stopping = True
                ending = self._ending()
                if self.is_reloading:
                    ending.end_others()
                if not self.is_reloading:
                    ending.stop_all()
                for act in self._last_acts:
                    act(time.time())
            if self.is_reloading:
                self._leave(ending)

    def _open_pipes(self) -> None:
        parent_alive_fd, self._alive_end = os.pipe()
        self._wakeup_end, wakeup_fd = os.pipe()
        for descriptor in (wakeup_fd, self._wakeup_end):
            os.set_blocking(descriptor, False)
        self._bridge_end, bridge_fd = bridge.make(self._inherited.policy_files)
        self._pipes = Pipes(parent_alive_fd, wakeup_fd, bridge_fd)
        self.watch(self._wakeup_end, lambda: signals.drain(self._wakeup_end))

    # The loop.

    def _iterate(self) -> None:
        now = time.monotonic()
        self._watchdog.restart()
        self.children.mark_stalled(now)
        locks = self._settle_locks(now)
        self.access.update_blocked(list(self.children), self.children.is_blocked, now)
        self._end_hung(now)
        if locks is not Recovery.LOST:
            self._spawn_missing(now)
        self._retire_surplus()
        look = LOOK_INTERVAL if locks is Recovery.CLEAN else LOCK_POLL
        delay = min(self.jobs.run(), look, *self._pauses(now))
        for descriptor, _ in self._poll.poll(max(0.0, delay) * 1000):
            self._watched[descriptor]()
        self._look_for_readiness()  # before a death, which is no failed start when others serve
        self._reap()

    def _take_signals(self) -> None:
        numbers = set(signals.drain(self._signal_fd))
        if numbers & set(signals.STOP_SIGNALS):
            self.stop()
        elif signal.SIGHUP in numbers:
            self.on_hangup()

    def _pauses(self, now: float) -> list[float]:
        """Return the seconds until the next spawn, if one is planned."""
        missing = self._missing() > 0
        pauses = [self._restarts.due - now] * missing + [self.access.seconds_left(now)]
        return [pause for pause in pauses if pause > 0]

    def _look_for_readiness(self) -> None:
        serving = [c for c in self._serving() if self._scoreboard.last_beat(c.slot)]
        if serving:
            self._restarts.note_service()
        self._readiness.note(len(serving))

    def _settle_locks(self, now: float) -> Recovery:
        """Look at the locks that a dead child may have; while one is lost, end all children.

        It is made free when none of them runs. One that was killed and still has not ended is
        stuck in the kernel, and does not run again.
        """
        found = {lock.settle(now) for lock in self._locks}
        if Recovery.LOST not in found:
            return Recovery.IN_DOUBT if Recovery.IN_DOUBT in found else Recovery.CLEAN
        living = [child for child in self.children if not child.killed]
        if living:
            log.warning("a lock was lost when a worker died: ending all workers")
            for child in living:
                child.retired = True
                self.children.kill(child, signal.SIGKILL)
        elif all(child.stalled for child in self.children):
            for lock in self._locks:
                lock.reset()
        return Recovery.LOST

    def _take_message(self, timeout: float) -> None:
        if self.access.take_message(timeout) == janitor.RENEWED:
            self._retire(child for child in self._all_workers() if child.uses_files)
            self._end_followers()

    def _end_followers(self, only_without_files: bool = False) -> None:
        """End auxiliary processes whose successors have to open the files."""
        for child in self.children:
            auxiliary = self._auxiliaries.of(child.slot)
            if auxiliary is None or not auxiliary.follows_files or child.retired:
                continue
            if not (only_without_files and child.uses_files):
                child.retired = True
                self.children.kill(child, signal.SIGTERM)

    # Children start.

    def _all_workers(self) -> list[Child]:
        return [child for child in self.children if child.slot in self._slots.workers]

    def _serving(self) -> list[Child]:
        """Return the workers that count: not retired, and responding."""
        return [child for child in self._all_workers() if not (child.retired or child.stalled)]

    def _missing(self) -> int:
        return self._workers - len(self._serving())

    def _spawn_missing(self, now: float) -> None:
        blocked = bool(self._scoreboard.files_blocked[0])
        for auxiliary, slot in list(self._auxiliaries.missing(self.children, blocked, now)):
            self._spawn_auxiliary(auxiliary, slot, now)
        if self.access.seconds_left(now):
            return
        for slot in self._free_slots(self._missing()):
            if now < self._restarts.due:
                return
            self._spawn_worker(slot, now)

    def _free_slots(self, wanted: int) -> list[int]:
        """Return that many free slots; end workers that drain if there are not enough."""
        taken = {child.slot for child in self.children}
        free = [slot for slot in self._slots.workers if slot not in taken]
        drain = [c for c in self._all_workers() if c.retired and not c.stalled]
        for child in drain[: max(0, wanted - len(free))]:
            self.children.kill(child, signal.SIGTERM)
        return free[: max(0, wanted)]

    def _spawn_worker(self, slot: int, now: float) -> None:
        with_files = self.access.is_allowed()
        share = -(-len(self._clients) // max(1, self._missing()))
        clients, rest = self._clients[:share], self._clients[share:]
        record = self.access.record(with_files)
        entry = partial(worker_start.main, record, slot, self._pipes, tuple(clients))
        if not self._spawn("worker", slot, Start(with_files, entry)):
            self._restarts.note_failed_fork(now)
            return
        self._clients = rest
        for connection in clients:
            os.close(connection)

    def _spawn_auxiliary(self, auxiliary: Auxiliary, slot: int, now: float) -> None:
        if not self._spawn(auxiliary.name, slot, auxiliary.start(slot)):
            auxiliary.note_failed_fork(now)

    def _start_of_janitor(self, slot: int) -> Start:
        return self.access.janitor_start(slot, self._pipes.parent_alive_fd, self.is_jailed)

    def _spawn(self, name: str, slot: int, start: Start) -> bool:
        self._process_number.advance()
        try:
            self.children.spawn(name, slot, start.uses_files, start.entry)
        except OSError as error:
            text = f"fork: {error.strerror}; will try again"
            self._limit.warning("fork", text, time.monotonic())
            return False
        return True

    # Children end.

    def _reap(self) -> int:
        """Clean up after the children that have ended; return their number."""
        ended = list(self.children.reap())
        for child, code in ended:
            served = self._scoreboard.last_beat(child.slot) > 0
            self._cleanup_child(child, code)
            if not self.is_stopping:
                self._plan_successor(child, code, served)
        return len(ended)

    def _cleanup_child(self, child: Child, code: int) -> None:
        """Free what a dead child held; log an end that nobody asked for."""
        self._scoreboard.clear(child.slot)
        now = time.monotonic()
        if Recovery.FREED in [lock.recover(child.slot, now) for lock in self._locks]:
            log.info(f"freed a lock that {child.name} pid {child.pid} held when it died")
        self._stats.collect(child.slot)
        self._latency.collect(child.slot)
        if self.is_stopping or child.retired or (self._auxiliaries.of(child.slot) and code == 0):
            return
        log.warning(f"{child.name} pid {child.pid} {describe_end(code)}")
        if code in DAMAGE and child.uses_files:
            for plan in self.access.inherited.caches:
                if plan.file is not None:
                    plan.file.mark.report_damage(plan.file.mark.inode)

    def _plan_successor(self, child: Child, code: int, served: bool) -> None:
        now = time.monotonic()
        auxiliary = self._auxiliaries.of(child.slot)
        if auxiliary is not None:
            auxiliary.note_end(now, child.started, child.retired)
        elif not child.retired:  # else its successor is there already
            self._restarts.note_death(now, child.started, served, code)

    def _end_hung(self, now: float) -> None:
        """Kill children without a heartbeat.

        Not a janitor that still looks for directories: its successors could not, in the jail.
        """
        for child in self.children:
            if self.access.located is None and child.slot == self._slots.janitor:
                continue
            silence = self.children.silence(child, now)
            if child.stalled and not child.killed and silence > self._hung_time:
                log.warning(f"{child.name} pid {child.pid} does not respond: ending it")
                self.children.kill(child, signal.SIGKILL)

    def _retire_surplus(self) -> None:
        """Retire workers that are one too many, or have no caches while they could have them.

        One at a time, and only while the others serve.
        """
        serving = [c for c in self._serving() if self._scoreboard.last_beat(c.slot)]
        plain = [child for child in serving if not child.uses_files]
        if len(serving) > self._workers:
            self._retire([(plain or serving)[-1]])
        elif self.access.is_allowed():
            self._end_followers(only_without_files=True)
            if plain and len(serving) == self._workers:
                self._retire(plain[:1])

    def _retire(self, children: Iterable[Child]) -> None:
        """Have workers serve their open connections and then end; others take their places."""
        for child in children:
            if not child.retired:
                child.retired = True
                self._scoreboard.retire(child.slot)
                self.children.kill(child, worker.DRAIN_SIGNAL)

    def _leave(self, ending: Ending) -> None:
        """Let the workers drain, and leave a message; unless a signal to stop comes meanwhile."""
        succession.prepare(self._inherited, int(time.time()))
        ending.let_workers_drain()
        mask = signals.block()  # what comes from now on is for the successor
        self._take_signals()
        if not self.is_reloading:
            signals.restore(mask)
            ending.stop_all()
        elif self._inherited.hands_over:
            address = self._inherited.listeners[0].getsockname()
            now = int(time.time())
            succession.leave(self._inherited, address, self._bridge_end, os.getpid(), now)

    def _ending(self) -> Ending:
        signs = select.poll()  # master's status channel, which has closed, is not asked
        for descriptor in (self._signal_fd, self._wakeup_end):
            signs.register(descriptor, select.POLLIN)
        workers, alive_end = self._slots.workers, self._alive_end
        return Ending(self.children, self._scoreboard, workers, alive_end, signs, self._attend)

    def _attend(self) -> None:
        """Take the signs of ``ending``."""
        self._take_signals()
        signals.drain(self._wakeup_end)
        self._reap()
