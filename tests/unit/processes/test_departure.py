"""How a worker ends: drains, the call of a successor, the end of its parent; without a process."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.parent_parts import inherited_for

from tlsmgr.processes import bridge
from tlsmgr.processes.bridge import CALL, Met
from tlsmgr.processes.connections import Connection, Connections
from tlsmgr.processes.departure import Departure
from tlsmgr.processes.drain import DRAIN_TIME, IDLE_TIME
from tlsmgr.processes.inherited import Pipes
from tlsmgr.processes.listeners import Listeners
from tlsmgr.processes.parking import send
from tlsmgr.processes.scoreboard import RELOADING, RUNNING, STOPPING

SLOT = 1
NOW = 1_795_220_454


class Bench:
    """A worker's departure, with a listening socket and one client at most."""

    def __init__(self, directory: Path, *, hands_over: bool, is_supervised: bool) -> None:
        self.path = str(directory / "socket")
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(self.path)
        self.listener.listen(10)
        self.listener.setblocking(False)
        self.inherited = replace(
            inherited_for(1),
            listeners=(self.listener,),
            hands_over=hands_over,
            is_supervised=is_supervised,
        )
        self.alive, self.alive_end = socket.socketpair()
        successor_end, bridge_fd = bridge.make()
        self.successor = socket.socket(fileno=successor_end)
        self.bridge_inode = os.fstat(bridge_fd).st_ino
        self.epoll = select.epoll()
        self.connections = Connections(self.epoll)
        self.listeners = Listeners(self.epoll, (self.listener,))
        self.listeners.listen()
        self.wakes = 0
        self.pipes = Pipes(self.alive.fileno(), -1, bridge_fd)
        self.departure = Departure(
            self.inherited,
            SLOT,
            self.pipes,
            self.epoll,
            self.listeners,
            self._wake_parent,
            self.connections.add,
        )
        self.departure.watch_parent()
        self.inherited.scoreboard.beat(SLOT, 1.0)
        self.clients: list[socket.socket] = []

    def _wake_parent(self) -> None:
        self.wakes += 1

    def ending(self, what: int) -> None:
        """Have the parent say what it does."""
        self.inherited.scoreboard.ending[0] = what

    def end_parent(self) -> None:
        """Have the parent end, and the worker notice."""
        self.alive_end.close()
        self.turn()

    def turn(self) -> None:
        """Handle what is there to handle, as a worker does."""
        for fd, _ in self.epoll.poll(0):
            if fd not in self.listeners and self.connections.get(fd) is None:
                self.departure.handle(fd)

    def is_done(self) -> bool:
        return self.departure.is_done(self.connections)

    def knock(self) -> socket.socket:
        """A client that waits at the socket."""
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect(self.path)
        self.clients.append(client)
        return client

    def drain_with_a_client(self) -> Connection:
        """Begin to drain, with one client, which has nothing half-done."""
        self.knock()
        self.departure.note_signal()
        self.is_done()
        (connection,) = self.connections.ready()
        return connection

    @property
    def may_be_called(self) -> bool:
        """Whether its end of the bridge is open."""
        try:
            return os.fstat(self.pipes.bridge_fd).st_ino == self.bridge_inode
        except OSError:
            return False

    @property
    def accepts(self) -> bool:
        return self.listener.fileno() >= 0 and not self.listeners.paused_until

    @property
    def is_closed(self) -> bool:
        return self.listener.fileno() < 0


def bench_of(
    directory: Path, *, hands_over: bool = True, is_supervised: bool = True
) -> Iterator[Bench]:
    made = Bench(directory, hands_over=hands_over, is_supervised=is_supervised)
    yield made
    made.connections.close_all()
    made.epoll.close()
    if made.may_be_called:
        os.close(made.pipes.bridge_fd)
    for each in (*made.clients, made.listener, made.alive, made.alive_end, made.successor):
        each.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    yield from bench_of(tmp_path)


@pytest.fixture
def by_hand(tmp_path: Path) -> Iterator[Bench]:
    """Nobody else holds the listening socket."""
    yield from bench_of(tmp_path, is_supervised=False)


@pytest.fixture
def no_message(tmp_path: Path) -> Iterator[Bench]:
    yield from bench_of(tmp_path, hands_over=False)


def test_before_it_begins_there_is_nothing_to_ask(bench: Bench) -> None:
    assert not bench.departure.is_active
    assert bench.departure.may_accept
    assert bench.departure.timeout(0.0, 7.0) == 7.0
    assert not bench.is_done()


def test_a_worker_that_is_replaced_accepts_what_waits_and_no_more(bench: Bench) -> None:
    """And stays for its clients; without any it ends."""
    bench.knock()
    bench.departure.note_signal()
    assert bench.departure.is_active
    assert bench.departure.may_accept
    assert not bench.is_done()
    assert bench.is_closed
    assert not bench.may_be_called
    assert len(bench.connections) == 1
    assert bench.inherited.scoreboard.has_closed(SLOT)
    assert bench.wakes == 1
    assert not bench.departure.is_replaced, "it still looks after its files"
    assert bench.inherited.ticket_keys.current(NOW) is not None, "and makes keys"
    bench.connections.close_all()
    assert bench.is_done()


def test_a_client_is_left_in_peace_and_closed_in_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    connection = bench.drain_with_a_client()
    now += IDLE_TIME - 0.1
    assert not bench.is_done()
    assert 0 < bench.departure.timeout(now, 1.0) < 1.0, "it looks again soon"
    bench.departure.note_events([(connection.fd, select.EPOLLIN)], now)
    now += 0.2
    assert not bench.is_done()
    assert len(bench.connections) == 1, "it was just in use"
    now += 2.0
    assert bench.is_done()
    assert len(bench.connections) == 0


def test_a_client_in_the_middle_of_something_has_until_the_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    connection = bench.drain_with_a_client()
    connection.state = 1
    now += DRAIN_TIME - 0.1
    assert not bench.is_done()
    assert len(bench.connections) == 1
    now += 0.2
    assert bench.is_done()


def test_at_a_reload_it_makes_no_more_keys_and_leaves_the_message(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits may be the message, so it is not accepted. Without a call it closes the socket."""
    bench.ending(RELOADING)
    bench.departure.note_signal()
    assert not bench.departure.may_accept
    bench.knock()
    assert not bench.is_done()
    assert bench.departure.is_replaced
    assert bench.inherited.ticket_keys.current(NOW) is None
    assert not bench.accepts
    assert not bench.is_closed, "a successor may call"
    assert bench.may_be_called
    assert bench.inherited.scoreboard.has_closed(SLOT), "for the parent it has"
    monkeypatch.setattr(bridge, "CALL_TIME", 0.0)
    bench.is_done()
    assert bench.is_closed
    assert not bench.may_be_called
    assert len(bench.connections) == 0, "it is left to the successor"
    assert bench.is_done()


def reloading(bench: Bench) -> socket.socket:
    """A drain at a reload; return the successor's end of the bridge."""
    bench.ending(RELOADING)
    bench.end_parent()
    bench.departure.note_signal()
    bench.is_done()
    return bench.successor


def test_a_successor_that_calls_is_helped_until_it_serves(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with reloading(bench) as successor:
        bench.turn()
        assert not bench.accepts
        passed = bench.knock()
        found = Met(None, [bench.listener._accept()[0]])  # type: ignore[attr-defined]
        for client in found.clients:
            send(successor, CALL, client)
            os.close(client)
        bench.turn()
        assert bench.accepts
        assert len(bench.connections) == 1
        assert passed.recv(10)
        monkeypatch.setattr(bridge, "CALL_TIME", 0.0)
        assert not bench.is_done()
        assert bench.accepts, "the time for a call is not that of the help"
        bench.knock()
    bench.turn()
    assert bench.is_closed
    assert len(bench.connections) == 2, "what waits is accepted"
    assert not bench.is_done()


def test_a_signal_that_does_not_come(bench: Bench) -> None:
    """The parent was killed after it said what it does: the call of the successor counts."""
    bench.ending(RELOADING)
    bench.end_parent()
    assert bench.accepts
    with bench.successor as successor:
        send(successor, CALL)
        bench.turn()
        assert bench.departure.is_replaced
        assert bench.accepts
    bench.turn()
    assert bench.is_closed
    assert bench.is_done()


@pytest.mark.parametrize("what", [RUNNING, STOPPING])
def test_it_stops_with_its_parent(by_hand: Bench, what: int) -> None:
    """Which was told to stop, or killed, and nobody starts a successor."""
    by_hand.knock()
    by_hand.ending(what)
    by_hand.end_parent()
    assert by_hand.departure.is_active
    assert by_hand.is_done()
    assert by_hand.departure.timeout(0.0, 1.0) == 1.0


def test_under_a_supervisor_it_stops_when_its_parent_was_told_to(bench: Bench) -> None:
    bench.ending(STOPPING)
    bench.end_parent()
    assert bench.is_done()


def test_of_a_killed_parent_it_does_the_rest(bench: Bench) -> None:
    """It leaves a message with its own bridge, and drains."""
    bench.end_parent()
    assert bench.departure.is_replaced
    assert not bench.accepts
    assert not bench.is_closed
    met = bridge.meet(bench.listener.fileno())
    assert met.parked is not None
    assert met.parked.pid == os.getpid()
    bench.turn()
    assert bench.accepts, "the successor has called"
    met.parked.close()
    bench.turn()
    assert bench.is_closed
    assert bench.is_done()


def test_of_a_killed_parent_it_leaves_no_message_that_is_not_wanted(no_message: Bench) -> None:
    no_message.knock()
    no_message.end_parent()
    assert no_message.departure.is_replaced
    assert no_message.is_closed
    assert len(no_message.connections) == 1
