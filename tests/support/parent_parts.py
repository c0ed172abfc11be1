"""parent_parts - a Parent that forks nothing: its children are rows of a table of the test."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tlsmgr.latency import LatencyTable
from tlsmgr.prng.pool import Pool
from tlsmgr.prng.reseed import Reseeder
from tlsmgr.processes.children import Child
from tlsmgr.processes.inherited import CachePlan, Inherited
from tlsmgr.processes.janitor import Duties, FileLocation, Located, Message
from tlsmgr.processes.parent import Parent
from tlsmgr.processes.restarts import Readiness
from tlsmgr.processes.scoreboard import STALL_TIME, Scoreboard
from tlsmgr.processes.setup import Slots
from tlsmgr.sessions.file import FileMark, StoreFile
from tlsmgr.sessions.rules import CacheRules
from tlsmgr.sessions.seal import KEY_BYTES
from tlsmgr.sessions.shared import ProcessNumber, SharedCache
from tlsmgr.shm import SharedMemory
from tlsmgr.stats import Stats
from tlsmgr.tickets import TicketKeys


def inherited_for(workers: int) -> Inherited:
    """Return the record of a daemon with one cache and no listener."""
    memory = SharedMemory(1 << 17)
    slots = Slots(workers)
    pool = Pool(memory, slots.count)
    rules = CacheRules("smtp", 3600, 1 << 20, 1000, False)
    return Inherited(
        memory=memory,
        pool=pool,
        ticket_keys=TicketKeys(memory, slots.count, 3600, pool.extract),
        stats=Stats(memory, slots.count, 1),
        latency=LatencyTable(memory, slots.count),
        scoreboard=Scoreboard(memory, slots.count, slots.workers),
        timeouts={b"smtp": 3600},
        caches=(CachePlan(rules, SharedCache(memory, pool.extract(2 * KEY_BYTES), True), None),),
        process_number=ProcessNumber(),
        listeners=(),
        source="tlsmgr socket",
        client_timeout=3600,
    )


class FakeChildren:
    """The table of children, without processes. Tests say who beats, stalls and ends."""

    def __init__(self, scoreboard: Scoreboard) -> None:
        self._scoreboard = scoreboard
        self._pids = iter(range(1000, 1 << 30))
        self._table: list[Child] = []
        self._ended: list[tuple[Child, int]] = []
        self.blocked: list[Child] = []  # in state D
        self.silent: dict[int, float] = {}  # seconds without a heartbeat, by pid
        self.sent: list[tuple[Child, signal.Signals]] = []
        self.fork_error: OSError | None = None

    def __iter__(self) -> Iterator[Child]:
        return iter(list(self._table))

    def __len__(self) -> int:
        return len(self._table)

    def spawn(self, name: str, slot: int, uses_files: bool, entry: Callable[[], int]) -> Child:
        """Add a row, or raise ``fork_error``."""
        if self.fork_error is not None:
            raise self.fork_error
        assert slot not in {child.slot for child in self._table}, "two processes in one slot"
        child = Child(name, slot, next(self._pids), time.monotonic(), uses_files)
        self._table.append(child)
        return child

    def reap(self) -> Iterator[tuple[Child, int]]:
        """Yield what ``end`` was called for."""
        ended, self._ended = self._ended, []
        for child, code in ended:
            self._table.remove(child)
            yield child, code

    def kill(self, child: Child, number: signal.Signals) -> None:
        """Note the signal; SIGKILL and SIGTERM end a child that is not blocked."""
        child.killed |= number == signal.SIGKILL
        self.sent.append((child, number))
        if number in (signal.SIGKILL, signal.SIGTERM) and child not in self.blocked:
            self.end(child, -number if number == signal.SIGKILL else 0)

    def mark_stalled(self, now: float) -> None:
        """Mark as stalled what is silent for long."""
        for child in self._table:
            child.stalled = self.silence(child, now) > STALL_TIME

    def silence(self, child: Child, now: float) -> float:
        """Return what the test said; 0 for all others."""
        return self.silent.get(child.pid, 0.0)

    def is_blocked(self, child: Child) -> bool:
        """Return what the test said."""
        return child in self.blocked

    def end(self, child: Child, code: int) -> None:
        """Have the child end with that exit status."""
        if child not in [each for each, _ in self._ended]:
            self._ended.append((child, code))

    def beat(self, *children: Child) -> None:
        """Send a heartbeat of these children, or of all that are not silent."""
        for child in children or self._table:
            if child.pid not in self.silent:
                self._scoreboard.beat(child.slot, time.monotonic())


@dataclass
class Scene:
    """A parent past its start, and the table of its children."""

    parent: Parent
    children: FakeChildren
    inherited: Inherited
    slots: Slots
    ready: list[str] = field(default_factory=list)

    def iterate(self, times: int = 1) -> None:
        """Let the parent's loop run; whoever is not silent beats after each iteration."""
        for _ in range(times):
            self.parent._iterate()
            self.children.beat()

    def tell(self, message: Message) -> None:
        """Have a message of the janitor arrive and be handled."""
        self.parent.access.janitor_end.send(message)
        self.parent._take_message(1.0)

    def make_files(self) -> None:
        """Have the janitor find its directories and make the files."""
        self.tell(Message("located", Located(None, (FileLocation(os.dup(0), "file"),))))
        self.tell(Message("made"))

    @property
    def janitor(self) -> Child:
        """The janitor."""
        (found,) = (child for child in self.children if child.slot == self.slots.janitor)
        return found

    @property
    def workers(self) -> list[Child]:
        """All workers in the order of their start."""
        return [child for child in self.children if child.slot in self.slots.workers]

    @property
    def counted(self) -> list[Child]:
        """Those that were not told to go, and respond."""
        return [child for child in self.workers if not (child.retired or child.stalled)]


@contextlib.contextmanager
def parent_of(workers: int, daemon_timeout: float = 18000.0) -> Iterator[Scene]:
    """A parent that waits for no file and never sleeps in its loop."""
    inherited = inherited_for(workers)
    mark = FileMark()
    mark.record(7, 8, 1 << 20, True)

    def store_files(located: Located) -> list[StoreFile | None]:
        return [
            place and StoreFile(place.descriptor, place.name, 1 << 20, mark)
            for place in located.caches
        ]

    duties = Duties(
        locate=lambda: Located(None, (None,)),
        enter_jail=lambda: None,
        as_owner=contextlib.nullcontext,
        exchange_file=lambda place: None,  # type: ignore[arg-type,return-value]
        store_files=store_files,
        reseeder=Reseeder("", 32, 3600, inherited.pool),
        damage_alarm=-1,
    )
    ready: list[str] = []
    before = signal.getsignal(signal.SIGALRM)
    readiness = Readiness(workers, lambda: ready.append("one"), lambda: ready.append("all"))
    parent = Parent(inherited, workers, daemon_timeout, duties, readiness)
    children = FakeChildren(inherited.scoreboard)
    parent.children = children  # type: ignore[assignment]
    parent.is_jailed = True
    parent.access.located = Located(None, (None,))
    parent.jobs.add("no sleep", lambda now: 0.0)
    parent.watch(parent.access.link.fileno(), lambda: parent._take_message(0.0))
    try:
        yield Scene(parent, children, inherited, Slots(workers), ready)
    finally:
        parent._watchdog.stop()
        signal.signal(signal.SIGALRM, before)
        _close(parent)


def _close(parent: Parent) -> None:
    parent.access.link.close()
    parent.access.janitor_end.close()
    for descriptor in (*parent._pipes, parent._alive_end, parent._wakeup_end):
        with contextlib.suppress(OSError):
            os.close(descriptor)
