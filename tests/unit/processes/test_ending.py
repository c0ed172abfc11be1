"""How the parent ends its children: which signals they get, who is waited for, and who is left."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterator

import pytest
from support.parent_parts import FakeChildren

from tlsmgr.processes import ending
from tlsmgr.processes.children import Child
from tlsmgr.processes.ending import Ending
from tlsmgr.processes.scoreboard import RELOADING, STOPPING, Scoreboard
from tlsmgr.processes.worker import DRAIN_SIGNAL
from tlsmgr.shm import SharedMemory

WORKERS, JANITOR = range(1, 3), 3
TERM, KILL = signal.SIGTERM, signal.SIGKILL


class AdoptedToo(FakeChildren):
    """With processes without a slot, of which only the signals are noted."""

    def __init__(self, scoreboard: Scoreboard) -> None:
        super().__init__(scoreboard)
        self.adopted: list[signal.Signals] = []

    def kill_adopted(self, number: signal.Signals) -> None:
        self.adopted.append(number)


class Bench:
    """Two workers and a janitor. They end when ``obey`` says so, at one of the parent's waits."""

    def __init__(self) -> None:
        self.scoreboard = Scoreboard(SharedMemory(4096), 4, WORKERS)
        self.children = AdoptedToo(self.scoreboard)
        self.workers = [self.spawn("worker", slot) for slot in WORKERS]
        self.janitor = self.spawn("janitor", JANITOR)
        self.waits = 0
        self.obey: Callable[[], object] = lambda: None
        self.alive, alive_end = os.pipe()
        # A descriptor that is always ready: the parent attends at once, and again.
        self.sign, sign_end = os.pipe()
        os.write(sign_end, b"!")
        os.close(sign_end)
        signs = select.poll()
        signs.register(self.sign)
        self.ending = Ending(
            self.children,  # type: ignore[arg-type]
            self.scoreboard,
            WORKERS,
            alive_end,
            signs,
            self._attend,
        )

    def spawn(self, name: str, slot: int) -> Child:
        self.scoreboard.beat(slot, 1.0)
        return self.children.spawn(name, slot, True, lambda: 0)

    def _attend(self) -> None:
        self.waits += 1
        self.obey()
        list(self.children.reap())

    def end(self, *children: Child) -> None:
        """Have these end by themselves, now."""
        for child in children:
            self.children.end(child, 0)

    def signals(self, child: Child) -> list[signal.Signals]:
        return [number for each, number in self.children.sent if each is child]

    @property
    def parent_is_gone(self) -> bool:
        """As children see it."""
        os.set_blocking(self.alive, False)
        try:
            return os.read(self.alive, 1) == b""
        except BlockingIOError:
            return False


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    for name in ("STOP_TIME", "KILL_TIME", "CLOSE_TIME"):
        monkeypatch.setattr(ending, name, 0.05)
    made = Bench()
    yield made
    os.close(made.alive)
    os.close(made.sign)


def test_at_a_stop_children_end_by_themselves(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    """They see the end of the pipe, and why in shared memory."""

    def obey() -> None:
        if bench.waits > 3 and bench.parent_is_gone and bench.scoreboard.ending[0] == STOPPING:
            bench.end(*bench.children)

    bench.obey = obey
    bench.ending.stop_all()
    assert len(bench.children) == 0
    assert bench.children.sent == []
    assert bench.children.adopted == [TERM, KILL]
    assert capfd.readouterr().err == ""


def test_who_does_not_end_is_killed(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    first, second = bench.workers
    bench.obey = lambda: bench.end(first) if first in list(bench.children) else None
    bench.ending.stop_all()
    assert [bench.signals(child) for child in (first, second, bench.janitor)] == [
        [],
        [KILL],
        [KILL],
    ]
    assert len(bench.children) == 0
    assert capfd.readouterr().err == ""


def test_who_takes_a_moment_to_die_is_waited_for(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    killed_at: list[int] = []

    def obey() -> None:
        if KILL in bench.signals(bench.janitor):
            killed_at.append(bench.waits)
        if len(killed_at) == 4:
            bench.end(bench.janitor)

    bench.children.blocked = [bench.janitor]
    bench.obey = obey
    bench.ending.stop_all()
    assert len(bench.children) == 0
    assert capfd.readouterr().err == ""


def test_who_cannot_be_killed_is_left(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    bench.children.blocked = [bench.janitor]
    bench.ending.stop_all()
    assert list(bench.children) == [bench.janitor]
    assert capfd.readouterr().err.endswith(
        "warning: 1 processes are blocked by a file system; they end when it responds\n"
    )


def test_at_a_reload_the_others_end_first(bench: Bench) -> None:
    """Workers see that the parent is gone, and why."""

    def obey() -> None:
        if bench.waits > 3 and bench.parent_is_gone and bench.scoreboard.ending[0] == RELOADING:
            bench.end(*(child for child in bench.children if child is bench.janitor))

    bench.obey = obey
    bench.ending.end_others()
    assert list(bench.children) == bench.workers
    assert bench.children.sent == []


def test_at_a_reload_the_others_do_not_hold_up_the_workers(bench: Bench) -> None:
    bench.children.blocked = [bench.janitor]
    bench.ending.end_others()
    assert bench.children.sent == [(bench.janitor, KILL)]


def test_workers_are_told_to_drain_and_waited_for(bench: Bench) -> None:
    """Until they accept no more, not until they end; nobody else is told."""

    def obey() -> None:
        if bench.waits > 3:
            for slot in WORKERS:
                bench.scoreboard.note_closed(slot)

    bench.obey = obey
    bench.ending.let_workers_drain()
    assert bench.waits == 4
    assert bench.children.sent == [(child, DRAIN_SIGNAL) for child in bench.workers]
    assert list(bench.children) == [*bench.workers, bench.janitor]


@pytest.mark.parametrize("why", ["stopped", "gone"])
def test_a_worker_that_cannot_close_is_not_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    monkeypatch.setattr(ending, "CLOSE_TIME", 600.0)
    first, second = bench.workers
    bench.scoreboard.note_closed(second.slot)
    if why == "stopped":
        first.stalled = True
    else:
        bench.scoreboard.clear(first.slot)
    bench.ending.let_workers_drain()


def test_a_stop_after_the_reload_began(bench: Bench) -> None:
    """The workers were told to drain: now they are told to end."""
    bench.end(bench.janitor)
    bench.ending.end_others()
    bench.ending.stop_all()
    assert bench.children.sent == [(child, TERM) for child in bench.workers]
    assert len(bench.children) == 0
    assert bench.scoreboard.ending[0] == RELOADING
