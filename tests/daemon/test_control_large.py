"""An operator who lists a cache of 500,000 sessions: the first line comes soon, and seeds go on.

Figures of a machine that others use as well: ratios, and the best of some tries.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from support.control_client import ControlConnection, data_of, status_of
from support.daemon_process import Daemon, MakeDaemon, wait_for
from support.raw_client import OK, Connection, expect_seed, update
from support.session_bytes import session

pytestmark = pytest.mark.long

ENTRIES, WINDOW = 500_000, 500
SEEDS = 1500  # of one measurement
TRIES = 6
MOST = 1.5  # times as long, at the 99th percentile
SOON = 0.5  # seconds until the first line
PART = 0.2  # of the time of the whole walk, until the first line


@pytest.fixture(scope="module")
def entry() -> bytes:
    return session("." * 60)


def fill(daemon: Daemon, entry: bytes) -> None:
    with Connection(daemon.socket_path) as connection:
        for start in range(0, ENTRIES, WINDOW):
            ids = (b"smtp&mx%06d.example" % number for number in range(start, start + WINDOW))
            connection.send(b"".join(update(b"smtp", cache_id, entry) for cache_id in ids))
            for _ in range(WINDOW):
                assert connection.read_list() == OK
    wait_for(lambda: status_of(daemon.socket_path)["caches"]["smtp"]["entries"] == ENTRIES, "all")


def walk(daemon: Daemon, match: str) -> tuple[float, float]:
    """List; return the seconds until the first line with an entry, and until the end."""
    with ControlConnection(daemon.socket_path) as connection:
        began = time.monotonic()
        connection.send(f"list smtp match={match}\n".encode())
        first, data = 0.0, b""
        while part := connection.socket.recv(1 << 16):
            data += part
            if not first and b"{" in part:
                first = time.monotonic() - began
        assert data.endswith(b"ok\n")
        return first, time.monotonic() - began


def seed_p99(daemon: Daemon) -> float:
    times = []
    with Connection(daemon.socket_path) as connection:
        for _ in range(SEEDS):
            began = time.perf_counter()
            expect_seed(connection, 32)
            times.append(time.perf_counter() - began)
    return sorted(times)[int(0.99 * SEEDS)]


def meanwhile(daemon: Daemon, measure: Callable[[Daemon], float]) -> float:
    """Measure while an operator looks for something rare, again and again."""
    ends = threading.Event()

    def list_on() -> None:
        while not ends.is_set():
            walk(daemon, "mx499999")

    operator = threading.Thread(target=list_on)
    operator.start()
    try:
        return measure(daemon)
    finally:
        ends.set()
        operator.join()


def test_a_large_cache_is_listed(make_daemon: MakeDaemon, entry: bytes) -> None:
    daemon = make_daemon("tlsmgr_worker_processes=1", "smtp_tls_session_cache_size_limit=256M")
    fill(daemon, entry)
    walks = [walk(daemon, "mx0001") for _ in range(TRIES)]
    first, whole = min(first for first, _ in walks), min(whole for _, whole in walks)
    print(f"first line after {first:.3f} s, the whole walk {whole:.2f} s")
    assert first < SOON
    assert first < PART * whole
    assert len(data_of(daemon.socket_path, "list smtp match=mx0001")) == 100
    quiet, busy = [], []
    for _ in range(TRIES):  # in turn, so that both have the same neighbours
        quiet.append(seed_p99(daemon))
        busy.append(meanwhile(daemon, seed_p99))
    ratio = min(busy) / min(quiet)
    print(f"seed p99 while it is listed: {ratio:.2f} times that of before")
    assert ratio < MOST
