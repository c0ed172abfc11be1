"""The outbox of one worker: order, what the socket does not take, and its bound."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tlsmgr.processes.farm_outbox import MOST_BYTES, Outbox

Pair = tuple[socket.socket, socket.socket]
SIZE = 30_000


@pytest.fixture
def pair() -> Iterator[Pair]:
    """The end of a worker, and that of the farm process, with little room."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * SIZE)
    with ours, theirs:
        yield ours, theirs


def datagram(number: int, size: int = SIZE) -> bytes:
    return number.to_bytes(4, "big") * (size // 4)


def received(end: socket.socket) -> list[bytes]:
    found = []
    try:
        while True:
            found.append(end.recv(2 * MOST_BYTES))
    except BlockingIOError:
        return found


def test_all_come_in_order(pair: Pair) -> None:
    worker, end = pair
    outbox = Outbox(end)
    sent = [datagram(number) for number in range(50)]
    for each in sent:
        outbox.add(each)
    outbox.send()
    assert outbox, "the socket does not take all of them at once"
    found = received(worker)
    assert 0 < len(found) < len(sent)
    while outbox:
        outbox.send()
        found += received(worker)
    assert found == sent


def test_a_bound(pair: Pair) -> None:
    """What does not fit is dropped; when the worker has read, there is room again."""
    worker, end = pair
    outbox = Outbox(end)
    for number in range(2 * MOST_BYTES // SIZE):
        outbox.add(datagram(number))
    found: list[bytes] = []
    while outbox:
        outbox.send()
        found += received(worker)
    assert found == [datagram(number) for number in range(MOST_BYTES // SIZE)]
    outbox.add(b"later")
    outbox.send()
    assert received(worker) == [b"later"]


def test_one_that_the_socket_never_takes(pair: Pair) -> None:
    worker, end = pair
    outbox = Outbox(end)
    for each in (b"before", datagram(1, MOST_BYTES // 2), b"behind"):
        outbox.add(each)
    outbox.send()
    assert not outbox
    assert received(worker) == [b"before", b"behind"]


def test_a_worker_that_is_gone(pair: Pair) -> None:
    worker, end = pair
    outbox = Outbox(end)
    worker.close()
    outbox.add(b"for nobody")
    outbox.send()
    assert not outbox
