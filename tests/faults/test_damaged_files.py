"""Session files, their lock tables and their directories are damaged or removed under load."""

from __future__ import annotations

import os
import random
import shutil
import struct
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pytest
from support.daemon_clients import serve_on
from support.daemon_process import WATCHFUL, Daemon, MakeDaemon, wait_for
from support.fault_table import FaultTable

pytestmark = pytest.mark.faults

PAGE = 4096
ROOT_AT, TXNID_AT = 16 + 24 + 48 + 40, 16 + 24 + 2 * 48 + 8  # in a meta page of LMDB


def session_file(daemon: Daemon) -> Path:
    return daemon.directory / "smtp_scache.sessions"


def wait_until_it_heals(
    daemon: Daemon, workers: set[int], damage: Callable[[], object] = lambda: None
) -> None:
    """The file is made new, workers with the old one go, and sessions are kept again."""
    numbers = iter(range(1_000_000))

    def is_new() -> bool:
        damage()
        return serve_on(daemon, next(numbers)) and "recreated empty" in daemon.log()

    wait_for(is_new, "a new file")
    wait_for(lambda: not daemon.worker_pids() & workers, "new workers")
    wait_for(lambda: len(daemon.worker_pids()) == 2, "two workers")
    wait_for(lambda: all(serve_on(daemon, next(numbers)) for _ in range(20)), "sessions")


def test_a_lock_table_that_is_removed(make_daemon: MakeDaemon, faults: FaultTable) -> None:
    """Then a worker is killed: what was acknowledged after the new file was made is not lost."""
    daemon = make_daemon("tlsmgr_worker_processes=2")
    workers = daemon.worker_pids()
    session_file(daemon).with_name("smtp_scache.sessions-lock").unlink()
    os.kill(min(workers), 9)
    wait_until_it_heals(daemon, workers)
    with faults.under_load(daemon, "lock table removed, then workers killed") as load:
        for _ in range(3):
            time.sleep(0.2)
            daemon.workers()[0].kill()
        time.sleep(0.3)
    assert (load.lost, load.failed) == (0, [])
    assert daemon.log().count("recreated empty") == 1


@pytest.mark.long
def test_a_lock_table_that_is_removed_under_load(
    make_daemon: MakeDaemon, faults: FaultTable
) -> None:
    """Sessions may be lost with the file, but no two workers write it under different locks."""
    daemon = make_daemon("tlsmgr_worker_processes=2")
    workers = daemon.worker_pids()
    with faults.under_load(daemon, "lock table removed under load") as load:
        session_file(daemon).with_name("smtp_scache.sessions-lock").unlink()
        os.kill(min(workers), 9)
        wait_until_it_heals(daemon, workers)
    assert (load.failed, load.stale) == ([], 0)


def newest_root(file: BinaryIO) -> int:
    """Return the number of the root page of the main table."""
    metas = []
    for number in (0, 1):
        file.seek(number * PAGE)
        page = file.read(PAGE)
        (root,) = struct.unpack_from("=Q", page, ROOT_AT)
        (txnid,) = struct.unpack_from("=Q", page, TXNID_AT)
        metas.append((txnid, root))
    return int(max(metas)[1])


def damage_root_page(file: BinaryIO) -> None:
    """Make the root page of the main table a branch page without an entry."""
    root = newest_root(file)
    assert 1 < root < os.fstat(file.fileno()).st_size // PAGE
    file.seek(root * PAGE + 10)
    file.write(struct.pack("=HH", 1, 16))  # mp_flags: P_BRANCH; mp_lower: no entry


def test_a_damaged_root_page(make_daemon: MakeDaemon, faults: FaultTable) -> None:
    """A transaction that has read the root may move it meanwhile: it is damaged again and again."""
    daemon = make_daemon("tlsmgr_worker_processes=2")
    with (
        faults.under_load(daemon, "root page damaged", others_serve=False) as load,
        open(session_file(daemon), "r+b", buffering=0) as file,
    ):
        workers = daemon.worker_pids()
        damage_root_page(file)
        os.kill(min(workers), 9)
        wait_until_it_heals(daemon, workers, partial(damage_root_page, file))
        load.remark = f"{daemon.log().count('killed by signal')} workers died"
    assert daemon.is_running
    assert (load.failed, load.stale) == ([], 0)
    assert daemon.log().count("killed by signal") <= 3, "each worker once, and one successor"


def damage_pages(path: Path, dice: random.Random) -> None:
    """Fill some pages behind the metas, where there are records, with random bytes."""
    with open(path, "r+b") as file:
        for _ in range(5):
            file.seek(dice.randrange(2, 64) * PAGE + dice.choice([0, 0, 8, 10, 16, 100]))
            file.write(dice.randbytes(dice.choice([2, 8, 64, PAGE])))


@pytest.mark.parametrize(
    "number", [1, *(pytest.param(n, marks=pytest.mark.long) for n in range(2, 14))]
)
def test_damaged_pages(make_daemon: MakeDaemon, faults: FaultTable, number: int) -> None:
    """Wherever the damage is: seeds are served, and in the end sessions are kept again."""
    daemon = make_daemon("tlsmgr_worker_processes=2")
    dice = random.Random(number)
    with faults.under_load(daemon, f"damaged pages, seed {number}") as load:
        for _ in range(3):
            damage_pages(session_file(daemon), dice)
            time.sleep(0.3)
        numbers = iter(range(1_000_000))
        began = time.monotonic()
        wait_for(
            lambda: all(serve_on(daemon, next(numbers)) for _ in range(20)), "sessions", timeout=60
        )
        load.remark = f"healed after {time.monotonic() - began:.1f} s"
    assert daemon.is_running
    assert load.failed == []


def test_a_data_directory_that_is_removed(
    make_daemon: MakeDaemon, faults: FaultTable, tmp_path: Path
) -> None:
    place = tmp_path / "data"
    daemon = make_daemon("tlsmgr_worker_processes=2", f"data_directory={place}", sabotage=WATCHFUL)
    with faults.under_load(daemon, "data_directory removed") as load:
        shutil.rmtree(place, ignore_errors=True)
        daemon.wait_for_log("cannot make smtp_scache.sessions")
        time.sleep(0.3)
    assert load.failed == []
    assert load.refused == []


def test_a_socket_directory_that_is_removed(make_daemon: MakeDaemon, faults: FaultTable) -> None:
    """Nobody can connect any more; clients that are connected are served on."""
    daemon = make_daemon("tlsmgr_worker_processes=2")
    with faults.under_load(daemon, "socket's directory removed", visitors=0) as load:
        place = Path(daemon.socket_path).parent
        place.rename(place.with_name("away"))
        time.sleep(0.5)
        place.with_name("away").rename(place)
    assert (load.broken, load.lost) == ([], 0)
