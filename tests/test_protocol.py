"""The protocol as clients see it: every request, every mistake, its reply and its log line.

Where stock has a defect the replies here are the right ones: pipelines are answered in order, an
unknown request is refused, a failed reply carries no data, and a request in pieces is no wake-up.
"""

from __future__ import annotations

import re
import select
import socket
import struct
import time

import pytest
from conftest import MakeDaemon
from daemon_process import Daemon
from raw_client import (
    ANNOUNCEMENT,
    NO_SESSION,
    NOT_FOUND,
    OK,
    TIMEOUT,
    Connection,
    attributes,
    data_of,
    delete,
    found,
    lookup,
    policy,
    seed,
    tktkey,
    update,
)

BAD = b"status\x004294967294\0"
FAILED = b"status\x004294967295\0"


def policy_is(cachable: int, timeout: int, status: bytes = b"status\x000\0") -> bytes:
    return status + b"cachable\0%d\0timeout\0%d\0\0" % (cachable, timeout)


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
            assert len(data_of(quick.ask(seed(8)), b"seed")) == 8
        assert slow.read_list() == OK
        assert quick.ask(lookup(b"smtp", b"slow")) == found(b"hello")


# ------------------------------------------------------------------------------------ the requests


def test_seeds_differ(recorded_daemon: Daemon) -> None:
    with Connection(recorded_daemon.socket_path) as connection:
        for size in (1, 32, 255):
            assert len(data_of(connection.ask(seed(size)), b"seed")) == size
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
            assert connection.ask(delete(cache_type, b"life")) == NOT_FOUND
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
            assert connection.ask(policy(cache_type)) == policy_is(0, 0, BAD)
        # Session caching and tickets are off where the timeout is 0.
        assert connection.ask(tktkey()) == FAILED + b"keybuf\0\0\0"
        assert connection.ask(tktkey(b"k" * 16)) == FAILED + b"keybuf\0\0\0"
        assert connection.ask(lookup(b"smtpd", b"x")) == BAD + b"session\0\0\0"


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
        assert connection.ask(tktkey(unknown)) == FAILED + b"keybuf\0\0\0"
        for length in (1, 15, 17, 32, 88):
            assert connection.ask(tktkey(bytes(length))) == BAD + b"keybuf\0\0\0"


# ---------------------------------------------------------------------------------------- mistakes

BARE = BAD + b"\0"
MISSING = "missing attribute {} in input from tlsmgr socket"
UNEXPECTED = "unexpected attribute {} from tlsmgr socket (expecting: {})"
VALUE = "malformed {} data from tlsmgr socket while reading input attribute value: {}"
NO_SEED = BAD + b"seed\0\0\0"
NO_POLICY = BAD + b"cachable\x000\0timeout\x000\0\0"
NO_LOOKUP = BAD + b"session\0\0\0"
NO_KEY = BAD + b"keybuf\0\0\0"

MISTAKES = [
    *(
        (seed(size), NO_SEED, f'bogus seed length "{shown}" in "seed" request')
        for size, shown in ((b"0", 0), (b"256", 256), (b"-1", -1), (b"4294967295", -1))
    ),
    *(
        (seed(size), NO_SEED, VALUE.format("numerical", shown))
        for size, shown in (
            (b"abc", "abc"),
            (b"", ""),
            (b"5 ", "5 "),
            (b"5.0", "5.0"),
            (b"0x10", "0x10"),
            (b"32\n", "32?"),
            (b"x" * 300, "x" * 100),
            (b"\xff\xfe", "??"),
        )
    ),
    (policy(b"bogus"), NO_POLICY, 'bogus cache type "bogus" in "policy" request'),
    (policy(b""), NO_POLICY, 'bogus cache type "" in "policy" request'),
    (lookup(b"bogus", b"x"), NO_LOOKUP, 'bogus cache type "bogus" in "lookup" request'),
    (update(b"bogus", b"x", b"y"), BARE, 'bogus cache type "bogus" in "update" request'),
    (delete(b"SMTP", b"x"), BARE, 'bogus cache type "SMTP" in "delete" request'),
    (lookup(b"lmtp", b"x"), NO_LOOKUP, None),
    (update(b"lmtp", b"x", b"y"), BARE, None),
    (delete(b"lmtp", b"x"), BARE, None),
    *(
        (tktkey(bytes(length)), NO_KEY, f"invalid session ticket key name length: {length}")
        for length in (1, 15, 17)
    ),
    (
        attributes((b"request", b"tktkey"), (b"keyname", b"ab*=")),
        NO_KEY,
        VALUE.format("base64", "(4 bytes)"),
    ),
    (
        update(b"smtp", b"bad", b"").replace(b"session\0", b"session\0ab*="),
        BARE,
        VALUE.format("base64", "(4 bytes)"),
    ),
    (attributes((b"reqest", b"policy")), BARE, UNEXPECTED.format("reqest", "request")),
    (b"\0" + attributes((b"some", b"rubbish")), BARE, MISSING.format("request")),
    (attributes((b"request", b"seed")), NO_SEED, MISSING.format("size")),
    (attributes((b"request", b"policy")), NO_POLICY, MISSING.format("cache_type")),
    (
        attributes((b"request", b"lookup"), (b"cache_type", b"smtp")),
        NO_LOOKUP,
        MISSING.format("cache_id"),
    ),
    (
        attributes((b"request", b"update"), (b"cache_type", b"smtp"), (b"session", b"YQ==")),
        BARE,
        UNEXPECTED.format("session", "cache_id"),
    ),
    (
        attributes((b"request", b"delete"), (b"cache_id", b"x"), (b"cache_type", b"smtp")),
        BARE,
        UNEXPECTED.format("cache_id", "cache_type"),
    ),
    (attributes((b"request", b"tktkey")), NO_KEY, MISSING.format("keyname")),
    (
        attributes((b"request", b"policy"), (b"cache_type", b"smtp"), (b"extra", b"1")),
        policy_is(1, 3600),
        UNEXPECTED.format("extra", "(list terminator)"),
    ),
    *(
        (
            attributes((b"request", name), (b"cache_type", b"smtp")),
            BARE,
            f'unknown request "{name.decode()}" from tlsmgr socket',
        )
        for name in (b"frob", b"", b"POLICY", b"seed ")
    ),
    (b"X\0", BARE, UNEXPECTED.format("X", "request")),
    (attributes((b"W", b"1")), BARE, UNEXPECTED.format("W", "request")),
]


@pytest.mark.parametrize(("mistake", "reply", "line"), MISTAKES)
def test_mistake(recorded_daemon: Daemon, mistake: bytes, reply: bytes, line: str | None) -> None:
    start = len(recorded_daemon.log())
    with Connection(recorded_daemon.socket_path) as connection:
        assert connection.ask(mistake) == reply
        assert connection.ask(policy(b"smtp")) == policy_is(1, 3600), "the connection goes on"
    assert recorded_daemon.lines(start) == ([f"warning: {line}"] if line is not None else [])


@pytest.mark.parametrize("short", [b"", b"\0", b"\0\0"])
def test_a_stray_nul_has_no_answer(recorded_daemon: Daemon, short: bytes) -> None:
    start = len(recorded_daemon.log())
    with Connection(recorded_daemon.socket_path) as connection:
        connection.send(short)
        with Connection(recorded_daemon.socket_path) as other:
            other.ask(seed(1))
        assert connection.ask(policy(b"smtp")) == policy_is(1, 3600)
    assert recorded_daemon.lines(start) == []


# ------------------------------------------------------------------------------------- security


def test_no_failed_reply_carries_what_another_client_was_told(recorded_daemon: Daemon) -> None:
    """As stock 3.7 does: a malformed lookup is answered with the last client's ticket key."""
    path = recorded_daemon.socket_path
    failing = [mistake for mistake, reply, _ in MISTAKES if not reply.startswith(b"status\x000\0")]
    failing += [lookup(b"smtp", b"nothing there"), tktkey(b"?" * 16)]
    with Connection(path) as owner, Connection(path) as thief:
        for mistake in failing:
            data_of(owner.ask(tktkey()), b"keybuf")
            assert owner.ask(update(b"smtp", b"owner", b"secret session")) == OK
            data_of(owner.ask(lookup(b"smtp", b"owner")), b"session")
            data_of(owner.ask(seed(255)), b"seed")
            for client in (thief, owner):
                reply = client.ask(mistake)
                assert len(reply) <= len(NO_POLICY), reply
                assert re.fullmatch(
                    rb"status\x00429496729[45]\0"
                    rb"((seed|session|keybuf)\0\0|cachable\x000\0timeout\x000\0)?\0",
                    reply,
                )
                assert client.ask(policy(b"smtp")) == policy_is(1, 3600)


# ------------------------------------------------------------------------------------ wake-up, end


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
    (seed(4), NO_SEED),
    (policy(b"smtp"), NO_POLICY),
    (lookup(b"smtp", b"id"), NO_LOOKUP),
    (update(b"smtp", b"id", b"hello"), BARE),
    (delete(b"smtp", b"id"), BARE),
    (tktkey(b"k" * 16), NO_KEY),
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
        between = whole[length - 1 : length] == b"\0"
        words = "premature end-of-input on" if between else "unexpected end-of-input from"
        part = "value" if whole[:length].count(b"\0") % 2 else "name"
        assert recorded_daemon.lines(start) == [
            f"warning: {words} tlsmgr socket while reading input attribute {part}"
        ]


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
            assert len(data_of(stays.ask(seed(4)), b"seed")) == 4


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
        assert not select.select([idle.socket], [], [], 2.5)[0]
        assert idle.ask(policy(b"smtp")) == policy_is(1, 3600)


def test_progress_keeps_a_slow_request_alive(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("tlsmgr_worker_processes=1", "ipc_timeout=3s", "daemon_timeout=3s")
    request = update(b"smtp", b"x", b"y")
    began = time.monotonic()
    with Connection(daemon.socket_path) as slow:
        for start in range(0, len(request), 4):
            slow.send(request[start : start + 4])
            time.sleep(0.25)
        assert slow.read_list() == OK
    assert time.monotonic() - began > 3, "longer than the limit for doing nothing"
