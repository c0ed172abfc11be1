"""Every mistake in a request, its reply and its log line.

Where stock has a defect the replies here are the right ones: an unknown request is refused, and a
failed reply carries no data.
"""

from __future__ import annotations

import contextlib
import re

import pytest
from support.complaints import MISSING, UNEXPECTED, VALUE
from support.daemon_process import Daemon, MakeDaemon
from support.raw_client import (
    BAD_REQUEST,
    OK,
    REFUSED_KEY,
    REFUSED_LOOKUP,
    REFUSED_POLICY,
    REFUSED_SEED,
    Connection,
    attributes,
    data_of,
    delete,
    lookup,
    policy,
    policy_is,
    seed,
    tktkey,
    update,
)

from tlsmgr.processes.worker import WARNING_BURST

MISTAKES = [
    *(
        (seed(size), REFUSED_SEED, f'bogus seed length "{shown}" in "seed" request')
        for size, shown in ((b"0", 0), (b"256", 256), (b"-1", -1), (b"4294967295", -1))
    ),
    *(
        (seed(size), REFUSED_SEED, VALUE.format("numerical", shown))
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
    (policy(b"bogus"), REFUSED_POLICY, 'bogus cache type "bogus" in "policy" request'),
    (policy(b""), REFUSED_POLICY, 'bogus cache type "" in "policy" request'),
    (lookup(b"bogus", b"x"), REFUSED_LOOKUP, 'bogus cache type "bogus" in "lookup" request'),
    (update(b"bogus", b"x", b"y"), BAD_REQUEST, 'bogus cache type "bogus" in "update" request'),
    (delete(b"SMTP", b"x"), BAD_REQUEST, 'bogus cache type "SMTP" in "delete" request'),
    (lookup(b"lmtp", b"x"), REFUSED_LOOKUP, None),
    (update(b"lmtp", b"x", b"y"), BAD_REQUEST, None),
    (delete(b"lmtp", b"x"), BAD_REQUEST, None),
    *(
        (tktkey(bytes(length)), REFUSED_KEY, f"invalid session ticket key name length: {length}")
        for length in (1, 15, 17)
    ),
    (
        attributes((b"request", b"tktkey"), (b"keyname", b"ab*=")),
        REFUSED_KEY,
        VALUE.format("base64", "(4 bytes)"),
    ),
    (
        update(b"smtp", b"bad", b"").replace(b"session\0", b"session\0ab*="),
        BAD_REQUEST,
        VALUE.format("base64", "(4 bytes)"),
    ),
    (attributes((b"reqest", b"policy")), BAD_REQUEST, UNEXPECTED.format("reqest", "request")),
    (b"\0" + attributes((b"some", b"rubbish")), BAD_REQUEST, MISSING.format("request")),
    (attributes((b"request", b"seed")), REFUSED_SEED, MISSING.format("size")),
    (attributes((b"request", b"policy")), REFUSED_POLICY, MISSING.format("cache_type")),
    (
        attributes((b"request", b"lookup"), (b"cache_type", b"smtp")),
        REFUSED_LOOKUP,
        MISSING.format("cache_id"),
    ),
    (
        attributes((b"request", b"update"), (b"cache_type", b"smtp"), (b"session", b"YQ==")),
        BAD_REQUEST,
        UNEXPECTED.format("session", "cache_id"),
    ),
    (
        attributes((b"request", b"delete"), (b"cache_id", b"x"), (b"cache_type", b"smtp")),
        BAD_REQUEST,
        UNEXPECTED.format("cache_id", "cache_type"),
    ),
    (attributes((b"request", b"tktkey")), REFUSED_KEY, MISSING.format("keyname")),
    (
        attributes((b"request", b"policy"), (b"cache_type", b"smtp"), (b"extra", b"1")),
        policy_is(1, 3600),
        UNEXPECTED.format("extra", "(list terminator)"),
    ),
    *(
        (
            attributes((b"request", name), (b"cache_type", b"smtp")),
            BAD_REQUEST,
            f'unknown request "{name.decode()}" from tlsmgr socket',
        )
        for name in (b"frob", b"", b"POLICY", b"seed ")
    ),
    (b"X\0", BAD_REQUEST, UNEXPECTED.format("X", "request")),
    (attributes((b"W", b"1")), BAD_REQUEST, UNEXPECTED.format("W", "request")),
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
        connection.wait_until_taken()
        assert connection.ask(policy(b"smtp")) == policy_is(1, 3600)
    assert recorded_daemon.lines(start) == []


def test_who_makes_nothing_but_mistakes_is_sent_away(recorded_daemon: Daemon) -> None:
    """Else one client could fill the log."""
    start = len(recorded_daemon.log())
    with Connection(recorded_daemon.socket_path) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.send(b"\0\0" * 100_000)
        with contextlib.suppress(ConnectionResetError):
            connection.read_to_end()
    lines = recorded_daemon.lines(start)
    assert lines[-1] == "warning: too many refused requests from tlsmgr socket: disconnected"
    assert lines[:-1] == ["warning: " + MISSING.format("request")] * 100


def test_of_each_kind_of_warning_some_are_logged(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon("tlsmgr_worker_processes=1")
    for number in range(2 * WARNING_BURST):
        with Connection(daemon.socket_path) as connection:
            connection.ask(policy(b"bogus %d" % number))
    assert daemon.log().count("bogus cache type") == WARNING_BURST
    with Connection(daemon.socket_path) as connection:
        connection.send(b"half a request\0")
        connection.wait_until_taken()
    daemon.wait_for_log("unexpected attribute half a request", timeout=5)


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
                assert len(reply) <= len(REFUSED_POLICY), reply
                assert re.fullmatch(
                    rb"status\x00429496729[45]\0"
                    rb"((seed|session|keybuf)\0\0|cachable\x000\0timeout\x000\0)?\0",
                    reply,
                )
                assert client.ask(policy(b"smtp")) == policy_is(1, 3600)
