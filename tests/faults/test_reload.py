"""A reload while a file system blocks: it is not delayed, and nothing is lost."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.daemon_clients import ask
from support.frozen_disk import Disk, disk
from support.live_processes import is_alive
from support.master_child import NEEDS_POSTFIX, PATIENCE, PROCESSES, MasterChild
from support.postfix_sandbox import wait_until
from support.raw_client import (
    OK,
    Connection,
    data_of,
    expect_seed,
    found,
    lookup,
    tktkey,
    update,
)
from support.steady_clients import SteadyClients

pytestmark = [pytest.mark.faults, NEEDS_POSTFIX]

CHECK_INTERVAL = 0.1
CHECKS = f"""
from tlsmgr.processes import worker
worker.BEAT_INTERVAL = worker.CHECK_INTERVAL = {CHECK_INTERVAL}
"""
"""Sabotage: a worker looks at its clients ten times as often."""


@pytest.fixture
def frozen_disk() -> Iterator[Disk]:
    """A disk below a directory that postfix may pass through."""
    with tempfile.TemporaryDirectory(prefix="disk-") as directory:
        os.chmod(directory, 0o755)
        with disk(Path(directory)) as mounted:
            yield mounted


@pytest.fixture
def child(frozen_disk: Disk) -> Iterator[MasterChild]:
    """A daemon that serves, with its data on that disk."""
    with MasterChild(
        keeps_sockets=True,
        data_parent=str(frozen_disk.path),
        prelude=CHECKS,
    ) as daemon:
        daemon.wait_until_ready()
        yield daemon
        frozen_disk.thaw()
        daemon.stop()
        assert daemon.texts("error|fatal|panic|Traceback") == []


def test_it_is_frozen_a_moment_before(child: MasterChild, frozen_disk: Disk) -> None:
    """So that nobody has noticed yet. The old workers block, and the successor serves soon."""
    path = str(child.socket)
    key = prepare(path)
    with contextlib.ExitStack() as stack:
        stack.callback(frozen_disk.thaw)
        frozen_disk.freeze()
        before = child.pid
        child.hang_up()
        assert child.wait() == 0
        child.start_successor()
        with Connection(path) as connection:
            expect_seed(connection, 32)
            assert data_of(connection.ask(tktkey()), b"keybuf") == key
    expect_all_well(child, before)


def test_it_is_frozen_for_a_while(child: MasterChild, frozen_disk: Disk) -> None:
    """Workers without files serve already: not a client notices the reload."""
    path = str(child.socket)
    key = prepare(path)
    with contextlib.ExitStack() as stack:
        stack.callback(frozen_disk.thaw)
        frozen_disk.freeze()
        for number in range(8):
            connection = stack.enter_context(Connection(path))
            connection.send(update(b"smtp", b"blocked %d" % number, b"x"))
        wait_until(lambda: child.texts("a file system does not respond"), PATIENCE)
        wait_until(lambda: len(child.workers()) == 4, PATIENCE)
        clients = stack.enter_context(SteadyClients(path, 8))
        for _ in range(2):
            served, before = clients.served, child.pid
            wait_until(lambda n=served: clients.served > n + 50, PATIENCE)  # type: ignore[misc]
            child.reload()
        served = clients.served
        wait_until(lambda: clients.served > served + 50, PATIENCE)
        assert data_of(ask(path, tktkey()), b"keybuf") == key
        frozen_disk.thaw()
        served = clients.served
        wait_until(lambda: clients.served > served + 50, PATIENCE)
    assert clients.failures == []
    assert clients.lost == 0
    assert clients.longest < 1.0
    expect_all_well(child, before)


def test_it_is_frozen_a_moment_after(child: MasterChild, frozen_disk: Disk) -> None:
    """An old worker that only serves seeds touches no file any more, so that it is not blocked."""
    path = str(child.socket)
    prepare(path)
    with contextlib.ExitStack() as stack:
        stack.callback(frozen_disk.thaw)
        stays = stack.enter_context(Connection(path))
        expect_seed(stays, 32)
        before = child.pid
        old = {worker.pid: worker for worker in child.workers()}
        child.reload()
        frozen_disk.freeze()
        end = time.monotonic() + 10 * CHECK_INTERVAL
        while time.monotonic() < end:
            expect_seed(stays, 32)
            left = [worker for worker in old.values() if is_alive(worker)]
            assert left, "one serves this client"
            assert psutil.STATUS_DISK_SLEEP not in [worker.status() for worker in left]
            time.sleep(0.05)
    expect_all_well(child, before)


def prepare(path: str) -> bytes:
    """Store a session; return the ticket key."""
    with Connection(path) as connection:
        assert connection.ask(update(b"smtp", b"id", b"session")) == OK
        return data_of(connection.ask(tktkey()), b"keybuf")


def expect_all_well(child: MasterChild, before: int) -> None:
    """Expect the session, when the disk responds again; and no process too many."""
    path = str(child.socket)
    wait_until(lambda: ask(path, lookup(b"smtp", b"id")) == found(b"session"), PATIENCE)
    wait_until(lambda: len(child.group()) == PROCESSES, PATIENCE)
    line = child.texts("took over|starting with new keys: [^n]")[-1]
    assert line.startswith(f"took over from process {before}: session ticket key")
    assert line.endswith(", smtpd cache, smtp cache")
    assert child.texts("starts empty|recreated|damaged") == []
