"""Processes beside the workers: who is forked again, when, and for whom files make a difference."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator

import pytest
from support.parent_parts import Scene, parent_of

from tlsmgr.processes.auxiliaries import Auxiliaries, Auxiliary, Start
from tlsmgr.processes.children import Child
from tlsmgr.processes.janitor import Message
from tlsmgr.processes.restarts import FORK_PAUSE, LONGEST_PAUSE, YOUNG


@pytest.fixture
def scene() -> Iterator[Scene]:
    """A parent of one worker that serves, with files."""
    with parent_of(1) as scene:
        scene.make_files()
        scene.iterate(3)
        yield scene


def add(scene: Scene, *, follows_files: bool) -> Callable[[], Child]:
    """Add an auxiliary process; return a function that finds its child."""
    slot = scene.slots.control
    access = scene.parent.access
    auxiliary = Auxiliary(
        "control", slot, lambda _: Start(access.is_allowed(), lambda: 0), follows_files
    )
    scene.parent.add_auxiliary(auxiliary)

    def find() -> Child:
        (child,) = (child for child in scene.children if child.slot == slot)
        return child

    return find


def test_it_is_forked_and_is_no_worker(scene: Scene) -> None:
    find = add(scene, follows_files=False)
    scene.iterate(2)
    assert find().name == "control"
    assert len(scene.counted) == 1


def test_one_that_dies_is_replaced_alone(scene: Scene) -> None:
    find = add(scene, follows_files=False)
    scene.iterate()
    old = find()
    old.started -= YOUNG + 1
    scene.children.end(old, 1)
    janitor, workers = scene.janitor, scene.workers
    scene.iterate(2)
    assert find() is not old
    assert (scene.janitor, scene.workers) == (janitor, workers)


def test_one_that_follows_files_is_ended_when_a_file_was_made_new(scene: Scene) -> None:
    find = add(scene, follows_files=True)
    scene.iterate()
    old = find()
    scene.tell(Message("renewed"))
    assert (old, signal.SIGTERM) in scene.children.sent
    scene.iterate(2)
    assert find() is not old


def test_one_that_started_without_files_is_ended_when_they_can_be_used(scene: Scene) -> None:
    find = add(scene, follows_files=True)
    scene.inherited.scoreboard.files_blocked[0] = 1
    scene.iterate()
    old = find()
    assert not old.uses_files
    scene.inherited.scoreboard.files_blocked[0] = 0
    scene.iterate()
    assert (old, signal.SIGTERM) in scene.children.sent
    scene.iterate(2)
    assert find().uses_files


def test_files_make_no_difference_to_others(scene: Scene) -> None:
    find = add(scene, follows_files=False)
    scene.inherited.scoreboard.files_blocked[0] = 1
    scene.iterate()
    old = find()
    scene.inherited.scoreboard.files_blocked[0] = 0
    scene.iterate(2)
    scene.tell(Message("renewed"))
    scene.iterate(2)
    assert find() is old


def test_one_that_a_file_system_blocks_has_a_substitute(scene: Scene) -> None:
    """In the spare slot, without files, until files can be used again."""
    slots, now = scene.slots, time.monotonic()
    auxiliary = Auxiliary(
        "control",
        slots.control,
        lambda slot: Start(slot == slots.control, lambda: 0),
        follows_files=True,
        spare=slots.spare_control,
    )
    table = Auxiliaries()
    table.add(auxiliary)
    assert [table.of(slot) for slot in (slots.control, slots.spare_control, slots.janitor)] == [
        auxiliary, auxiliary, None,
    ]  # fmt: skip
    first = Child("control", slots.control, 1, now, True)
    second = Child("control", slots.spare_control, 2, now, False)

    def missing(*children: Child, blocked: bool = False) -> list[int]:
        return [slot for _, slot in table.missing(children, blocked, now)]

    assert missing() == [slots.control]
    assert missing(first, blocked=True) == []
    first.stalled = True
    assert missing(first) == [], "it is stopped, or busy"
    assert missing(first, blocked=True) == [slots.spare_control]
    assert missing(first, second, blocked=True) == []
    assert missing(second) == [], "it is to end first"
    auxiliary.due = now + 1
    assert missing(first, blocked=True) == missing() == []


def test_a_substitute_ends_when_files_can_be_used(scene: Scene) -> None:
    slots = scene.slots
    scene.parent.add_auxiliary(
        Auxiliary(
            "control",
            slots.control,
            lambda slot: Start(slot == slots.control, lambda: 0),
            follows_files=True,
            spare=slots.spare_control,
        )
    )
    scene.iterate()
    by_slot = {child.slot: child for child in scene.children}
    blocked = by_slot[slots.control]
    scene.inherited.scoreboard.files_blocked[0] = 1
    blocked.stalled = True
    scene.parent._spawn_missing(time.monotonic())
    substitute = {child.slot: child for child in scene.children}[slots.spare_control]
    assert not substitute.uses_files
    blocked.stalled = False
    scene.inherited.scoreboard.files_blocked[0] = 0
    scene.iterate()
    assert (substitute, signal.SIGTERM) in scene.children.sent
    assert (blocked, signal.SIGTERM) not in scene.children.sent


def test_pauses() -> None:
    now = time.monotonic()
    auxiliary = Auxiliary("control", 4, lambda _: Start(False, lambda: 0))
    auxiliary.note_end(now, now - YOUNG, asked=False)
    assert auxiliary.due == now
    auxiliary.note_end(now, now, asked=True)
    assert auxiliary.due == now
    auxiliary.note_end(now, now - YOUNG / 2, asked=False)
    assert auxiliary.due == now + LONGEST_PAUSE
    auxiliary.note_failed_fork(now)
    assert auxiliary.due == now + FORK_PAUSE
