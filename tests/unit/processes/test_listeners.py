"""How a worker accepts: descriptors that do not block, a few at a time, and none in vain."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tlsmgr.processes.listeners import ACCEPT_BURST, STEP_BACK, Listeners


class Door(NamedTuple):
    """One listening socket as a worker has it."""

    listeners: Listeners
    listener: socket.socket
    epoll: select.epoll

    def knock(self, times: int) -> list[socket.socket]:
        """New connections, not accepted yet."""
        peers = [socket.socket(socket.AF_UNIX) for _ in range(times)]
        for peer in peers:
            peer.connect(self.listener.getsockname())
        return peers

    def accept(self) -> list[int]:
        """The connections that one call accepts."""
        return list(self.listeners.accept(self.listener.fileno(), 0.0))


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    with socket.socket(socket.AF_UNIX) as listener, select.epoll() as epoll:
        listener.bind(str(tmp_path / "socket"))
        listener.listen(100)
        listener.setblocking(False)
        listeners = Listeners(epoll, (listener,))
        listeners.listen()
        yield Door(listeners, listener, epoll)


def test_a_connection_is_a_descriptor_that_does_not_block(door: Door) -> None:
    (peer,) = door.knock(1)
    (connection,) = door.accept()
    assert not os.get_blocking(connection)
    assert not os.get_inheritable(connection)
    os.write(connection, b"hello")
    assert peer.recv(100) == b"hello"
    os.close(connection)
    peer.close()


@pytest.mark.parametrize("times", [0, 1, 2, ACCEPT_BURST - 1, ACCEPT_BURST, ACCEPT_BURST + 1])
def test_all_that_wait_are_accepted_but_no_more_than_a_burst(door: Door, times: int) -> None:
    """Of the rest the epoll object tells again."""
    peers = door.knock(times)
    connections = door.accept()
    assert len(connections) == min(times, ACCEPT_BURST)
    assert bool(door.epoll.poll(0)) == (times > ACCEPT_BURST)
    connections += door.accept()
    assert len(connections) == times
    for connection, peer in zip(connections, peers):
        os.close(connection)
        peer.close()


class Counting(socket.socket):
    """A listening socket that counts the calls of accept(2)."""

    calls = 0

    def _accept(self) -> tuple[int, object]:
        self.calls += 1
        return super()._accept()  # type: ignore[misc,no-any-return]


def test_no_call_in_vain(tmp_path: Path) -> None:
    """One for each connection; when another worker was faster, one that fails and no more."""
    with Counting(socket.AF_UNIX) as listener, select.epoll() as epoll:
        listener.bind(str(tmp_path / "socket"))
        listener.listen(100)
        listener.setblocking(False)
        listeners = Listeners(epoll, (listener,))
        listeners.listen()
        door = Door(listeners, listener, epoll)
        for times, calls in ((1, 1), (2, 2), (0, 1)):
            peers, listener.calls = door.knock(times), 0
            for connection in door.accept():
                os.close(connection)
            assert listener.calls == calls
            for peer in peers:
                peer.close()


def test_a_burst_of_one(door: Door) -> None:
    """The epoll object tells of the other connections again."""
    peers = door.knock(3)
    fd = door.listener.fileno()
    for left in (2, 1, 0):
        assert door.epoll.poll(0) == [(fd, select.EPOLLIN)]
        (connection,) = door.listeners.accept(fd, 0.0, 1)
        os.close(connection)
        assert bool(door.epoll.poll(0)) == (left > 0)
    for peer in peers:
        peer.close()


def test_a_worker_gives_way_again_after_it_accepted(door: Door) -> None:
    """Once before each time that it accepts, not once for ever."""
    now = 10.0
    for _ in range(3):
        (peer,) = door.knock(1)
        assert door.listeners.back_off(now)
        assert door.accept() == [], "it has stepped back"
        now += STEP_BACK
        door.listeners.resume(now)
        assert not door.listeners.back_off(now), "it did already"
        (connection,) = door.accept()
        os.close(connection)
        peer.close()


def test_two_that_give_way_in_one_turn(tmp_path: Path) -> None:
    """Both listeners had connections before the first made this worker step back."""
    with contextlib.ExitStack() as stack:
        epoll = stack.enter_context(select.epoll())
        pair = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2)]
        for number, listener in enumerate(pair):
            listener.bind(str(tmp_path / f"socket{number}"))
            listener.listen(1)
            listener.setblocking(False)
            peer = stack.enter_context(socket.socket(socket.AF_UNIX))
            peer.connect(listener.getsockname())
        listeners = Listeners(epoll, tuple(pair))
        listeners.listen()
        assert len(epoll.poll(0)) == 2
        assert listeners.back_off(10.0)
        assert not listeners.back_off(10.0)
        assert list(listeners.accept(pair[1].fileno(), 10.0)) == []
        assert epoll.poll(0) == []
        listeners.resume(10.0 + STEP_BACK)
        for listener in pair:
            (connection,) = listeners.accept(listener.fileno(), 10.0)
            os.close(connection)
