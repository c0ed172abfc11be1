"""When a connection of a worker that drains may be closed: in a pause of its client."""

from __future__ import annotations

import pytest

from tlsmgr.processes.drain import DRAIN_TIME, IDLE_TIME, Drain

BEGAN = 1000.0


def closed_after(busy_for: float, pause: float, period: float) -> tuple[float, float]:
    """When, and in which silence, the connection is closed of a client with these habits.

    Each period begins with requests every 5 ms, and ends with the pause.
    """
    drain = Drain(BEGAN)
    now = last = BEGAN
    while not drain.is_over(now):
        at = now - BEGAN
        if at < busy_for and at % period < period - pause:
            drain.note([(7, 1)], now)
            last = now
        elif drain.may_close(7, now):
            return now - BEGAN, now - last
        now += min(0.005, drain.timeout(now) or 0.005)
    return DRAIN_TIME, now - last


def test_a_client_that_is_silent_gets_its_idle_time() -> None:
    at, _ = closed_after(0.0, 0.0, 1.0)
    assert at == pytest.approx(IDLE_TIME, abs=0.02)


@pytest.mark.parametrize("busy_for", [1.0, 4.0, 6.0, 8.0])
def test_one_that_was_busy_for_a_while(busy_for: float) -> None:
    at, silence = closed_after(busy_for, 0.0, 1.0)
    assert at < DRAIN_TIME - 0.1
    assert silence >= 0.3


@pytest.mark.parametrize(("pause", "period"), [(0.05, 0.1), (0.2, 0.3), (0.5, 2.0), (1.5, 2.0)])
def test_one_that_is_never_idle_for_long(pause: float, period: float) -> None:
    """It is closed in a pause, and has some of the pause left to notice."""
    at, silence = closed_after(DRAIN_TIME, pause, period)
    assert IDLE_TIME <= at < DRAIN_TIME
    assert 0.01 < silence < pause - 0.003


def test_nobody_keeps_it_for_longer() -> None:
    drain = Drain(BEGAN)
    assert not drain.is_over(BEGAN + DRAIN_TIME - 0.01)
    assert drain.is_over(BEGAN + DRAIN_TIME)
    assert drain.timeout(BEGAN + DRAIN_TIME + 1) == 0.0


def test_it_looks_more_often_towards_the_end() -> None:
    """But not more often than ten times a second before; each look costs CPU time."""
    drain = Drain(BEGAN)
    delays = [drain.timeout(BEGAN + DRAIN_TIME - left) for left in (10.0, 5.0, 1.0, 0.1, 0.01)]
    assert delays == pytest.approx([0.1, 0.1, 0.02, 0.002, 0.0002])


def test_each_connection_by_itself() -> None:
    drain = Drain(BEGAN)
    drain.note([(3, 1), (4, 1)], BEGAN + IDLE_TIME)
    drain.note([(4, 1)], BEGAN + 9.0)
    assert [drain.may_close(fd, BEGAN + 9.1) for fd in (3, 4, 5)] == [True, False, True]
