"""The table of children: real processes, and the judgement of their heartbeats."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest
from support.daemon_process import wait_for

from tlsmgr.processes.children import DEFECT, Child, Children
from tlsmgr.processes.scoreboard import SPREAD_SLACK, STALL_TIME, Scoreboard
from tlsmgr.shm import SharedMemory


@pytest.fixture
def scoreboard() -> Scoreboard:
    """Five slots, of which 1 to 4 are workers'."""
    return Scoreboard(SharedMemory(4096), 6, range(1, 5))


@pytest.fixture
def children(scoreboard: Scoreboard) -> Iterator[Children]:
    made = Children(scoreboard)
    yield made
    for child in made:
        made.kill(child, signal.SIGKILL)
    ends(made, len(made))
    os.close(made._proc)


def ends(children: Children, count: int) -> list[tuple[Child, int]]:
    """Wait for the end of that many."""
    found: list[tuple[Child, int]] = []

    def look() -> bool:
        found.extend(children.reap())
        return len(found) >= count

    wait_for(look, f"end of {count} children")
    return found


def sleep() -> int:
    time.sleep(600)
    return 0


def fail() -> int:
    raise RuntimeError


def die() -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def state(child: Child) -> str:
    """The state of a process in /proc."""
    with open(f"/proc/{child.pid}/stat") as file:
        return file.read().rpartition(") ")[2][0]


# Processes.


@pytest.mark.parametrize(
    ("entry", "code"), [(lambda: 0, 0), (lambda: 3, 3), (fail, DEFECT), (die, -9)]
)
def test_exit_status(children: Children, entry: Callable[[], int], code: int) -> None:
    child = children.spawn("worker", 1, True, entry)
    assert list(children) == [child]
    assert ends(children, 1) == [(child, code)]
    assert len(children) == 0
    assert list(children.reap()) == []


def test_a_signal_in_the_child_does_not_come_to_the_parent(children: Children) -> None:
    """It inherits the handlers and the pipe of the parent's queue."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    os.set_blocking(reader, False)
    before = signal.set_wakeup_fd(writer)
    handler = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        child = children.spawn("worker", 1, True, sleep)
        children.kill(child, signal.SIGTERM)
        assert ends(children, 1) == [(child, -signal.SIGTERM)]
        with pytest.raises(BlockingIOError):
            os.read(reader, 1)
    finally:
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGTERM, handler)
        os.close(reader)
        os.close(writer)


def test_a_signal_to_a_child_that_has_ended(children: Children) -> None:
    child = children.spawn("worker", 1, True, lambda: 0)
    wait_for(lambda: state(child) == "Z", "its end")
    children.kill(child, signal.SIGKILL)
    assert child.killed
    assert ends(children, 1) == [(child, 0)]
    children.kill(child, signal.SIGTERM)


def test_only_sigkill_is_a_kill(children: Children) -> None:
    child = children.spawn("worker", 1, True, sleep)
    children.kill(child, signal.SIGSTOP)
    assert not child.killed
    children.kill(child, signal.SIGKILL)
    assert child.killed


def test_a_child_of_somebody_else_is_reaped_and_forgotten(children: Children) -> None:
    child = children.spawn("worker", 1, True, sleep)
    pid = os.fork()
    if not pid:
        os._exit(0)
    wait_for(lambda: not list(children.reap()) and not os.path.exists(f"/proc/{pid}"), "its end")
    assert list(children) == [child]


def test_children_without_a_slot(children: Children) -> None:
    """They count, are reaped when no other child is left, and say how they ended."""
    codes: list[int] = []
    children.spawn_beside(lambda: 5, codes.append)
    assert (len(children), list(children)) == (1, [])
    wait_for(lambda: not list(children.reap()) and codes, "its end")
    pid = children.spawn_beside(sleep, codes.append)
    children.adopt(pid)
    assert children.pids == (pid,)
    children.kill_adopted(signal.SIGKILL)
    wait_for(lambda: not list(children.reap()) and not len(children), "its end")
    children.kill_adopted(signal.SIGKILL)
    assert codes == [5], "nobody asks for the second one any more"


def test_a_process_that_is_stopped_or_ended_is_not_blocked(children: Children) -> None:
    """One that sleeps is, as far as is asked: only when it should not."""
    child = children.spawn("worker", 1, True, sleep)
    wait_for(lambda: state(child) == "S", "sleep")
    assert children.is_blocked(child)
    children.kill(child, signal.SIGSTOP)
    wait_for(lambda: state(child) == "T", "stop")
    assert not children.is_blocked(child)
    children.kill(child, signal.SIGKILL)
    wait_for(lambda: state(child) == "Z", "end")
    assert not children.is_blocked(child)
    ends(children, 1)
    assert not children.is_blocked(child), "no such process"


def test_states_in_which_it_is_blocked(children: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so is every process that is stalled where there is no /proc."""
    child = children.spawn("worker", 1, True, sleep)
    monkeypatch.setattr(os, "read", lambda fd, n: b"7 (D) (x) D 1 2 3")
    assert children.is_blocked(child)
    monkeypatch.setattr(os, "read", lambda fd, n: b"7 (x) D (y) R 1 2 3")
    assert not children.is_blocked(child)
    monkeypatch.undo()
    monkeypatch.setattr(children, "_proc", -1)
    assert children.is_blocked(child)


# Heartbeats. The times are made up; the parent judges twice a second.


def add(children: Children, slot: int, started: float) -> Child:
    """A row without a process."""
    child = children._by_pid[-slot] = Child("worker", slot, -slot, started, True)
    return child


@pytest.fixture
def rows(scoreboard: Scoreboard) -> Iterator[Children]:
    made = Children(scoreboard)
    made._judged = made._resumed = 1000.0
    yield made
    os.close(made._proc)


def judge_until(children: Children, start: float, end: float) -> None:
    """Judge twice a second."""
    while start <= end:
        children.mark_stalled(start)
        start += 0.5


def test_a_child_is_stalled_without_a_heartbeat(rows: Children, scoreboard: Scoreboard) -> None:
    child = add(rows, 1, 1000.0)
    scoreboard.beat(1, 1000.0)
    judge_until(rows, 1000.0, 1000.0 + STALL_TIME)
    assert not child.stalled
    rows.mark_stalled(1002.0)
    assert child.stalled
    assert rows.silence(child, 1002.0) == 2.0
    scoreboard.beat(1, 1002.1)
    rows.mark_stalled(1002.5)
    assert not child.stalled


def test_a_new_child_has_time_for_its_first_heartbeat(
    rows: Children, scoreboard: Scoreboard
) -> None:
    child = add(rows, 1, 1000.0)
    rows.mark_stalled(1000.5)
    assert not child.stalled
    judge_until(rows, 1001.0, 1002.0)
    assert child.stalled


def test_after_a_suspension_nobody_is_stalled_at_once(
    rows: Children, scoreboard: Scoreboard
) -> None:
    """All were suspended for an hour, and the parent runs first: it must kill nobody."""
    child = add(rows, 1, 1000.0)
    scoreboard.beat(1, 1000.0)
    rows.mark_stalled(1000.0)
    for now in (4600.0, 4600.001, 4600.5, 4601.4):
        rows.mark_stalled(now)
        assert not child.stalled
        assert rows.silence(child, now) < STALL_TIME
    judge_until(rows, 4601.5, 4602.0)
    assert child.stalled, "it had its time"


def test_a_suspension_of_the_parent_hides_no_stall(rows: Children, scoreboard: Scoreboard) -> None:
    """Else the worker that stands in for it would be retired as one too many."""
    stalled, sound = add(rows, 1, 1000.0), add(rows, 2, 1000.0)
    scoreboard.beat(1, 1000.0)
    scoreboard.beat(2, 1001.9)
    judge_until(rows, 1000.5, 1002.0)
    assert (stalled.stalled, sound.stalled) == (True, False)
    scoreboard.beat(2, 1009.9)
    rows.mark_stalled(1010.0)
    assert (stalled.stalled, sound.stalled) == (True, False)


# The scoreboard.


def test_crowded_is_relative_to_others_that_accept(scoreboard: Scoreboard) -> None:
    many = 100
    scoreboard.connection_count(1)[0] = many
    scoreboard.beat(1, 1000.0)
    assert not scoreboard.is_crowded(1, 1000.0), "alone"
    scoreboard.beat(2, 1000.0)
    assert scoreboard.is_crowded(1, 1000.0)
    assert not scoreboard.is_crowded(2, 1000.0)
    scoreboard.beat(1, 1010.0)
    assert not scoreboard.is_crowded(1, 1010.0), "the other one is stalled"
    scoreboard.beat(2, 1010.0 - STALL_TIME)
    assert scoreboard.is_crowded(1, 1010.0)
    scoreboard.retire(2)
    assert not scoreboard.is_crowded(1, 1010.0), "the other one drains"
    scoreboard.clear(2)
    scoreboard.beat(2, 1010.0)
    assert scoreboard.is_crowded(1, 1010.0), "its successor in that slot accepts"
    scoreboard.clear(2)
    assert not scoreboard.is_crowded(1, 1010.0)


def test_the_janitor_counts_for_nothing(scoreboard: Scoreboard) -> None:
    scoreboard.connection_count(1)[0] = 100
    scoreboard.beat(1, 1000.0)
    scoreboard.beat(5, 1000.0)
    assert not scoreboard.is_crowded(1, 1000.0)


@pytest.mark.parametrize(
    ("least", "mine", "crowded"),
    [
        (0, SPREAD_SLACK, False),
        (0, SPREAD_SLACK + 1, True),
        (10, 15 + SPREAD_SLACK, False),
        (10, 16 + SPREAD_SLACK, True),
        (16, 24 + SPREAD_SLACK, False),
        (16, 25 + SPREAD_SLACK, True),
    ],
)
def test_how_far_workers_may_be_apart(
    scoreboard: Scoreboard, least: int, mine: int, crowded: bool
) -> None:
    for slot, count in ((1, mine), (2, least), (3, 1000)):
        scoreboard.connection_count(slot)[0] = count
        scoreboard.beat(slot, 1000.0)
    assert scoreboard.is_crowded(1, 1000.0) == crowded
