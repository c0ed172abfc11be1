"""When a worker that died is replaced, and when the daemon gives up."""

from __future__ import annotations

import signal

import pytest

from tlsmgr.processes.restarts import (
    FIRST_PAUSE,
    FORK_PAUSE,
    LONGEST_PAUSE,
    MAX_FAILED_STARTS,
    YOUNG,
    CannotServe,
    Readiness,
    Restarts,
)
from tlsmgr.processes.worker_start import BOOT_ERROR

KILLED = -signal.SIGKILL


def die_young(restarts: Restarts, *, served: bool = True, code: int = KILLED) -> float:
    """Note the death of a worker that was started a moment ago; return the pause."""
    restarts.note_death(100.0, 99.9, served, code)
    return restarts.due - 100.0


def test_the_first_workers_may_start_at_once() -> None:
    assert Restarts().due == 0.0


def test_pauses_grow_and_are_bounded() -> None:
    restarts = Restarts()
    pauses = [die_young(restarts) for _ in range(10)]
    assert pauses[:3] == pytest.approx([FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE])
    assert pauses == sorted(pauses)
    assert pauses[-1] == pytest.approx(LONGEST_PAUSE)


def test_a_worker_that_grew_old_is_replaced_at_once() -> None:
    restarts = Restarts()
    for _ in range(5):
        die_young(restarts)
    restarts.note_death(100.0, 100.0 - YOUNG, True, KILLED)
    assert restarts.due == 100.0
    assert die_young(restarts) == pytest.approx(FIRST_PAUSE), "from the beginning"


def test_a_fork_that_failed() -> None:
    restarts = Restarts()
    restarts.note_failed_fork(100.0)
    assert restarts.due == 100.0 + FORK_PAUSE


def test_deaths_before_service_end_the_daemon() -> None:
    restarts = Restarts()
    for _ in range(MAX_FAILED_STARTS - 1):
        die_young(restarts, served=False)
    with pytest.raises(CannotServe, match=f"^{MAX_FAILED_STARTS} workers in a row died before"):
        die_young(restarts, served=False)


def test_a_worker_that_can_not_start_ends_the_daemon() -> None:
    with pytest.raises(CannotServe, match="see the messages above"):
        die_young(Restarts(), served=False, code=BOOT_ERROR)


@pytest.mark.parametrize("by_death", [True, False])
def test_nothing_ends_it_after_service(by_death: bool) -> None:
    """Of a worker that lives, or of one that served and died."""
    restarts = Restarts()
    for _ in range(MAX_FAILED_STARTS - 1):
        die_young(restarts, served=False)
    if by_death:
        die_young(restarts, served=True)
    else:
        restarts.note_service()
    for _ in range(3 * MAX_FAILED_STARTS):
        die_young(restarts, served=False)
    die_young(restarts, served=False, code=BOOT_ERROR)


def test_the_first_worker_and_the_last_are_noted_once_each() -> None:
    noted: list[str] = []
    readiness = Readiness(3, lambda: noted.append("first"), lambda: noted.append("all"))
    seen = []
    for serving in (0, 1, 2, 0, 3, 1, 3):
        readiness.note(serving)
        seen.append(len(noted))
    assert (seen, noted) == ([0, 1, 1, 1, 2, 2, 2], ["first", "all"])


def test_the_only_worker_is_the_first_and_the_last() -> None:
    noted: list[str] = []
    Readiness(1, lambda: noted.append("first"), lambda: noted.append("all")).note(1)
    assert noted == ["first", "all"]
