"""Workers are killed under load: no acknowledged update is lost, and no client waits long."""

from __future__ import annotations

import contextlib
import random
import threading
import time

import psutil
import pytest
from support.cache_files import MIB
from support.daemon_clients import send_all
from support.daemon_process import Daemon, MakeDaemon, wait_for
from support.raw_client import OK, Connection, found, lookup, update

pytestmark = pytest.mark.usefixtures("many_descriptors")


class Updater:
    """One client: updates one after the other, again on a new connection when one breaks."""

    def __init__(self, daemon: Daemon, number: int, count: int) -> None:
        self._path = daemon.socket_path
        self._connection: Connection | None = None
        self._dice = random.Random(number)
        self.sessions: dict[bytes, bytes] = {}  # acknowledged
        self.longest = 0.0  # seconds that one update took, all its tries together
        self.broken = 0
        self._number, self._count = number, count

    def run(self) -> None:
        for number in range(self._count):
            cache_id = b"client %d id %d" % (self._number, number)
            session = self._dice.randbytes(self._dice.choice([20, 141, 1146]))
            began = time.monotonic()
            while not self._try(update(b"smtp", cache_id, session)):
                self.broken += 1
            self.longest = max(self.longest, time.monotonic() - began)
            self.sessions[cache_id] = session
        if self._connection is not None:
            self._connection.close()

    def _try(self, request: bytes) -> bool:
        try:
            if self._connection is None:
                self._connection = Connection(self._path)
            assert self._connection.ask(request) == OK
        except (EOFError, ConnectionError):
            if self._connection is not None:
                self._connection.close()
            self._connection = None
            return False
        return True


def kill_workers(daemon: Daemon, clients: list[threading.Thread], pause: float) -> int:
    """Kill a worker again and again while the clients are busy; how many were killed."""
    dice = random.Random(4)
    killed = 0
    while any(client.is_alive() for client in clients):
        time.sleep(dice.uniform(0, 2 * pause))
        workers = daemon.workers()
        if len(workers) > 1:
            with contextlib.suppress(psutil.NoSuchProcess):
                dice.choice(workers).kill()
                killed += 1
    return killed


def check_that_updates_survive_kills(make_daemon: MakeDaemon, count: int, pause: float) -> None:
    began = time.monotonic()
    daemon = make_daemon(
        "tlsmgr_worker_processes=4", f"smtp_tls_session_cache_size_limit={1024 * MIB}"
    )
    start = time.monotonic() - began  # says how slow the machine is now
    updaters = [Updater(daemon, number, count // 8) for number in range(8)]
    clients = [threading.Thread(target=updater.run) for updater in updaters]
    for client in clients:
        client.start()
    killed = kill_workers(daemon, clients, pause)
    for client in clients:
        client.join()
    acknowledged = {k: v for updater in updaters for k, v in updater.sessions.items()}
    assert len(acknowledged) == count
    assert killed >= 5
    assert sum(updater.broken for updater in updaters) >= 5
    assert max(updater.longest for updater in updaters) < max(2.0, 10 * start)
    wait_for(lambda: len(daemon.workers()) == 4, "all workers")
    with Connection(daemon.socket_path) as connection:
        ids = list(acknowledged)
        replies = send_all(connection, [lookup(b"smtp", cache_id) for cache_id in ids])
        lost = [i for i, reply in zip(ids, replies) if reply != found(acknowledged[i])]
    assert lost == []
    assert "recreated" not in daemon.log()


def test_acknowledged_updates_survive_kills_of_workers(make_daemon: MakeDaemon) -> None:
    """20,000 updates from eight clients; no client waits for much longer than a start takes."""
    check_that_updates_survive_kills(make_daemon, 20_000, 0.015)


@pytest.mark.long
def test_acknowledged_updates_survive_many_kills(make_daemon: MakeDaemon) -> None:
    check_that_updates_survive_kills(make_daemon, 400_000, 0.05)
