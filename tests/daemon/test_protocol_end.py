"""The end of a connection: wake-up, half-close, and the end of input at each byte of a request.

Unlike with stock, pipelines are answered in order, and a request in pieces is no wake-up.
"""

from __future__ import annotations

import pytest
from support.complaints import end_of_input
from support.daemon_process import Daemon
from support.raw_client import (
    BAD_REQUEST,
    OK,
    REFUSED_KEY,
    REFUSED_LOOKUP,
    REFUSED_POLICY,
    REFUSED_SEED,
    Connection,
    delete,
    expect_seed,
    found,
    lookup,
    policy,
    policy_is,
    seed,
    tktkey,
    update,
)


@pytest.mark.parametrize("segment", [0, 1])
def test_the_wake_up_closes_the_connection(recorded_daemon: Daemon, segment: int) -> None:
    start = len(recorded_daemon.log())
    with Connection(recorded_daemon.socket_path) as connection:
        assert connection.ask(policy(b"smtp")) == policy_is(1, 3600)
        connection.send(b"W\0", segment)
        assert connection.read_to_end() == b""
    assert recorded_daemon.lines(start) == []


def test_half_a_wake_up_and_the_end(recorded_daemon: Daemon) -> None:
    for rest in (b"W", b"A", b"AB", b"\0", b""):
        with Connection(recorded_daemon.socket_path) as connection:
            connection.send(rest)
            connection.half_close()
            assert connection.read_to_end() == b""


@pytest.mark.parametrize(
    "request_list",
    [seed(0), policy(b"smtp"), update(b"smtp", b"half", b"close"), lookup(b"smtp", b"not there")],
)
def test_half_close_behind_a_request(recorded_daemon: Daemon, request_list: bytes) -> None:
    with Connection(recorded_daemon.socket_path) as connection:
        reply = connection.ask(request_list)
        connection.send(request_list * 3)
        connection.half_close()
        assert connection.read_to_end() == reply * 3


def test_half_close_before_a_large_reply(recorded_daemon: Daemon) -> None:
    session = bytes(range(256)) * 4000
    with Connection(recorded_daemon.socket_path) as connection:
        assert connection.ask(update(b"smtp", b"large", session)) == OK
        connection.send(lookup(b"smtp", b"large"))
        connection.half_close()
        assert connection.read_to_end() == found(session)


TRUNCATED = [
    (seed(4), REFUSED_SEED),
    (policy(b"smtp"), REFUSED_POLICY),
    (lookup(b"smtp", b"id"), REFUSED_LOOKUP),
    (update(b"smtp", b"id", b"hello"), BAD_REQUEST),
    (delete(b"smtp", b"id"), BAD_REQUEST),
    (tktkey(b"k" * 16), REFUSED_KEY),
]


@pytest.mark.parametrize(("whole", "reply"), TRUNCATED)
def test_the_end_at_each_byte(recorded_daemon: Daemon, whole: bytes, reply: bytes) -> None:
    head = whole.index(b"\0", len(b"request\0")) + 1  # from here on it is known what is asked
    for length in range(len(whole)):
        start = len(recorded_daemon.log())
        with Connection(recorded_daemon.socket_path) as connection:
            connection.send(whole[:length])
            connection.half_close()
            assert connection.read_to_end() == (b"" if length < head else reply)
        if length < head:
            continue
        assert recorded_daemon.lines(start) == [f"warning: {end_of_input(whole[:length])}"]


def test_the_end_inside_the_name_of_the_request_is_logged(recorded_daemon: Daemon) -> None:
    start = len(recorded_daemon.log())
    with Connection(recorded_daemon.socket_path) as connection:
        connection.send(b"request\0see")
        connection.half_close()
        assert connection.read_to_end() == b""
    assert recorded_daemon.lines(start) == [
        "warning: unexpected end-of-input from tlsmgr socket while reading input attribute value"
    ]


def test_a_peer_that_goes_away_disturbs_nobody(recorded_daemon: Daemon) -> None:
    with Connection(recorded_daemon.socket_path) as stays:
        for rest in (b"", b"W", b"XY", seed(4)[:9], seed(4), lookup(b"smtp", b"large") * 100):
            connection = Connection(recorded_daemon.socket_path)
            connection.send(rest)
            connection.close()
            expect_seed(stays, 4)
