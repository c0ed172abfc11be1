"""The lock: exclusion, and recovery from processes that are killed or stopped at each step."""

import os
import random
import signal
import time
from types import SimpleNamespace

import pytest
from support.lock_steps import BY_NAME, STEPS, Step, value
from support.memory_kinds import kind as kind
from support.prng_children import die, fork, kill, reap, stop, wait_until_stopped
from support.prng_children import no_child_is_left as no_child_is_left
from support.prng_fixtures import lock as lock
from support.prng_fixtures import memory as memory

from tlsmgr import shm
from tlsmgr.shm import (
    HOLDING,
    IDLE,
    LONGEST_NAP,
    LOST_AFTER,
    NAP,
    WAITING,
    Lock,
    Recovery,
    SharedMemory,
)

CLEAN, FREED, IN_DOUBT, LOST = Recovery
NOW = 1000.0

pytestmark = pytest.mark.usefixtures("kind")


def steps(*, holds: bool, mark: int) -> list[Step]:
    """The steps at which a child has the semaphore, or not, and this mark."""
    return [step for step in STEPS if (step.holds, step.mark) == (holds, mark)]


def step_name(step: Step) -> str:
    """The name of a step in pytest's output."""
    return step.name


def assert_free(lock: Lock) -> None:
    """The lock can be had by exactly one, no mark is left, and there is no doubt."""
    assert value(lock) == 1
    assert bytes(lock._marks) == bytes(len(lock._marks))
    assert lock.settle(NOW + 10 * LOST_AFTER) is CLEAN
    assert lock.acquire(0, 0)
    assert value(lock) == 0
    lock.release(0)


def assert_lost(lock: Lock) -> None:
    """The lock stays in doubt for its time, not less and not more, and reset() frees it."""
    assert lock.settle(NOW + 0.99 * LOST_AFTER) is IN_DOUBT
    assert value(lock) == 0
    assert lock.settle(NOW + LOST_AFTER) is LOST
    assert lock.settle(NOW + 2 * LOST_AFTER) is LOST
    assert value(lock) == 0
    lock.reset()
    assert_free(lock)


def use(lock: Lock, slot: int, timeout: float = 30) -> None:
    """Take the lock and give it back."""
    assert lock.acquire(slot, timeout)
    lock.release(slot)


def killed_at(lock: Lock, slot: int, step: Step, timeout: float = 30) -> int:
    """Kill a child that uses the lock at `step`; return -1 if it could not get that far."""

    def work() -> None:
        step.arrange(lock, die)
        use(lock, slot, timeout)

    return -reap(fork(work))


def stopped_at(lock: Lock, slot: int, step: Step) -> int:
    """Stop a child that uses the lock at `step`; return its pid."""

    def work() -> None:
        step.arrange(lock, stop)
        use(lock, slot)

    pid = fork(work)
    wait_until_stopped(pid)
    return pid


def waiting(lock: Lock, slot: int) -> int:
    """Start a child that waits for the lock, which is taken, and uses it then; return its pid."""
    reader, writer = os.pipe()

    def say_so() -> None:
        os.write(writer, b"x")

    def work() -> None:
        BY_NAME["about to take it"].arrange(lock, say_so)
        use(lock, slot)

    pid = fork(work)
    assert os.read(reader, 1) == b"x"
    os.close(reader)
    os.close(writer)
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


def test_a_waiter_pauses_longer_and_longer_within_its_time(
    lock: Lock, monkeypatch: pytest.MonkeyPatch
) -> None:
    naps: list[float] = []
    clock = SimpleNamespace(sleep=naps.append, monotonic=lambda: sum(naps))
    monkeypatch.setattr(shm, "time", clock)
    lock._take(0)
    assert not lock.acquire(1, 0.0105)
    assert naps[:3] == [NAP, 2 * NAP, 4 * NAP]
    assert max(naps) == LONGEST_NAP
    assert sum(naps) == pytest.approx(0.0105)


def test_a_waiter_gets_it_when_it_is_given_back(lock: Lock) -> None:
    assert lock.acquire(0, 0)
    waiter = waiting(lock, 1)
    time.sleep(0.02)  # as a rule it pauses between two tries by then
    lock.release(0)
    assert reap(waiter) == 0
    assert_free(lock)


def test_two_locks_are_apart(memory: SharedMemory, lock: Lock) -> None:
    other = Lock(memory, 9)
    assert lock.acquire(0, 0)
    assert other.acquire(0, 0)


def test_nothing_to_recover(lock: Lock) -> None:
    assert lock.recover(3, NOW) is CLEAN
    assert lock.acquire(1, 0)
    assert lock.recover(3, NOW) is CLEAN
    lock.release(1)
    assert_free(lock)


# Killed


@pytest.mark.parametrize("step", STEPS, ids=step_name)
def test_killed_at_each_step(lock: Lock, step: Step) -> None:
    assert killed_at(lock, 1, step) == signal.SIGKILL
    assert value(lock) == (not step.holds)
    assert lock._marks[1] == step.mark
    found = lock.recover(1, NOW)
    if step.mark == HOLDING:
        assert found is FREED
    else:
        assert found is (IN_DOUBT if step.holds else CLEAN)
    if found is IN_DOUBT:
        assert_lost(lock)
    assert_free(lock)
    assert lock.recover(1, NOW) is CLEAN
    assert_free(lock)


@pytest.mark.parametrize("first", STEPS, ids=step_name)
@pytest.mark.parametrize("reverse", [False, True], ids=["in order", "in reverse"])
def test_two_killed_before_the_first_is_recovered(lock: Lock, first: Step, reverse: bool) -> None:
    for second in STEPS:
        assert killed_at(lock, 1, first) == signal.SIGKILL
        ended = killed_at(lock, 2, second, timeout=0.01)
        assert ended == signal.SIGKILL or first.holds
        taken, marked = value(lock) == 0, HOLDING in bytes(lock._marks)
        assert taken == (first.holds or second.holds)
        found = [lock.recover(slot, NOW) for slot in ((2, 1) if reverse else (1, 2))]
        assert found.count(FREED) == marked
        if taken and not marked:
            assert_lost(lock)
        assert_free(lock)


@pytest.mark.parametrize("step", steps(holds=True, mark=HOLDING), ids=step_name)
def test_live_waiters_go_on_after_a_recovery(lock: Lock, step: Step) -> None:
    assert killed_at(lock, 1, step) == signal.SIGKILL
    waiters = [waiting(lock, slot) for slot in (2, 3, 4)]
    assert lock.recover(1, NOW) is FREED
    assert [reap(pid) for pid in waiters] == [0, 0, 0]
    assert_free(lock)


@pytest.mark.parametrize("step", steps(holds=True, mark=WAITING), ids=step_name)
def test_live_waiters_do_not_hide_that_it_is_lost(lock: Lock, step: Step) -> None:
    assert killed_at(lock, 1, step) == signal.SIGKILL
    waiters = [waiting(lock, slot) for slot in (2, 3, 4)]
    assert lock.recover(1, NOW) is IN_DOUBT
    for tenth in range(10):
        assert lock.settle(NOW + LOST_AFTER * tenth / 10) is IN_DOUBT
        time.sleep(0.005)
    assert lock.settle(NOW + LOST_AFTER) is LOST
    for slot, pid in enumerate(waiters, 2):
        kill(pid)
        assert lock.recover(slot, NOW + LOST_AFTER) is LOST
    lock.reset()
    assert_free(lock)


def test_the_time_in_doubt_is_that_of_the_first_death(lock: Lock) -> None:
    assert killed_at(lock, 1, BY_NAME["taken, not yet marked"]) == signal.SIGKILL
    assert lock.recover(1, NOW) is IN_DOUBT
    assert killed_at(lock, 2, BY_NAME["marked as waiting"]) == signal.SIGKILL
    assert lock.recover(2, NOW + 0.9 * LOST_AFTER) is IN_DOUBT
    assert_lost(lock)


def test_a_holder_that_dies_ends_the_doubt(lock: Lock) -> None:
    """There is one semaphore: a process that died before did not have it."""
    assert lock.acquire(3, 0)
    lock._marks[3] = WAITING  # it has just taken it
    assert killed_at(lock, 1, BY_NAME["marked as waiting"]) == signal.SIGKILL
    assert lock.recover(1, NOW) is IN_DOUBT
    lock._marks[3] = HOLDING
    assert lock.recover(3, NOW) is FREED
    lock._take(0)  # a live process, which has not marked it yet
    assert lock.settle(NOW + LOST_AFTER) is CLEAN
    lock._give()
    assert_free(lock)


def test_a_slot_is_used_again_while_the_lock_is_in_doubt(lock: Lock) -> None:
    assert killed_at(lock, 1, BY_NAME["taken, not yet marked"]) == signal.SIGKILL
    assert lock.recover(1, NOW) is IN_DOUBT
    assert killed_at(lock, 1, BY_NAME["marked as waiting"]) == signal.SIGKILL
    assert lock.recover(1, NOW) is IN_DOUBT
    assert_lost(lock)


def test_reset_of_a_free_lock(lock: Lock) -> None:
    lock._marks[5] = WAITING
    lock.reset()
    assert_free(lock)


# Stopped


def test_a_stopped_holder_keeps_the_lock(lock: Lock) -> None:
    holder = stopped_at(lock, 1, BY_NAME["marked as holding"])
    assert killed_at(lock, 2, BY_NAME["marked as waiting"]) == signal.SIGKILL
    assert lock.recover(2, NOW) is CLEAN
    assert value(lock) == 0
    os.kill(holder, signal.SIGCONT)
    assert reap(holder) == 0
    assert_free(lock)


@pytest.mark.parametrize("step", steps(holds=True, mark=WAITING), ids=step_name)
@pytest.mark.parametrize("dead", ["marked as waiting", "about to take it"])
def test_a_holder_stopped_between_two_steps_is_not_robbed(
    lock: Lock, step: Step, dead: str
) -> None:
    holder = stopped_at(lock, 1, step)
    assert killed_at(lock, 2, BY_NAME[dead]) == signal.SIGKILL
    assert lock.recover(2, NOW) is IN_DOUBT
    for tenth in range(20):
        assert lock.settle(NOW + LOST_AFTER * tenth / 10) is (LOST if tenth >= 10 else IN_DOUBT)
        assert value(lock) == 0
    os.kill(holder, signal.SIGCONT)
    assert reap(holder) == 0
    assert lock.settle(NOW + 3 * LOST_AFTER) is CLEAN
    assert_free(lock)


def test_a_live_holder_ends_the_doubt(lock: Lock) -> None:
    holder = stopped_at(lock, 1, BY_NAME["taken, not yet marked"])
    assert killed_at(lock, 2, BY_NAME["marked as waiting"]) == signal.SIGKILL
    assert lock.recover(2, NOW) is IN_DOUBT
    lock._marks[1] = HOLDING  # its next step
    assert lock.settle(NOW) is CLEAN
    lock._marks[1] = WAITING
    assert lock.settle(NOW + LOST_AFTER) is CLEAN, "the doubt is over"
    assert value(lock) == 0
    os.kill(holder, signal.SIGCONT)
    assert reap(holder) == 0
    assert_free(lock)


# Killed at random


class Crowd:
    """Four processes that hammer the lock, killed and started again as the parent does it."""

    HASTE = 20.0  # a lock in doubt counts as lost in this fraction of the time

    def __init__(self, lock: Lock, owner: memoryview) -> None:
        self._lock, self._owner = lock, owner
        self.children = {slot: self._start(slot) for slot in range(1, 5)}
        self.freed = self.lost = 0

    def _start(self, slot: int) -> int:
        return fork(lambda: self._hammer(slot))

    def _hammer(self, slot: int) -> None:
        """Use the lock for ever; end when somebody else is in the section."""
        while self._lock.acquire(slot, 30):
            self._owner[0] = slot
            for _ in range(20):
                assert self._owner[0] == slot, "two are in the section"
            self._lock.release(slot)

    def end(self, slots: list[int]) -> None:
        """Kill these, and look what they left."""
        for slot in slots:
            kill(self.children.pop(slot))
        for slot in slots:
            self.freed += self._lock.recover(slot, self._now()) is FREED
            assert value(self._lock) <= 1

    def start_again(self) -> None:
        """Start what is missing."""
        for slot in {1, 2, 3, 4} - self.children.keys():
            self.children[slot] = self._start(slot)

    def settle(self) -> None:
        """Wait until there is no doubt; if the lock is lost, end all and make it free."""
        while (found := self._lock.settle(self._now())) is not CLEAN:
            if found is LOST:
                self.end(list(self.children))
                self._lock.reset()
                self.lost += 1
            time.sleep(0.001)
        self.start_again()

    def _now(self) -> float:
        return time.monotonic() * self.HASTE


def kill_at_random(lock: Lock, owner: memoryview, kills: int, seed: int) -> tuple[int, int]:
    """Kill one or two at a time; return how often the lock was freed, and lost."""
    dice = random.Random(seed)
    crowd = Crowd(lock, owner)
    for _ in range(kills):
        time.sleep(dice.random() * 0.004)
        crowd.end(dice.sample(sorted(crowd.children), dice.choice((1, 1, 2))))
        crowd.start_again()
        crowd.settle()
    crowd.end(list(crowd.children))
    if lock.settle(time.monotonic() * crowd.HASTE) is not CLEAN:
        lock.reset()
    assert_free(lock)
    return crowd.freed, crowd.lost


def test_killed_at_random(memory: SharedMemory, lock: Lock) -> None:
    freed, _ = kill_at_random(lock, memory.carve(1), kills=60, seed=1)
    assert freed > 0


@pytest.mark.long
def test_killed_at_random_for_long(memory: SharedMemory, lock: Lock) -> None:
    freed, lost = kill_at_random(lock, memory.carve(1), kills=10000, seed=2)
    assert freed > lost > 0
