"""When a worker accepts: at once, but one with far more clients than another steps back first."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.parent_parts import inherited_for

from tlsmgr.processes.inherited import Pipes
from tlsmgr.processes.listeners import STEP_BACK
from tlsmgr.processes.scoreboard import SPREAD_SLACK
from tlsmgr.processes.setup import make_context
from tlsmgr.processes.worker import Worker

OURS, OTHERS = 1, 2


class Bench:
    """A worker in slot 1, whose iterations the test runs; what there is in slot 2 it says."""

    def __init__(self, directory: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(directory / "socket"))
        self._listener.listen(100)
        self._listener.setblocking(False)
        self._ends = os.pipe()
        inherited = replace(inherited_for(2), listeners=(self._listener,))
        self.scoreboard = inherited.scoreboard
        self.worker = Worker(
            inherited, OURS, Pipes(self._ends[0], -1, -1), make_context(inherited, OURS)
        )
        self.worker._listeners.listen()
        self._clients: list[socket.socket] = []

    def knock(self) -> None:
        """Have another client wait."""
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.connect(self._listener.getsockname())
        self._clients.append(client)

    def hang_up(self) -> None:
        """Have all clients close their connections."""
        while self._clients:
            self._clients.pop().close()

    def accepted(self) -> int:
        """How many clients it has after the next iteration."""
        self.worker._iterate(0.0)
        return len(self.worker._connections)

    def close(self) -> None:
        self.worker._connections.close_all()
        self.worker._epoll.close()
        self.hang_up()
        self._listener.close()
        for end in self._ends:
            os.close(end)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def test_alone_it_accepts_at_once(bench: Bench) -> None:
    for number in range(1, SPREAD_SLACK + 5):
        bench.knock()
        assert bench.accepted() == number


def test_far_ahead_of_another_it_steps_back_once(bench: Bench) -> None:
    """The other one is awake meanwhile, and may take the client; if it does not, this one does."""
    many = SPREAD_SLACK + 1
    for _ in range(many):
        bench.knock()
        bench.accepted()
    bench.scoreboard.beat(OTHERS, time.monotonic() + 60)
    bench.knock()
    assert bench.accepted() == many
    time.sleep(STEP_BACK)
    assert max(bench.accepted(), bench.accepted()) == many + 1


def test_not_far_ahead_it_does_not_step_back(bench: Bench) -> None:
    bench.scoreboard.connection_count(OTHERS)[0] = 1
    bench.scoreboard.beat(OTHERS, time.monotonic() + 60)
    for number in range(1, SPREAD_SLACK + 1):
        bench.knock()
        assert bench.accepted() == number


def test_others_see_at_once_how_many_it_has(bench: Bench) -> None:
    """Even if nothing more happens: else they take an idle worker for one with clients."""
    for number in range(1, 4):
        bench.knock()
        bench.accepted()
        assert bench.scoreboard.connections(OURS) == number
    bench.hang_up()
    assert bench.accepted() == 0
    assert bench.scoreboard.connections(OURS) == 0
