"""The map of a session file: it ends where the disk's promise ends, and all processes follow it."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.cache_files import MIB, CacheFiles, held_open, in_child
from support.small_disks import fill_up

from tlsmgr.sessions.cache import Change, SessionCache
from tlsmgr.sessions.extent import STEP

WRITERS, SESSIONS = 4, 1500
SECONDS_OF_DICE = 20.0


def name(writer: int, number: int) -> bytes:
    return b"writer %d, session %d" % (writer, number)


def store_some(cache: SessionCache, writer: int, first: int, count: int, size: int = 1200) -> None:
    for number in range(first, first + count):
        assert cache.apply([Change(name(writer, number), bytes(size))], 0) == [True]


def is_kept(cache: SessionCache, writer: int, number: int) -> bool:
    session = cache.lookup(name(writer, number), 0)
    cache.end_reading()
    return session is not None


def all_at_once(*works: Callable[[], None]) -> None:
    """Each in a process of its own; their exceptions and signals fail the test."""
    pids = []
    for work in works:
        pid = os.fork()
        if pid == 0:
            try:
                in_child(work)  # which is ended when it hangs
                os._exit(0)
            finally:
                os._exit(1)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * len(works)


# ------------------------------------------------------------------------------------ many at once


def test_what_others_made_the_file_grow_by_is_seen(tmp_path: Path) -> None:
    """A process whose map is too short follows, to read and to write."""
    files = CacheFiles(tmp_path, size_limit=64 * MIB)

    here, there = socket.socketpair()

    def grow() -> None:
        cache = files.cache()
        for _ in range(2):
            first = int(there.recv(10))
            store_some(cache, 1, first, SESSIONS)
            there.send(b"done")

    def look() -> None:
        cache = files.cache()
        store_some(cache, 2, 0, 1)
        for first in (0, SESSIONS):
            assert not is_kept(cache, 1, first)
            here.send(b"%d" % first)
            assert here.recv(10) == b"done"
            if first:
                store_some(cache, 2, 1, 1)  # here it is the write that finds the map too short
            assert is_kept(cache, 1, first + SESSIONS - 1)
        assert is_kept(cache, 2, 0)
        assert is_kept(cache, 2, 1)

    all_at_once(grow, look)
    assert files.path.stat().st_size > 10 * STEP
    here.close()
    there.close()
    files.remove()


def test_all_may_make_it_grow_at_once(tmp_path: Path) -> None:
    """Nothing is lost, while others open the file and close it again."""
    files = CacheFiles(tmp_path, size_limit=64 * MIB)

    def write(writer: int) -> Callable[[], None]:
        return lambda: store_some(files.cache(), writer, 0, SESSIONS)

    def come_and_go() -> None:
        for _ in range(200):
            files.cache()

    all_at_once(*map(write, range(WRITERS)), come_and_go, come_and_go)
    cache = files.cache()
    for writer in range(WRITERS):
        assert all(is_kept(cache, writer, number) for number in range(SESSIONS))
    assert not files.shared.take_damage()
    files.remove()


# --------------------------------------------------------------------------------------- full disk


def test_pinned_pages_on_a_full_disk(small_disk: Path) -> None:
    """Pages that a stopped reader still sees can't be used again, and there are no others."""
    files = CacheFiles(small_disk, size_limit=64 * MIB)

    def write_on() -> bool:
        cache = files.cache()
        store_some(cache, 2, 0, 500)
        return is_kept(cache, 2, 499)

    def write_again() -> bool:
        cache = files.cache()
        for _ in range(3):
            store_some(cache, 3, 0, 50)
        return is_kept(cache, 3, 49)

    store_some(files.cache(), 1, 0, 300)
    files.close()
    with held_open(files, reading=True):
        fill_up(small_disk)
        assert not in_child(write_on), "there was still room"
    assert in_child(write_again)
    assert not files.shared.take_damage()
    files.remove()


def test_a_full_disk_at_the_first_write(small_disk: Path) -> None:
    """A file that has been made, and nothing beyond; then there is room."""
    files = CacheFiles(small_disk)
    files.cache()  # which takes room for the lock table
    files.close()
    filler = fill_up(small_disk)

    def write() -> list[bool]:
        cache = files.cache()
        store_some(cache, 1, 0, 5)
        before = is_kept(cache, 1, 4)
        filler.unlink()
        store_some(cache, 1, 0, 5)
        return [before, is_kept(cache, 1, 4)]

    assert in_child(write) == [False, True]
    files.remove()


@pytest.mark.long
def test_a_disk_that_is_full_now_and_then(small_disk: Path) -> None:
    """Three that write what the dice say, one that comes and goes, and nobody dies."""
    files = CacheFiles(small_disk, size_limit=64 * MIB)
    end = time.monotonic() + SECONDS_OF_DICE

    def write(writer: int) -> Callable[[], None]:
        dice = random.Random(writer)

        def work() -> None:
            cache = files.cache()
            for number in range(1_000_000):
                if time.monotonic() > end:
                    return
                sizes = dice.choices([300, 1200, 1900], k=dice.choice([1, 1, 2, 5, 16]))
                if dice.random() < 0.01:
                    sizes = [dice.choice([5000, 100_000, 500_000])]
                changes = [
                    Change(name(writer, number * 20 + i), bytes(s)) for i, s in enumerate(sizes)
                ]
                assert all(cache.apply(changes, 0))
                cache.lookup(name(writer, dice.randrange(number + 1) * 20), 0)
                if dice.random() < 0.9:  # else it pins pages meanwhile
                    cache.end_reading()

        return work

    def come_and_go() -> None:
        while time.monotonic() < end:
            files.cache()

    def fill_now_and_then() -> None:
        dice = random.Random(0)
        while time.monotonic() < end:
            filler = fill_up(small_disk)
            time.sleep(dice.uniform(0, 0.4))
            filler.unlink()
            time.sleep(dice.uniform(0, 0.2))

    all_at_once(*map(write, range(3)), come_and_go, fill_now_and_then)
    cache = files.cache()
    with contextlib.suppress(FileNotFoundError):
        (small_disk / "filler").unlink()
    store_some(cache, 9, 0, 50)
    assert is_kept(cache, 9, 49)
    files.remove()
