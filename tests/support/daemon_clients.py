"""daemon_clients - clients of a daemon under test, and the replies that they must get."""

from __future__ import annotations

import contextlib
import socket
import time

from support.daemon_process import PATIENCE, Daemon
from support.raw_client import (
    NO_SESSION,
    NOT_DONE,
    OK,
    Connection,
    data_of,
    expect_seed,
    found,
    lookup,
    policy,
    seed,
    tktkey,
    update,
)

WINDOW = 100  # requests in flight on one connection


def ask(path: str, request: bytes) -> bytes:
    """Return the reply to a request on a connection of its own."""
    with Connection(path) as connection:
        return connection.ask(request)


def accepts(path: str) -> bool:
    """Return whether a server accepts connections at the socket."""
    with contextlib.suppress(OSError), Connection(path):
        return True
    return False


def ask_all(daemon: Daemon, connections: int = 20) -> None:
    """Assert that requests on new connections are answered."""
    for _ in range(connections):
        with Connection(daemon.socket_path) as connection:
            expect_seed(connection, 16)


def send_all(connection: Connection, requests: list[bytes]) -> list[bytes]:
    """Pipeline the requests, WINDOW at a time; return their replies."""
    replies = []
    for start in range(0, len(requests), WINDOW):
        window = requests[start : start + WINDOW]
        connection.send(b"".join(window))
        replies += [connection.read_list() for _ in window]
    return replies


def serve_on(daemon: Daemon, number: int) -> bool:
    """Assert that seed, policy, update and lookup are answered; return whether sessions are kept.

    A worker that reads damaged data may die and close its connections; then it is tried again.
    """
    session = b"session %d" % number
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(EOFError, OSError), Connection(daemon.socket_path) as connection:
            expect_seed(connection, 8)
            assert connection.ask(policy(b"smtp")).startswith(b"status\x000\0cachable\x001\0")
            assert connection.ask(update(b"smtp", b"id %d" % number, session)) in (OK, NOT_DONE)
            reply = connection.ask(lookup(b"smtp", b"id %d" % number))
            assert reply in (NO_SESSION, found(session))
            return reply != NO_SESSION
        time.sleep(0.05)
    raise AssertionError("no worker lives for four requests")


def serves(daemon: Daemon) -> bool:
    """Whether a new connection gets all that needs no file, within a second each."""
    try:
        with Connection(daemon.socket_path) as connection:
            connection.socket.settimeout(1.0)
            assert len(data_of(connection.ask(seed(8)), b"seed")) == 8
            assert connection.ask(policy(b"smtp")).startswith(b"status\x000\0cachable\x001\0")
            return len(data_of(connection.ask(tktkey(b"")), b"keybuf")) == 88
    except (OSError, EOFError):
        return False


def keeps_sessions(daemon: Daemon, cache_id: bytes) -> bool:
    """Whether a new connection can store a session under this id and find it, within seconds."""
    try:
        with Connection(daemon.socket_path) as connection:
            connection.socket.settimeout(1.0)
            connection.ask(update(b"smtp", cache_id, b"session"))
            return connection.ask(lookup(b"smtp", cache_id)) == found(b"session")
    except (OSError, EOFError):
        return False


def touch_files(daemon: Daemon, stack: contextlib.ExitStack, count: int = 8) -> None:
    """Send lookups whose workers get stuck, and do not wait for replies."""
    for number in range(count):
        connection = stack.enter_context(contextlib.closing(socket.socket(socket.AF_UNIX)))
        connection.connect(daemon.socket_path)
        connection.sendall(lookup(b"smtp", b"%d" % number))
