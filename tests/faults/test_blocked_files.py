"""A file system that blocks processes for good: frozen, as a snapshot does it for a moment."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.control_client import status_of
from support.daemon_clients import keeps_sessions, serves, touch_files
from support.daemon_process import PATIENCE, Daemon, MakeDaemon, wait_for
from support.fault_table import FaultTable
from support.frozen_disk import Disk, disk
from support.raw_client import NOT_DONE, OK, Connection, found, lookup, update

from tlsmgr.processes.scoreboard import STALL_TIME

pytestmark = pytest.mark.faults

SOON = 3.0  # seconds within which new connections are served again, on a machine that is not busy


@pytest.fixture
def frozen_disk(tmp_path: Path) -> Iterator[Disk]:
    with disk(tmp_path) as mounted:
        yield mounted


def on_disk(make_daemon: MakeDaemon, place: Disk, start: bool = True) -> Daemon:
    return make_daemon("tlsmgr_worker_processes=2", f"data_directory={place.path}", start=start)


def test_a_frozen_file_system_takes_no_seed_away(
    make_daemon: MakeDaemon, frozen_disk: Disk, faults: FaultTable
) -> None:
    daemon = on_disk(make_daemon, frozen_disk)
    with Connection(daemon.socket_path) as connection:
        assert connection.ask(update(b"smtp", b"before", b"old session")) == OK
    workers = daemon.worker_pids()
    with (
        faults.under_load(daemon, "file system frozen") as load,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(frozen_disk.thaw)
        frozen_disk.freeze()
        touch_files(daemon, stack)
        daemon.wait_for_log("a file system does not respond; sessions are not cached until it does")
        wait_for(lambda: serves(daemon), "service by processes that touch no file")
        for number in range(50):
            assert serves(daemon)
            with Connection(daemon.socket_path) as connection:
                assert connection.ask(update(b"smtp", b"%d" % number, b"dropped")) == NOT_DONE
        # Each client may have waited once, until others served: less than one seed of a hundred.
        wait_for(lambda: len(load.seed_waits(is_during=True)) > 1000, "seeds meanwhile")
        frozen_disk.thaw()
        daemon.wait_for_log("the file system responds again: sessions are cached")
    assert load.failed == []
    wait_for(lambda: keeps_sessions(daemon, b"after"), "sessions that are kept again")
    wait_for(lambda: len(daemon.workers()) == 2, "two workers")
    wait_for(lambda: all(keeps_sessions(daemon, b"x%d" % i) for i in range(20)), "all workers")
    with Connection(daemon.socket_path) as connection:
        assert connection.ask(lookup(b"smtp", b"before")) == found(b"old session"), (
            "nothing is lost"
        )
    assert "recreated" not in daemon.log()
    print(f"{len(daemon.worker_pids() & workers)} of 2 workers lived through it")


@pytest.mark.long
def test_the_time_without_service_is_short(
    make_daemon: MakeDaemon, frozen_disk: Disk, faults: FaultTable
) -> None:
    """From the first blocked request to the first seed of a new connection."""
    daemon = on_disk(make_daemon, frozen_disk)
    times = []
    for _ in range(3):
        wait_for(lambda: keeps_sessions(daemon, b"id"), "sessions that are kept")
        with (
            faults.under_load(
                daemon, "file system frozen, until it is served again", others_serve=False
            ) as load,
            contextlib.ExitStack() as stack,
        ):
            stack.callback(frozen_disk.thaw)
            frozen_disk.freeze()
            touch_files(daemon, stack)
            began = time.monotonic()
            wait_for(lambda: serves(daemon), "service")
            times.append(time.monotonic() - began)
            load.remark = f"served after {times[-1]:.2f} s"
        wait_for(lambda: len(daemon.workers()) == 2, "two workers")
    print("seconds until new connections are served:", *(f"{t:.2f}" for t in times))
    assert min(times) < SOON


def test_an_end_while_it_is_frozen(
    make_daemon: MakeDaemon, frozen_disk: Disk, faults: FaultTable
) -> None:
    """The parent does not wait for children that cannot end; they go as soon as they can."""
    daemon = on_disk(make_daemon, frozen_disk)
    with (
        faults.under_load(
            daemon, "SIGTERM while it is frozen", visitors=0, others_serve=False
        ) as load,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(frozen_disk.thaw)
        frozen_disk.freeze()
        touch_files(daemon, stack)
        wait_for(lambda: serves(daemon), "service")
        began = time.monotonic()
        assert daemon.stop() == 0
        took = time.monotonic() - began
        load.remark = f"ended after {took:.2f} s"
        assert took < PATIENCE / 2
        assert daemon.processes(), "some cannot end"
        assert "processes are blocked by a file system" in daemon.log()
        frozen_disk.thaw()
    wait_for(lambda: not daemon.processes(), "end of all processes")


def test_a_start_while_it_is_frozen(
    make_daemon: MakeDaemon, frozen_disk: Disk, faults: FaultTable
) -> None:
    """Seeds are served at once, sessions are cached when the file system responds."""
    daemon = on_disk(make_daemon, frozen_disk, start=False)
    frozen_disk.freeze()
    began = time.monotonic()
    daemon.start()
    took = time.monotonic() - began
    with faults.under_load(
        daemon, "start while the file system is frozen", others_serve=False
    ) as load:
        load.remark = f"start took {took:.2f} s"
        for _ in range(20):
            assert serves(daemon)
        assert not keeps_sessions(daemon, b"early")
    frozen_disk.thaw()
    assert load.failed == []
    wait_for(lambda: keeps_sessions(daemon, b"late"), "sessions that are kept")
    wait_for(lambda: all(keeps_sessions(daemon, b"x%d" % i) for i in range(20)), "all workers")
    wait_for(lambda: len(daemon.workers()) == 2, "two workers")  # the last may just be replaced


def test_a_frozen_exchange_file(
    make_daemon: MakeDaemon, frozen_disk: Disk, faults: FaultTable
) -> None:
    """It blocks the janitor alone; not a client notices, and sessions are cached on."""
    daemon = make_daemon(
        "tlsmgr_worker_processes=2",
        f"tls_random_exchange_name={frozen_disk.path}/prng_exch",
        "tls_random_prng_update_period=1",
    )
    wait_for((frozen_disk.path / "prng_exch").exists, "exchange file")
    with (
        faults.under_load(daemon, "exchange file on a frozen file system") as load,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(frozen_disk.thaw)
        janitor = daemon.janitor()
        frozen_disk.freeze()
        wait_for(lambda: janitor.status() == psutil.STATUS_DISK_SLEEP, "a blocked janitor")
        until = time.monotonic() + 2 * STALL_TIME
        while time.monotonic() < until:
            assert serves(daemon)
            assert keeps_sessions(daemon, b"id")
        assert status_of(daemon.socket_path)["reasons"] == [
            "the entropy source or the PRNG exchange file does not respond"
        ]
        frozen_disk.thaw()
        wait_for(lambda: janitor.status() == psutil.STATUS_SLEEPING, "a janitor that works")
    assert (load.failed, load.broken, load.refused, load.lost) == ([], [], [], 0)
    assert "respond" not in daemon.log()
    wait_for(lambda: status_of(daemon.socket_path)["state"] == "serving", "no reason any more")
