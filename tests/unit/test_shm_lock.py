"""The lock: exclusion, and recovery from processes that are killed or stopped at each step."""

import os
import random
import signal
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from support.lock_steps import BY_NAME, STEPS, Step
from support.prng_children import die, fork, kill, reap, stop, wait_for, wait_until_stopped
from support.prng_children import no_child_is_left as no_child_is_left
from support.prng_fixtures import lock as lock
from support.prng_fixtures import memory as memory

from tlsmgr import shm
from tlsmgr.shm import HOLDING, IDLE, RELEASING, STILL_WAITING, WAITING, Lock, SharedMemory


def value(lock: Lock) -> int:
    """The semaphore's value."""
    found: int = lock._take.__self__.value
    return found


def assert_free(lock: Lock) -> None:
    """The lock can be had by exactly one, and no mark is left."""
    assert value(lock) == 1
    assert bytes(lock._marks) == bytes(len(lock._marks))
    assert lock.acquire(0, 0)
    assert value(lock) == 0
    lock.release(0)


def use(lock: Lock, slot: int, timeout: float = 30) -> None:
    """Take the lock and give it back."""
    assert lock.acquire(slot, timeout)
    lock.release(slot)


def killed_at(lock: Lock, slot: int, step: Step, timeout: float = 30) -> int:
    """Kill a child that uses the lock at `step`; return 0 when it could not get that far."""

    def work() -> None:
        step.arrange(lock, die)
        use(lock, slot, timeout)

    return -reap(fork(work))


def stopped_at(lock: Lock, slot: int, step: Step, timeout: float = 30) -> int:
    """Stop a child that uses the lock at `step`; return its pid."""

    def work() -> None:
        step.arrange(lock, stop)
        use(lock, slot, timeout)

    pid = fork(work)
    wait_until_stopped(pid)
    return pid


def test_lock_excludes(memory: SharedMemory, lock: Lock) -> None:
    count = memory.carve(8).cast("Q")

    def add(slot: int) -> None:
        for _ in range(5000):
            assert lock.acquire(slot, 30)
            seen = count[0]
            count[0] = seen + 1
            lock.release(slot)

    children = [fork(lambda slot=slot: add(slot)) for slot in range(1, 5)]  # type: ignore[misc]
    assert [reap(pid) for pid in children] == [0] * 4
    assert count[0] == 20000
    assert_free(lock)


def test_lock_times_out(lock: Lock) -> None:
    assert lock.acquire(0, 0)
    for timeout in (0, 0.001, 0.05):
        start = time.monotonic()
        assert not lock.acquire(1, timeout)
        assert time.monotonic() - start >= timeout
    assert lock._marks[1] == IDLE
    lock.release(0)
    assert_free(lock)


def test_two_locks_are_apart(memory: SharedMemory, lock: Lock) -> None:
    other = Lock(memory, 9)
    assert lock.acquire(0, 0)
    assert other.acquire(0, 0)


def test_nothing_to_recover(lock: Lock) -> None:
    assert not lock.recover(3)
    assert lock.acquire(1, 0)
    assert not lock.recover(3)
    lock.release(1)
    assert_free(lock)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_killed_at_each_step(lock: Lock, step: Step) -> None:
    assert killed_at(lock, 1, step) == signal.SIGKILL
    assert value(lock) == (not step.holds)
    assert lock.recover(1) == step.holds
    assert_free(lock)
    assert not lock.recover(1)
    assert_free(lock)


@pytest.mark.parametrize("first", STEPS, ids=lambda step: step.name)
@pytest.mark.parametrize("reverse", [False, True], ids=["in order", "in reverse"])
def test_two_killed_before_the_first_is_recovered(lock: Lock, first: Step, reverse: bool) -> None:
    for second in STEPS:
        assert killed_at(lock, 1, first) == signal.SIGKILL
        ended = killed_at(lock, 2, second, timeout=0.01)
        assert ended == signal.SIGKILL or first.holds
        freed = [lock.recover(slot) for slot in ((2, 1) if reverse else (1, 2))]
        assert sum(freed) == (first.holds or second.holds)
        assert_free(lock)


@pytest.mark.parametrize("step", [step for step in STEPS if step.holds], ids=lambda s: s.name)
def test_live_waiters_go_on_after_a_recovery(lock: Lock, step: Step) -> None:
    assert killed_at(lock, 1, step) == signal.SIGKILL
    waiters = [fork(lambda slot=slot: use(lock, slot)) for slot in (2, 3, 4)]  # type: ignore[misc]
    wait_for(lambda: all(lock._marks[slot] != IDLE for slot in (2, 3, 4)), "waiters wait")
    wait_for(lambda: recovered(lock, 1), "the lock is freed")
    assert [reap(pid) for pid in waiters] == [0, 0, 0]
    assert_free(lock)


def recovered(lock: Lock, slot: int) -> bool:
    """Recover as the parent does, at each turn of its loop while the question is open."""
    return lock.recover(slot) or (not lock._undecided and value(lock) == 1)


def test_a_stopped_holder_keeps_the_lock(lock: Lock) -> None:
    holder = stopped_at(lock, 1, BY_NAME["marked as holding"])
    assert killed_at(lock, 2, BY_NAME["marked as waiting"]) == signal.SIGKILL
    assert not lock.recover(2)
    assert value(lock) == 0
    os.kill(holder, signal.SIGCONT)
    assert reap(holder) == 0
    assert_free(lock)


@pytest.mark.parametrize(
    "step", ["taken, not yet marked", "marked as releasing", "about to give it back"]
)
@pytest.mark.parametrize("dead", ["marked as waiting", "about to take it"])
def test_a_holder_stopped_between_two_steps_is_not_robbed(lock: Lock, step: str, dead: str) -> None:
    holder = stopped_at(lock, 1, BY_NAME[step])
    assert killed_at(lock, 2, BY_NAME[dead]) == signal.SIGKILL
    for _ in range(3):
        assert not lock.recover(2)
        assert value(lock) == 0
    os.kill(holder, signal.SIGCONT)
    assert reap(holder) == 0
    assert not lock.recover(0)
    assert_free(lock)


@pytest.mark.parametrize("dead", ["taken, not yet marked", "about to give it back"])
def test_a_stopped_waiter_only_delays_the_decision(lock: Lock, dead: str) -> None:
    assert killed_at(lock, 1, BY_NAME[dead]) == signal.SIGKILL
    waiter = stopped_at(lock, 2, BY_NAME["marked as waiting"])
    assert not lock.recover(1)  # it could be the waiter that has it
    assert value(lock) == 0
    os.kill(waiter, signal.SIGCONT)
    wait_for(lambda: lock.recover(0), "the lock is freed")
    assert reap(waiter) == 0
    assert_free(lock)


def test_a_killed_waiter_ends_the_delay(lock: Lock) -> None:
    assert killed_at(lock, 1, BY_NAME["taken, not yet marked"]) == signal.SIGKILL
    waiter = stopped_at(lock, 2, BY_NAME["marked as waiting"])
    assert not lock.recover(1)
    kill(waiter)
    assert lock.recover(2)
    assert_free(lock)


def test_the_parent_decides_when_it_needs_the_lock(lock: Lock) -> None:
    assert killed_at(lock, 1, BY_NAME["taken, not yet marked"]) == signal.SIGKILL
    waiter = stopped_at(lock, 2, BY_NAME["marked as waiting"], timeout=0)
    assert not lock.recover(1)
    os.kill(waiter, signal.SIGCONT)
    assert reap(waiter) == 1  # it gave up
    assert lock.acquire(0, 0.01)
    assert value(lock) == 0
    lock.release(0)
    assert_free(lock)


def test_a_slot_is_used_again_while_the_question_is_open(lock: Lock) -> None:
    assert killed_at(lock, 1, BY_NAME["taken, not yet marked"]) == signal.SIGKILL
    waiter = stopped_at(lock, 2, BY_NAME["marked as waiting"])
    assert not lock.recover(1)
    successor = fork(lambda: use(lock, 1))
    kill(waiter)
    wait_for(lambda: lock.recover(2), "the lock is freed")
    assert reap(successor) == 0
    assert_free(lock)


def passes_from_1_to_3_after_a_turn(lock: Lock) -> None:
    """1 says that it has the lock and gives it back; 3, which waited, takes it and stops there."""
    lock._turns[0] += 1
    lock._marks[1] = IDLE
    lock._marks[3] = STILL_WAITING


def passes_from_1_to_3(lock: Lock) -> None:
    """1, which was about to, gives it back; 3, which waited, takes it and stops there."""
    lock._marks[1] = IDLE
    lock._marks[3] = STILL_WAITING


def is_about_to_be_given_back_by_1(lock: Lock) -> None:
    """1 is about to give it back, and stops there; 3 waits on."""
    lock._marks[1] = RELEASING
    lock._marks[3] = STILL_WAITING


@pytest.mark.parametrize(
    ("mark", "then"),
    [
        (WAITING, passes_from_1_to_3_after_a_turn),
        (RELEASING, passes_from_1_to_3),
        (HOLDING, is_about_to_be_given_back_by_1),
    ],
)
def test_a_lock_that_moves_while_we_look_is_not_freed(
    lock: Lock, monkeypatch: pytest.MonkeyPatch, mark: int, then: Callable[[Lock], None]
) -> None:
    """What live processes do between two looks at their marks, played by the test."""
    lock._take(0)  # as 1 did, or is about to say
    lock._marks[1], lock._marks[2], lock._marks[3] = mark, WAITING, WAITING
    todo = [then]

    def sleep(_: float) -> None:
        if todo:
            todo.pop()(lock)

    monkeypatch.setattr(shm, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    assert not lock.recover(2)
    assert value(lock) == 0


def hammer(lock: Lock, slot: int, owner: memoryview) -> None:
    """Use the lock for ever; end when somebody else is in the section."""
    while lock.acquire(slot, 30):
        owner[0] = slot
        for _ in range(20):
            assert owner[0] == slot, "two are in the section"
        lock.release(slot)


def kill_at_random(lock: Lock, owner: memoryview, kills: int, seed: int) -> int:
    """Kill processes that hammer the lock, one or two at a time; return how often it was freed."""
    dice = random.Random(seed)
    children = {slot: fork(lambda slot=slot: hammer(lock, slot, owner)) for slot in range(1, 5)}  # type: ignore[misc]
    freed = 0
    try:
        for _ in range(kills):
            time.sleep(dice.random() * 0.004)
            victims = dice.sample(sorted(children), dice.choice((1, 1, 2)))
            for slot in victims:
                kill(children.pop(slot))
            freed += sum([lock.recover(slot) for slot in victims])
            assert value(lock) <= 1
            for slot in victims:
                children[slot] = fork(lambda slot=slot: hammer(lock, slot, owner))  # type: ignore[misc]
    finally:
        for pid in children.values():
            kill(pid)
    freed += sum([lock.recover(slot) for slot in children])
    assert_free(lock)
    return freed


def test_killed_at_random(memory: SharedMemory, lock: Lock) -> None:
    assert kill_at_random(lock, memory.carve(1), kills=150, seed=1) > 0


@pytest.mark.long
def test_killed_at_random_for_long(memory: SharedMemory, lock: Lock) -> None:
    assert kill_at_random(lock, memory.carve(1), kills=10000, seed=2) > 0
