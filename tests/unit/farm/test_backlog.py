"""The queue of writes: its bounds, its order, and entries that expire while they wait."""

from __future__ import annotations

from tlsmgr.farm.backlog import MOST_BYTES, MOST_ENTRIES, Backlog, Write


def store(number: int, size: int = 10, end: float = 100.0) -> Write:
    return Write((b"%d" % number,), bytes(size), end)


def keys(writes: list[Write]) -> list[int]:
    return [int(write.keys[0]) for write in writes]


def test_the_oldest_is_dropped_and_counted() -> None:
    backlog = Backlog()
    for number in range(MOST_ENTRIES + 3):
        backlog.add(store(number))
    assert (len(backlog), backlog.dropped) == (MOST_ENTRIES, 3)
    assert keys(backlog.take(2, MOST_BYTES, 0.0)) == [3, 4]


def test_bytes_are_bounded_too() -> None:
    backlog = Backlog()
    for number in range(200):
        backlog.add(store(number, 65536))
        assert backlog.size <= MOST_BYTES
    assert backlog.dropped == 200 - len(backlog)
    assert keys(backlog.take(1000, 1 << 30, 0.0))[-1] == 199
    assert (len(backlog), backlog.size) == (0, 0)


def test_it_gives_a_part_at_a_time_in_order() -> None:
    backlog = Backlog()
    for number in range(10):
        backlog.add(store(number, 1000))
    assert keys(backlog.take(3, 1 << 20, 0.0)) == [0, 1, 2]
    assert keys(backlog.take(100, 1500, 0.0)) == [3, 4]
    assert keys(backlog.take(100, 1, 0.0)) == [5], "always at least one"


def test_what_has_expired_is_not_written() -> None:
    backlog = Backlog()
    backlog.add(store(1, end=10.0))
    backlog.add(Write((b"2",), None, 0.0))
    backlog.add(store(3, end=30.0))
    assert keys(backlog.take(100, 1 << 20, 20.0)) == [2, 3], "a delete does not expire"
    assert backlog.dropped == 0


def test_no_session_in_a_repr() -> None:
    assert "session" not in repr(Write((b"id",), b"session", 1.0))
