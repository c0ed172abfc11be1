"""A file system behind a server that does not answer, or that is gone: FUSE here, or NFS."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.daemon_clients import keeps_sessions, serves, touch_files
from support.daemon_process import Daemon, MakeDaemon, wait_for
from support.fault_table import FaultTable
from support.fuse_disk import FuseDisk, fuse_disk

pytestmark = pytest.mark.faults

SOON = 3.0  # seconds within which new connections are served again, on a machine that is not busy
BUSY = 2.0  # how much longer it may take on one that is


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[FuseDisk]:
    with fuse_disk(tmp_path) as mounted:
        yield mounted


def on_disk(make_daemon: MakeDaemon, place: FuseDisk, start: bool = True) -> Daemon:
    """A daemon whose session files are there; tlsmgr-start itself waits for data_directory."""
    caches = (
        f"{name}_tls_session_cache_database=btree:{place.path}/{name}_scache"
        for name in ("smtpd", "smtp", "lmtp")
    )
    return make_daemon("tlsmgr_worker_processes=2", *caches, start=start)


def test_a_server_that_is_stopped(
    make_daemon: MakeDaemon, remote: FuseDisk, faults: FaultTable
) -> None:
    """Processes that wait for it sleep, which looks as if they had nothing to do."""
    daemon = on_disk(make_daemon, remote)
    wait_for(lambda: keeps_sessions(daemon, b"before"), "sessions")
    with (
        faults.under_load(daemon, "server of the file system stopped", others_serve=False) as load,
        contextlib.ExitStack() as stack,
    ):
        remote.stop()
        touch_files(daemon, stack)
        began = time.monotonic()
        daemon.wait_for_log("a file system does not respond")
        wait_for(lambda: serves(daemon), "service by processes that touch no file")
        load.remark = f"served after {time.monotonic() - began:.2f} s"
        assert time.monotonic() - began < BUSY * SOON
        for _ in range(50):
            assert serves(daemon)
        remote.go_on()
        daemon.wait_for_log("the file system responds again")
    wait_for(lambda: all(keeps_sessions(daemon, b"%d" % n) for n in range(20)), "sessions")
    wait_for(lambda: len(daemon.workers()) == 2, "two workers")
    assert load.failed == []


def test_a_server_that_is_killed(
    make_daemon: MakeDaemon, remote: FuseDisk, faults: FaultTable
) -> None:
    """There is no way back: no session is found or stored, and everything else goes on."""
    daemon = on_disk(make_daemon, remote)
    wait_for(lambda: keeps_sessions(daemon, b"before"), "sessions")
    with faults.under_load(daemon, "server of the file system killed", others_serve=False) as load:
        remote.kill()
        daemon.wait_for_log("cannot make smtp_scache.sessions: .*not connected")
        for _ in range(50):
            assert serves(daemon)
        daemon.workers()[0].kill()
        wait_for(lambda: len(daemon.workers()) == 2, "two workers")
        assert serves(daemon)
    assert (load.failed, load.refused, load.stale) == ([], [], 0)
    assert not keeps_sessions(daemon, b"after")


def test_a_start_while_it_is_stopped(
    make_daemon: MakeDaemon, remote: FuseDisk, faults: FaultTable
) -> None:
    daemon = on_disk(make_daemon, remote, start=False)
    remote.stop()
    began = time.monotonic()
    daemon.start()
    took = time.monotonic() - began
    with faults.under_load(daemon, "start while the server is stopped", others_serve=False) as load:
        load.remark = f"start took {took:.2f} s"
        assert serves(daemon)
        assert not keeps_sessions(daemon, b"early")
        time.sleep(2.0)  # until the parent could take the janitor for one that hangs
    remote.go_on()
    assert load.failed == []
    wait_for(lambda: all(keeps_sessions(daemon, b"%d" % n) for n in range(20)), "sessions")
