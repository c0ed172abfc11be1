"""The breaker: when it opens, how long the pauses are, and what is reported."""

from __future__ import annotations

import random

import pytest

from tlsmgr.farm.breaker import FAILURES, LONGEST_PAUSE, Breaker


def closed(draw: float = 0.0) -> Breaker:
    breaker = Breaker(0.0, lambda: draw)
    assert breaker.note_success(0.0)
    return breaker


def test_the_first_probe_decides() -> None:
    breaker = Breaker(5.0, lambda: 0.0)
    assert breaker.is_open
    assert breaker.probe_due == 5.0
    assert breaker.note_failure(5.0), "an engine that is not there at the start is reported"
    assert breaker.probe_due == 6.0
    assert breaker.note_success(6.0)
    assert not breaker.is_open


def test_five_failures_in_a_row_open_it() -> None:
    breaker = closed()
    for _ in range(3):
        assert not any(breaker.note_failure(1.0) for _ in range(FAILURES - 1))
        assert not breaker.note_success(1.0)
    for _ in range(FAILURES - 1):
        breaker.note_failure(1.0)
    assert not breaker.is_open
    assert breaker.note_failure(1.0)
    assert breaker.is_open


def test_a_stall_opens_it_at_once() -> None:
    breaker = closed()
    assert breaker.note_stall(100.0)
    assert (breaker.is_open, breaker.probe_due) == (True, 101.0)


def test_pauses_double_up_to_the_longest_and_are_reported_once() -> None:
    breaker = closed()
    now, pauses, reports = 100.0, [], [breaker.note_stall(100.0)]
    for _ in range(8):
        pauses.append(breaker.probe_due - now)
        now = breaker.probe_due
        reports.append(breaker.note_failure(now))
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    assert reports == [True] + 8 * [False]
    assert breaker.note_success(now)
    assert breaker.note_stall(now + LONGEST_PAUSE + 1), "the next time is another report"
    assert breaker.probe_due == now + LONGEST_PAUSE + 1 + 1


def test_it_is_left_alone_longer_when_it_fails_again_at_once() -> None:
    breaker = closed()
    breaker.note_stall(100.0)
    breaker.note_success(101.0)
    breaker.note_stall(102.0)
    assert breaker.probe_due == 104.0


@pytest.mark.parametrize("draw", [0.0, 0.5, 1.0])
def test_jitter_shortens_a_pause_by_up_to_a_half(draw: float) -> None:
    breaker = closed(draw)
    breaker.note_stall(100.0)
    assert breaker.probe_due == 100.0 + (1 - draw / 2)


def test_it_never_waits_longer_than_the_longest_pause() -> None:
    numbers = random.Random(1)
    breaker = Breaker(0.0, numbers.random)
    now = 0.0
    for _ in range(1000):
        act = numbers.choice([breaker.note_failure, breaker.note_stall, breaker.note_success])
        act(now)
        assert breaker.probe_due <= now + LONGEST_PAUSE
        now += numbers.random()
