"""children - the table of child processes: fork, reap, and who has stopped to respond.

The only place that forks and waits in a running daemon. It also waits for children of this process
that have no slot: a start that is tried, and workers from before a reload by hand. No call here
waits for a child without a deadline, as a process that a file system blocks can't even be killed.
Used by the parent only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

from tlsmgr.processes import signals
from tlsmgr.processes.scoreboard import STALL_TIME, Scoreboard

HUNG_TIME = 9.0  # seconds without a heartbeat, after which a process is killed
DEFECT = 1  # exit status of a child whose entry point raised


@dataclass(eq=False)
class Child:
    """A child process as the parent sees it. Times are of time.monotonic()."""

    name: str  # in log lines
    slot: int
    pid: int
    started: float
    uses_files: bool
    stalled: bool = False  # no heartbeat for STALL_TIME
    killed: bool = False  # it was sent SIGKILL
    retired: bool = False  # it has to end and is not counted any more


def describe_end(code: int) -> str:
    """Return the words for an exit status, negative for a signal."""
    return f"killed by signal {-code}" if code < 0 else f"exit status {code}"


class Children:
    """The children, by pid."""

    def __init__(self, scoreboard: Scoreboard) -> None:
        self._scoreboard = scoreboard
        self._by_pid: dict[int, Child] = {}
        self._adopted: dict[int, Callable[[int], object]] = {}  # what gets the exit status
        self._proc = _open_proc()
        self._judged = self._resumed = time.monotonic()

    def __iter__(self) -> Iterator[Child]:
        return iter(list(self._by_pid.values()))

    def __len__(self) -> int:
        return len(self.pids)

    @property
    def pids(self) -> tuple[int, ...]:
        """Return the pids of all that run, adopted ones as well."""
        return (*self._by_pid, *self._adopted)

    def spawn(self, name: str, slot: int, uses_files: bool, entry: Callable[[], int]) -> Child:
        """Fork a child that runs ``entry`` and exits with what it returns. Raises OSError."""
        now = time.monotonic()
        pid = _fork(entry)
        child = self._by_pid[pid] = Child(name, slot, pid, now, uses_files)
        self._scoreboard.note_process(slot, pid)
        return child

    def spawn_beside(self, entry: Callable[[], int], on_end: Callable[[int], object]) -> int:
        """Fork a child without a slot; return its pid. See ``adopt``. Raises OSError."""
        pid = _fork(entry)
        self.adopt(pid, on_end)
        return pid

    def adopt(self, pid: int, on_end: Callable[[int], object] = lambda code: None) -> None:
        """Note a child of this process that has no slot; ``on_end`` gets its exit status.

        It ends with the others, and nothing else is done about it.
        """
        self._adopted[pid] = on_end

    def reap(self) -> Iterator[tuple[Child, int]]:
        """Yield each child that has ended, with its exit status; negative for a signal."""
        with contextlib.suppress(ChildProcessError):  # there is none
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                pid, code = ended[0], os.waitstatus_to_exitcode(ended[1])
                child = self._by_pid.pop(pid, None)
                if child is not None:
                    yield child, code
                elif pid in self._adopted:
                    self._adopted.pop(pid)(code)

    def kill_adopted(self, number: signal.Signals) -> None:
        """Send a signal to all that were adopted."""
        for pid in self._adopted:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self, child: Child, number: signal.Signals) -> None:
        """Send a signal."""
        child.killed |= number == signal.SIGKILL
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, number)

    def mark_stalled(self, now: float) -> None:
        """Bring the ``stalled`` marks up to date, from the heartbeats.

        When this process itself was suspended, the children may have been as well: silence counts
        from then on, and a child keeps its mark until its next heartbeat.
        """
        if now - self._judged > STALL_TIME:
            self._resumed = now
        self._judged = now
        for child in self:
            if self.silence(child, now) > STALL_TIME:
                child.stalled = True
            elif now - self._last_sign(child) <= STALL_TIME:
                child.stalled = False

    def silence(self, child: Child, now: float) -> float:
        """Return for how many seconds it could have sent a heartbeat, and did not."""
        return now - max(self._last_sign(child), self._resumed)

    def _last_sign(self, child: Child) -> float:
        """Return the time of its last heartbeat, or of its start."""
        return max(self._scoreboard.last_beat(child.slot), child.started)

    def is_blocked(self, child: Child) -> bool:
        """Return whether a stalled process waits in the kernel: it is neither stopped nor busy.

        On a file system of the kernel that is state D, where no signal reaches it. On one behind a
        server (FUSE) it sleeps, state S; nothing else that a child waits for takes so long.
        """
        if self._proc < 0:
            return True  # unknown; a stalled process counts as blocked
        try:
            fd = os.open(f"{child.pid}/stat", os.O_RDONLY, dir_fd=self._proc)
        except OSError:
            return False
        try:
            return os.read(fd, 4096).rpartition(b") ")[2].startswith((b"D", b"S"))
        except OSError:
            return False
        finally:
            os.close(fd)


def _fork(entry: Callable[[], int]) -> int:
    """Return the pid of a new child that runs ``entry``. Raises OSError."""
    blocked = signals.block()
    pid = -1
    try:
        pid = os.fork()
        if pid == 0:
            _run(entry)
    finally:
        if pid:
            signals.restore(blocked)
    return pid


def _run(entry: Callable[[], int]) -> NoReturn:
    status = DEFECT
    try:
        signals.reset_in_child()
        status = entry()
    finally:
        os._exit(status)


def _open_proc() -> int:
    """Return a descriptor of /proc, which the jail does not have; -1 where there is none."""
    try:
        return os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return -1
