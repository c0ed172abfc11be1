"""Stop or kill a process at each step of taking and giving back a Lock.

The lock's own calls and marks are wrapped in the child, so what runs there is the lock's code.
"""

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

from tlsmgr.shm import HOLDING, IDLE, WAITING, Lock, UnnamedSemaphore

Act = Callable[[], None]


class Step(NamedTuple):
    """Where the child ends, whether it has the semaphore then, and its mark."""

    name: str
    holds: bool
    mark: int
    arrange: Callable[[Lock, Act], None]


class _Marks:
    """The marks of a lock; `act` is called at a change of a mark: before it, or after."""

    def __init__(self, marks: Any, change: tuple[int, int], act: Act, before: bool) -> None:
        self._marks, self._change, self._act, self._before = marks, change, act, before

    def __setitem__(self, slot: int, mark: int) -> None:
        found = (self._marks[slot], mark) == self._change
        if found:
            self._change = (-1, -1)  # the first time only
        if found and self._before:
            self._act()
        self._marks[slot] = mark
        if found and not self._before:
            self._act()


def _at_change(old: int, new: int, before: bool) -> Callable[[Lock, Act], None]:
    def arrange(lock: Lock, act: Act) -> None:
        lock._marks = _Marks(lock._marks, (old, new), act, before)  # type: ignore[assignment]

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


STEPS = (
    Step("before its first mark", False, IDLE, _at_change(IDLE, WAITING, before=True)),
    Step("marked as waiting", False, WAITING, _at_change(IDLE, WAITING, before=False)),
    Step("about to take it", False, WAITING, _at_call("_take", before=True)),
    Step("taken, not yet marked", True, WAITING, _at_call("_take", before=False)),
    Step("marked as holding", True, HOLDING, _at_change(WAITING, HOLDING, before=False)),
    Step("about to mark its release", True, HOLDING, _at_change(HOLDING, WAITING, before=True)),
    Step("release marked", True, WAITING, _at_change(HOLDING, WAITING, before=False)),
    Step("about to give it back", True, WAITING, _at_call("_give", before=True)),
    Step("given back, mark not cleared", False, WAITING, _at_call("_give", before=False)),
    Step("all done", False, IDLE, _at_change(WAITING, IDLE, before=False)),
)
BY_NAME = {step.name: step for step in STEPS}


def value(lock: Lock) -> int:
    """The value of the lock's semaphore: 1 when it is free."""
    semaphore: Any = lock._take.__self__  # type: ignore[attr-defined]
    if not isinstance(semaphore, UnnamedSemaphore):
        return int(semaphore.value)
    found = ctypes.c_int(-1)
    assert (
        ctypes.CDLL(None).sem_getvalue(ctypes.c_void_p(semaphore._address), ctypes.byref(found))
        == 0
    )
    return found.value
