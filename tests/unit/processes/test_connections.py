"""A worker's connections: what is kept, what is forgotten, and that no two are ever mixed up."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from support.raw_client import ANNOUNCEMENT

from tlsmgr.processes.connections import (
    MEMORY_LIMIT,
    READ_SIZE,
    READING,
    WAITING,
    Connection,
    Connections,
)
from tlsmgr.wire import RequestReader


class Room(NamedTuple):
    """Connections on their epoll object."""

    clients: Connections
    epoll: select.epoll

    def enter(self) -> tuple[Connection, socket.socket]:
        """A new client, and the peer's end of its connection, with the announcement read."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        fd = ours.detach()
        self.clients.add(fd)
        client = self.clients.get(fd)
        assert client is not None
        assert theirs.recv(100) == ANNOUNCEMENT
        theirs.setblocking(False)
        return client, theirs

    def events(self) -> dict[int, int]:
        """The events of epoll now, by descriptor."""
        return dict(self.epoll.poll(0))


@pytest.fixture
def room() -> Iterator[Room]:
    epoll = select.epoll()
    clients = Connections(epoll)
    yield Room(clients, epoll)
    clients.close_all()
    assert len(clients) == 0
    epoll.close()


def test_welcome(room: Room) -> None:
    client, theirs = room.enter()
    assert len(room.clients) == 1
    assert room.clients.is_open(client)
    assert room.events() == {}
    theirs.send(b"x")
    assert room.events() == {client.fd: select.EPOLLIN}


def test_reading(room: Room) -> None:
    client, theirs = room.enter()
    assert room.clients.read(client) is None
    theirs.send(b"x" * (READ_SIZE + 1))
    assert room.clients.read(client) == b"x" * READ_SIZE
    assert room.clients.read(client) == b"x"
    theirs.close()
    assert room.clients.read(client) == b""


def test_a_reset_reads_like_the_end(room: Room) -> None:
    client, theirs = room.enter()
    room.clients.send(client, b"unread")
    theirs.close()
    assert room.clients.read(client) == b""


def stuff(room: Room, client: Connection) -> bytes:
    """Send until a reply is stuck; returns all that was sent."""
    sent = b""
    while not client.output:
        reply = os.urandom(100_000)
        room.clients.send(client, reply)
        sent += reply
    return sent


def test_a_stuck_reply_is_kept_whole_and_in_order(room: Room) -> None:
    client, theirs = room.enter()
    sent = stuff(room, client)
    theirs.send(b"more")  # is not looked at before the reply is gone
    assert room.events() == {}
    received = b""
    while len(received) < len(sent):
        received += theirs.recv(1 << 20)
        if room.events() == {client.fd: select.EPOLLOUT}:
            room.clients.send_rest(client)
    assert received == sent
    assert client.output == b""
    assert room.events() == {client.fd: select.EPOLLIN}
    assert room.clients.read(client) == b"more"


def test_send_rest_says_when_reading_goes_on(room: Room) -> None:
    client, theirs = room.enter()
    stuff(room, client)
    assert not room.clients.send_rest(client)
    while True:
        try:
            theirs.recv(1 << 20)
        except BlockingIOError:
            if room.clients.send_rest(client):
                break
    assert client.output == b""


def test_a_peer_that_left_is_dropped_when_written_to(room: Room) -> None:
    client, theirs = room.enter()
    theirs.close()
    room.clients.send(client, b"reply")
    assert not room.clients.is_open(client)
    assert len(room.clients) == 0

    client, theirs = room.enter()
    stuff(room, client)
    theirs.close()
    assert not room.clients.send_rest(client)
    assert not room.clients.is_open(client)


def test_dropping(room: Room) -> None:
    client, theirs = room.enter()
    room.clients.drop(client)
    assert theirs.recv(1) == b""
    assert not room.clients.is_open(client)
    room.clients.drop(client)
    assert room.clients.get(client.fd) is None


def test_dropping_twice_leaves_the_next_client_with_that_descriptor_alone(room: Room) -> None:
    old, _ = room.enter()
    room.clients.drop(old)
    new, theirs = room.enter()
    assert new.fd == old.fd
    room.clients.drop(old)
    assert room.clients.is_open(new)
    assert room.clients.get(new.fd) is new
    room.clients.send(new, b"still here")
    assert theirs.recv(100) == b"still here"


def test_who_is_overdue(room: Room) -> None:
    idle, _ = room.enter()
    half, _ = room.enter()
    stuck, _ = room.enter()
    half.reader = RequestReader()
    stuck.output = b"rest"
    for client in (idle, half, stuck):
        room.clients.note_progress(client, 100.0)
    assert list(room.clients.timed_out(100.0)) == []
    assert set(room.clients.timed_out(100.1)) == {half, stuck}
    room.clients.note_progress(half, 200.0)
    assert set(room.clients.timed_out(150.0)) == {stuck}
    half.reader = None
    stuck.output = b""
    for client in (half, stuck):
        room.clients.note_progress(client, 300.0)
    assert list(room.clients.timed_out(1e9)) == []


def test_who_was_dropped_is_not_remembered(room: Room) -> None:
    """The worker notes progress after each event, also after one that ended the connection."""
    client, _ = room.enter()
    client.reader = RequestReader()
    room.clients.note_progress(client, 100.0)
    room.clients.drop(client)
    assert list(room.clients.timed_out(1e9)) == []
    room.clients.note_progress(client, 101.0)
    assert list(room.clients.timed_out(1e9)) == []


def hold(room: Room, connection: Connection, count: int) -> None:
    """Let the connection have that many bytes of half-done business."""
    connection.state = READING
    connection.output = bytes(count)
    room.clients.note_progress(connection, 100.0)


def test_who_holds_most_is_closed_when_all_hold_too_much(room: Room) -> None:
    large, small = room.enter()[0], room.enter()[0]
    hold(room, large, MEMORY_LIMIT - 1000)
    hold(room, small, 1000)
    assert room.clients.largest() is None
    hold(room, small, 1001)
    assert room.clients.largest() is large
    room.clients.drop(large)
    assert room.clients.largest() is None


def test_a_client_that_waits_for_its_reply_is_not_closed(room: Room) -> None:
    """The reply would go to the next client with its descriptor."""
    large, small = room.enter()[0], room.enter()[0]
    hold(room, large, MEMORY_LIMIT)
    hold(room, small, 1000)
    large.state = WAITING
    assert room.clients.largest() is small
    small.state = WAITING
    assert room.clients.largest() is None


def test_close_all(room: Room) -> None:
    ends = [room.enter()[1] for _ in range(10)]
    room.clients.close_all()
    assert [end.recv(1) for end in ends] == [b""] * 10
    assert len(room.clients) == 0
