"""Many answers of a farm's engine at once, more than a socket takes: none is lost."""

from __future__ import annotations

import contextlib
import re
import signal
from pathlib import Path

import psutil
from support.daemon_process import Daemon, MakeDaemon, wait_for
from support.farm_engines import NEEDS_REDIS, Redis
from support.farm_secret import EXAMPLE_KEY, file_text, write
from support.raw_client import OK, Connection, found, lookup, update

pytestmark = NEEDS_REDIS
CLIENTS = 400
SESSION = b"a long session\0\0" * 1000  # 400 of them are 6.4 MB; a socket has 2 MB at most
WINDOW = 50  # updates that wait for the engine


def start(make_daemon: MakeDaemon, secret: Path, redis: Redis) -> Daemon:
    daemon = make_daemon(
        f"tlsmgr_farm_secret_file={secret}",
        f"tlsmgr_farm_store={redis.url}",
        "tlsmgr_farm_deadline=10s",
        "tlsmgr_worker_processes=1",
    )
    daemon.wait_for_log("answers: sessions are shared$")
    return daemon


def gets(redis: Redis) -> int:
    """Return how many lookups it has answered."""
    match = re.search(rb"cmdstat_get:calls=(\d+)", redis.call("INFO", "commandstats"))
    return int(match[1]) if match else 0


def store(daemon: Daemon, redis: Redis) -> None:
    """Have all sessions in the engine."""
    with Connection(daemon.socket_path) as connection:
        for number in range(CLIENTS):
            assert connection.ask(update(b"smtp", b"%d" % number, SESSION)) == OK
            if number % WINDOW == WINDOW - 1:
                wait_for(lambda n=number: len(redis.stored()) == n + 1, "them")  # type: ignore[misc]


def test_a_worker_that_takes_them_late(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    secret = write(tmp_path / "farm.secret", file_text({"2026-11-01": EXAMPLE_KEY}))
    with Redis() as redis, contextlib.ExitStack() as stack:
        one = start(make_daemon, secret, redis)
        store(one, redis)
        other = start(make_daemon, secret, redis)
        (worker,) = other.workers()
        clients = [
            stack.enter_context(Connection(other.socket_path, timeout=60)) for _ in range(CLIENTS)
        ]
        redis.send(signal.SIGSTOP)
        for number, client in enumerate(clients):
            client.send(lookup(b"smtp", b"%d" % number))
        for client in clients:
            client.wait_until_taken()
        wait_for(lambda: is_idle(worker), "it to have asked")
        worker.suspend()
        redis.send(signal.SIGCONT)
        wait_for(lambda: gets(redis) >= CLIENTS and is_idle(farm_of(other)), "all answers")
        worker.resume()
        for client in clients:
            assert client.read_list() == found(SESSION)


def farm_of(daemon: Daemon) -> psutil.Process:
    (farm,) = (process for process in daemon.processes() if process.name() == "tlsmgr-farm")
    return farm


def is_idle(process: psutil.Process) -> bool:
    """Whether it waits, for two looks in a row."""
    used = process.cpu_times()
    with contextlib.suppress(psutil.TimeoutExpired):
        process.wait(0.1)
    return bool(process.status() == psutil.STATUS_SLEEPING and process.cpu_times() == used)
