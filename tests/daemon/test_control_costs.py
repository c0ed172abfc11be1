"""What stuck and hostile clients of the control socket cost the others: seeds go on as before.

The machine has other users, so the client is switched on and off every few milliseconds, and the
seeds of all these moments are compared. A second client that does nothing is on in the quiet ones.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from support import hostile_control_client
from support.control_client import status_of
from support.daemon_process import Daemon, MakeDaemon
from support.hostile_control_client import KINDS
from support.raw_client import OK, Connection, expect_seed, update

pytestmark = pytest.mark.long

MOST = 1.2  # times as long, at the 99th percentile
SEEDS, ROUNDS = 300, 250
TRIES = 3  # the neighbours of one may have been restless
ENTRIES, WINDOW = 20_000, 500


class Client:
    """A hostile client in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Be a nuisance for the block."""
        self._tell("on")
        yield
        self._tell("off")

    def _tell(self, word: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == f"{word}\n"


@contextlib.contextmanager
def client_that(kind: str, daemon: Daemon) -> Iterator[Client]:
    """Start a client, switched off."""
    program = [sys.executable, hostile_control_client.__file__, daemon.socket_path, kind]
    pipe = subprocess.PIPE
    with subprocess.Popen(program, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield Client(process)
        finally:
            process.kill()


def seed_times(connection: Connection) -> list[float]:
    times = []
    for _ in range(SEEDS):
        began = time.perf_counter()
        expect_seed(connection, 32)
        times.append(time.perf_counter() - began)
    return times


def p99(times: list[float]) -> float:
    return sorted(times)[int(0.99 * len(times))]


@pytest.fixture
def daemon(make_daemon: MakeDaemon) -> Daemon:
    """One worker, which all clients share, and a cache that takes long to list."""
    daemon = make_daemon("tlsmgr_worker_processes=1")
    with Connection(daemon.socket_path) as connection:
        for start in range(0, ENTRIES, WINDOW):
            ids = [b"smtp&mx%06d.example" % number for number in range(start, start + WINDOW)]
            connection.send(b"".join(update(b"smtp", cache_id, b"session") for cache_id in ids))
            for _ in ids:
                assert connection.read_list() == OK
    return daemon


def ratio(connection: Connection, idle: Client, hostile: Client) -> float:
    """Return how much longer a seed takes while the client is on, at the 99th percentile."""
    quiet: list[float] = []
    disturbed: list[float] = []
    for _ in range(ROUNDS):
        with idle.on():
            quiet += seed_times(connection)
        with hostile.on():
            disturbed += seed_times(connection)
    before, after = p99(quiet), p99(disturbed)
    print(f"p99 {1e6 * before:.0f} -> {1e6 * after:.0f} us, load {os.getloadavg()[0]:.1f}")
    return after / before


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_are_not_slower(daemon: Daemon, kind: str) -> None:
    with (
        Connection(daemon.socket_path) as connection,
        client_that("nothing", daemon) as idle,
        client_that(kind, daemon) as hostile,
    ):
        seed_times(connection)
        tries = (ratio(connection, idle, hostile) for _ in range(TRIES))
        assert any(each <= MOST for each in tries)
    assert status_of(daemon.socket_path)["state"] == "serving"
