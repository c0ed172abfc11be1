"""Workers that drain after a reload, when the farm process has gone: they serve on as ever."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest
from support.daemon_process import Daemon, MakeDaemon, wait_for
from support.farm_engines import NEEDS_REDIS, Redis
from support.farm_secret import EXAMPLE_KEY, file_text, write
from support.hangup import reload
from support.raw_client import NO_SESSION, OK, Connection, expect_seed, lookup, update

NOBODY = "redis://127.0.0.1:1"
BUSY = 0.2  # of a processor; a worker in a loop without a wait gets more on a loaded machine, too


def start(make_daemon: MakeDaemon, tmp_path: Path, url: str) -> Daemon:
    secret = write(tmp_path / "farm.secret", file_text({"2026-11-01": EXAMPLE_KEY}))
    return make_daemon(
        f"tlsmgr_farm_secret_file={secret}",
        f"tlsmgr_farm_store={url}",
        "tlsmgr_farm_deadline=10s",
        "tlsmgr_worker_processes=1",
    )


def process_named(daemon: Daemon, name: str) -> psutil.Process:
    (found,) = [process for process in daemon.processes() if process.name() == name]
    return found


@pytest.mark.parametrize("is_read", [True, False])
def test_it_is_left_with_or_without_an_unread_message(
    make_daemon: MakeDaemon, tmp_path: Path, is_read: bool
) -> None:
    """A socket whose other end closes with something unread reports an error, not an end."""
    daemon = start(make_daemon, tmp_path, NOBODY)
    daemon.wait_for_log("sessions are not shared until it answers$")
    (worker,) = daemon.workers()
    with Connection(daemon.socket_path) as stays:
        if not is_read:
            process_named(daemon, "tlsmgr-keeper").suspend()
            process_named(daemon, "tlsmgr-farm").kill()
        assert stays.ask(update(b"smtp", b"id", b"session")) == OK
        reload(daemon)
        expect_seed(stays, 32)
        before, began = worker.cpu_times(), time.monotonic()
        wait_for(lambda: time.monotonic() > began + 1, "a second of the drain")
        after, passed = worker.cpu_times(), time.monotonic() - began
        expect_seed(stays, 32)
    assert after.user + after.system - before.user - before.system < BUSY * passed


@NEEDS_REDIS
def test_no_client_waits_for_it(make_daemon: MakeDaemon, tmp_path: Path) -> None:
    """A lookup would end with the drain, and with it the connection."""
    with Redis() as redis:
        daemon = start(make_daemon, tmp_path, redis.url)
        daemon.wait_for_log("answers: sessions are shared$")
        with Connection(daemon.socket_path) as stays:
            assert stays.ask(lookup(b"smtp", b"before")) == NO_SESSION
            reload(daemon)
            assert stays.ask(lookup(b"smtp", b"after")) == NO_SESSION
            expect_seed(stays, 32)
