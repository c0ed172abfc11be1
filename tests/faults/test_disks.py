"""Disks that are full, out of inodes, or that answer with an error."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.daemon_clients import serve_on
from support.daemon_process import MakeDaemon, wait_for
from support.fault_table import FaultTable
from support.frozen_disk import MIB, disk
from support.small_disks import fill_up

pytestmark = pytest.mark.faults


def test_a_disk_that_fills_up_under_load(
    make_daemon: MakeDaemon, faults: FaultTable, small_disk: Path
) -> None:
    """Session files and exchange file are on it; every file is made new when there is room."""
    daemon = make_daemon(
        "tlsmgr_worker_processes=2",
        f"data_directory={small_disk}",
        f"tls_random_exchange_name={small_disk}/prng_exch",
        "tls_random_prng_update_period=1",
    )
    workers = daemon.worker_pids()
    with faults.under_load(daemon, "disk full") as load:
        filler = fill_up(small_disk)
        time.sleep(1.5)  # longer than the exchange file's period
        filler.unlink()
        time.sleep(0.2)
    assert daemon.worker_pids() == workers
    assert (load.failed, load.broken, load.refused) == ([], [], [])


@contextlib.contextmanager
def without_inodes(place: Path) -> Iterator[Path]:
    """A file system with room, on which no file can be made."""
    place.mkdir()
    options = "size=256m,nr_inodes=16,mode=0700"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small file system: needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_no_inodes(make_daemon: MakeDaemon, faults: FaultTable, tmp_path: Path) -> None:
    """A file that is lost can't be made new; it is when there is an inode again."""
    retry = "from tlsmgr.processes import filewatch; filewatch.RETRY_INTERVAL = 0.3"
    with without_inodes(tmp_path / "small") as place:
        daemon = make_daemon("tlsmgr_worker_processes=2", f"data_directory={place}", sabotage=retry)
        with faults.under_load(daemon, "no inodes") as load:
            fillers: list[Path] = []
            with contextlib.suppress(OSError):
                while True:
                    filler = place / f"filler {len(fillers)}"
                    filler.touch()
                    fillers.append(filler)
            (place / "smtp_scache.sessions").unlink()
            daemon.wait_for_log("cannot make smtp_scache.sessions: .*No space left on device")
            for filler in fillers:
                filler.unlink()
            daemon.wait_for_log("smtp_scache.sessions could be made|recreated empty")
            numbers = iter(range(1_000_000))
            wait_for(lambda: all(serve_on(daemon, next(numbers)) for _ in range(20)), "sessions")
        assert load.failed == []
        assert sum("cannot make" in line for line in daemon.lines()) == 1
        assert daemon.stop() == 0


DROP_CACHES = Path("/proc/sys/vm/drop_caches")
ERRORS = re.compile("Input/output error|killed by signal 7|Structure needs cleaning|damaged")


def drop_clean_pages() -> None:
    os.sync()
    DROP_CACHES.write_text("3")


def test_a_disk_with_errors(make_daemon: MakeDaemon, faults: FaultTable, tmp_path: Path) -> None:
    """The blocks behind a mounted file system are gone: EIO for calls, SIGBUS for the map."""
    if not os.access(DROP_CACHES, os.W_OK):
        pytest.skip(f"cannot write {DROP_CACHES}")
    with disk(tmp_path, 512 * MIB) as mounted:
        daemon = make_daemon("tlsmgr_worker_processes=2", f"data_directory={mounted.path}")
        with faults.under_load(daemon, "I/O errors") as load:
            daemon.send(signal.SIGSTOP)
            try:
                for worker in daemon.workers():
                    worker.kill()  # or its map would keep the pages in memory
                time.sleep(0.1)
                drop_clean_pages()
                os.truncate(tmp_path / "image", MIB)
            finally:
                daemon.send(signal.SIGCONT)
            wait_for(lambda: ERRORS.search(daemon.log()), "an error of the disk")
            for number in range(20):
                serve_on(daemon, number)
            wait_for(lambda: len(daemon.worker_pids()) == 2, "two workers")
        assert load.failed == []
        assert daemon.stop() == 0
