"""The protocol as clients see it: connections, every request and its reply, and time limits."""

from __future__ import annotations

import os
import random
import re
import select
import signal
import socket
import struct
import time

import pytest
from support.daemon_process import Daemon, MakeDaemon
from support.raw_client import (
    ANNOUNCEMENT,
    NO_KEY,
    NO_SESSION,
    NOT_DONE,
    OK,
    REFUSED_KEY,
    REFUSED_LOOKUP,
    REFUSED_POLICY,
    TIMEOUT,
    Connection,
    data_of,
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

# -------------------------------------------------------------------------------------- connection


def test_the_server_speaks_first_and_then_only_when_asked(recorded_daemon: Daemon) -> None:
    with Connection(recorded_daemon.socket_path) as silent:
        with Connection(recorded_daemon.socket_path) as other:
            for _ in range(20):
                other.ask(seed(1))
        assert not select.select([silent.socket], [], [], 0)[0]
        assert silent.ask(policy(b"smtp")) == policy_is(1, 3600)
        assert not select.select([silent.socket], [], [], 0)[0]


def test_a_client_need_not_wait_for_the_announcement(recorded_daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(recorded_daemon.socket_path)
        client.settimeout(TIMEOUT)
        client.send(policy(b"lmtp"))
        client.shutdown(socket.SHUT_WR)
        received = b""
        while data := client.recv(1000):
            received += data
        assert received == ANNOUNCEMENT + policy_is(0, 3600)


def test_one_client_in_mid_request_delays_nobody(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("tlsmgr_worker_processes=1")
    request = update(b"smtp", b"slow", b"hello")
    with Connection(daemon.socket_path) as slow, Connection(daemon.socket_path) as quick:
        for start in range(0, len(request), 5):
            slow.send(request[start : start + 5])
            expect_seed(quick, 8)
        assert slow.read_list() == OK
        assert quick.ask(lookup(b"smtp", b"slow")) == found(b"hello")


def test_one_client_with_many_requests_delays_nobody(make_daemon: MakeDaemon) -> None:
    """They are answered all, but not all before it is another's turn."""
    daemon = make_daemon("tlsmgr_worker_processes=1")
    (worker,) = daemon.workers()
    with Connection(daemon.socket_path) as greedy, Connection(daemon.socket_path) as modest:
        os.kill(worker.pid, signal.SIGSTOP)
        greedy.send(policy(b"greedy") * 45)
        modest.send(policy(b"modest"))
        os.kill(worker.pid, signal.SIGCONT)
        replies = [greedy.read_list() for _ in range(45)]
        assert replies == [modest.read_list()] * 45
    words = re.findall('bogus cache type "(.*)" in', daemon.log())
    assert sorted(words) == ["greedy"] * 45 + ["modest"]
    assert words.index("modest") < 40


@pytest.mark.parametrize("seed_of_dice", range(20))
def test_many_requests_are_answered_in_order(recorded_daemon: Daemon, seed_of_dice: int) -> None:
    """Those that wait for the end of a turn too, wherever a turn ends."""
    dice = random.Random(seed_of_dice)
    kinds = {
        policy(b"smtp"): rb"status\x000\0cachable\0.*",
        seed(3): rb"status\x000\0seed\0.*",
        update(b"smtp", b"in order", b"session"): rb"status\x000\0\0",
        lookup(b"smtp", b"not there"): rb"status\x004294967295\0session\0\0\0",
    }
    requests = [*[policy(b"smtp")] * 15, seed(3), seed(3), policy(b"smtp")]
    requests += dice.choices(list(kinds), weights=[6, 1, 1, 6], k=100)
    with Connection(recorded_daemon.socket_path) as connection:
        connection.send(b"".join(requests))
        for request in requests:
            assert re.fullmatch(kinds[request], connection.read_list(), re.DOTALL)
        connection.send(policy(b"smtp") * 15 + seed(32) * 2 + b"W\0")
        with Connection(recorded_daemon.socket_path) as stranger:
            connection.read_to_end()
            assert stranger.ask(policy(b"smtp")) == policy_is(1, 3600), "and nothing of another's"


# ------------------------------------------------------------------------------------ the requests


def test_seeds_differ(recorded_daemon: Daemon) -> None:
    with Connection(recorded_daemon.socket_path) as connection:
        for size in (1, 32, 255):
            expect_seed(connection, size)
        seeds = {data_of(connection.ask(seed(32)), b"seed") for _ in range(500)}
    assert len(seeds) == 500


def test_life_of_a_session(recorded_daemon: Daemon) -> None:
    with Connection(recorded_daemon.socket_path) as connection:
        for cache_type in (b"smtp", b"smtpd"):
            assert connection.ask(lookup(cache_type, b"life")) == NO_SESSION
            assert connection.ask(update(cache_type, b"life", b"hello")) == OK
            assert connection.ask(lookup(cache_type, b"life")) == found(b"hello")
            assert connection.ask(update(cache_type, b"life", b"")) == OK
            assert connection.ask(lookup(cache_type, b"life")) == found(b"")
            assert connection.ask(delete(cache_type, b"life")) == OK
            assert connection.ask(delete(cache_type, b"life")) == NOT_DONE
            assert connection.ask(lookup(cache_type, b"life")) == NO_SESSION


def test_the_policy_row_by_row(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(
        "tlsmgr_worker_processes=1",
        "smtpd_tls_session_cache_timeout=0",
        "smtp_tls_session_cache_timeout=1",
        "lmtp_tls_session_cache_timeout=100d",
    )
    with Connection(daemon.socket_path) as connection:
        assert connection.ask(policy(b"smtpd")) == policy_is(0, 0)
        assert connection.ask(policy(b"smtp")) == policy_is(1, 120)
        assert connection.ask(policy(b"lmtp")) == policy_is(1, 8640000)
        for cache_type in (b"bogus", b"", b"SMTP", b"smtp "):
            assert connection.ask(policy(cache_type)) == REFUSED_POLICY
        # Session caching and tickets are off where the timeout is 0.
        assert connection.ask(tktkey()) == NO_KEY
        assert connection.ask(tktkey(b"k" * 16)) == NO_KEY
        assert connection.ask(lookup(b"smtpd", b"x")) == REFUSED_LOOKUP


def test_ticket_keys(recorded_daemon: Daemon) -> None:
    with Connection(recorded_daemon.socket_path) as connection:
        before = int(time.time())
        key = data_of(connection.ask(tktkey()), b"keybuf")
        assert len(key) == 88
        (tout,) = struct.unpack("=q", key[80:])
        assert before - 1800 < tout <= int(time.time()) + 1799
        assert data_of(connection.ask(tktkey()), b"keybuf") == key
        assert data_of(connection.ask(tktkey(key[:16])), b"keybuf") == key
        unknown = bytes(16) if key[:16] != bytes(16) else b"1" * 16
        assert connection.ask(tktkey(unknown)) == NO_KEY
        for length in (1, 15, 17, 32, 88):
            assert connection.ask(tktkey(bytes(length))) == REFUSED_KEY


# -------------------------------------------------------------------------------------------- time


def test_silence(make_daemon: MakeDaemon) -> None:
    """Half a request is given up after ipc_timeout; a client that is merely idle never is."""
    # The daemon_timeout decides how often a worker with nothing else to do looks for the overdue.
    daemon = make_daemon("tlsmgr_worker_processes=1", "ipc_timeout=1s", "daemon_timeout=3s")
    with Connection(daemon.socket_path) as idle, Connection(daemon.socket_path) as half:
        assert idle.ask(policy(b"smtp")) == policy_is(1, 3600)
        half.send(b"request\0seed\0si")
        assert half.read_to_end() == b""
        assert "warning: timeout on tlsmgr socket" in daemon.lines()
        assert not select.select([idle.socket], [], [], 1.5)[0], "silent for twice the limit"
        assert idle.ask(policy(b"smtp")) == policy_is(1, 3600)


def test_progress_keeps_a_slow_request_alive(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("tlsmgr_worker_processes=1", "ipc_timeout=2s", "daemon_timeout=3s")
    request = update(b"smtp", b"x", b"y")
    began = time.monotonic()
    with Connection(daemon.socket_path) as slow:
        for start in range(0, len(request), 4):
            slow.send(request[start : start + 4])
            time.sleep(0.2)
        assert slow.read_list() == OK
    assert time.monotonic() - began > 2, "longer than the limit for doing nothing"
