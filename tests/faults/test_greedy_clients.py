"""Clients that flood, that send without end, or that fill the memory; and a log that is slow."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cache_files import MIB
from support.daemon_process import Daemon, MakeDaemon
from support.fault_load import Load, part
from support.fault_table import FaultTable
from support.flood import flooding
from support.raw_client import Connection, update

from tlsmgr.processes.connections import MEMORY_LIMIT

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("many_descriptors")]

TIME = 1.2  # seconds of flood
FACTOR = 10.0  # by which seeds may be slower than in the run that they are compared with
LEAST = 0.003  # seconds; a median below this is as good as any other

LOG_TO = """
from tlsmgr import log, logsockets
log.use(logsockets.Syslog(path={path!r}))
"""


def seed_median(load: Load) -> float:
    return part(load.seed_waits(is_during=True), 0.5)


@contextlib.contextmanager
def log_daemon(path: Path, pause: float, lines: list[bytes]) -> Iterator[None]:
    """A log daemon that takes a line each ``pause`` seconds."""
    stop = threading.Event()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(0.2)

        def read() -> None:
            while not stop.wait(pause):
                with contextlib.suppress(TimeoutError):
                    lines.append(listener.recv(1 << 16))

        thread = threading.Thread(target=read)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def flooded(
    make_daemon: MakeDaemon, faults: FaultTable, path: Path, pause: float, fault: str
) -> tuple[Load, list[bytes]]:
    """Return the load on a daemon that two clients flood with bogus policies, and its log."""
    lines: list[bytes] = []
    with log_daemon(path, pause, lines):
        daemon = make_daemon("tlsmgr_worker_processes=2", sabotage=LOG_TO.format(path=str(path)))
        with flooding(daemon.socket_path, "bogus", 2), faults.under_load(daemon, fault) as load:
            time.sleep(TIME)
            load.remark = f"{len(lines)} lines read, seed median {1000 * seed_median(load):.1f} ms"
        daemon.stop()
    return load, lines


def test_a_slow_log(make_daemon: MakeDaemon, faults: FaultTable, tmp_path: Path) -> None:
    """A client that floods with bogus policies, and a log reader that takes a line each 40 ms."""
    quick, _ = flooded(make_daemon, faults, tmp_path / "1", 0.0, "flood of bogus policies")
    slow, lines = flooded(make_daemon, faults, tmp_path / "2", 0.04, "the same with a slow log")
    assert seed_median(slow) < FACTOR * max(seed_median(quick), LEAST)
    assert (slow.failed, slow.lost) == ([], 0)
    assert not [line for line in lines if b"panic" in line]


def test_clients_of_one_byte_fields(make_daemon: MakeDaemon, faults: FaultTable) -> None:
    """Eight clients whose requests have thousands of fields; compared with eight that are good."""
    daemon = make_daemon("tlsmgr_worker_processes=2")
    with faults.under_load(daemon, "no flood") as before:
        time.sleep(0.5)
    with (
        flooding(daemon.socket_path, "fields", 8),
        faults.under_load(daemon, "eight clients of one-byte fields") as load,
    ):
        time.sleep(TIME)
        load.remark = f"seed median {1000 * seed_median(load):.1f} ms"
    assert seed_median(load) < FACTOR * max(seed_median(before), LEAST)
    assert (load.failed, load.lost) == ([], 0)


def half_requests(
    stack: contextlib.ExitStack, daemon: Daemon, size: int, count: int
) -> list[socket.socket]:
    """Open connections that have sent this number of bytes of a request."""
    data = update(b"smtp", b"half", bytes(2 * MIB))[:size]
    clients = []
    for _ in range(count):
        connection = stack.enter_context(Connection(daemon.socket_path))
        with contextlib.suppress(OSError):
            connection.send(data)
        clients.append(connection.socket)
    return clients


def is_open(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def test_half_requests(make_daemon: MakeDaemon, faults: FaultTable) -> None:
    """150 of 2 MB: the memory of the worker is bounded, and the largest go first."""
    daemon = make_daemon("tlsmgr_worker_processes=1")
    (worker,) = daemon.workers()
    with contextlib.ExitStack() as stack:
        small = half_requests(stack, daemon, 20, 50)
        with faults.under_load(daemon, "150 half requests of 2 MB") as load:
            before = worker.memory_info().rss
            large = half_requests(stack, daemon, 2 * MIB - 100, 150)
            grown = worker.memory_info().rss - before
            load.remark = f"worker grew by {grown / MIB:.0f} MiB"
        assert grown < 1.5 * MEMORY_LIMIT
        assert all(is_open(client) for client in small)
        assert 20 < sum(is_open(client) for client in large) < 40
    assert daemon.workers() == [worker]
    assert (load.failed, load.lost, load.broken) == ([], 0, [])
