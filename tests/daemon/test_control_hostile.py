"""Hostile, slow and stuck clients of the control socket: each costs only itself."""

from __future__ import annotations

import random
import socket
import time

import psutil
import pytest
from support.control_client import ControlConnection, ask, data_of, status_of
from support.daemon_process import Daemon, MakeDaemon, wait_for
from support.raw_client import OK, Connection, expect_seed, update

from tlsmgr.control_lines import LINE_LIMIT

SHORT = "from tlsmgr.processes import control\ncontrol.CLIENT_TIMEOUT = 0.5"
VALID = [b"status\n", b"list smtp\n", b"list smtp match=x%00\n", b"drop lmtp all\n", b"rotate\n"]


def control_process(daemon: Daemon) -> psutil.Process:
    (process,) = (p for p in daemon.processes() if p.name() == "tlsmgr-control")
    return process


def fill(daemon: Daemon, count: int) -> None:
    with Connection(daemon.socket_path) as connection:
        for i in range(count):
            assert connection.ask(update(b"smtp", b"%d" % i + b"x" * 300, b"session")) == OK


@pytest.mark.parametrize(
    ("data", "reply"),
    [
        (b"\n", b"error unknown command:  (there are status, list, drop, rotate)\n"),
        (b"\0\xff\n", b"error the request has bytes that are not ASCII\n"),
        (b"x" * (LINE_LIMIT + 1), b"error the request is longer than 8192 bytes\n"),
        (b"x" * 100_000 + b"\n", b"error the request is longer than 8192 bytes\n"),
        (b"list smtp match=" + b"x" * 7000 + b"\n", b"ok\n"),
        (b"status", b""),
        (b"request\0seed\0size\x0032\0\0", b""),
    ],
)
def test_requests_that_are_none(daemon: Daemon, data: bytes, reply: bytes) -> None:
    with ControlConnection(daemon.socket_path) as connection:
        connection.send(data)
        if not reply:
            connection.socket.shutdown(socket.SHUT_WR)
        assert connection.read_to_end() == reply


def test_a_client_that_closes_its_sending_end(daemon: Daemon) -> None:
    """As `socat` does with a request from a file."""
    with ControlConnection(daemon.socket_path) as connection:
        connection.send(b"status\n")
        connection.socket.shutdown(socket.SHUT_WR)
        assert connection.read_to_end().endswith(b"}\nok\n")


def test_only_the_first_line_counts(daemon: Daemon) -> None:
    with ControlConnection(daemon.socket_path) as connection:
        connection.send(b"list smtp\nrotate\n" * 100)
        assert connection.read_to_end() == b"ok\n"
    assert status_of(daemon.socket_path)["ticket_keys"] == []


def test_garbage(daemon: Daemon) -> None:
    """Lines with slips: a reply or the end, and the same process goes on; workers see nothing."""
    dice = random.Random(7)
    process = control_process(daemon)
    for _ in range(200):
        data = bytearray(dice.choice(VALID))
        for _ in range(dice.randrange(4)):
            at = dice.randrange(len(data) + 1)
            data[at : at + dice.randrange(3)] = dice.randbytes(dice.randrange(3))
        with ControlConnection(daemon.socket_path) as connection:
            connection.send(bytes(data) + b"\n" * dice.randrange(2))
            connection.socket.shutdown(socket.SHUT_WR)
            reply = connection.read_to_end()
        assert not reply or reply.splitlines()[-1].split()[0] in (b"ok", b"error")
    assert control_process(daemon) == process
    assert status_of(daemon.socket_path)["counters"]["malformed"] == 0


def test_a_stuck_reader_costs_only_itself(daemon: Daemon) -> None:
    """Its work stops; others list and drop meanwhile, from the same cache."""
    fill(daemon, 4000)
    with ControlConnection(daemon.socket_path, receive_buffer=1) as stuck:
        stuck.send(b"list smtp\n")
        process = control_process(daemon)
        assert len(data_of(daemon.socket_path, "list smtp")) == 4000
        before = sum(process.cpu_times()[:2])
        with Connection(daemon.socket_path) as connection:
            started = time.monotonic()
            expect_seed(connection, 32)
            assert time.monotonic() - started < 5
        assert sum(process.cpu_times()[:2]) - before < 0.5, "it waits, it does not turn"
        assert data_of(daemon.socket_path, "drop smtp match=1") != [{"dropped": 0}]
        assert process.memory_info().rss < 200 << 20
        reply = stuck.read_to_end()
    assert reply.endswith(b"ok\n"), "it goes on when the client reads again"
    assert reply.count(b"\n") <= 4001


def test_clients_that_do_nothing_are_disconnected(make_daemon: MakeDaemon) -> None:
    """One that sends nothing, half a line, a byte at a time, or reads nothing."""
    daemon = make_daemon(sabotage=SHORT)
    fill(daemon, 2000)
    process = control_process(daemon)
    before = process.num_fds()
    with (
        ControlConnection(daemon.socket_path) as silent,
        ControlConnection(daemon.socket_path) as half,
        ControlConnection(daemon.socket_path) as slow,
        ControlConnection(daemon.socket_path, receive_buffer=1) as stuck,
    ):
        half.send(b"stat")
        stuck.send(b"list smtp\n")
        slow.socket.setblocking(False)
        started = time.monotonic()
        closed = False
        while not closed:
            assert time.monotonic() - started < 10
            try:
                slow.socket.send(b"x")
                time.sleep(0.01)
            except (BrokenPipeError, ConnectionResetError):
                closed = True
        assert silent.read_to_end() == b""
        assert half.read_to_end() == b""
        wait_for(lambda: process.num_fds() == before, "the end of all connections")
        assert not stuck.read_to_end().endswith(b"ok\n")


PATIENT = """
from tlsmgr.processes import control

control.LEAST_TIME = 1000.0
"""


def test_too_many_clients(make_daemon: MakeDaemon) -> None:
    """A refusal for one more; when one leaves there is room again."""
    daemon = make_daemon(sabotage=PATIENT)
    clients = [ControlConnection(daemon.socket_path) for _ in range(16)]
    try:
        wait_for(
            lambda: (
                ask(daemon.socket_path, "status")
                == ["error too many control clients: 16 are connected"]
            ),
            "a refusal",
        )
        clients.pop().socket.close()
        wait_for(lambda: ask(daemon.socket_path, "status")[-1] == "ok", "room")
        with Connection(daemon.socket_path) as connection:
            expect_seed(connection, 32)
    finally:
        for client in clients:
            client.socket.close()


def test_silent_clients_do_not_keep_others_out(daemon: Daemon) -> None:
    """The one that was silent for longest loses its place."""
    clients = [ControlConnection(daemon.socket_path) for _ in range(16)]
    try:
        wait_for(lambda: ask(daemon.socket_path, "status")[-1] == "ok", "a place", timeout=10.0)
        assert clients[0].read_to_end() == b""
        clients[15].send(b"status\n")
        assert clients[15].read_to_end().endswith(b"ok\n")
    finally:
        for client in clients:
            client.socket.close()


def test_clients_that_leave_in_the_middle(daemon: Daemon) -> None:
    """The file is closed with the last of them, and no descriptor is left."""
    fill(daemon, 2000)
    process = control_process(daemon)
    before = process.num_fds()
    for _ in range(30):
        connection = ControlConnection(daemon.socket_path, receive_buffer=1)
        connection.send(b"list smtp\n")
        connection.socket.recv(1)
        connection.socket.close()
    wait_for(lambda: process.num_fds() == before, "all closed")
    assert len(data_of(daemon.socket_path, "list smtp")) == 2000
