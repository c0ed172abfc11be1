"""Clients that send garbage, or too much: the daemon survives, and its memory stays flat."""

from __future__ import annotations

import contextlib
import os
import random

import pytest
from support.cache_files import MIB
from support.daemon_process import Daemon
from support.raw_client import (
    BAD_REQUEST,
    OK,
    Connection,
    delete,
    expect_seed,
    found,
    lookup,
    policy,
    seed,
    tktkey,
    update,
)

pytestmark = pytest.mark.usefixtures("many_descriptors")

VALID = [
    seed(32),
    policy(b"smtp"),
    lookup(b"smtp", b"id"),
    update(b"smtp", b"id", b"session"),
    delete(b"smtp", b"id"),
    tktkey(),
    tktkey(bytes(16)),
    b"W\0",
]


def mutate(dice: random.Random, request: bytes) -> bytes:
    """The request with a few slips: bytes changed, lost, doubled, moved."""
    data = bytearray(request)
    for _ in range(dice.randrange(1, 4)):
        at = dice.randrange(len(data) + 1)
        end = min(len(data), at + dice.randrange(1, 9))
        slip = dice.randrange(5)
        if slip == 0:
            data[at:end] = dice.randbytes(end - at)
        elif slip == 1:
            del data[at:end]
        elif slip == 2:
            data[at:at] = data[at:end]
        elif slip == 3:
            data[at:at] = b"\0" * dice.randrange(1, 4)
        else:
            data[at:at] = dice.choice(VALID)
    return bytes(data)


def garbage(dice: random.Random) -> bytes:
    """Something that is hardly a request."""
    kind = dice.randrange(10)
    if kind == 0:
        return dice.randbytes(dice.randrange(200))
    if kind == 1:
        return dice.choice(VALID)
    return mutate(dice, dice.choice(VALID))


def throw_garbage(daemon: Daemon, dice: random.Random, count: int) -> None:
    """That many pieces, some in a connection; the replies do not matter."""
    while count > 0:
        pieces = min(count, dice.randrange(1, 40))
        count -= pieces
        with Connection(daemon.socket_path) as connection:
            with contextlib.suppress(OSError):
                for _ in range(pieces):
                    connection.send(garbage(dice), dice.choice([0, 0, 0, 3]))
                connection.half_close()
            if dice.randrange(4):
                connection.read_to_end()


def check_that_garbage_is_survived(daemon: Daemon, count: int) -> None:
    dice = random.Random(3)
    workers = daemon.workers()
    throw_garbage(daemon, dice, count // 10)
    before = daemon.memory()
    throw_garbage(daemon, dice, count - count // 10)
    grown = daemon.memory() - before
    assert daemon.workers() == workers, "nobody died of it"
    assert grown < 6 * MIB, "two workers and the parent, together"
    with Connection(daemon.socket_path) as connection:
        assert connection.ask(update(b"smtp", b"afterwards", b"session")) == OK
        assert connection.ask(lookup(b"smtp", b"afterwards")) == found(b"session")
        expect_seed(connection, 32)


def test_garbage(daemon: Daemon) -> None:
    check_that_garbage_is_survived(daemon, 50_000)


@pytest.mark.long
def test_much_garbage(daemon: Daemon) -> None:
    check_that_garbage_is_survived(daemon, 1_000_000)


def test_memory_stays_flat_under_large_requests(daemon: Daemon) -> None:
    """Refused ones, unfinished ones, and good ones."""
    too_large = update(b"smtp", b"x", bytes(2 * MIB))
    good = update(b"smtp", b"good", os.urandom(1_000_000))
    before = daemon.memory()
    for _ in range(30):
        with Connection(daemon.socket_path) as connection:
            with contextlib.suppress(OSError):
                connection.send(too_large)
            assert connection.read_to_end() == BAD_REQUEST
        with Connection(daemon.socket_path) as connection:
            connection.send(good[:900_000])
        with Connection(daemon.socket_path) as connection:
            assert connection.ask(good) == OK
            connection.ask(lookup(b"smtp", b"good"))
    grown = daemon.memory() - before
    assert grown < 16 * MIB, "a few buffers that the allocator keeps, for two workers"
