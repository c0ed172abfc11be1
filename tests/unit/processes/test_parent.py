"""The parent's decisions: who is started, replaced, retired, killed, and when files are left alone.

The children are rows of a table; no process is forked.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest
from support.parent_parts import Scene, parent_of

from tlsmgr.log import Fatal
from tlsmgr.processes.children import HUNG_TIME, Child
from tlsmgr.processes.janitor import FileLocation, Located, Message
from tlsmgr.processes.parent import DAMAGE
from tlsmgr.processes.restarts import CannotServe
from tlsmgr.processes.worker import DRAIN_SIGNAL
from tlsmgr.processes.worker_start import BOOT_ERROR
from tlsmgr.shm import HOLDING, LOST_AFTER, WAITING
from tlsmgr.stats import INDEX


@pytest.fixture
def two() -> Iterator[Scene]:
    """A parent of two workers that serve, with files."""
    with parent_of(2) as scene:
        scene.make_files()
        scene.iterate(3)
        assert [child.uses_files for child in scene.workers] == [True, True]
        yield scene


def silence(scene: Scene, child: Child, seconds: float, *, blocked: bool = False) -> None:
    """Let the child be silent for that long."""
    scene.children.silent[child.pid] = seconds
    if blocked:
        scene.children.blocked.append(child)


def respond(scene: Scene, child: Child) -> None:
    """Let it beat again."""
    del scene.children.silent[child.pid]
    if child in scene.children.blocked:
        scene.children.blocked.remove(child)
    scene.children.beat(child)


def drains(scene: Scene) -> list[Child]:
    """Who was told to drain."""
    return [child for child, number in scene.children.sent if number == DRAIN_SIGNAL]


# Start.


def test_workers_wait_for_the_files(capfd: pytest.CaptureFixture[str]) -> None:
    with parent_of(2) as scene:
        scene.parent.access.due = time.monotonic() + 100
        scene.iterate(3)
        assert scene.workers == []
        assert scene.janitor.uses_files
        scene.make_files()
        scene.iterate()
        assert [child.slot for child in scene.workers] == [1, 2]
        assert scene.ready == []
        scene.iterate(3)
        assert scene.ready == ["one", "all"], "once"
        assert drains(scene) == []
    assert capfd.readouterr().err == ""


def test_workers_do_not_wait_for_long() -> None:
    """They start without files, and give way one by one when files can be used."""
    with parent_of(3) as scene:
        scene.parent.access.due = time.monotonic() - 1
        scene.iterate(3)
        plain = scene.workers
        assert [child.uses_files for child in plain] == [False] * 3
        assert drains(scene) == []
        scene.make_files()
        for number in range(1, 4):
            scene.iterate()
            assert drains(scene) == plain[:number], "one at a time"
            scene.iterate()  # its successor is forked, and counts when it serves
        scene.iterate(3)
        assert [child.uses_files for child in scene.counted] == [True] * 3


def test_the_first_worker_that_serves_counts_and_ready_means_that_all_do() -> None:
    with parent_of(3) as scene:
        scene.parent._iterate()
        first, second, third = scene.workers
        assert scene.ready == []
        scene.children.beat(first, second)
        scene.parent._iterate()
        assert scene.ready == ["one"]
        scene.children.beat(third)
        scene.parent._iterate()
        assert scene.ready == ["one", "all"]


def test_bad_configuration_that_the_janitor_finds_ends_the_start() -> None:
    with parent_of(1) as scene, pytest.raises(Fatal, match="two caches in one file"):
        scene.tell(Message("fatal", text="two caches in one file"))


def test_a_worker_that_can_not_start_is_fatal_only_before_another_served() -> None:
    with parent_of(2) as scene:
        scene.parent._iterate()
        scene.children.end(scene.workers[0], BOOT_ERROR)
        with pytest.raises(CannotServe):
            scene.parent._iterate()
    with parent_of(2) as scene:
        scene.parent._iterate()
        first, second = scene.workers
        scene.children.beat(second)  # it serves, but the parent has not looked yet
        scene.children.end(first, BOOT_ERROR)
        scene.parent._iterate()
        assert second in scene.counted


def test_fork_that_fails(two: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    two.children.fork_error = BlockingIOError(11, "Resource temporarily unavailable")
    first, second = two.workers
    two.children.end(first, -signal.SIGKILL)
    two.parent._restarts.due = 0.0
    two.iterate(2)
    two.parent._restarts.due = 0.0
    two.iterate(2)
    assert two.workers == [second]
    lines = capfd.readouterr().err
    assert lines.count("fork: Resource temporarily unavailable; will try again") == 1
    assert two.parent._pauses(time.monotonic()), "it wakes up for the next try"
    two.children.fork_error = None
    two.parent._restarts.due = 0.0
    two.iterate()
    assert len(two.workers) == 2


# Deaths.


def test_what_a_dead_worker_leaves_is_collected(two: Scene) -> None:
    first, _second = two.workers
    two.inherited.stats.row(first.slot)[INDEX["seed"]] += 7
    two.inherited.scoreboard.beat(first.slot, time.monotonic())
    two.inherited.scoreboard.connection_count(first.slot)[0] = 5
    two.children.end(first, -signal.SIGKILL)
    two.parent._iterate()
    assert two.inherited.stats.counts(0)["seed"] == 7
    assert two.inherited.stats.counts(first.slot)["seed"] == 0
    assert two.inherited.scoreboard.last_beat(first.slot) == 0
    assert two.inherited.scoreboard.connections(first.slot) == 0


@pytest.mark.parametrize("which", [0, 1], ids=["pool", "ticket keys"])
def test_the_locks_of_a_dead_worker_are_freed(
    two: Scene, which: int, capfd: pytest.CaptureFixture[str]
) -> None:
    first, _ = two.workers
    lock = two.parent._locks[which]
    assert lock.acquire(first.slot, 0.0)
    assert not lock.acquire(0, 0.0)
    two.children.end(first, -signal.SIGKILL)
    two.iterate()
    assert lock.acquire(0, 0.0)
    lock.release(0)
    assert f"freed a lock that worker pid {first.pid} held" in capfd.readouterr().err


def test_a_lost_lock_ends_all_children(two: Scene) -> None:
    """It is free when they are gone, and then there are new ones."""
    (first, second), janitor = two.workers, two.janitor
    lock = two.parent._locks[0]
    lock.acquire(first.slot, 0.0)
    lock._marks[first.slot] = WAITING  # it died before it could write HOLDING
    two.children.end(first, -signal.SIGKILL)
    two.iterate()
    assert {second, janitor} <= set(two.children), "in doubt"
    since = lock._in_doubt_since
    assert since is not None
    lock._in_doubt_since = since - LOST_AFTER
    two.iterate(2)
    assert not {second, janitor} & set(two.children)
    two.parent._restarts.due = two.parent._janitor.due = 0.0
    two.iterate(2)
    assert len(two.counted) == 2
    assert lock.acquire(0, 0.0)
    lock.release(0)
    assert HOLDING not in bytes(lock._marks)


@pytest.mark.parametrize("code", [*DAMAGE, -signal.SIGKILL, 1])
def test_which_deaths_mean_a_damaged_file(two: Scene, code: int) -> None:
    (plan,) = two.parent.access.inherited.caches
    two.children.end(two.workers[0], code)
    two.iterate()
    assert plan.file is not None
    assert plan.file.mark.is_damaged == (code in DAMAGE)


def test_a_worker_without_files_can_not_have_met_a_damaged_one() -> None:
    with parent_of(1) as scene:
        scene.iterate(2)
        scene.make_files()
        (plan,) = scene.parent.access.inherited.caches
        (plain,) = (child for child in scene.workers if not child.uses_files)
        scene.children.end(plain, -signal.SIGSEGV)
        scene.parent._iterate()
        assert plan.file is not None
        assert not plan.file.mark.is_damaged


def test_the_janitor_is_replaced(two: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    old = two.janitor
    old.started -= 10
    two.children.end(old, -signal.SIGKILL)
    two.iterate(2)
    assert two.janitor is not old
    assert f"janitor pid {old.pid} killed by signal 9" in capfd.readouterr().err
    assert len(two.counted) == 2


def test_a_janitor_that_dies_young_is_replaced_after_a_pause(two: Scene) -> None:
    two.children.end(two.janitor, 1)
    two.iterate(3)
    assert len(two.children) == 2
    assert two.parent._janitor.due > time.monotonic()
    two.parent._janitor.due = 0.0
    two.iterate()
    assert two.janitor


def test_a_janitor_that_could_not_find_the_directories(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Its successors can't look, in the jail, but they still stir the pool."""
    with parent_of(1) as scene:
        scene.parent.access.located = None
        scene.iterate()
        assert "error: session caches are not available" in capfd.readouterr().err
        assert scene.parent.access.located == Located(None, (None,))
        first = scene.janitor
        scene.children.end(first, 1)
        scene.iterate(2)
        scene.parent._janitor.due = 0.0
        scene.iterate()
        assert scene.janitor is not first
        assert "not available" not in capfd.readouterr().err, "said once"


# Stalls.


def test_a_stalled_worker_is_replaced_and_comes_back(two: Scene) -> None:
    first, _second = two.workers
    silence(two, first, 2.0)
    two.iterate(3)
    assert len(two.counted) == 2
    assert first in two.workers
    assert drains(two) == []
    respond(two, first)
    two.iterate()
    assert len(drains(two)) == 1, "one too many"
    two.iterate(5)
    assert len(drains(two)) == 1
    assert len(two.counted) == 2


def test_of_one_too_many_the_one_without_files_goes(two: Scene) -> None:
    first, second = two.workers
    silence(two, first, 2.0, blocked=True)
    two.iterate(2)
    (plain,) = (child for child in two.workers if not child.uses_files)
    respond(two, first)
    two.iterate()
    assert drains(two) == [plain]
    assert two.counted == [first, second]


def test_a_hung_worker_is_killed_once_and_no_file_is_blamed(
    two: Scene, capfd: pytest.CaptureFixture[str]
) -> None:
    first, _second = two.workers
    silence(two, first, HUNG_TIME - 0.5)
    two.iterate(2)
    assert not first.killed
    two.children.silent[first.pid] = HUNG_TIME + 0.5
    two.children.blocked.append(first)  # it can't end yet
    two.iterate(3)
    assert [c for c, number in two.children.sent if number == signal.SIGKILL] == [first]
    assert capfd.readouterr().err.count(f"worker pid {first.pid} does not respond") == 1
    two.children.end(first, -signal.SIGKILL)
    two.iterate()
    (plan,) = two.parent.access.inherited.caches
    assert plan.file is not None
    assert not plan.file.mark.is_damaged


def test_daemon_timeout_may_be_shorter() -> None:
    with parent_of(1, daemon_timeout=3.0) as scene:
        scene.iterate(2)
        (worker,) = scene.workers
        silence(scene, worker, 2.9)
        scene.iterate()
        assert not worker.killed
        scene.children.silent[worker.pid] = 3.1
        scene.iterate()
        assert worker.killed


def test_a_janitor_that_still_looks_for_directories_is_not_killed() -> None:
    """Nobody could take its place: in the jail there is no way to them."""
    with parent_of(1) as scene:
        scene.iterate()
        scene.parent.access.located = None
        silence(scene, scene.janitor, 100.0)
        scene.iterate(2)
        assert not scene.janitor.killed
        scene.parent.access.located = Located(None, (None,))
        scene.iterate()
        assert signal.SIGKILL in [number for _, number in scene.children.sent]


# Files.


def test_a_file_system_that_blocks(two: Scene, capfd: pytest.CaptureFixture[str]) -> None:
    first, _second = two.workers
    silence(two, first, 2.0, blocked=True)
    two.iterate()
    said = "warning: a file system does not respond; sessions are not cached until it does\n"
    assert capfd.readouterr().err.endswith(said)
    two.iterate(2)
    blocked = two.inherited.scoreboard.files_blocked
    assert blocked[0] == 1
    assert [child.uses_files for child in two.counted] == [True, False]
    respond(two, first)
    two.iterate(2)
    assert blocked[0] == 1, "the janitor has not checked the files since"
    two.inherited.scoreboard.note_files_checked(time.monotonic())
    two.iterate()
    assert blocked[0] == 0
    err = capfd.readouterr().err
    assert err.count("a file system does not respond") == 0, "once"
    assert err.count("the file system responds again") == 1


def test_files_stay_blocked_while_any_process_is_stalled(two: Scene) -> None:
    silence(two, two.workers[0], 2.0, blocked=True)
    two.iterate()
    two.inherited.scoreboard.note_files_checked(time.monotonic() + 100)
    two.iterate()
    assert two.inherited.scoreboard.files_blocked[0] == 1


def test_a_worker_that_is_only_stopped_blocks_no_files(two: Scene) -> None:
    silence(two, two.workers[0], 2.0)
    two.iterate(2)
    assert two.inherited.scoreboard.files_blocked[0] == 0
    assert all(child.uses_files for child in two.workers)


def test_a_janitor_that_another_file_blocks(two: Scene) -> None:
    """Sessions are cached on; its successor counts again, once it is there."""
    scoreboard, first = two.inherited.scoreboard, two.janitor
    away = scoreboard.away_from_files(first.slot)
    away.__enter__()
    silence(two, first, 2.0, blocked=True)
    two.iterate(2)
    assert scoreboard.files_blocked[0] == 0
    first.started -= 10
    two.children.blocked.clear()
    two.children.end(first, -signal.SIGKILL)
    two.iterate(2)
    assert two.janitor is not first
    silence(two, two.janitor, 2.0, blocked=True)
    two.iterate()
    assert scoreboard.files_blocked[0] == 1


def test_new_files_mean_new_workers(two: Scene) -> None:
    before = two.workers
    two.tell(Message("renewed"))
    assert drains(two) == before
    two.tell(Message("renewed"))
    two.iterate(2)
    assert drains(two) == before, "each is told once"
    assert len(two.counted) == 2
    assert not set(two.counted) & set(before)


def test_workers_that_drain_do_not_keep_others_from_starting(two: Scene) -> None:
    """There are two slots for each worker. The oldest ones that drain are ended for the next."""
    first = two.workers
    two.tell(Message("renewed"))
    two.iterate(2)
    second = two.counted
    two.tell(Message("renewed"))
    two.iterate()
    assert {c for c, n in two.children.sent if n == signal.SIGTERM} == set(first)
    two.iterate(2)
    assert len(two.counted) == 2
    assert set(two.workers) == {*second, *two.counted}, "those who have room to drain, do"


def test_a_stuck_worker_that_was_to_drain_does_not_count_as_room(two: Scene) -> None:
    first, second = two.workers
    two.tell(Message("renewed"))
    two.iterate(2)
    silence(two, first, 2.0, blocked=True)
    two.tell(Message("renewed"))
    two.iterate(4)
    assert {c for c, n in two.children.sent if n == signal.SIGTERM} >= {second}
    assert len(two.counted) == 2


def test_what_the_janitor_located_goes_to_its_successors_and_to_workers(two: Scene) -> None:
    place = FileLocation(os.dup(0), "other")
    two.tell(Message("located", Located(None, (place,))))
    (plan,) = two.parent.access.inherited.caches
    assert plan.file is not None
    assert plan.file.name == "other"
    assert two.parent.access.located is not None
    for descriptor in two.parent.access.located.descriptors():
        os.close(descriptor)


# The end.


def test_the_end_does_not_spin_on_a_channel_that_has_closed(two: Scene) -> None:
    """Master's status channel is readable from then on; children need the CPU."""
    reader, writer = os.pipe()
    os.close(writer)
    two.parent.watch(reader, two.parent.stop)
    signal_reader, signal_writer = os.pipe()
    os.set_blocking(signal_reader, False)
    two.parent._signal_fd = signal_reader
    began = time.process_time()
    two.parent._ending()._wait_until(lambda: False, 0.5)
    assert time.process_time() - began < 0.25, "of half a second"
    assert len(two.children) == 3
    for descriptor in (reader, signal_reader, signal_writer):
        os.close(descriptor)


def test_nobody_is_replaced_at_the_end(two: Scene) -> None:
    two.parent.stop()
    two.children.end(two.workers[0], 0)
    two.parent._reap()
    assert len(two.workers) == 1
    assert two.parent._restarts.due < time.monotonic()


@pytest.mark.parametrize("stops", [True, False])
def test_a_reload_that_is_asked_for_at_the_end_changes_nothing(two: Scene, stops: bool) -> None:
    parent = two.parent
    (parent.stop if stops else parent.reload)()
    parent.reload()
    assert (parent.is_stopping, parent.is_reloading) == (True, not stops)
    parent.stop()
    assert not parent.is_reloading
