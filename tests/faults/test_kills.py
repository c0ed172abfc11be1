"""kill -9 of each kind of process at random moments."""

from __future__ import annotations

import contextlib
import random
import time

import psutil
import pytest
from support.daemon_process import Daemon, MakeDaemon, wait_for
from support.fault_load import RETRY_PAUSE, Wait
from support.fault_table import FaultTable

pytestmark = pytest.mark.faults

SOON = 5.0  # seconds in which a client notices that the daemon is gone
BEFORE = 0.1  # seconds that a client may take to notice that its connection is broken
NAMES = ("tlsmgr-worker", "tlsmgr-janitor")


def children(daemon: Daemon) -> list[psutil.Process]:
    """Return the live workers and the janitor."""
    found = []
    for child in psutil.Process(daemon.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name() in NAMES and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    return found


def is_hit_twice(wait: Wait, kills: list[float]) -> bool:
    """Return whether both connections of a request may have been those of a killed worker."""
    end = wait.began + wait.seconds + RETRY_PAUSE
    return sum(wait.began - BEFORE <= kill <= end for kill in kills) > 1


@pytest.mark.parametrize(
    "kills",
    [6, pytest.param(100, marks=pytest.mark.long), pytest.param(1000, marks=pytest.mark.long)],
)
def test_kills(make_daemon: MakeDaemon, faults: FaultTable, kills: int) -> None:
    """At least one worker is left each time; no update is lost and no file is made new."""
    daemon = make_daemon("tlsmgr_worker_processes=4")
    dice = random.Random(kills)
    with faults.under_load(daemon, f"{kills} kills of workers and janitor") as load:
        times: list[float] = []
        while len(times) < kills:
            time.sleep(dice.uniform(0, 0.15))
            living = children(daemon)
            if sum(child.name() == NAMES[0] for child in living) > 1:
                with contextlib.suppress(psutil.NoSuchProcess):
                    began = time.monotonic()
                    dice.choice(living).kill()
                    times.append(began)
        wait_for(lambda: len(daemon.worker_pids()) == 4, "four workers")
    assert (load.lost, load.stale) == (0, 0)
    assert [wait for wait in load.failed if not is_hit_twice(wait, times)] == []
    assert "recreated" not in daemon.log()


@pytest.mark.parametrize("rounds", [3, pytest.param(40, marks=pytest.mark.long)])
def test_kills_of_the_parent(make_daemon: MakeDaemon, faults: FaultTable, rounds: int) -> None:
    """Its children end, and the next daemon starts on what it left."""
    dice = random.Random(rounds)
    first = make_daemon("tlsmgr_worker_processes=2", start=False)
    with contextlib.ExitStack() as stack:
        for _ in range(rounds):
            daemon = make_daemon("tlsmgr_worker_processes=2", state=str(first.state))
            stack.callback(psutil.Process(daemon.pid).kill)
            with faults.under_load(daemon, "parent killed", others_serve=False) as load:
                time.sleep(dice.uniform(0, 0.1))
                psutil.Process(daemon.pid).kill()
                daemon.wait()
                wait_for(lambda d=daemon: not d.processes(), "end of all")  # type: ignore[misc]
            assert all(wait.seconds < SOON for wait in load.waits())
            stack.pop_all()
