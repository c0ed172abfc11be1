"""Stop or kill a process at each step of taking and giving back a Lock.

The lock's own calls and marks are wrapped in the child, so what runs there is the lock's code.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from tlsmgr.shm import HOLDING, IDLE, RELEASING, WAITING, Lock

Act = Callable[[], None]


class Step(NamedTuple):
    """Where the child ends, and whether it had the semaphore then."""

    name: str
    holds: bool
    arrange: Callable[[Lock, Act], None]


class _Marks:
    """The marks of a lock; `act` is called when `mark` is written: before it, or after."""

    def __init__(self, marks: Any, mark: int, act: Act, before: bool) -> None:
        self._marks, self._mark, self._act, self._before = marks, mark, act, before

    def __setitem__(self, slot: int, mark: int) -> None:
        found = mark == self._mark
        if found:
            self._mark = -1  # the first time only
        if found and self._before:
            self._act()
        self._marks[slot] = mark
        if found and not self._before:
            self._act()


class _Turns:
    """The count of turns; `act` is called before it is read."""

    def __init__(self, turns: Any, act: Act) -> None:
        self._turns, self._act = turns, act

    def __getitem__(self, index: int) -> int:
        self._act()
        turns: int = self._turns[index]
        return turns

    def __setitem__(self, index: int, turns: int) -> None:
        self._turns[index] = turns


def _at_mark(mark: int, before: bool) -> Callable[[Lock, Act], None]:
    def arrange(lock: Lock, act: Act) -> None:
        lock._marks = _Marks(lock._marks, mark, act, before)  # type: ignore[assignment]

    return arrange


def _at_call(attribute: str, before: bool) -> Callable[[Lock, Act], None]:
    def arrange(lock: Lock, act: Act) -> None:
        call = getattr(lock, attribute)

        def wrapped(*arguments: Any) -> None:
            setattr(lock, attribute, call)  # the first time only
            if before:
                act()
            call(*arguments)
            if not before:
                act()

        setattr(lock, attribute, wrapped)

    return arrange


def _at_turn(lock: Lock, act: Act) -> None:
    lock._turns = _Turns(lock._turns, act)  # type: ignore[assignment]


STEPS = (
    Step("before its first mark", False, _at_mark(WAITING, before=True)),
    Step("marked as waiting", False, _at_mark(WAITING, before=False)),
    Step("about to take it", False, _at_call("_take", before=True)),
    Step("taken, not yet marked", True, _at_call("_take", before=False)),
    Step("marked as holding", True, _at_mark(HOLDING, before=False)),
    Step("holding, turn not counted", True, _at_turn),
    Step("about to mark its release", True, _at_mark(RELEASING, before=True)),
    Step("marked as releasing", True, _at_mark(RELEASING, before=False)),
    Step("about to give it back", True, _at_call("_give", before=True)),
    Step("given back, mark not cleared", False, _at_call("_give", before=False)),
    Step("all done", False, _at_mark(IDLE, before=False)),
)
BY_NAME = {step.name: step for step in STEPS}
